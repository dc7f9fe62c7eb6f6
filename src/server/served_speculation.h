// What drafts for the served model and who judges: what requests may ask for under `speculative`.
#pragma once
#include <string>
#include <vector>

namespace lathe {

struct ServedSpeculation {
  std::string method;  // of the drafts: "model", "self", "ngram"; empty: there are none
  std::string judge;   // its name in requests; empty: there is none
  // Of requests that do not name a judge; 0: they are exact.
  double judge_threshold = 0;
  // Of requests that name the judge and no threshold; 0: they must give one.
  double named_threshold = 0;
  struct RecallRow {
    double threshold = 0;
    double recall = 1;  // share of important tokens that the judge stops there
  };
  std::vector<RecallRow> calibration;        // empty: `judge_recall` cannot be asked for
  std::vector<double> certified_thresholds;  // with a bound on the risk (fit-judge)
  bool is_deterministic = true;              // a row's logits do not depend on its batch
};

}  // namespace lathe

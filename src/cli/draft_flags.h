// --draft and --draft-tokens: speculative decoding as the commands offer it.
#pragma once
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "cli/loaded_model.h"
#include "engine/engine.h"
#include "formats/judge_file.h"

namespace lathe {

struct DraftFlags {
  std::string draft;            // a model, "ngram", "self"; empty: none
  std::string tokens = "auto";  // or a number
  std::string judge;            // a judge file, "top-k", "kl", "typical"; empty: exact
  double judge_threshold = -1;  // -1: the judge file's
};
void add_draft_flags(CLI::App& command, DraftFlags& flags);

// The judge of the flags and its threshold.
struct ChosenJudge {
  std::string name;  // of the rule, or the file's without directory and suffix; empty: none
  double threshold = 0;
  std::optional<JudgeFile> file;  // none: a rule without training

  // A judge for one engine; null when there is none.
  std::unique_ptr<Judge> make() const;
};

// Checks the flags. Throws kInvalidArgument.
SpeculationOptions speculation_options(const DraftFlags& flags);

// What drafts for a model: loaded once, for one engine after the other.
class LoadedDraft {
 public:
  // Loads what the flags name; nothing for no --draft. Throws what loading throws, and
  // kInvalidArgument for a draft model with another vocabulary, or a judge that was not made for
  // this checkpoint.
  LoadedDraft(const DraftFlags& flags, const LoadedModel& target, const ModelFlags& model_flags,
              Exec& exec, const LoadOptions& options);
  // Makes the engine (of the target) speculate, if there is a draft.
  void attach(Engine& engine) const;
  // Without the judge.
  void attach_exact(Engine& engine) const;
  bool empty() const { return flags_.draft.empty(); }
  // What a draft model's cache takes for each token that the engine's holds; 0: no draft model.
  int64_t cache_token_bytes() const;
  std::string method() const;  // "ngram", "self", "model"; empty: none
  const ChosenJudge& judge() const { return judge_; }

 private:
  Model* model() const;  // that drafts; null: none

  DraftFlags flags_;
  SpeculationOptions options_;
  ChosenJudge judge_;
  Exec& exec_;
  KvFormat kv_format_;
  std::unique_ptr<LoadedModel> loaded_;     // --draft MODEL
  std::unique_ptr<Checkpoint> checkpoint_;  // --draft self
  std::unique_ptr<Model> copy_;
};

// Throws kInvalidArgument unless the token ids of both mean the same: equal texts for all ids that
// both have, and at most 128 ids of difference in number (padding).
void check_draft_vocabulary(const LoadedModel& target, const LoadedModel& draft);

// {"cycles", "drafted", "accepted", ..., "acceptance", "tokens_per_cycle", "lossy"}.
nlohmann::ordered_json speculation_json(const SpeculationUsage& usage);
// "accepted 61 % of 240 drafted tokens, 3.4 tokens a cycle"; empty when nothing was drafted.
std::string speculation_text(const SpeculationUsage& usage);

}  // namespace lathe

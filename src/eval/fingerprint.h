// The logits fingerprint of a model: its largest logits behind a fixed prompt, to see on the
// machine at hand whether its kernels compute what the machine that wrote the model computed.
#pragma once
#include <string>

#include "formats/manifest.h"
#include "model/model.h"

namespace lathe {

// Of sixteen fixed token ids, the sixteen largest logits behind them. `path` names what decides the
// bits: program version, kernels, cache format. Throws kInternal for a logit that is not finite.
LogitsFingerprint compute_fingerprint(Model& model, KvFormat kv_format, const std::string& path,
                                      Exec& exec);

struct FingerprintComparison {
  double max_difference = 0;  // over the stored logits; infinite when one is not a number here
  double tolerance = 0;       // what was allowed
  bool same_path = false;     // the stored path is this one: the bits must agree
  bool matches = false;
  // Whether a match says something: the logits are close, not only as close as the rounding noise
  // of this model lets two right results be (with 4-bit activations that may be as far as
  // anything).
  bool telling = false;
};
// Runs the stored prompt. Throws kCorruptData when the fingerprint cannot be of this model (token
// ids outside its vocabulary, no prompt).
FingerprintComparison compare_fingerprint(const LogitsFingerprint& stored, Model& model,
                                          KvFormat kv_format, const std::string& path, Exec& exec);

}  // namespace lathe

#include "cli/draft_flags.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "base/json.h"
#include "cli/judge_target.h"
#include "cli/key_means.h"
#include "cli/output.h"
#include "engine/speculation/model_drafter.h"
#include "engine/speculation/ngram_drafter.h"
#include "formats/requantized_checkpoint.h"

namespace lathe {
namespace {

constexpr int64_t kMaxVocabularyDifference = 128;

double per_cycle(const SpeculationUsage& usage) {
  return usage.cycles == 0 ? 0
                           : 1 + static_cast<double>(usage.accepted + usage.judge_accepted) /
                                     static_cast<double>(usage.cycles);
}
double acceptance(const SpeculationUsage& usage) {
  return usage.drafted == 0 ? 0
                            : static_cast<double>(usage.accepted + usage.judge_accepted) /
                                  static_cast<double>(usage.drafted);
}

// Throws for a judge that was not made for this model as it runs here, and what read_judge_file()
// throws.
ChosenJudge choose_judge(const DraftFlags& flags, const LoadedModel& target,
                         const ModelFlags& model_flags) {
  if (flags.judge.empty()) {
    if (flags.judge_threshold == -1) return {};
    fail(ErrorCode::kInvalidArgument, "--judge-threshold needs --judge");
  }
  if (flags.draft.empty()) {
    fail(ErrorCode::kInvalidArgument, "--judge decides about draft tokens; it needs --draft");
  }
  if (!(flags.judge_threshold >= 0) && flags.judge_threshold != -1) {
    fail(ErrorCode::kInvalidArgument, "--judge-threshold ", flags.judge_threshold,
         ": must be at least 0");
  }
  if (flags.judge == "top-k" || flags.judge == "kl" || flags.judge == "typical") {
    if (flags.judge_threshold < 0) {
      fail(ErrorCode::kInvalidArgument, "--judge ", flags.judge, " needs --judge-threshold");
    }
    if (flags.draft == "ngram" && baseline_judge(flags.judge)->needs_draft_logits()) {
      fail(ErrorCode::kInvalidArgument, "--judge ", flags.judge,
           " compares the model's probabilities with the draft's, and --draft ngram has none; "
           "give a draft model, or another judge");
    }
    return {.name = flags.judge, .threshold = flags.judge_threshold, .file = std::nullopt};
  }
  JudgeFile file = read_judge_file(flags.judge);
  const std::string unknown = check_judge_target(
      file, flags.judge, judge_target_of(target, model_flags), target.checkpoint().path());
  if (!unknown.empty()) {
    print_warning(str(flags.judge, ": of an older fit-judge: it does not say for which ", unknown,
                      " it was made"));
  }
  const double threshold =
      flags.judge_threshold >= 0 ? flags.judge_threshold : file.default_threshold;
  return {.name = std::filesystem::path(flags.judge).stem().string(),
          .threshold = threshold,
          .file = std::move(file)};
}

}  // namespace

void add_draft_flags(CLI::App& command, DraftFlags& flags) {
  command
      .add_option("--draft", flags.draft,
                  "Speculative decoding: draft tokens with a small model (a directory or GGUF file "
                  "with the same vocabulary), 'self' (a 4-bit copy of the model, made in memory) "
                  "or 'ngram' (from the text so far). Same text at temperature 0")
      ->type_name("MODEL|self|ngram");
  command
      .add_option("--draft-tokens", flags.tokens,
                  "Draft tokens of a step; auto: chosen as it goes, from measured times")
      ->capture_default_str()
      ->type_name("N|auto");
  command
      .add_option("--judge", flags.judge,
                  "Let draft tokens pass that the model would not have chosen, by a judge of "
                  "fit-judge, or by a rule without training (kl: not with --draft ngram). Not the "
                  "model's own text any more")
      ->type_name("FILE|top-k|kl|typical");
  command
      .add_option("--judge-threshold", flags.judge_threshold,
                  "Larger lets more pass; 0: exact (default: the judge file's). top-k: k; kl: "
                  "nats; typical: 0 to 1")
      ->type_name("X");
}

std::unique_ptr<Judge> ChosenJudge::make() const {
  if (file) return std::make_unique<LogisticJudge>(file->weight, file->bias);
  return name.empty() ? nullptr : baseline_judge(name);
}

SpeculationOptions speculation_options(const DraftFlags& flags) {
  SpeculationOptions options;
  if (flags.tokens == "auto") return options;
  const char* end = flags.tokens.data() + flags.tokens.size();
  const auto [last, error] = std::from_chars(flags.tokens.data(), end, options.num_tokens);
  if (error != std::errc() || last != end || options.num_tokens < 0 ||
      options.num_tokens > kMaxDraftTokens) {
    fail(ErrorCode::kInvalidArgument, "--draft-tokens ", flags.tokens, ": 0 to ", kMaxDraftTokens,
         ", or auto");
  }
  return options;
}

LoadedDraft::LoadedDraft(const DraftFlags& flags, const LoadedModel& target,
                         const ModelFlags& model_flags, Exec& exec, const LoadOptions& options)
    : flags_(flags),
      options_(speculation_options(flags)),
      judge_(choose_judge(flags, target, model_flags)),  // before anything is loaded
      exec_(exec),
      kv_format_(target.kv().live_format()) {
  if (empty() || flags.draft == "ngram") return;
  if (flags.draft == "self") {
    checkpoint_ = requantized_checkpoint(target.checkpoint(), weight_format_from_name("mxfp4"));
    ModelOptions self_options;
    self_options.max_sequence_tokens = options.max_sequence_tokens;
    copy_ = Model::load(*checkpoint_, self_options, exec);
    learn_key_means_for(kv_format_, target, *copy_, exec);
    return;
  }
  ModelFlags draft_flags = model_flags;
  draft_flags.kv = std::string(kv_format_name(kv_format_));
  draft_flags.kv_codec.clear();
  draft_flags.tensor_parallel = 1;  // small, and its steps are short: on the first GPU alone
  loaded_ = std::make_unique<LoadedModel>(flags.draft, draft_flags, exec, options);
  check_draft_vocabulary(target, *loaded_);
}

Model* LoadedDraft::model() const { return loaded_ != nullptr ? &loaded_->model() : copy_.get(); }

int64_t LoadedDraft::cache_token_bytes() const {
  return model() == nullptr ? 0 : kv_token_bytes(kv_format_, model()->config());
}

std::string LoadedDraft::method() const {
  return empty() || flags_.draft == "ngram" || flags_.draft == "self" ? flags_.draft : "model";
}

void LoadedDraft::attach(Engine& engine) const {
  attach_exact(engine);
  if (auto judge = judge_.make()) engine.set_judge(std::move(judge), judge_.threshold);
}

void LoadedDraft::attach_exact(Engine& engine) const {
  if (empty()) return;
  if (flags_.draft == "ngram") {
    engine.set_drafter(std::make_unique<NgramDrafter>(), options_);
    return;
  }
  Model& drafts = *model();
  const EngineOptions& target = engine.options();
  const int64_t max_tokens =
      std::min(target.max_sequence_tokens, drafts.config().max_position_embeddings);
  auto drafter = std::make_unique<ModelDrafter>(
      drafts, drafts.make_cache(kv_format_, target.cache_tokens, max_tokens),
      engine.config().vocab_size,
      ModelDrafterOptions{.max_num_seqs = target.max_num_seqs,
                          .max_batch_tokens = target.max_batch_tokens,
                          .max_mixed_prefill_tokens = target.max_mixed_prefill_tokens,
                          .prefix_cache = target.prefix_cache},
      exec_);
  if (options_.num_tokens < 0) drafter->measure();
  engine.set_drafter(std::move(drafter), options_);
}

void check_draft_vocabulary(const LoadedModel& target, const LoadedModel& draft) {
  const std::string names =
      str("the draft model ", draft.checkpoint().path(), " and ", target.checkpoint().path());
  const int64_t num_target = target.model().config().vocab_size;
  const int64_t num_draft = draft.model().config().vocab_size;
  if (std::abs(num_target - num_draft) > kMaxVocabularyDifference) {
    fail(ErrorCode::kInvalidArgument, names, " have ", num_draft, " and ", num_target,
         " tokens; a draft needs the same vocabulary (up to ", kMaxVocabularyDifference,
         " ids of padding)");
  }
  const Tokenizer& a = target.tokenizer();
  const Tokenizer& b = draft.tokenizer();
  const int64_t common = std::min(a.vocab_size(), b.vocab_size());
  for (int32_t id = 0; id < common; ++id) {
    if (a.token_bytes(id) == b.token_bytes(id) && a.is_special(id) == b.is_special(id)) continue;
    fail(ErrorCode::kInvalidArgument, names, " disagree about token ", id, " ('", b.token_bytes(id),
         "' and '", a.token_bytes(id), "'); a draft needs the same vocabulary");
  }
}

Json speculation_json(const SpeculationUsage& usage) {
  return {{"cycles", usage.cycles},
          {"drafted", usage.drafted},
          {"accepted", usage.accepted},
          {"judged", usage.judged},
          {"judge_accepted", usage.judge_accepted},
          {"corrected", usage.corrected},
          {"bonus", usage.bonus},
          {"logprob_deficit", usage.logprob_deficit},
          {"lossy", usage.judge_accepted > 0},
          {"acceptance", acceptance(usage)},
          {"tokens_per_cycle", per_cycle(usage)}};
}

std::string speculation_text(const SpeculationUsage& usage) {
  if (usage.cycles == 0) return "";
  char text[200];
  std::snprintf(text, sizeof text, "accepted %.0f %% of %lld drafted tokens, %.2f tokens a cycle",
                100 * acceptance(usage), static_cast<long long>(usage.drafted), per_cycle(usage));
  if (usage.judged == 0) return text;
  return str(text, "; the judge let ", usage.judge_accepted, " of ", usage.judged, " pass");
}

}  // namespace lathe

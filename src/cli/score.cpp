// lathe score: log-probabilities of given tokens, for scripts and tests.
#include <algorithm>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/eval_caches.h"
#include "cli/flags.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "eval/windows.h"

namespace lathe {
namespace {

constexpr std::size_t kTop = 32;  // logits reported at the last position

struct ScoreFlags {
  CommonFlags common;
  ModelFlags model;
  std::string path;
  bool gaps = false;
};

std::vector<int32_t> ids_of_line(const TextModel& model, const Json& line) {
  if (line.is_object() && line.contains("ids")) return token_ids_from_json(line["ids"]);
  if (line.is_object() && line.contains("text") && line["text"].is_string()) {
    return model.encode_text(line["text"].get<std::string>());
  }
  fail(ErrorCode::kInvalidArgument, "expected an object with 'ids' or 'text'");
}

// [[id, logit], ...], largest first, ties by id.
Json top_logits(std::span<const float> logits) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(kTop, order.size());
  const auto logit = [&](int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
      [&](int32_t a, int32_t b) { return logit(a) > logit(b) || (logit(a) == logit(b) && a < b); });
  Json top = Json::array();
  for (std::size_t i = 0; i < count; ++i) top.push_back({order[i], logit(order[i])});
  return top;
}

Json score_line(const LoadedModel& loaded, const Json& line, bool with_gaps, Exec& exec) {
  const std::vector<int32_t> ids = ids_of_line(loaded, line);
  const ModelConfig& config = loaded.model().config();
  if (ids.empty()) fail(ErrorCode::kInvalidArgument, "no tokens to score");
  if (static_cast<int64_t>(ids.size()) > config.max_position_embeddings) {
    fail(ErrorCode::kInvalidArgument, ids.size(), " tokens are more than the context of ",
         config.max_position_embeddings);
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= config.vocab_size) {
      fail(ErrorCode::kInvalidArgument, "token ", id, " is not below ", config.vocab_size);
    }
  }
  const MeasuredModel model = measured(loaded, /*chunk=*/0);
  const auto length = static_cast<int64_t>(ids.size());
  LogitStream stream(loaded.model(), model.make_cache(length), length, model.chunk_rows, exec);
  Json logprobs = Json::array();
  Json gaps = Json::array();
  Json top;
  const int64_t last = length - 1;
  for (stream.begin(ids, /*with_last=*/true); stream.next();) {
    for (int64_t i = 0; i < stream.num_rows(); ++i) {
      const std::span<const float> logits = stream.row(i);
      if (stream.first_position() + i == last) {
        top = top_logits(logits);
      } else {
        const float logit = logits[static_cast<std::size_t>(stream.target(i))];
        logprobs.push_back(static_cast<double>(logit) - log_sum_exp_f32(logits));
        if (with_gaps) gaps.push_back(*std::max_element(logits.begin(), logits.end()) - logit);
      }
    }
  }
  Json result = {{"ids", ids}, {"logprobs", std::move(logprobs)}, {"top", std::move(top)}};
  if (with_gaps) result["gaps"] = std::move(gaps);
  return result;
}

}  // namespace

void add_score_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<ScoreFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("score", "Log-probabilities of tokens: JSON lines in, JSON lines out");
  add_model_argument(*command, flags->path);
  command->add_flag(
      "--gaps", flags->gaps,
      "Also how far each token's logit is below the largest: 0 for the greedy choice");
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "Reads {\"ids\": [...]} or {\"text\": \"...\"} a line; writes {\"ids\", \"logprobs\", "
      "\"top\"}: logprobs[i] is the natural logarithm of the probability of token i + 1, top the "
      "32 "
      "largest [id, logit] behind the last token.\n\n"
      "Example:\n  echo '{\"text\": \"The sky is\"}' | lathe score smollm2.gguf --dtype fp32");
  command->callback([flags, &invocation] {
    invocation.run = [flags] {
      Runtime runtime(flags->common);
      const LoadedModel loaded(flags->path, flags->model, runtime.exec(),
                               {.quiet = loads_quietly(flags->common)});
      answer_json_lines(
          [&](const Json& line) { return score_line(loaded, line, flags->gaps, runtime.exec()); });
    };
  });
}

}  // namespace lathe

#include "server/embeddings.h"

#include <bit>
#include <cmath>

#include "base/json.h"
#include "server/api_error.h"
#include "server/chat_prompt.h"
#include "server/prompt_runs.h"

namespace lathe {
namespace {

constexpr int64_t kMaxInputs = 2048;  // OpenAI's

std::vector<std::vector<int32_t>> read_inputs(const RequestFields& fields,
                                              const ServedModel& model) {
  const Json* value = fields.find("input");
  if (value == nullptr) bad_field("input", "input is missing");
  const bool add_special = fields.boolean("add_special_tokens").value_or(true);
  if (value->is_string()) return {text_prompt(model, value->get<std::string>(), add_special)};
  if (!value->is_array()) {
    bad_field("input", "input must be a string or an array, not ", kind_of(*value));
  }
  if (value->empty()) bad_field("input", "input is empty");
  if (value->front().is_number()) return {token_ids(*value, "input", model.vocab_size)};
  if (static_cast<int64_t>(value->size()) > kMaxInputs) {
    bad_field("input", "input has ", value->size(), " texts; at most ", kMaxInputs);
  }
  std::vector<std::vector<int32_t>> inputs;
  for (std::size_t i = 0; i < value->size(); ++i) {
    const Json& item = (*value)[i];
    inputs.push_back(item.is_string() ? text_prompt(model, item.get<std::string>(), add_special)
                                      : token_ids(item, str("input[", i, "]"), model.vocab_size));
  }
  return inputs;
}

// The first `dimensions` numbers, scaled to length 1. A zero vector stays zero.
std::vector<float> normalized(std::vector<float> vector, std::size_t dimensions) {
  vector.resize(dimensions);
  double sum_sq = 0;
  for (const float x : vector) sum_sq += static_cast<double>(x) * static_cast<double>(x);
  const double scale = sum_sq > 0 ? 1 / std::sqrt(sum_sq) : 0;
  for (float& x : vector) x = static_cast<float>(static_cast<double>(x) * scale);
  return vector;
}

// Little-endian fp32 in base64 (RFC 4648, section 4), as OpenAI's clients ask for by default.
std::string base64(const std::vector<float>& vector) {
  static_assert(std::endian::native == std::endian::little);
  constexpr const char* kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto* bytes = reinterpret_cast<const unsigned char*>(vector.data());
  const std::size_t size = vector.size() * sizeof(float);
  std::string text;
  for (std::size_t i = 0; i < size; i += 3) {
    const std::size_t count = std::min<std::size_t>(3, size - i);
    uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) group = group << 8 | (j < count ? bytes[i + j] : 0u);
    for (std::size_t j = 0; j < 4; ++j) {
      text += j <= count ? kDigits[group >> (18 - 6 * j) & 63u] : '=';
    }
  }
  return text;
}

}  // namespace

HttpResponse embeddings(const ApiContext& context, const HttpRequest& request,
                        const ClientWatch& client) {
  const Json body = parse_body(request, context.limits.json);
  const RequestFields fields(body);
  check_model(fields, context.model);
  const std::string format = fields.string("encoding_format").value_or("float");
  if (format != "float" && format != "base64") {
    bad_field("encoding_format", "encoding_format is '", format.substr(0, 40),
              "'; it must be float or base64");
  }
  const std::vector<std::vector<int32_t>> inputs = read_inputs(fields, context.model);
  Usage usage;
  for (const std::vector<int32_t>& input : inputs) {
    const auto size = static_cast<int64_t>(input.size());
    if (size == 0) bad_field("input", "input has an empty text");
    if (size > context.runner.prompt_pass().max_tokens()) {
      throw ApiError(400,
                     str("input has a text of ", size, " tokens; at most ",
                         context.runner.prompt_pass().max_tokens(), " (--max-embedding-tokens)"),
                     "input", "context_length_exceeded");
    }
    usage.prompt_tokens += size;
  }
  const Admission::Ticket ticket = context.admission.admit(1);
  std::vector<PromptPassResult> results = run_prompts(
      context, client, inputs,
      context.pooling == Pooling::kMean ? PromptPassJob::Wants::kMean : PromptPassJob::Wants::kLast,
      0);
  const auto size = static_cast<int64_t>(results[0].hidden.size());
  const int64_t dimensions = fields.integer("dimensions", 1, size).value_or(size);
  Json data = Json::array();
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::vector<float> vector =
        normalized(std::move(results[i].hidden), static_cast<std::size_t>(dimensions));
    data.push_back({{"object", "embedding"},
                    {"index", i},
                    {"embedding", format == "base64" ? Json(base64(vector)) : Json(vector)}});
  }
  return json_response(
      {{"object", "list"},
       {"data", std::move(data)},
       {"model", context.model.id},
       {"usage", {{"prompt_tokens", usage.prompt_tokens}, {"total_tokens", usage.prompt_tokens}}}});
}

}  // namespace lathe

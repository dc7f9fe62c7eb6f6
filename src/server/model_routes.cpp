#include "server/model_routes.h"

#include "base/json.h"
#include "server/api_error.h"
#include "server/chat_prompt.h"
#include "server/token_json.h"

namespace lathe {
namespace {

Json model_json(const ServedModel& model) {
  return {{"id", model.id},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "lathe"},
          {"root", model.id},
          {"parent", nullptr},
          {"max_model_len", model.max_tokens}};
}

// What a template may rely on.
void check_tools(const Json& tools) {
  if (!tools.is_array()) bad_field("tools", "tools must be an array, not ", kind_of(tools));
  for (std::size_t i = 0; i < tools.size(); ++i) {
    if (tools[i].is_object()) continue;
    bad_field("tools", "tools[", i, "] must be an object, not ", kind_of(tools[i]));
  }
}

}  // namespace

HttpResponse list_models(const ApiContext& context) {
  return json_response({{"object", "list"}, {"data", Json::array({model_json(context.model)})}});
}

HttpResponse show_model(const ApiContext& context, const std::string& id) {
  if (id == context.model.id) return json_response(model_json(context.model));
  throw ApiError(
      404,
      str("the model '", id.substr(0, 200), "' is not served here; '", context.model.id, "' is"),
      "model", "model_not_found");
}

HttpResponse tokenize(const ApiContext& context, const HttpRequest& request) {
  const Json body = parse_body(request, context.limits.json);
  const RequestFields fields(body);
  const ServedModel& model = context.model;
  check_model(fields, model);
  const bool add_special = fields.boolean("add_special_tokens").value_or(true);
  const bool wants_strings = fields.boolean("return_token_strs").value_or(false);
  const std::optional<std::string> prompt = fields.string("prompt");
  const Json* tools = fields.find("tools");
  if (tools != nullptr) check_tools(*tools);
  std::vector<int32_t> ids;
  if (fields.find("messages") != nullptr) {
    ids = chat_prompt(model, fields, chat_messages(fields),
                      tools != nullptr ? *tools : Json(nullptr));
  } else {
    if (!prompt) bad_field("prompt", "give prompt or messages");
    ids = text_prompt(model, *prompt, add_special);
  }
  Json strings(nullptr);
  if (wants_strings) {
    strings = Json::array();
    for (const int32_t id : ids) strings.push_back(token_text(*model.tokenizer, id));
  }
  return json_response({{"count", ids.size()},
                        {"max_model_len", model.max_tokens},
                        {"tokens", ids},
                        {"token_strs", std::move(strings)}});
}

HttpResponse detokenize(const ApiContext& context, const HttpRequest& request) {
  const Json body = parse_body(request, context.limits.json);
  const RequestFields fields(body);
  check_model(fields, context.model);
  const Json* tokens = fields.find("tokens");
  if (tokens == nullptr) bad_field("tokens", "tokens is missing");
  const Tokenizer& tokenizer = *context.model.tokenizer;
  const std::vector<int32_t> ids = token_ids(*tokens, "tokens", tokenizer.vocab_size());
  return json_response({{"prompt", tokenizer.decode(ids, /*skip_special=*/false)}});
}

}  // namespace lathe

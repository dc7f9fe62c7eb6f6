// The conversation of a chat request as the token ids that the model was trained to see.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "server/request_fields.h"
#include "server/served_model.h"

namespace lathe {

// `messages` of a request, checked and brought into the form of chat templates: content a string
// (text parts joined by line feeds), arguments of tool calls objects, "developer" as "system".
// Throws ApiError 400.
nlohmann::ordered_json chat_messages(const RequestFields& fields);

// Renders messages (chat_messages()) with `tools` (null: none) and what the request says in
// add_generation_prompt, continue_final_message, chat_template_kwargs. Throws ApiError 400 when the
// template refuses them, or there is no template.
std::vector<int32_t> chat_prompt(const ServedModel& model, const RequestFields& fields,
                                 const nlohmann::ordered_json& messages,
                                 const nlohmann::ordered_json& tools);

// Ids of plain text, behind BOS where the model expects one and the caller wants it.
std::vector<int32_t> text_prompt(const ServedModel& model, const std::string& text,
                                 bool add_special_tokens);

}  // namespace lathe

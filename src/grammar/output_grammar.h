// What a request asks of the form of its answer (OpenAI's response_format, tools, tool_choice,
// parallel_tool_calls), and the grammar that keeps to it.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/json_schema.h"
#include "grammar/tool_calls.h"

namespace lathe {

struct OutputForm {
  enum class Content { kText, kJsonObject, kJsonSchema };
  enum class Calls { kNone, kAuto, kRequired, kNamed };
  struct Tool {
    std::string name;
    const nlohmann::ordered_json* parameters = nullptr;  // JSON schema; null: any object
    bool strict = false;
  };

  Content content = Content::kText;
  const nlohmann::ordered_json* schema = nullptr;  // of kJsonSchema
  Calls calls = Calls::kNone;
  std::vector<Tool> tools;  // kNamed: that one
  bool parallel_calls = true;
  Whitespace whitespace = Whitespace::kFlexible;
};

// From the body of a request, which it borrows. Throws kInvalidArgument, naming the field.
OutputForm output_form(const nlohmann::ordered_json& request);

// Null when the form asks for nothing: any text. family: how this model writes tool calls.
//   kAuto: content or calls, as the model likes. kRequired, kNamed: calls alone.
// A tool that is not strict, and whose schema has keywords that cannot be kept, takes any object.
// Throws kUnsupported for tools without a family, and what add_json_schema() throws, with
// "response_format" or the tool's name in front.
std::shared_ptr<const Grammar> output_grammar(const OutputForm& form,
                                              std::optional<ToolFamily> family);

}  // namespace lathe

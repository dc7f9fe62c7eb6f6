// What `response_format` and `tools` ask of an answer: a constraint on its tokens, and how its text
// becomes content and tool calls.
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/token_constraint.h"
#include "server/request_fields.h"
#include "server/served_model.h"

namespace lathe {

// News of one tool call. The first of a call has its id and name.
struct ToolCallDelta {
  int64_t index = 0;
  std::string id;
  std::string name;
  std::string arguments;  // the next piece of the JSON text
};

// Reads one choice's text as it comes.
class OutputParser {
 public:
  virtual ~OutputParser() = default;
  struct Delta {
    std::string content;
    std::vector<ToolCallDelta> tool_calls;
  };
  // is_last: the text ends here; what was held back comes out.
  virtual Delta push(std::string_view text, bool is_last) = 0;
  virtual bool has_tool_calls() const = 0;
};

struct OutputFormat {
  std::function<std::unique_ptr<TokenConstraint>()> make_constraint;  // empty: none
  std::function<std::unique_ptr<OutputParser>()> make_parser;         // empty: the text is content
  const nlohmann::ordered_json* tools = nullptr;  // for the chat template; null: none
};

// Throws ApiError 400 for what is malformed or cannot be kept to. The result borrows the request.
// may_call: tools count (a completion without a conversation has none).
OutputFormat output_format(const RequestFields& fields, const ServedModel& model, bool may_call);

}  // namespace lathe

#include "grammar/output_grammar.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/json_member.h"
#include "grammar/json_rules.h"

namespace lathe {
namespace {

constexpr std::size_t kMaxTools = 512;
constexpr std::size_t kMaxNameBytes = 128;

std::string text_member(const Json& object, const char* name, const std::string& where) {
  const Json* value = object.is_object() ? member(object, name) : nullptr;
  if (value == nullptr || !value->is_string()) {
    fail(ErrorCode::kInvalidArgument, where, ".", name, " must be a string");
  }
  return value->get<std::string>();
}

void check_optional_text(const Json& object, const char* name, const std::string& where) {
  if (member(object, name) != nullptr) text_member(object, name, where);
}

bool flag_member(const Json& object, const char* name, const std::string& where) {
  const Json* value = member(object, name);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    fail(ErrorCode::kInvalidArgument, where, ".", name, " must be true or false");
  }
  return value->get<bool>();
}

// The schema inside, for whatever type the format has: what is there must be right.
const Json* read_json_schema(const Json& holder) {
  const std::string where = "response_format.json_schema";
  if (!holder.is_object()) fail(ErrorCode::kInvalidArgument, where, " must be an object");
  check_optional_text(holder, "name", where);
  check_optional_text(holder, "description", where);
  flag_member(holder, "strict", where);
  const Json* schema = member(holder, "schema");
  if (schema == nullptr) fail(ErrorCode::kInvalidArgument, where, ".schema is missing");
  if (!schema->is_object()) {
    fail(ErrorCode::kInvalidArgument, where, ".schema must be a JSON schema");
  }
  return schema;
}

void read_response_format(const Json& format, OutputForm& form) {
  const std::string type = text_member(format, "type", "response_format");
  const Json* holder = member(format, "json_schema");
  const Json* schema = holder != nullptr ? read_json_schema(*holder) : nullptr;
  if (type == "text") return;
  if (type == "json_object") {
    form.content = OutputForm::Content::kJsonObject;
    return;
  }
  if (type != "json_schema") {
    fail(ErrorCode::kInvalidArgument, "response_format.type '", type.substr(0, 40),
         "' is none of text, json_object, json_schema");
  }
  if (schema == nullptr) {
    fail(ErrorCode::kInvalidArgument, "response_format.json_schema.schema is missing");
  }
  form.content = OutputForm::Content::kJsonSchema;
  form.schema = schema;
}

void read_tools(const Json& tools, OutputForm& form) {
  if (!tools.is_array()) fail(ErrorCode::kInvalidArgument, "tools must be a list");
  if (tools.size() > kMaxTools) {
    fail(ErrorCode::kInvalidArgument, "tools has ", tools.size(), " entries; at most ", kMaxTools);
  }
  for (std::size_t i = 0; i < tools.size(); ++i) {
    const std::string where = str("tools[", i, "]");
    if (text_member(tools[i], "type", where) != "function") {
      fail(ErrorCode::kInvalidArgument, where, ".type must be function");
    }
    const Json* function = member(tools[i], "function");
    OutputForm::Tool tool;
    tool.name = text_member(function != nullptr ? *function : Json(), "name", where + ".function");
    const bool is_good = !tool.name.empty() && tool.name.size() <= kMaxNameBytes &&
                         std::all_of(tool.name.begin(), tool.name.end(), [](char c) {
                           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                                  (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
                         });
    if (!is_good) {
      fail(ErrorCode::kInvalidArgument, where, ".function.name '", tool.name.substr(0, 40),
           "' must be of letters, digits, _, - and ., at most ", kMaxNameBytes);
    }
    for (const OutputForm::Tool& other : form.tools) {
      if (other.name == tool.name) {
        fail(ErrorCode::kInvalidArgument, where, ".function.name '", tool.name, "' comes twice");
      }
    }
    tool.parameters = member(*function, "parameters");
    if (tool.parameters != nullptr && !tool.parameters->is_object()) {
      fail(ErrorCode::kInvalidArgument, where, ".function.parameters must be a JSON schema");
    }
    check_optional_text(*function, "description", where + ".function");
    tool.strict = flag_member(*function, "strict", where + ".function");
    form.tools.push_back(std::move(tool));
  }
}

void read_tool_choice(const Json* choice, OutputForm& form) {
  using Calls = OutputForm::Calls;
  form.calls = form.tools.empty() ? Calls::kNone : Calls::kAuto;
  if (choice == nullptr) return;
  if (choice->is_object()) {
    if (text_member(*choice, "type", "tool_choice") != "function") {
      fail(ErrorCode::kInvalidArgument, "tool_choice.type must be function");
    }
    const Json* function = member(*choice, "function");
    const std::string name =
        text_member(function != nullptr ? *function : Json(), "name", "tool_choice.function");
    std::erase_if(form.tools, [&](const OutputForm::Tool& tool) { return tool.name != name; });
    if (form.tools.empty()) {
      fail(ErrorCode::kInvalidArgument, "tool_choice names '", name.substr(0, 40),
           "', which is not among the tools");
    }
    form.calls = Calls::kNamed;
    return;
  }
  const std::string name = choice->is_string() ? choice->get<std::string>() : "";
  if (name == "none") {
    form.calls = Calls::kNone;
  } else if (name == "required") {
    if (form.tools.empty()) {
      fail(ErrorCode::kInvalidArgument, "tool_choice is required, but there are no tools");
    }
    form.calls = Calls::kRequired;
  } else if (name != "auto") {
    fail(ErrorCode::kInvalidArgument, "tool_choice must be none, auto, required or {\"type\": ",
         "\"function\", \"function\": {\"name\": ...}}");
  }
}

// All byte strings that end with the mark and hold it nowhere else.
Dfa text_until(std::string_view mark) {
  Dfa dfa;
  dfa.symbol_end = kByteEnd;
  for (uint32_t b = 0; b < kByteEnd; ++b) dfa.class_starts.push_back(b);
  const std::size_t size = mark.size();
  for (std::size_t matched = 0; matched <= size; ++matched) {
    for (uint32_t b = 0; b < kByteEnd; ++b) {
      if (matched == size) {
        dfa.next.push_back(-1);
        continue;
      }
      // The longest beginning of the mark that this text ends with.
      const std::string text = std::string(mark.substr(0, matched)) + static_cast<char>(b);
      std::size_t length = std::min(text.size(), size);
      while (!text.ends_with(mark.substr(0, length))) --length;
      dfa.next.push_back(static_cast<int32_t>(length));
    }
    dfa.accepts.push_back(matched == size);
  }
  return dfa;
}

// All byte strings that do not begin with the mark. It is never complete: it may stop anywhere.
Dfa text_without_beginning(std::string_view mark) {
  Dfa dfa;
  dfa.symbol_end = kByteEnd;
  for (uint32_t b = 0; b < kByteEnd; ++b) dfa.class_starts.push_back(b);
  const auto size = static_cast<int32_t>(mark.size());
  for (int32_t matched = 0; matched <= size; ++matched) {  // state `size`: anything
    for (uint32_t b = 0; b < kByteEnd; ++b) {
      const bool goes_on =
          matched < size && static_cast<uint8_t>(mark[static_cast<std::size_t>(matched)]) == b;
      dfa.next.push_back(!goes_on ? size : matched + 1 < size ? matched + 1 : -1);
    }
    dfa.accepts.push_back(false);
  }
  return dfa;
}

class OutputBuilder {
 public:
  OutputBuilder(const OutputForm& form, std::optional<ToolFamily> family)
      : form_(form), family_(family), rules_(builder_, form.whitespace) {}

  std::shared_ptr<const Grammar> build() {
    using Calls = OutputForm::Calls;
    const bool has_calls = form_.calls != Calls::kNone && !form_.tools.empty();
    const bool is_text = form_.content == OutputForm::Content::kText;
    if (!has_calls && is_text) return nullptr;
    if (has_calls && !family_) {
      fail(ErrorCode::kUnsupported,
           "tools: this model's chat template knows no tool calls that lathe can read (the way of "
           "Qwen and Hermes, or of Llama 3)");
    }
    const RuleId root = builder_.add_rule();
    const StateId start = builder_.start(root);
    const StateId end = builder_.add_state();
    builder_.set_accepts(end);
    if (!is_text && (!has_calls || form_.calls == Calls::kAuto)) {
      builder_.add_call(start, content(), end);
    }
    if (has_calls) {
      const bool free_text = is_text && form_.calls == Calls::kAuto;
      if (family_ == ToolFamily::kHermes) {
        add_hermes(start, free_text, end);
      } else {
        add_llama3(start, free_text, end);
      }
    }
    return builder_.build(root);
  }

 private:
  RuleId content() {
    return with_context("response_format", [&] {
      return form_.content == OutputForm::Content::kJsonObject
                 ? add_json_object(builder_, form_.whitespace)
                 : add_json_schema(builder_, *form_.schema, form_.whitespace);
    });
  }

  RuleId arguments(const OutputForm::Tool& tool) {
    if (tool.parameters == nullptr) return rules_.any_object();
    return with_context("tool '" + tool.name + "'", [&] {
      try {
        // On its own first: a schema that fails halfway must leave nothing in this grammar.
        json_schema_grammar(*tool.parameters, form_.whitespace);
      } catch (const Error& error) {
        if (tool.strict || error.code() != ErrorCode::kUnsupported) throw;
        return rules_.any_object();
      }
      return add_json_schema(builder_, *tool.parameters, form_.whitespace);
    });
  }

  // {"name": "f", "KEY": ...} of one of the tools.
  RuleId call(const std::string& key) {
    const RuleId rule = builder_.add_rule();
    const StateId end = builder_.add_state();
    builder_.set_accepts(end);
    const StateId name = rules_.after_blanks(rules_.after_text(builder_.start(rule), "{\"name\":"));
    for (const OutputForm::Tool& tool : form_.tools) {
      StateId at = rules_.after_text(name, dump_json(Json(tool.name)) + ",");
      at = rules_.after_blanks(rules_.after_text(rules_.after_blanks(at), "\"" + key + "\":"));
      at = rules_.after_blanks(rules_.after_call(at, arguments(tool)));
      builder_.add_byte(at, '}', end);
    }
    return rule;
  }

  void add_hermes(StateId start, bool free_text, StateId end) {
    const StateId inside = builder_.add_state();  // behind <tool_call>
    StateId at = rules_.after_call(rules_.after_blanks(inside), call("arguments"));
    const StateId behind = rules_.after_text(rules_.after_blanks(at), "</tool_call>");
    builder_.add_epsilon(behind, end);
    if (free_text) {
      const RuleId text = builder_.add_lexeme(text_until("<tool_call>"), /*may_stop=*/true);
      builder_.add_call(start, text, inside);
      if (form_.parallel_calls) builder_.add_call(behind, text, inside);
      return;
    }
    builder_.add_text(start, "<tool_call>", inside);
    if (form_.parallel_calls && form_.calls != OutputForm::Calls::kNamed) {
      builder_.add_text(rules_.after_blanks(behind), "<tool_call>", inside);
    }
  }

  void add_llama3(StateId start, bool free_text, StateId end) {
    builder_.add_call(start, call("parameters"), end);
    if (!free_text) return;
    const RuleId text = builder_.add_lexeme(text_without_beginning("{\"name\""), true);
    builder_.add_call(start, text, end);
  }

  const OutputForm& form_;
  std::optional<ToolFamily> family_;
  GrammarBuilder builder_;
  JsonRules rules_;
};

}  // namespace

OutputForm output_form(const Json& request) {
  OutputForm form;
  if (!request.is_object()) fail(ErrorCode::kInvalidArgument, "the request must be an object");
  if (const Json* format = member(request, "response_format")) read_response_format(*format, form);
  if (const Json* tools = member(request, "tools")) read_tools(*tools, form);
  read_tool_choice(member(request, "tool_choice"), form);
  if (const Json* parallel = member(request, "parallel_tool_calls")) {
    if (!parallel->is_boolean()) {
      fail(ErrorCode::kInvalidArgument, "parallel_tool_calls must be true or false");
    }
    form.parallel_calls = parallel->get<bool>();
  }
  return form;
}

std::shared_ptr<const Grammar> output_grammar(const OutputForm& form,
                                              std::optional<ToolFamily> family) {
  return OutputBuilder(form, family).build();
}

}  // namespace lathe

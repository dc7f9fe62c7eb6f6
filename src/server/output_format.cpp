#include "server/output_format.h"

#include <random>
#include <utility>

#include "base/json.h"
#include "engine/grammar_constraint.h"
#include "grammar/output_grammar.h"
#include "grammar/token_grammar.h"
#include "server/api_error.h"

namespace lathe {
namespace {

// Clients send it back with the answer of the tool; it only has to be another one each time.
std::string new_call_id() {
  constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuvwxyz";
  std::random_device random;
  std::string id = "call_";
  for (int i = 0; i < 24; ++i) id += kLetters[random() % kLetters.size()];
  return id;
}

class CallParser : public OutputParser {
 public:
  CallParser(ToolFamily family, std::vector<std::string> names)
      : reader_(family, std::move(names)) {}

  Delta push(std::string_view text, bool is_last) override {
    ToolCallReader::News news = reader_.push(text, is_last);
    Delta delta;
    delta.content = std::move(news.content);
    for (ToolCallPiece& piece : news.calls) {
      delta.tool_calls.push_back({.index = piece.index,
                                  .id = piece.name.empty() ? "" : new_call_id(),
                                  .name = std::move(piece.name),
                                  .arguments = std::move(piece.arguments)});
    }
    return delta;
  }
  bool has_tool_calls() const override { return reader_.has_calls(); }

 private:
  ToolCallReader reader_;
};

// The field that a message is about: it begins with its name.
std::string field_of(const std::string& message) {
  for (const char* name : {"response_format", "tool_choice", "parallel_tool_calls"}) {
    if (message.rfind(name, 0) == 0) return name;
  }
  return message.rfind("tool", 0) == 0 ? "tools" : "response_format";
}

}  // namespace

OutputFormat output_format(const RequestFields& fields, const ServedModel& model, bool may_call) {
  OutputFormat result;
  try {
    OutputForm form = output_form(fields.json());
    if (!may_call) form.calls = OutputForm::Calls::kNone;
    const bool has_calls = form.calls != OutputForm::Calls::kNone;
    const auto family =
        model.chat_template != nullptr ? tool_family(model.chat_template->source()) : std::nullopt;
    if (auto grammar = output_grammar(form, family)) {
      if (model.vocabulary->end_ids().empty()) {
        fail(
            ErrorCode::kUnsupported,
            "response_format and tools: this model names no end token, so such an answer could not "
            "end");
      }
      auto tokens = std::make_shared<const TokenGrammar>(std::move(grammar), model.vocabulary);
      result.make_constraint = [tokens = std::move(tokens)] {
        return make_grammar_constraint(tokens);
      };
    }
    if (has_calls) {
      result.tools = fields.find("tools");
      std::vector<std::string> names;
      for (const OutputForm::Tool& tool : form.tools) names.push_back(tool.name);
      result.make_parser = [family = *family, names = std::move(names)] {
        return std::make_unique<CallParser>(family, names);
      };
    }
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kOutOfMemory || error.code() == ErrorCode::kInternal) throw;
    throw ApiError(400, error.what(), field_of(error.what()));
  }
  return result;
}

}  // namespace lathe

// lathe render: conversations to the text that the model reads, by its chat template.
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/loaded_model.h"
#include "cli/output.h"

namespace lathe {
namespace {

struct RenderFlags {
  CommonFlags common;
  std::string path;
};

Json render_line(const TextModel& model, const Json& line) {
  if (!line.is_object() || !line.contains("messages") || !line["messages"].is_array()) {
    fail(ErrorCode::kInvalidArgument, "expected an object with an array 'messages'");
  }
  const Json tools = line.contains("tools") ? line["tools"] : Json(nullptr);
  if (!tools.is_null() && !tools.is_array()) {
    fail(ErrorCode::kInvalidArgument, "'tools' is neither an array nor null");
  }
  bool add_generation_prompt = false;
  if (line.contains("add_generation_prompt")) {
    if (!line["add_generation_prompt"].is_boolean()) {
      fail(ErrorCode::kInvalidArgument, "'add_generation_prompt' is not true or false");
    }
    add_generation_prompt = line["add_generation_prompt"].get<bool>();
  }
  return model.render(line["messages"], tools, add_generation_prompt);
}

}  // namespace

void add_render_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<RenderFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("render", "Conversations to prompts: JSON lines in, JSON lines out");
  add_model_argument(*command, flags->path);
  add_common_flags(*command, flags->common);
  command->footer(
      "Reads {\"messages\": [...], \"tools\": [...], \"add_generation_prompt\": true} a line, "
      "writes a JSON string a line. What the template refuses is answered by {\"error\": ...}.\n\n"
      "Example:\n  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | lathe "
      "render "
      "smollm2.gguf");
  command->callback([flags, &invocation] {
    invocation.run = [flags] {
      const TextModel model(flags->path);
      if (!model.has_chat_template()) {  // one error instead of one a line
        fail(ErrorCode::kUnsupported, flags->path, " has no chat template");
      }
      answer_json_lines([&](const Json& line) { return render_line(model, line); });
    };
  });
}

}  // namespace lathe

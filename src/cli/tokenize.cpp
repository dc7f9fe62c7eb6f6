// lathe tokenize: JSON strings in, JSON arrays of token ids out, a line each.
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/loaded_model.h"
#include "cli/output.h"

namespace lathe {
namespace {

struct TokenizeFlags {
  CommonFlags common;
  std::string path;
  bool special = false;
  bool decode = false;
};

Json encode_line(const TextModel& model, const Json& line, bool special) {
  if (!line.is_string()) fail(ErrorCode::kInvalidArgument, "expected a JSON string");
  return model.tokenizer().encode(line.get<std::string>(), special);
}

Json decode_line(const TextModel& model, const Json& line) {
  return model.tokenizer().decode(token_ids_from_json(line), /*skip_special=*/false);
}

}  // namespace

void add_tokenize_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<TokenizeFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("tokenize", "Text to token ids: JSON lines in, JSON lines out");
  add_model_argument(*command, flags->path);
  command->add_flag("--special", flags->special,
                    "Parse the text of control tokens, such as <|im_end|>");
  command->add_flag("--decode", flags->decode, "The other way: arrays of ids to strings");
  add_common_flags(*command, flags->common);
  command->footer(
      "Reads a JSON string a line, writes an array of ids a line, without BOS or EOS.\n\n"
      "Example:\n  echo '\"Hello, world\"' | lathe tokenize smollm2.gguf");
  command->callback([flags, &invocation] {
    invocation.run = [flags] {
      const TextModel model(flags->path);
      model.tokenizer();  // without one, one error instead of one a line
      answer_json_lines([&](const Json& line) {
        return flags->decode ? decode_line(model, line) : encode_line(model, line, flags->special);
      });
    };
  });
}

}  // namespace lathe

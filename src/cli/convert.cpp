// lathe convert: a GGUF model as a Hugging Face directory.
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "formats/convert_gguf.h"
#include "text/model_text.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

struct ConvertFlags {
  CommonFlags common;
  std::string in, out;
  double max_shard_gb = 5;
};

void run_convert(const ConvertFlags& flags) {
  if (!(flags.max_shard_gb >= 0.001 && flags.max_shard_gb <= 1000)) {
    fail(ErrorCode::kInvalidArgument, "--max-shard-size ", flags.max_shard_gb,
         ": 0.001 to 1000 (GB)");
  }
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(flags.in);
  const auto* gguf = dynamic_cast<const GgufCheckpoint*>(checkpoint.get());
  if (gguf == nullptr) {
    fail(ErrorCode::kInvalidArgument, flags.in,
         ": not a GGUF file; it is a Hugging Face directory already");
  }
  ConvertOptions options;
  options.tokenizer_json = write_tokenizer_json(load_tokenizer_spec(*gguf));
  options.max_shard_bytes = static_cast<int64_t>(flags.max_shard_gb * 1e9);
  std::unique_ptr<Progress> progress;
  int64_t written = 0;
  options.on_progress = [&](int64_t done_bytes, int64_t total_bytes) {
    constexpr int64_t kMiB = int64_t{1} << 20;
    if (!progress) {
      progress =
          std::make_unique<Progress>("converting", total_bytes / kMiB, "MiB", flags.common.json);
    }
    progress->advance(done_bytes / kMiB - progress->done());
    written = done_bytes;
  };
  convert_gguf_to_hf(*gguf, flags.out, options);
  progress.reset();
  if (flags.common.json) {
    print_json({{"source", flags.in}, {"out", flags.out}, {"weight_bytes", written}});
  } else {
    print_line(str(flags.out, ": ", format_bytes(static_cast<double>(written)),
                   " of bf16 weights written"));
  }
}

}  // namespace

void add_convert_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<ConvertFlags>();  // shared: the callback outlives this function
  CLI::App* command = app.add_subcommand("convert", "A GGUF file to a Hugging Face directory");
  command->add_option("IN", flags->in, "The GGUF file")->required()->type_name("");
  command->add_option("OUT", flags->out, "The directory to write")->required()->type_name("");
  command->add_option("--max-shard-size", flags->max_shard_gb, "Largest weight file, in GB")
      ->capture_default_str()
      ->type_name("GB");
  add_common_flags(*command, flags->common);
  command->footer(
      "Writes bf16 safetensors, config.json, tokenizer.json, tokenizer_config.json with the chat "
      "template.\n\nExample:\n  lathe convert smollm2.gguf smollm2-hf");
  command->callback([flags, &invocation] { invocation.run = [flags] { run_convert(*flags); }; });
}

}  // namespace lathe

// The program: finds the command, runs it, turns errors into one line and an exit code.
//   0  done    1  failed    2  wrong usage (a flag or argument that cannot be)
#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <new>
#include <vector>

#include "base/error.h"
#include "cli/command.h"
#include "cli/failure.h"
#include "cli/help.h"
#include "cli/output.h"
#include "cli/version.h"
#include "comm/launch.h"
#include "compress/blas.h"

namespace {

using lathe::kDone;
using lathe::kFailed;
using lathe::kUsage;

int report(int code, const std::string& message) {
  lathe::wait_for_turn();
  lathe::print_failure(message);
  return code;
}

// Once: OpenBLAS reads the variable only while it is loaded.
void restart_with_fast_blas(char** argv) {
  const char* core = lathe::better_blas_core();
  if (core == nullptr || setenv("OPENBLAS_CORETYPE", core, 1) != 0) return;
  execv("/proc/self/exe", argv);  // comes back only where it cannot; all works, slower
}

bool knows(const CLI::App& app, const std::string& command) {
  for (const CLI::App* known : app.get_subcommands({})) {
    if (known->get_name() == command) return true;
  }
  return false;
}

int run(int argc, char** argv) {
  CLI::App app("Lathe compresses language models, measures what that costs, and runs them.",
               "lathe");
  app.set_version_flag("--version", std::string("lathe ") + lathe::kLatheVersion);
  app.require_subcommand(1);
  app.footer(
      "'lathe COMMAND --help' (or 'lathe help COMMAND') explains a command.\n\nExample:\n"
      "  lathe generate smollm2.gguf \"Why is the sky blue?\"");
  app.formatter(lathe::make_help_formatter());
  lathe::Invocation invocation;
  invocation.command_line = "lathe";
  for (int i = 1; i < argc; ++i) invocation.command_line += std::string(" ") + argv[i];
  lathe::add_inspect_command(app, invocation);
  lathe::add_convert_command(app, invocation);
  lathe::add_quantize_command(app, invocation);
  lathe::add_fit_kv_command(app, invocation);
  lathe::add_compress_command(app, invocation);
  lathe::add_generate_command(app, invocation);
  lathe::add_chat_command(app, invocation);
  lathe::add_serve_command(app, invocation);
  lathe::add_eval_command(app, invocation);
  lathe::add_bench_command(app, invocation);
  lathe::add_fit_judge_command(app, invocation);
  lathe::add_selftest_command(app, invocation);
  lathe::add_tokenize_command(app, invocation);
  lathe::add_render_command(app, invocation);
  lathe::add_score_command(app, invocation);
  // "lathe help" and "lathe help quantize" ask for what --help prints.
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  if (!words.empty() && words[0] == "help") {
    words.erase(words.begin());
    words.emplace_back("--help");
  }
  if (!words.empty() && words[0].rfind('-', 0) != 0 && !knows(app, words[0])) {
    return report(kUsage, "there is no command '" + words[0] + "' (see 'lathe --help')");
  }
  try {
    std::reverse(words.begin(), words.end());  // CLI11 takes them from the back
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::string command = "lathe";
    for (const CLI::App* used : app.get_subcommands()) command += " " + used->get_name();
    if (lathe::launched().rank > 0)
      return kUsage;  // all ranks have this command line; rank 0 speaks
    return report(kUsage, lathe::usage_problem(error) + " (see '" + command + " --help')");
  }
  invocation.run();
  return kDone;
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_fast_blas(argv);  // first: nothing may have been done yet
  lathe::guard_standard_descriptors();
#ifdef M_MMAP_THRESHOLD
  // Or it grows to 32 MB as large blocks are freed, and those of a streamed model then come from
  // heaps that fill with holes: quantizing SmolLM2 held 650 MB instead of 270.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
  try {
    return run(argc, argv);
  } catch (const lathe::Error& error) {
    return report(lathe::exit_code_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return report(kFailed, "out of memory");
  } catch (const std::exception& error) {
    return report(kFailed, std::string("internal error: ") + error.what());
  }
}

// The commands of the program: each file turns flags into one call of the layers below and its
// result into text. The function adds a subcommand; parsing the command line fills `invocation`
// with what to run.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>

namespace lathe {

struct Invocation {
  std::string command_line;   // as typed, for manifests
  std::function<void()> run;  // throws Error; UsageError means a wrong command line
};

void add_inspect_command(CLI::App& app, Invocation& invocation);
void add_convert_command(CLI::App& app, Invocation& invocation);
void add_quantize_command(CLI::App& app, Invocation& invocation);
void add_compress_command(CLI::App& app, Invocation& invocation);
void add_fit_kv_command(CLI::App& app, Invocation& invocation);
void add_generate_command(CLI::App& app, Invocation& invocation);
void add_chat_command(CLI::App& app, Invocation& invocation);
void add_serve_command(CLI::App& app, Invocation& invocation);
void add_eval_command(CLI::App& app, Invocation& invocation);
void add_bench_command(CLI::App& app, Invocation& invocation);
void add_bench_kernels_command(CLI::App& bench, Invocation& invocation);
void add_bench_attention_command(CLI::App& bench, Invocation& invocation);
void add_bench_kv_command(CLI::App& bench, Invocation& invocation);
void add_fit_judge_command(CLI::App& app, Invocation& invocation);
void add_selftest_command(CLI::App& app, Invocation& invocation);
void add_tokenize_command(CLI::App& app, Invocation& invocation);
void add_render_command(CLI::App& app, Invocation& invocation);
void add_score_command(CLI::App& app, Invocation& invocation);

}  // namespace lathe

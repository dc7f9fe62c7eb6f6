// lathe selftest: does this machine compute what the model's maker computed?
#include <cmath>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "cli/speed.h"
#include "eval/fingerprint.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

struct SelftestFlags {
  CommonFlags common;
  ModelFlags model;
  std::string path;
  bool write = false;
};

// Throws kCorruptData, naming what is wrong. False: there are no digests to compare with.
bool check_files(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return false;
  const DirectoryReport report = verify_directory(path);
  if (report.state == DirectoryState::kWhole) return true;
  if (report.state == DirectoryState::kForeign) return false;
  std::string problems;
  for (const std::string& problem : report.problems) {
    problems += (problems.empty() ? "" : "; ") + problem;
  }
  fail(ErrorCode::kCorruptData, path, ": not intact: ", problems);
}

Json fingerprint_json(const FingerprintComparison& comparison) {
  return {
      {"matches", comparison.matches},
      {"max_difference",
       std::isfinite(comparison.max_difference) ? Json(comparison.max_difference) : Json(nullptr)},
      {"tolerance", comparison.tolerance},
      {"same_path", comparison.same_path},
      {"telling", comparison.telling}};
}

void run_selftest(const SelftestFlags& flags) {
  check_live_cache(flags.model, "selftest");
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
  const bool has_manifest = check_files(flags.path);
  if (flags.write && !has_manifest) {
    fail(ErrorCode::kInvalidArgument, "--write: ", flags.path,
         " has no lathe.json to keep a fingerprint in");
  }
  const LoadedModel loaded(flags.path, flags.model, exec, {.quiet = loads_quietly(flags.common)});
  Model& model = loaded.model();
  check_forward(model, live_cache(model, loaded.kv_format()), exec);
  const LogitsFingerprint here =
      compute_fingerprint(model, loaded.kv_format(), loaded.compute_path(), exec);

  Json json;
  json["model"] = flags.path;
  json["kernels"] = model.kernels();
  json["files"] = has_manifest ? Json("every file has its SHA-256") : Json(nullptr);
  json["forward"] = "batched and chunked logits equal those of single tokens";
  json["fingerprint"] = nullptr;
  std::string verdict = "no fingerprint to compare with";
  bool matches = true;
  if (flags.write) {
    Manifest manifest = read_manifest(flags.path);
    manifest.fingerprint = here;
    write_manifest(flags.path, manifest);
    verdict = "fingerprint written";
  } else if (has_manifest) {
    if (const auto stored = read_manifest(flags.path).fingerprint) {
      const FingerprintComparison comparison =
          compare_fingerprint(*stored, model, loaded.kv_format(), loaded.compute_path(), exec);
      json["fingerprint"] = fingerprint_json(comparison);
      matches = comparison.matches;
      verdict = str("logits differ by at most ", comparison.max_difference, ", allowed is ",
                    comparison.tolerance,
                    comparison.same_path ? " (the same kernels)" : " (other kernels)");
      if (matches && !comparison.telling) {
        verdict += "; that says little: rounding noise alone may move this model's logits so far";
      }
    }
  }
  json["passed"] = matches;
  if (flags.common.json) print_json(json);
  if (!matches) {
    fail(ErrorCode::kInternal, flags.path, ": ", verdict,
         "; try LATHE_FORCE_KERNEL=ref, and report it as a bug if that one agrees");
  }
  if (!flags.common.json) {
    print_line(
        str(has_manifest ? "files        intact\n" : "files        nothing to compare with\n",
            "forward      batched and chunked logits equal those of single tokens\n",
            "fingerprint  ", verdict));
  }
}

}  // namespace

void add_selftest_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<SelftestFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("selftest", "Does this machine compute the model rightly?");
  add_model_argument(*command, flags->path);
  command->add_flag("--write", flags->write,
                    "Keep the logits computed here in lathe.json, for other machines to compare");
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "Compares files with their checksums, batched with single-token logits, and the logits "
      "behind a fixed prompt with those that 'quantize' or 'compress' kept in lathe.json. --kv "
      "takes "
      "what needs no codec: codes of the cache change the logits.\n\n"
      "Example:\n  lathe selftest OUT");
  command->callback([flags, &invocation] { invocation.run = [flags] { run_selftest(*flags); }; });
}

}  // namespace lathe

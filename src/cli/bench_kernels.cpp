// lathe bench kernels: linear layers by themselves, beside what memory and arithmetic units allow.
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/linear_speed.h"
#include "cli/output.h"
#include "kernels/features.h"
#include "kernels/peaks/peaks.h"

namespace lathe {
namespace {

struct KernelFlags {
  CommonFlags common;
  std::string kernel;
  std::vector<std::string> formats = {"mxfp4", "nvfp4", "mxfp4/f32", "bf16"};
  // Qwen2.5 1.5B and 0.5B: q/k/v, o, gate/up, down.
  std::vector<std::string> shapes = {"2048x1536", "1536x1536", "17920x1536", "1536x8960",
                                     "1152x896",  "9728x896",  "896x4864"};
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 64, 512};
  double seconds = 0.3;
  double copies_mib = 96;
};

void print_heading(double bandwidth, double mac_rate, int threads) {
  char text[400];
  std::snprintf(text, sizeof text,
                "%d threads, cpu %s, read bandwidth %.1f GB/s, fp32 %.1f GMAC/s\n"
                "%-14s %14s %5s %10s %10s %8s %6s %9s %6s %9s %9s",
                threads, cpu_features_text().c_str(), bandwidth * 1e-9, mac_rate * 1e-9, "format",
                "n x k", "rows", "us", "fastest", "GB/s", "of BW", "GMAC/s", "of FMA", "prep us",
                "MAC/cycle");
  print_line(text);
}

void print_row(const std::string& format, const std::string& shape, const Json& speed) {
  const auto number = [&](const char* key) {
    return speed[key].is_null() ? 0.0 : speed[key].get<double>();
  };
  char text[240];
  std::snprintf(
      text, sizeof text, "%-14s %14s %5lld %10.1f %10.1f %8.2f %5.0f%% %9.1f %5.0f%% %9.1f %9.1f",
      format.c_str(), shape.c_str(), static_cast<long long>(number("rows")),
      number("seconds") * 1e6, number("fastest_seconds") * 1e6, number("bytes_per_second") * 1e-9,
      100 * number("bandwidth_share"), number("macs_per_second") * 1e-9, 100 * number("fma_share"),
      number("prepare_seconds") * 1e6, number("macs_per_core_and_cycle"));
  print_line(text);
}

Json share(double value, double peak) { return peak > 0 ? Json(value / peak) : Json(nullptr); }

void run_bench_kernels(const KernelFlags& flags) {
  std::vector<LinearShape> shapes;
  for (const std::string& shape : flags.shapes) shapes.push_back(linear_shape_from_text(shape));
  if (!(flags.seconds >= 0 && flags.seconds <= 3600) ||
      !(flags.copies_mib >= 0 && flags.copies_mib <= 65536)) {
    fail(ErrorCode::kInvalidArgument, "--time ", flags.seconds, ", --copies ", flags.copies_mib,
         ": 0 to 3600 seconds, 0 to 65536 MiB");
  }
  Runtime runtime(flags.common);
  if (flags.common.device != "cpu") {
    fail(ErrorCode::kInvalidArgument, "--device ", flags.common.device,
         ": bench kernels measures those of the CPU");
  }
  Exec& exec = runtime.exec();
  const int threads = exec.threads.num_threads();
  const double bandwidth = measure_read_bandwidth(exec);
  const double mac_rate = measure_fma_rate(exec) / 2;
  if (!flags.common.json) print_heading(bandwidth, mac_rate, threads);
  Json cases = Json::array();
  for (const std::string& format : flags.formats) {
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      LinearSpeedOptions options;
      options.format = format;
      options.shape = shapes[i];
      options.rows = flags.rows;
      options.kernel = flags.kernel;
      options.seconds = flags.seconds;
      options.bytes_of_copies = static_cast<int64_t>(flags.copies_mib * (1 << 20));
      for (const LinearSpeed& speed : measure_linear_speed(options, exec)) {
        const double bytes = static_cast<double>(speed.weight_bytes) / speed.median_seconds;
        const double macs =
            static_cast<double>(speed.rows * shapes[i].n * shapes[i].k) / speed.median_seconds;
        cases.push_back({{"operation", "linear"},
                         {"format", format},
                         {"n", shapes[i].n},
                         {"k", shapes[i].k},
                         {"rows", speed.rows},
                         {"kernel", speed.kernel},
                         {"weight_bytes", speed.weight_bytes},
                         {"seconds", speed.median_seconds},
                         {"fastest_seconds", speed.fastest_seconds},
                         {"prepare_seconds", speed.prepare_seconds},
                         {"bytes_per_second", bytes},
                         {"bandwidth_share", share(bytes, bandwidth)},
                         {"macs_per_second", macs},
                         {"fma_share", share(macs, mac_rate)},
                         {"macs_per_core_and_cycle", speed.macs_per_cycle},
                         {"difference_to_reference", speed.difference}});
        if (!flags.common.json) print_row(format, flags.shapes[i], cases.back());
      }
    }
  }
  if (!flags.common.json) return;
  print_json({{"device", flags.common.device},
              {"threads", threads},
              {"cpu_features", cpu_features_text()},
              {"read_bandwidth_bytes_per_second", bandwidth},
              {"fp32_macs_per_second", mac_rate},
              {"checked", true},
              {"cases", cases}});
}

}  // namespace

void add_bench_kernels_command(CLI::App& bench, Invocation& invocation) {
  auto flags = std::make_shared<KernelFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      bench.add_subcommand("kernels", "Linear layers by themselves, without a model");
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return command->add_option(name, value, help)->type_name(type)->delimiter(',');
  };
  add("--formats", flags->formats,
      "Weight formats, and activations behind a slash: mxfp4, nvfp4, int4, int8, fp8, mxfp8, bf16, "
      "f16, f32, mxfp4/f32, mxfp4/mxfp4, ... (default: mxfp4,nvfp4,mxfp4/f32,bf16)",
      "NAME,...");
  add("--shapes", flags->shapes, "Outputs x inputs (default: the layers of Qwen2.5 1.5B and 0.5B)",
      "NxK,...");
  add("--rows", flags->rows, "Rows of the input (default: 1,2,4,8,16,64,512)", "N,...");
  command
      ->add_option("--kernel", flags->kernel,
                   "Only this version: ref, avx2 or avx512 (default: the best of this machine)")
      ->type_name("NAME");
  command->add_option("--time", flags->seconds, "Seconds of repetitions for each line")
      ->capture_default_str()
      ->type_name("S");
  command
      ->add_option("--copies", flags->copies_mib,
                   "Walk through copies of a weight of this size, so that it comes from memory; 0: "
                   "one copy, from the cache")
      ->capture_default_str()
      ->type_name("MIB");
  add_common_flags(*command, flags->common);
  command->footer(
      "Each kernel is compared with the reference before it is timed; a wrong one ends the "
      "command. Times are\nmedians, MAC/cycle (per core) is of the fastest call.\n\n"
      "Example:\n  lathe bench kernels --formats mxfp4,bf16 --shapes 1536x8960 --rows 1,16");
  command->callback(
      [flags, &invocation] { invocation.run = [flags] { run_bench_kernels(*flags); }; });
}

}  // namespace lathe

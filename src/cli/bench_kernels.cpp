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
#ifdef LATHE_HAS_CUDA
#include "cli/cuda_linear_speed.h"
#include "kernels/peaks/peaks_cuda.h"
#endif

namespace lathe {
namespace {

struct KernelFlags {
  CommonFlags common;
  std::string kernel;
  // Empty: those of Defaults.
  std::vector<std::string> formats, shapes;
  std::vector<int64_t> rows;
  double seconds = 0.3;
  double copies_mib = -1;
};

struct Defaults {
  std::vector<std::string> formats, shapes;
  std::vector<int64_t> rows;
  double copies_mib;  // several times the last cache
};
// Qwen2.5 1.5B and 0.5B: q/k/v, o, gate/up, down.
const Defaults kCpuDefaults = {
    {"mxfp4", "nvfp4", "mxfp4/f32", "bf16"},
    {"2048x1536", "1536x1536", "17920x1536", "1536x8960", "1152x896", "9728x896", "896x4864"},
    {1, 2, 4, 8, 16, 64, 512},
    96};
// Llama 3.1 8B and 70B.
const Defaults kCudaDefaults = {{"mxfp4", "nvfp4", "fp8/fp8"},
                                {"6144x4096", "4096x4096", "28672x4096", "4096x14336", "10240x8192",
                                 "8192x8192", "57344x8192", "8192x28672"},
                                {1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096},
                                400};

KernelFlags with_defaults(KernelFlags flags, const Defaults& defaults) {
  if (flags.formats.empty()) flags.formats = defaults.formats;
  if (flags.shapes.empty()) flags.shapes = defaults.shapes;
  if (flags.rows.empty()) flags.rows = defaults.rows;
  if (flags.copies_mib < 0) flags.copies_mib = defaults.copies_mib;
  return flags;
}

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

LinearSpeedOptions options_of(const KernelFlags& flags, const std::string& format,
                              const std::string& shape) {
  LinearSpeedOptions options;
  options.format = format;
  options.shape = linear_shape_from_text(shape);
  options.rows = flags.rows;
  options.kernel = flags.kernel;
  options.seconds = flags.seconds;
  options.bytes_of_copies = static_cast<int64_t>(flags.copies_mib * (1 << 20));
  return options;
}

#ifdef LATHE_HAS_CUDA
void run_cuda_kernels(const KernelFlags& flags, int device) {
  CudaContext context(device);
  const double bandwidth = measure_cuda_read_bandwidth(context);
  const double rate = measure_cuda_bf16_rate(context);
  if (!flags.common.json) {
    char text[300];
    std::snprintf(text, sizeof text,
                  "%s, read bandwidth %.0f GB/s, cuBLAS BF16 %.0f TFLOP/s\n"
                  "%-12s %12s %5s %9s %7s %6s %8s %6s %8s %10s %8s  kernels",
                  context.name().c_str(), bandwidth * 1e-9, rate * 1e-12, "format", "n x k", "rows",
                  "us", "GB/s", "of BW", "TFLOP/s", "of BF16", "prep us", "cuBLAS us", "ratio");
    print_line(text);
  }
  Json cases = Json::array();
  for (const std::string& format : flags.formats) {
    for (const std::string& shape : flags.shapes) {
      const LinearSpeedOptions options = options_of(flags, format, shape);
      for (const CudaLinearSpeed& speed : measure_cuda_linear_speed(options, context)) {
        const double bytes = static_cast<double>(speed.weight_bytes) / speed.seconds;
        const double operations =
            2.0 * static_cast<double>(speed.rows * options.shape.n * options.shape.k) /
            speed.seconds;
        const double ratio = speed.cublas_seconds / speed.seconds;
        cases.push_back({{"operation", "linear"},
                         {"format", format},
                         {"n", options.shape.n},
                         {"k", options.shape.k},
                         {"rows", speed.rows},
                         {"kernels", speed.kernels},
                         {"weight_bytes", speed.weight_bytes},
                         {"seconds", speed.seconds},
                         {"prepare_seconds", speed.prepare_seconds},
                         {"cublas_bf16_seconds", speed.cublas_seconds},
                         {"ratio_to_cublas_bf16", ratio},
                         {"bytes_per_second", bytes},
                         {"bandwidth_share", share(bytes, bandwidth)},
                         {"operations_per_second", operations},
                         {"bf16_share", share(operations, rate)},
                         {"difference_to_exact", speed.difference}});
        if (flags.common.json) continue;
        char text[300];
        std::snprintf(text, sizeof text,
                      "%-12s %12s %5lld %9.2f %7.0f %5.0f%% %8.1f %6.0f%% %8.2f %10.2f %7.2fx  %s",
                      format.c_str(), shape.c_str(), static_cast<long long>(speed.rows),
                      speed.seconds * 1e6, bytes * 1e-9, 100 * bytes / bandwidth,
                      operations * 1e-12, 100 * operations / rate, speed.prepare_seconds * 1e6,
                      speed.cublas_seconds * 1e6, ratio, speed.kernels.c_str());
        print_line(text);
      }
    }
  }
  if (!flags.common.json) return;
  print_json({{"device", context.name()},
              {"read_bandwidth_bytes_per_second", bandwidth},
              {"cublas_bf16_operations_per_second", rate},
              {"checked", true},
              {"cases", cases}});
}
#endif

void run_bench_kernels(const KernelFlags& given) {
  Runtime runtime(given.common);
  const bool on_cuda = runtime.exec().on_cuda();
  const KernelFlags flags = with_defaults(given, on_cuda ? kCudaDefaults : kCpuDefaults);
  std::vector<LinearShape> shapes;
  for (const std::string& shape : flags.shapes) shapes.push_back(linear_shape_from_text(shape));
  if (!(flags.seconds >= 0 && flags.seconds <= 3600) ||
      !(flags.copies_mib >= 0 && flags.copies_mib <= 65536)) {
    fail(ErrorCode::kInvalidArgument, "--time ", flags.seconds, ", --copies ", flags.copies_mib,
         ": 0 to 3600 seconds, 0 to 65536 MiB");
  }
#ifdef LATHE_HAS_CUDA
  if (on_cuda) return run_cuda_kernels(flags, runtime.exec().cuda_device);
#endif
  Exec& exec = runtime.exec();
  const int threads = exec.threads.num_threads();
  const double bandwidth = measure_read_bandwidth(exec);
  const double mac_rate = measure_fma_rate(exec) / 2;
  if (!flags.common.json) print_heading(bandwidth, mac_rate, threads);
  Json cases = Json::array();
  for (const std::string& format : flags.formats) {
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      const LinearSpeedOptions options = options_of(flags, format, flags.shapes[i]);
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
      "f16, f32, mxfp4/f32, mxfp4/mxfp4, ... (default: mxfp4,nvfp4,mxfp4/f32,bf16; on a GPU "
      "mxfp4,nvfp4,fp8/fp8)",
      "NAME,...");
  add("--shapes", flags->shapes,
      "Outputs x inputs (default: the layers of Qwen2.5 1.5B and 0.5B; on a GPU those of Llama 3.1 "
      "8B and 70B)",
      "NxK,...");
  add("--rows", flags->rows, "Rows of the input (default: 1,2,4,8,16,64,512; on a GPU 1 to 4096)",
      "N,...");
  command
      ->add_option(
          "--kernel", flags->kernel,
          "Only this version: ref, avx2, avx512 or amx (default: the best of this machine)")
      ->type_name("NAME");
  command->add_option("--time", flags->seconds, "Seconds of repetitions for each line")
      ->capture_default_str()
      ->type_name("S");
  command
      ->add_option("--copies", flags->copies_mib,
                   "Walk through copies of a weight of this size, so that it comes from memory; 0: "
                   "one copy, from the cache (default: 96; on a GPU 400)")
      ->type_name("MIB");
  add_common_flags(*command, flags->common);
  command->footer(
      "Each kernel is compared with the reference before it is timed; a wrong one ends the "
      "command. Times are medians, MAC/cycle (per core) is of the fastest call. On a GPU the same "
      "product by cuBLAS in BF16 stands beside it, and what preparing the input takes.\n\n"
      "Example:\n  lathe bench kernels --formats mxfp4,bf16 --shapes 1536x8960 --rows 1,16");
  command->callback(
      [flags, &invocation] { invocation.run = [flags] { run_bench_kernels(*flags); }; });
}

}  // namespace lathe

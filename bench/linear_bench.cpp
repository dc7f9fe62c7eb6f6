// Speed of linear layers, each checked against the reference before it is timed:
//   linear_bench [--threads N] [--kernel avx2] [--format mxfp4,...] [--shape NxK,...]
//                [--rows 1,16,...] [--time SECONDS per case] [--bytes OF_COPIES]
// A case walks through copies of its weight (96 MiB), as a model walks through its layers; --bytes
// 1 keeps one, so that the speed of the arithmetic shows. Prints per case the best time, weight
// bytes per second (and their share of the measured read bandwidth), multiply-adds per second (and
// their share of the measured fp32 FMA rate), the time of prepare_input() and multiply-adds per
// core and cycle of the clock at that moment. Formats: those of the checkpoint (int8 activations),
// bf16, f16, f32 (dense), FORMAT/f32 (fp32 activations), FORMAT/mxfp4, FORMAT/nvfp4, ... (quantized
// activations).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_kernels.h"
#include "kernels/peaks/peaks.h"
#include "quant/encode.h"

namespace lathe {
namespace {

struct WeightShape {
  int64_t n, k;
};

struct Options {
  int threads = 0;
  std::string kernel = "avx2";
  std::vector<std::string> formats = {"mxfp4", "nvfp4", "mxfp4/f32", "bf16"};
  // Qwen2.5 1.5B and 0.5B: q/k/v, o, gate/up, down.
  std::vector<WeightShape> shapes = {{2048, 1536}, {1536, 1536}, {17920, 1536}, {1536, 8960},
                                     {1152, 896},  {9728, 896},  {896, 4864}};
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 64, 512};
  double time = 0.3;
  int64_t bytes = int64_t{96} << 20;  // of copies of a weight
};

struct Weight {
  QuantizedMatrix quantized;
  Tensor dense;
  LinearPart part;
  LinearScheme scheme;
  ComputeType compute = ComputeType::kAuto;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// A short random sequence, repeated: the numbers do not matter, the time to make them does.
std::vector<float> normal(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> pool(10007);
  for (float& value : pool) value = static_cast<float>(rng.normal());
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = pool[i % pool.size()];
  return values;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Cycles per second right now, from a chain of dependent additions: what a busy machine grants.
double clock_rate() {
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    uint64_t x = 1;
    for (int i = 0; i < 20000; ++i) {
#if defined(__x86_64__)
      asm volatile("add $1, %0" : "+r"(x));
#else
      x += x >> 63;
#endif
    }
    best = std::max(best, 20000 / seconds_since(start));
  }
  return best;
}

void make_weight(const std::string& name, const WeightShape& shape, Weight& weight) {
  const auto slash = name.find('/');
  const std::string format = name.substr(0, slash);
  const std::string activations = slash == std::string::npos ? "" : name.substr(slash + 1);
  const auto w = normal(shape.n * shape.k, 1);
  if (format == "bf16" || format == "f16" || format == "f32") {
    const TensorView view{
        DType::kF32, {shape.n, shape.k}, reinterpret_cast<const std::byte*>(w.data())};
    weight.dense = convert(view, format == "bf16"  ? DType::kBF16
                                 : format == "f16" ? DType::kF16
                                                   : DType::kF32);
    weight.part.dense = &weight.dense;
  } else {
    weight.quantized = quantize_absmax(weight_format_from_name(format), w.data(), shape.n, shape.k);
    weight.part.quantized = &weight.quantized;
  }
  if (activations == "f32") {
    weight.compute = ComputeType::kF32;
  } else if (!activations.empty()) {
    weight.scheme.activations = activation_format_from_name(activations);
  }
}

// The largest difference to the reference, relative to its largest value.
double check(const Weight& weight, const PackedLinear& packed, const std::vector<float>& x,
             int64_t m, Exec& exec) {
  const auto reference =
      pack_linear_for("ref", {&weight.part, 1}, weight.scheme, weight.compute, exec);
  std::vector<float> y(static_cast<std::size_t>(m * packed.n));
  std::vector<float> expected(y.size());
  const Workspace::Scope scope(exec.workspace);
  const LinearInput input = prepare_input(x.data(), m, packed, exec);
  linear(input, packed, y.data(), packed.n, exec);
  linear(input, *reference, expected.data(), packed.n, exec);
  double largest = 0;
  double worst = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    largest = std::max(largest, std::fabs(double{expected[i]}));
    const double difference = std::fabs(double{y[i]} - expected[i]);
    if (!(difference <= worst)) worst = difference;
  }
  return worst / largest;
}

int run(const Options& options) {
  ThreadPool threads(options.threads);
  Workspace workspace;
  Exec exec{threads, workspace};
  const double bandwidth = measure_read_bandwidth(exec);
  const double fma_rate = measure_fma_rate(exec) / 2;
  std::printf("%d threads, read bandwidth %.1f GB/s, fp32 %.1f GMAC/s\n", threads.num_threads(),
              bandwidth * 1e-9, fma_rate * 1e-9);
  std::printf("%-14s %14s %5s %10s %8s %6s %9s %6s %9s %9s\n", "format", "n x k", "m", "us", "GB/s",
              "of BW", "GMAC/s", "of FMA", "prep us", "MAC/cycle");
  for (const std::string& format : options.formats) {
    for (const WeightShape& shape : options.shapes) {
      Weight weight;
      make_weight(format, shape, weight);
      const auto pack = [&] {
        return pack_linear_for(options.kernel, {&weight.part, 1}, weight.scheme, weight.compute,
                               exec);
      };
      // Copies, so that a small weight does not stay in the cache between two uses.
      std::vector<std::unique_ptr<PackedLinear>> copies;
      copies.push_back(pack());
      const PackedLinear& packed = *copies[0];
      while (static_cast<int64_t>(copies.size()) * packed.weight_bytes < options.bytes) {
        copies.push_back(pack());
      }
      const int64_t max_rows = *std::max_element(options.rows.begin(), options.rows.end());
      const auto x = normal(max_rows * shape.k, 2);
      if (shape.n < 50000) {  // the reference keeps a float per weight
        const double error = check(weight, packed, x, std::min<int64_t>(max_rows, 3), exec);
        if (!(error < 1e-5)) {
          std::printf("%s %lldx%lld: differs from the reference by %g\n", format.c_str(),
                      static_cast<long long>(shape.n), static_cast<long long>(shape.k), error);
          return 1;
        }
      }
      std::vector<float> y(static_cast<std::size_t>(max_rows * shape.n));
      for (const int64_t m : options.rows) {
        double best = 1e9;
        double best_prepare = 1e9;
        double clock = 0;
        const auto begin = std::chrono::steady_clock::now();
        for (std::size_t i = 0; i < 5 || seconds_since(begin) < options.time; ++i) {
          const Workspace::Scope scope(workspace);
          const PackedLinear& w = *copies[i % copies.size()];
          auto start = std::chrono::steady_clock::now();
          const LinearInput input = prepare_input(x.data(), m, w, exec);
          best_prepare = std::min(best_prepare, seconds_since(start));
          start = std::chrono::steady_clock::now();
          linear(input, w, y.data(), shape.n, exec);
          best = std::min(best, seconds_since(start));
          if (i % 16 == 0) clock = std::max(clock, clock_rate());
        }
        const double bytes = static_cast<double>(packed.weight_bytes) / best;
        const double macs = static_cast<double>(m * shape.n * shape.k) / best;
        std::printf("%-14s %7lldx%-6lld %5lld %10.1f %8.2f %5.0f%% %9.1f %5.0f%% %9.1f %9.1f\n",
                    format.c_str(), static_cast<long long>(shape.n),
                    static_cast<long long>(shape.k), static_cast<long long>(m), best * 1e6,
                    bytes * 1e-9, 100 * bytes / bandwidth, macs * 1e-9, 100 * macs / fma_rate,
                    best_prepare * 1e6, macs / clock / threads.num_threads());
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) fail(ErrorCode::kInvalidArgument, flag, " needs a value");
    const std::string value = argv[i + 1];
    if (flag == "--threads") {
      options.threads = std::atoi(value.c_str());
    } else if (flag == "--kernel") {
      options.kernel = value;
    } else if (flag == "--format") {
      options.formats = split(value);
    } else if (flag == "--bytes") {
      options.bytes = std::atoll(value.c_str());
    } else if (flag == "--time") {
      options.time = std::atof(value.c_str());
    } else if (flag == "--rows") {
      options.rows.clear();
      for (const std::string& rows : split(value)) options.rows.push_back(std::atoll(rows.c_str()));
    } else if (flag == "--shape") {
      options.shapes.clear();
      for (const std::string& shape : split(value)) {
        const auto x = shape.find('x');
        if (x == std::string::npos) {
          fail(ErrorCode::kInvalidArgument, "--shape ", shape, ": expected NxK");
        }
        options.shapes.push_back({std::atoll(shape.c_str()), std::atoll(shape.c_str() + x + 1)});
      }
    } else {
      fail(ErrorCode::kInvalidArgument, "unknown flag ", flag);
    }
  }
  return options;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  try {
    return lathe::run(lathe::parse(argc, argv));
  } catch (const lathe::Error& error) {
    std::fprintf(stderr, "linear_bench: %s\n", error.what());
    return 2;
  }
}

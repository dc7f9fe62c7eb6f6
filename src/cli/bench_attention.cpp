// lathe bench attention: attention of one layer over a long context, by cache format, beside what
// memory allows.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "cache/kv_format.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/speed.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/features.h"
#include "kernels/peaks/peaks.h"
#include "model/rope_rows.h"

namespace lathe {
namespace {

struct AttentionFlags {
  CommonFlags common;
  std::vector<std::string> formats = {"bf16", "fp8", "int8", "q4", "higgs4", "higgs3", "higgs2"};
  std::vector<int64_t> rows = {1};
  int64_t context = 16384;
  int64_t num_heads = 14;  // Qwen2.5 0.5B
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  bool whole_keys = false;
  double seconds = 0.5;
};

// Bytes of layers that calls go through in turn, so that each reads from memory and not a cache.
constexpr int64_t kBytesOfLayers = int64_t{96} << 20;

// Cheap pseudo-random numbers in (-1, 1); what they are does not matter to the speed.
class Numbers {
 public:
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }

 private:
  uint64_t state_ = 1;
};

// Some layers with the same content, elsewhere in memory.
class Layers {
 public:
  Layers(const AttentionFlags& flags, KvElement element) {
    const int64_t num_blocks = (flags.context + kBlockSize - 1) / kBlockSize;
    const int64_t head_bytes = kv_head_bytes(element, flags.head_dim);
    const int64_t plane_bytes = flags.num_kv_heads * head_bytes;
    layer_bytes_ = num_blocks * 2 * plane_bytes;
    const int64_t count = std::max<int64_t>(2, kBytesOfLayers / layer_bytes_);
    memory_ = Buffer(count * layer_bytes_);
    std::memset(memory_.data(), 0, static_cast<std::size_t>(memory_.size()));
    Numbers numbers;
    std::vector<float> x(static_cast<std::size_t>(flags.head_dim));
    for (int64_t t = 0; t < flags.context; ++t) {
      for (int64_t p = 0; p < 2 * flags.num_kv_heads; ++p) {
        for (float& value : x) value = numbers.next();
        kv_store(element, p < flags.num_kv_heads ? KvPart::kKeys : KvPart::kValues, flags.head_dim,
                 x.data(), t % kBlockSize,
                 memory_.data() + t / kBlockSize * 2 * plane_bytes + p * head_bytes);
      }
    }
    for (int64_t layer = 0; layer < count; ++layer) {
      std::byte* begin = memory_.data() + layer * layer_bytes_;
      if (layer > 0) {
        std::memcpy(begin, memory_.data(), static_cast<std::size_t>(layer_bytes_));
      }
      for (int64_t b = 0; b < num_blocks; ++b) {
        const std::byte* keys = begin + b * 2 * plane_bytes;
        views_.push_back({keys, keys + plane_bytes});
      }
    }
    num_blocks_ = num_blocks;
    count_ = count;
  }
  const KvBlockView* next() { return views_.data() + turn_++ % count_ * num_blocks_; }
  int64_t layer_bytes() const { return layer_bytes_; }

 private:
  Buffer memory_;
  std::vector<KvBlockView> views_;
  int64_t layer_bytes_ = 0, num_blocks_ = 0, count_ = 0, turn_ = 0;
};

// What codes of keys are without (KeyOffset), of a rotation over the whole head.
class MeanKey {
 public:
  MeanKey(const AttentionFlags& flags, Numbers& numbers)
      : middles_(rope_frequencies({.theta = 10000}, flags.head_dim, flags.context, flags.context),
                 flags.context),
        rotary_dim_(flags.head_dim),
        mean_(static_cast<std::size_t>(flags.num_kv_heads * flags.head_dim)) {
    for (float& value : mean_) value = numbers.next();
  }
  KeyOffset offset() const {
    return {.offset = mean_.data(),
            .middles = middles_.middles.as<float>(),
            .from_middle = middles_.from_middle.as<float>(),
            .num_blocks = middles_.num_blocks,
            .rotary_dim = rotary_dim_};
  }

 private:
  RotationMiddles middles_;
  int64_t rotary_dim_;
  std::vector<float> mean_;
};

Json measure(const AttentionFlags& flags, const std::string& name, int64_t rows, Exec& exec) {
  const KvElement element = kv_element(kv_format_from_name(name));
  Layers layers(flags, element);
  const auto size = static_cast<std::size_t>(rows * flags.num_heads * flags.head_dim);
  Numbers numbers;
  std::vector<float> q(size), out(size), expected(size);
  for (float& value : q) value = 3 * numbers.next();
  const bool has_mean = kv_drops_key_offset(element) && !flags.whole_keys;
  const MeanKey mean(flags, numbers);
  const auto args = [&](const AttentionSegment& segment, std::vector<float>& to) {
    return AttentionArgs{.q = q.data(),
                         .q_stride = flags.num_heads * flags.head_dim,
                         .out = to.data(),
                         .segments = {&segment, 1},
                         .element = element,
                         .num_heads = flags.num_heads,
                         .num_kv_heads = flags.num_kv_heads,
                         .head_dim = flags.head_dim,
                         .scale = 1 / std::sqrt(static_cast<float>(flags.head_dim)),
                         .key_offset = has_mean ? mean.offset() : KeyOffset{}};
  };
  const auto segment = [&] {
    return AttentionSegment{0, rows, flags.context - rows, layers.next()};
  };
  const AttentionSegment first = segment();
  attention(args(first, out), exec);
  attention_ref(args(first, expected), exec);
  double difference = 0;
  for (std::size_t i = 0; i < size; ++i) {
    difference = std::max(difference, std::fabs(double{out[i]} - expected[i]));
  }
  // Values are below 1, weights sum to 1; codes round q and p to 1/32767 (attention_codes_simd.h).
  if (!(difference <= 1e-3)) {
    fail(ErrorCode::kInternal, "attention on a cache of ", name, " is off by ", difference,
         "; no speed is reported. Try LATHE_FORCE_KERNEL=ref, and report this as a bug");
  }
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds;
  const auto start = Clock::now();
  do {
    const AttentionSegment next = segment();
    const auto before = Clock::now();
    attention(args(next, out), exec);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - before).count());
  } while (seconds.size() < 5 ||
           std::chrono::duration<double>(Clock::now() - start).count() < flags.seconds);
  const double typical = median(seconds);
  return {{"format", name},
          {"rows", rows},
          {"layer_bytes", layers.layer_bytes()},
          {"seconds", typical},
          {"fastest_seconds", *std::min_element(seconds.begin(), seconds.end())},
          {"bytes_per_second", static_cast<double>(layers.layer_bytes()) / typical},
          {"difference_to_reference", difference}};
}

void check_format(const std::string& name, int64_t head_dim) {
  try {
    check_kv_element(kv_element(kv_format_from_name(name)), head_dim);
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, "--formats ", name, ": ", error.what());
  }
}

void run_bench_attention(const AttentionFlags& flags) {
  const auto in_range = [](int64_t value, int64_t high) { return value >= 1 && value <= high; };
  if (!in_range(flags.context, 1 << 22) || !in_range(flags.num_heads, 1024) ||
      !in_range(flags.num_kv_heads, flags.num_heads) || !in_range(flags.head_dim, 1024) ||
      flags.num_heads % flags.num_kv_heads != 0 || !(flags.seconds >= 0 && flags.seconds <= 3600)) {
    fail(ErrorCode::kInvalidArgument, "--context ", flags.context, ", --heads ", flags.num_heads,
         ", --kv-heads ", flags.num_kv_heads, ", --head-dim ", flags.head_dim, ", --time ",
         flags.seconds, ": up to 4194304 tokens, KV heads that divide the heads, 3600 seconds");
  }
  for (const int64_t rows : flags.rows) {
    if (rows >= 1 && rows <= std::min<int64_t>(flags.context, 4096)) continue;
    fail(ErrorCode::kInvalidArgument, "--rows ", rows, ": 1 to 4096, and no more than --context");
  }
  for (const std::string& name : flags.formats) check_format(name, flags.head_dim);
  Runtime runtime(flags.common);
  if (flags.common.device != "cpu") {
    fail(ErrorCode::kInvalidArgument, "--device ", flags.common.device,
         ": bench attention measures the CPU's");
  }
  Exec& exec = runtime.exec();
  const double bandwidth = measure_read_bandwidth(exec);
  char text[200];
  if (!flags.common.json) {
    std::snprintf(text, sizeof text,
                  "%d threads, cpu %s, read bandwidth %.1f GB/s\n%-8s %5s %12s %10s %10s %8s %6s",
                  exec.threads.num_threads(), cpu_features_text().c_str(), bandwidth * 1e-9,
                  "format", "rows", "bytes/token", "us", "fastest", "GB/s", "of BW");
    print_line(text);
  }
  Json cases = Json::array();
  for (const int64_t rows : flags.rows) {
    for (const std::string& name : flags.formats) {
      const Json row = measure(flags, name, rows, exec);
      cases.push_back(row);
      if (flags.common.json) continue;
      const double bytes = row["layer_bytes"].get<double>();
      const double seconds = row["seconds"].get<double>();
      std::snprintf(text, sizeof text, "%-8s %5lld %12.1f %10.1f %10.1f %8.2f %5.0f%%",
                    name.c_str(), static_cast<long long>(rows),
                    bytes / static_cast<double>(flags.context), seconds * 1e6,
                    row["fastest_seconds"].get<double>() * 1e6, bytes / seconds * 1e-9,
                    bandwidth > 0 ? 100 * bytes / seconds / bandwidth : 0.0);
      print_line(text);
    }
  }
  if (!flags.common.json) return;
  print_json({{"threads", exec.threads.num_threads()},
              {"cpu_features", cpu_features_text()},
              {"read_bandwidth_bytes_per_second", bandwidth},
              {"context", flags.context},
              {"num_heads", flags.num_heads},
              {"num_kv_heads", flags.num_kv_heads},
              {"head_dim", flags.head_dim},
              {"checked", true},
              {"cases", cases}});
}

}  // namespace

void add_bench_attention_command(CLI::App& bench, Invocation& invocation) {
  auto flags = std::make_shared<AttentionFlags>();  // shared: the callback outlives this function
  CLI::App* command = bench.add_subcommand(
      "attention", "Attention of one layer over a long context, by cache format");
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    command->add_option(name, value, help)->capture_default_str()->type_name(type)->delimiter(',');
  };
  add("--formats", flags->formats, "Cache formats, as --kv names them", "NAME,...");
  add("--rows", flags->rows, "Query rows of one sequence at the end of the context", "N,...");
  add("--context", flags->context, "Tokens in the cache", "N");
  add("--heads", flags->num_heads, "Query heads (default: those of Qwen2.5 0.5B)", "N");
  add("--kv-heads", flags->num_kv_heads, "KV heads", "N");
  add("--head-dim", flags->head_dim, "Size of a head", "N");
  add("--time", flags->seconds, "Seconds of repetitions for each line", "S");
  command->add_flag("--whole-keys", flags->whole_keys,
                    "Codes of whole keys, without the scores of a mean that they leave out");
  add_common_flags(*command, flags->common);
  command->footer(
      "Every format is compared with the reference kernel before it is timed.\n\n"
      "Example:\n  lathe bench attention --heads 12 --kv-heads 2 --head-dim 128");
  command->callback(
      [flags, &invocation] { invocation.run = [flags] { run_bench_attention(*flags); }; });
}

}  // namespace lathe

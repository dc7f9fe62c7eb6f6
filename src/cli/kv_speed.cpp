#include "cli/kv_speed.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "base/error.h"
#include "base/rng.h"
#include "cache/coded_kv_cache.h"
#include "cache/predictive_codec.h"
#include "kernels/kv_rows/kv_rows.h"
#include "model/rope_table.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Numbers that look enough like rows: uniform with the given standard deviation, bf16.
std::vector<float> made_up_numbers(int64_t count, uint64_t seed, double stddev) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (float& x : numbers) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<float>((static_cast<double>(state >> 40) * 0x1p-24 - 0.5) * 3.4641 * stddev);
  }
  KvPredictor rounded;
  rounded.w1 = std::move(numbers);
  round_predictor(rounded, DType::kBF16);
  return std::move(rounded.w1);
}

KvPredictor made_up_predictor(const KvCodecFile& file, KvPredictor::Weight weight,
                              std::vector<KvPredictorInput> inputs) {
  using Weight = KvPredictor::Weight;
  KvPredictor p;
  p.weight = weight;
  p.inputs = std::move(inputs);
  const int64_t d = file.shape.width();
  const int64_t in = kv_input_width(file, p);
  const double spread = 0.5 / std::sqrt(static_cast<double>(in + 1));
  if (weight == Weight::kDense) p.w1 = made_up_numbers(d * in, 1, spread);
  if (weight == Weight::kBlockDiagonal) {
    p.w1 =
        made_up_numbers(d * static_cast<int64_t>(p.inputs.size()) * file.shape.head_dim, 2, spread);
  }
  if (weight == Weight::kLowRank) {
    p.rank = std::max<int64_t>(1, d / 3);
    p.w1 = made_up_numbers(p.rank * in, 3, spread);
    p.w2 = made_up_numbers(d * p.rank, 4, 0.5);
  }
  p.bias = made_up_numbers(d, 5, 0.3);
  return p;
}

void add_latents(KvCodecFile& file, int64_t num_layers) {
  constexpr int64_t kGroup = 4;
  for (int64_t first = 0; first < num_layers; first += kGroup) {
    KvLatent z;
    for (int64_t l = first; l < std::min(first + kGroup, num_layers); ++l) z.layers.push_back(l);
    z.rank = std::max<int64_t>(2, file.shape.width() / 4 / 2 * 2);
    const int64_t in = static_cast<int64_t>(z.layers.size()) * file.shape.width();
    z.projection = made_up_numbers(z.rank * in, 6, 1 / std::sqrt(static_cast<double>(in)));
    z.mean = made_up_numbers(in, 7, 0.1);
    z.sigma.assign(static_cast<std::size_t>(z.rank), 1.0f);
    file.latents.push_back(std::move(z));
  }
}

template <typename Args>
void expect_equal(const std::vector<Args>& a, const std::vector<Args>& b, std::string_view kernel,
                  const char* what) {
  if (a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Args)) == 0) return;
  fail(ErrorCode::kInternal, what, " of kernel ", kernel, " differ from the reference's");
}

void check_plane(const KvCodecFile& file, const KvPlane& plane, Exec& exec) {
  constexpr int64_t kRows = 37;
  const int64_t width = file.shape.width();
  const std::vector<float> exact = made_up_numbers(kRows * width, 11, 1);
  const std::vector<float> prediction = made_up_numbers(kRows * width, 12, 0.7);
  std::vector<float> inverse_sigma;
  for (const float s : plane.sigma) inverse_sigma.push_back(1 / s);
  const int64_t stride = row_bytes(plane.format, file.shape);
  std::vector<std::byte> codes(static_cast<std::size_t>(kRows * stride));
  std::vector<float> rows;
  const auto run = [&](const Kernel<KvRowsArgs>& kernel) {
    rows = prediction;
    kernel.run({.format = plane.format,
                .shape = file.shape,
                .sigma = plane.sigma.empty() ? nullptr : plane.sigma.data(),
                .inverse_sigma = plane.sigma.empty() ? nullptr : inverse_sigma.data(),
                .exact = exact.data(),
                .rows = rows.data(),
                .codes = codes.data(),
                .code_stride = stride,
                .num_rows = kRows},
               exec);
  };
  run(encode_kv_rows_kernels().back());
  const auto wanted_codes = codes;
  const auto wanted_rows = rows;
  for (const auto& kernel : encode_kv_rows_kernels()) {
    if (!machine_has(kernel.needs)) continue;
    run(kernel);
    expect_equal(codes, wanted_codes, kernel.name, "codes");
    expect_equal(rows, wanted_rows, kernel.name, "encoded rows");
  }
  for (const auto& kernel : decode_kv_rows_kernels()) {
    if (!machine_has(kernel.needs)) continue;
    run(kernel);
    expect_equal(rows, wanted_rows, kernel.name, "decoded rows");
  }
}

void check_product(int64_t n, int64_t k, Exec& exec) {
  constexpr int64_t kRows = 29;
  const std::vector<float> x = made_up_numbers(kRows * k, 21, 1);
  const std::vector<float> start = made_up_numbers(kRows * n, 22, 1);
  const std::vector<float> w = made_up_numbers(n * k, 23, 1);
  std::vector<float> packed(static_cast<std::size_t>(multiply_add_weight_floats(n, k)));
  pack_multiply_add_weight(w.data(), n, k, k, packed.data());
  std::vector<float> y;
  const auto run = [&](const Kernel<MultiplyAddRowsArgs>& kernel) {
    y = start;
    kernel.run({.x = x.data(),
                .w = packed.data(),
                .y = y.data(),
                .num_rows = kRows,
                .k = k,
                .n = n,
                .x_stride = k,
                .y_stride = n},
               exec);
  };
  run(multiply_add_rows_kernels().back());
  const auto wanted = y;
  for (const auto& kernel : multiply_add_rows_kernels()) {
    if (!machine_has(kernel.needs)) continue;
    run(kernel);
    expect_equal(y, wanted, kernel.name, "products");
  }
}

// --- a cache with made-up rows
// --------------------------------------------------------------------

class MadeUpCache {
 public:
  MadeUpCache(const ModelConfig& config, const KvCodecFile& file, int64_t num_tokens, Exec& exec)
      : config_(config),
        exec_(exec),
        full_(config.rope, config.rotary_dim, config.max_position_embeddings, num_tokens),
        local_(config.rope_local, config.rotary_dim, config.max_position_embeddings, num_tokens),
        codec_(make_kv_codec(file, config)),
        cache_(config, *codec_, ropes(num_tokens),
               {.live_format = KvFormat::kBF16,
                .live_tokens = num_tokens + 2 * kBlockSize,
                .coded_tokens = num_tokens + kBlockSize,
                .max_sequence_tokens = num_tokens,
                .encode_while_running = false}),
        sequence_(cache_.new_sequence()),
        num_tokens_(num_tokens) {}

  double park() {
    // Anew: a woken sequence still has its codes, and parking it would take no time.
    cache_.release(sequence_);
    sequence_ = cache_.new_sequence();
    fill();
    const auto start = Clock::now();
    LATHE_CHECK(cache_.park(sequence_, exec_));
    return seconds_since(start);
  }
  double wake() {
    const auto start = Clock::now();
    LATHE_CHECK(cache_.wake(sequence_, exec_));
    return seconds_since(start);
  }
  // What attention at one layer sees of block b.
  std::vector<std::byte> block(int64_t layer, std::size_t b) {
    const KvRows run{&sequence_, 0, 0};
    cache_.begin_step({&run, 1}, exec_);
    std::vector<std::byte> bytes;
    for (int64_t l = 0; l <= layer; ++l) {
      cache_.append(l, nullptr, nullptr, nullptr, 0, exec_);
      const KvBlockView view = cache_.views(l, 0)[b];
      const auto size = static_cast<std::size_t>(kBlockSize * config_.kv_size() * 2);
      const auto* keys = static_cast<const std::byte*>(view.keys);
      const auto* values = static_cast<const std::byte*>(view.values);
      bytes.assign(keys, keys + size);
      bytes.insert(bytes.end(), values, values + size);
    }
    cache_.commit();
    return bytes;
  }

 private:
  void fill() {
    constexpr int64_t kChunk = 256;
    const std::vector<float> rows = made_up_numbers(kChunk * config_.kv_size() + 977, 31, 1);
    for (int64_t done = 0; done < num_tokens_;) {
      const int64_t count = std::min(kChunk, num_tokens_ - done);
      LATHE_CHECK(cache_.reserve(sequence_, count));
      const KvRows run{&sequence_, 0, count};
      cache_.begin_step({&run, 1}, exec_);
      for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
        const float* from = rows.data() + (layer * 13 + done) % 977;
        cache_.append(layer, from, from, from, config_.kv_size(), exec_);
      }
      cache_.commit();
      done += count;
    }
  }

  std::vector<KvRope> ropes(int64_t num_tokens) const {
    std::vector<KvRope> ropes;
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const bool sliding = config_.layer_is_sliding[static_cast<std::size_t>(layer)];
      const RopeTable::View view = (sliding ? local_ : full_).view(num_tokens);
      ropes.push_back({view.cos, view.sin, view.num_positions, config_.rotary_dim});
    }
    return ropes;
  }

  const ModelConfig& config_;
  Exec& exec_;
  RopeTable full_, local_;
  std::unique_ptr<KvCodec> codec_;
  CodedKvCache cache_;
  KvSequence sequence_;
  int64_t num_tokens_;
};

}  // namespace

KvCodecFile made_up_kv_codec(const ModelConfig& config, const std::string& variant, int bits) {
  using Kind = KvPredictorInput::Kind;
  using Weight = KvPredictor::Weight;
  KvCodecFile file = plain_kv_codec(config, {.bits = bits}, std::string(64, '0'));
  check_row_format(file.keys.front().format, file.shape);
  file.method = variant == "none" ? "higgs" : "aqua";
  file.variant = variant;
  Weight weight = Weight::kDense;
  if (variant == "low-rank") weight = Weight::kLowRank;
  if (variant == "block-diagonal") weight = Weight::kBlockDiagonal;
  const bool latent = variant == "latent" || variant == "latent-alone";
  if (latent) add_latents(file, config.num_layers);
  const bool chain = variant == "dense" || variant == "low-rank" || variant == "block-diagonal";
  if (!chain && !latent && variant != "mean" && variant != "none") {
    fail(ErrorCode::kInvalidArgument, "variant '", variant.substr(0, 40),
         "' is not one of dense, low-rank, block-diagonal, latent, latent-alone, mean, none");
  }
  for (int64_t l = 0; l < config.num_layers; ++l) {
    KvPlane& key = file.keys[static_cast<std::size_t>(l)];
    KvPlane& value = file.values[static_cast<std::size_t>(l)];
    if (variant == "mean" || (chain && l == 0)) {
      key.predictor = value.predictor = made_up_predictor(file, Weight::kNone, {});
    } else if (latent) {
      std::vector<KvPredictorInput> inputs = {{Kind::kLatent, l / 4}};
      key.predictor = made_up_predictor(file, weight, inputs);
      if (variant == "latent") inputs.insert(inputs.begin(), {Kind::kKeys, l});
      value.predictor = made_up_predictor(file, weight, inputs);
    } else if (chain) {
      key.predictor = made_up_predictor(file, weight, {{Kind::kKeys, l - 1}});
      value.predictor = made_up_predictor(file, weight, {{Kind::kKeys, l}, {Kind::kValues, l - 1}});
    }
    if (chain && l == 0) key.format.bits = value.format.bits = 4;
  }
  return file;
}

void check_kv_kernels(const KvCodecFile& file, Exec& exec) {
  const int64_t width = file.shape.width();
  check_product(width, width, exec);
  check_product(file.shape.head_dim, file.shape.head_dim, exec);
  for (std::size_t l : {std::size_t{0}, file.keys.size() - 1}) {
    check_plane(file, file.keys[l], exec);
    check_plane(file, file.values[l], exec);
  }
}

KvSpeed measure_kv_speed(const ModelConfig& config, const KvCodecFile& file, int64_t num_tokens,
                         int repetitions, Exec& exec) {
  MadeUpCache cache(config, file, num_tokens, exec);
  KvSpeed speed;
  for (int i = -1; i < repetitions; ++i) {  // the first one warms up
    const double park = cache.park();
    // A block in the middle of a run of blocks, as attention would see it over codes ...
    const auto last = config.num_layers - 1;
    const auto block = static_cast<std::size_t>(num_tokens / kBlockSize / 2);
    const auto wanted = i < 0 ? cache.block(last, block) : std::vector<std::byte>();
    const double wake = cache.wake();
    // ... and when it is live again.
    if (i < 0 && cache.block(last, block) != wanted) {
      fail(ErrorCode::kInternal, "a woken block differs from the same codes rebuilt while parked");
    }
    if (i < 0) continue;
    speed.park.push_back(static_cast<double>(num_tokens) / park);
    speed.wake.push_back(static_cast<double>(num_tokens) / wake);
  }
  return speed;
}

}  // namespace lathe

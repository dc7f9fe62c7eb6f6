#include "compress/speed_probe.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "cache/kv_cache.h"
#include "compress/gram.h"
#include "compress/layer_pass.h"
#include "compress/linear_group.h"
#include "kernels/activation/gated_activation.h"
#include "kernels/attention/attention.h"
#include "kernels/rms_norm/rms_norm.h"
#include "quant/encode.h"
#include "quant/hadamard.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// Runs `work` for `seconds`, after one warm-up, at least three times; the time of the best run.
// Processor time: what else runs on the machine is not part of the plan.
template <typename Work>
double best_seconds(double seconds, Work&& work) {
  work();
  double best = std::numeric_limits<double>::infinity();
  const double start = thread_seconds();
  for (int run = 0; run < 3 || thread_seconds() - start < seconds; ++run) {
    const double begin = thread_seconds();
    work();
    best = std::min(best, thread_seconds() - begin);
  }
  return best;
}

std::vector<float> random_values(int64_t count) {
  Rng rng(1);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.uniform()) - 0.5f;
  return values;
}

Tensor random_tensor(int64_t n, int64_t k) {
  Tensor w(DType::kF32, {n, k});
  const std::vector<float> values = random_values(n * k);
  std::copy(values.begin(), values.end(), w.as<float>());
  return w;
}

}  // namespace

double measure_linear_gflops(int64_t n, int64_t k, ComputeType compute, Exec& exec) {
  constexpr int64_t kRows = 1024;  // their outputs leave the L2 cache, as those of a pass do
  const bool exact = compute != ComputeType::kAuto;
  Tensor w(exact ? DType::kF32 : DType::kBF16, {n, k});
  for (int64_t i = 0; i < n * k; ++i) {
    const float value = static_cast<float>(i % 17) - 8.0f;
    if (exact) {
      w.as<float>()[i] = value;
    } else {
      w.as<uint16_t>()[i] = bf16_from_float(value);
    }
  }
  const LinearPart part{.dense = &w, .quantized = nullptr, .bias = nullptr};
  const auto packed = pack_linear({&part, 1}, {}, compute, exec);
  std::vector<float> x(static_cast<std::size_t>(kRows * k), 0.5f);
  std::vector<float> y(static_cast<std::size_t>(kRows * n));
  const double seconds = best_seconds(0.5, [&] {
    const Workspace::Scope scope(exec.workspace);
    linear(prepare_input(x.data(), kRows, *packed, exec), *packed, y.data(), n, exec);
  });
  return 2.0 * double(kRows) * double(n) * double(k) / seconds / 1e9;
}

double measure_gram_gflops(int64_t k, Exec& exec) {
  constexpr int64_t kRows = 2048;  // a calibration sequence: c is read once for them
  const std::vector<float> x(static_cast<std::size_t>(kRows * k), 0.5f);
  Buffer gram(k * k * static_cast<int64_t>(sizeof(float)));
  std::fill_n(gram.as<float>(), k * k, 0.0f);
  const double seconds =
      best_seconds(0.5, [&] { add_gram(kRows, k, x.data(), gram.as<float>(), exec); });
  return double(kRows) * double(k) * double(k) / seconds / 1e9;
}

double measure_packing(int64_t n, int64_t k, const WeightFormat& format, Exec& exec) {
  const Tensor w = random_tensor(n, k);
  QuantizedMatrix matrix = make_quantized_matrix(format, n, k);
  choose_absmax_scales(matrix, w.as<float>(), MxScaleRule::kCtEven);
  const auto pack = [&](const Tensor& dense) {
    const LinearPart part{.dense = &dense, .quantized = nullptr, .bias = nullptr};
    pack_linear({&part, 1}, {}, ComputeType::kNearF32, exec);
  };
  const double seconds = best_seconds(0.2, [&] {
    pack(w.clone());
    Tensor decoded(DType::kF32, {n, k});
    exec.threads.parallel_for(n, 16, [&](int64_t begin, int64_t end, int) {
      float* rows = decoded.as<float>() + begin * k;
      dequantize_rows(matrix, begin, end, rows);
      hadamard_rows(rows, end - begin, k, k % 32 == 0 ? 32 : 0);
    });
    pack(decoded);
  });
  return 2.0 * double(n) * double(k) / seconds;
}

double measure_attention(const ModelConfig& config, int64_t seq_len, Exec& exec) {
  ModelConfig one = config;
  one.num_layers = 1;
  one.num_heads = config.num_heads / config.num_kv_heads;
  one.num_kv_heads = 1;
  const int64_t tokens = std::min<int64_t>(seq_len, 1024);
  const auto cache = make_kv_cache(one, KvFormat::kF32, tokens + kBlockSize, tokens);
  const std::vector<float> q = random_values(tokens * one.q_size());
  const std::vector<float> kv = random_values(tokens * one.kv_size());
  std::vector<float> out(q.size());
  KvSequence sequence = cache->new_sequence();
  const double seconds = best_seconds(0.2, [&] {
    const Workspace::Scope scope(exec.workspace);
    cache->release(sequence);
    cache->reserve(sequence, tokens);
    const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = tokens};
    cache->begin_step({&rows, 1}, exec);
    cache->append(0, kv.data(), kv.data(), kv.data(), one.kv_size(), exec);
    const AttentionSegment segment{.row_begin = 0,
                                   .num_rows = tokens,
                                   .first_position = 0,
                                   .blocks = cache->views(0, 0).data()};
    attention({.q = q.data(),
               .out = out.data(),
               .segments = {&segment, 1},
               .element = cache->element(),
               .num_heads = one.num_heads,
               .num_kv_heads = 1,
               .head_dim = one.head_dim,
               .scale = 0.1f},
              exec);
    cache->commit();
  });
  cache->release(sequence);
  return 4 * static_cast<double>(visible_positions(tokens, 0)) * static_cast<double>(one.q_size()) /
         seconds;
}

double measure_between(const ModelConfig& config, Exec& exec) {
  constexpr int64_t kRows = 2048;  // of a step
  const int64_t hidden = config.hidden_size;
  const int64_t size = std::max(config.intermediate_size, config.moe_intermediate_size);
  std::vector<float> x = random_values(kRows * hidden);
  const std::vector<float> gain = random_values(hidden);
  std::vector<float> gate_up = random_values(kRows * 2 * size);
  std::vector<float> activated(static_cast<std::size_t>(kRows * size));
  const double seconds = best_seconds(0.2, [&] {
    rms_norm({.x = x.data(),
              .weight = gain.data(),
              .y = x.data(),
              .num_tokens = kRows,
              .norm_size = hidden,
              .eps = 1e-6f},
             exec);
    gated_activation({.gate = gate_up.data(),
                      .up = gate_up.data() + size,
                      .y = activated.data(),
                      .num_rows = kRows,
                      .size = size,
                      .gate_stride = 2 * size,
                      .up_stride = 2 * size},
                     exec);
  });
  return static_cast<double>(kRows * (2 * hidden + 3 * size)) / seconds;
}

double measure_loading(const Checkpoint& source, const std::string& module) {
  double weights = 0;
  const double seconds = best_seconds(0, [&] {
    weights = static_cast<double>(source.load_linear(module, DType::kF32).dense.num_elements());
  });
  return weights / seconds;
}

StageNumbers measure_group(int64_t k, const QuantizeOptions& options, Exec& exec) {
  constexpr int64_t kRows = 256;
  constexpr int64_t kTokens = 512;
  const std::vector<float> x = random_values(kTokens * k);
  const Tensor w = random_tensor(kRows, k);
  StageNumbers best;
  for (int run = 0; run < 3; ++run) {
    CalibrationProfile profile;
    InputStatistics statistics(k, true);
    InputStatistics held_out(k, options.chooses());
    statistics.add(x.data(), kTokens, exec);  // the first touches the memory
    {
      const CalibrationTimer timer(&profile, CalibrationStage::kHessian,
                                   double(kTokens) * double(k) * double(k));
      statistics.add(x.data(), kTokens, exec);
    }
    if (options.chooses()) held_out.add(x.data(), kTokens, exec);
    LinearTask task{.module = "probe", .weight = w.clone(), .quantized = {}};
    const bool calibrates = options.needs_calibration();
    quantize_group({&task, 1}, calibrates ? &statistics : nullptr,
                   options.chooses() ? &held_out : nullptr, options, options.uses_gptq(), exec,
                   &profile);
    const StageNumbers seconds = profile.processor_seconds();
    for (std::size_t i = 0; i < kNumCalibrationStages; ++i) {
      if (seconds.values[i] <= 0 || profile.work().values[i] <= 0) continue;
      best.values[i] = std::max(best.values[i], profile.work().values[i] / seconds.values[i]);
    }
  }
  return best;
}

}  // namespace lathe

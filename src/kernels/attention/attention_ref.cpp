// The definition: per row and head, all scores, their softmax in double, the weighted sum.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {
namespace {

// First position that a row at `position` sees.
int64_t first_seen(const AttentionArgs& a, int64_t position) {
  return a.sliding_window > 0 ? std::max<int64_t>(0, position - a.sliding_window + 1) : 0;
}

// q . RoPE_t(offset), of a query before the cache's own rotation.
double offset_score(const AttentionArgs& a, const float* q, int64_t kv_head, int64_t t) {
  const KeyOffset& key = a.key_offset;
  const float* offset = key.offset + kv_head * a.head_dim;
  const float* middle = key.middles + t / kBlockSize * key.rotary_dim;
  const int64_t half = key.rotary_dim / 2;
  constexpr int64_t kHalfBlock = kBlockSize / 2;
  const bool is_behind = t % kBlockSize >= kHalfBlock;
  const int64_t place = is_behind ? t % kBlockSize - kHalfBlock : kHalfBlock - 1 - t % kBlockSize;
  double score = 0;
  for (int64_t j = 0; j < half; ++j) {
    const double step_cos = key.from_middle[j * kHalfBlock + place];
    const double size = key.from_middle[(half + j) * kHalfBlock + place];
    const double step_sin = is_behind ? size : -size;
    const double cos = middle[j] * step_cos - middle[half + j] * step_sin;
    const double sin = middle[half + j] * step_cos + middle[j] * step_sin;
    score += double{q[j]} * (offset[j] * cos - offset[j + half] * sin) +
             double{q[j + half]} * (offset[j + half] * cos + offset[j] * sin);
  }
  for (int64_t j = key.rotary_dim; j < a.head_dim; ++j) score += double{q[j]} * double{offset[j]};
  return score;
}

// Scratch of one row and head.
struct Scratch {
  double* scores;  // [longest]
  double* sums;    // [head_dim]
  float* q;        // [head_dim]
};

// keys, values: [positions, head_dim] of the row's KV head.
void attend(const AttentionArgs& a, const AttentionSegment& segment, int64_t row, int64_t head,
            const float* keys, const float* values, const Scratch& scratch) {
  const int64_t position = segment.first_position + row;
  const int64_t begin = first_seen(a, position);
  const float* q = a.q + (segment.row_begin + row) * a.q_stride + head * a.head_dim;
  const int64_t kv_head = head / (a.num_heads / a.num_kv_heads);
  std::copy_n(q, a.head_dim, scratch.q);
  // (H q) . (H k) = q . k, and H (sum of p H v) = sum of p v: see kv_codes.h.
  if (kv_is_rotated(a.element)) kv_rotate(scratch.q, a.head_dim);

  double largest = -HUGE_VAL;
  for (int64_t t = begin; t <= position; ++t) {
    double dot = 0;
    for (int64_t j = 0; j < a.head_dim; ++j) {
      dot += double{scratch.q[j]} * double{keys[t * a.head_dim + j]};
    }
    if (a.key_offset.offset != nullptr) dot += offset_score(a, q, kv_head, t);
    double score = dot * double{a.scale};
    if (a.softcap > 0) score = double{a.softcap} * std::tanh(score / double{a.softcap});
    scratch.scores[t - begin] = score;
    largest = std::max(largest, score);
  }
  double sum = 0;
  std::fill_n(scratch.sums, a.head_dim, 0.0);
  for (int64_t t = begin; t <= position; ++t) {
    const double p = std::exp(scratch.scores[t - begin] - largest);
    sum += p;
    for (int64_t j = 0; j < a.head_dim; ++j) {
      scratch.sums[j] += p * double{values[t * a.head_dim + j]};
    }
  }
  float* out = a.out + ((segment.row_begin + row) * a.num_heads + head) * a.head_dim;
  for (int64_t j = 0; j < a.head_dim; ++j) out[j] = static_cast<float>(scratch.sums[j] / sum);
  if (kv_is_rotated(a.element)) kv_rotate(out, a.head_dim);
}

}  // namespace

void attention_ref(const AttentionArgs& a, Exec& exec) {
  int64_t longest = 0;
  for (const AttentionSegment& segment : a.segments) {
    longest = std::max(longest, segment.first_position + segment.num_rows);
  }
  const Workspace::Scope scope(exec.workspace);
  const int64_t stride = longest + 2 * a.head_dim;
  auto* scratch = exec.workspace.allocate_as<double>(exec.threads.num_threads() * stride);
  auto* keys = exec.workspace.allocate_as<float>(longest * a.head_dim);
  auto* values = exec.workspace.allocate_as<float>(longest * a.head_dim);
  const int64_t group = a.num_heads / a.num_kv_heads;
  for (const AttentionSegment& segment : a.segments) {
    const int64_t first = first_seen(a, segment.first_position);
    const int64_t end = segment.first_position + segment.num_rows;
    for (int64_t kv_head = 0; kv_head < a.num_kv_heads; ++kv_head) {
      const int64_t offset = kv_head * kv_head_bytes(a.element, a.head_dim);
      for (int64_t t = first; t < end && segment.num_rows > 0; ++t) {
        const KvBlockView& view = segment.blocks[t / kBlockSize];
        kv_load(a.element, KvPart::kKeys, a.head_dim,
                static_cast<const std::byte*>(view.keys) + offset, t % kBlockSize,
                keys + t * a.head_dim);
        kv_load(a.element, KvPart::kValues, a.head_dim,
                static_cast<const std::byte*>(view.values) + offset, t % kBlockSize,
                values + t * a.head_dim);
      }
      const bool has_sinks = segment.sinks.keys != nullptr;
      for (int64_t t = first; has_sinks && t < std::min(end, kLiveSinks); ++t) {
        const int64_t sinks = kv_head * kv_sink_bytes(a.head_dim);
        kv_load_sink(a.head_dim, static_cast<const std::byte*>(segment.sinks.keys) + sinks, t,
                     keys + t * a.head_dim);
        kv_load_sink(a.head_dim, static_cast<const std::byte*>(segment.sinks.values) + sinks, t,
                     values + t * a.head_dim);
      }
      exec.threads.parallel_for(
          segment.num_rows * group, 1, [&](int64_t begin, int64_t last, int thread_idx) {
            double* scores = scratch + thread_idx * stride;
            double* sums = scores + longest;
            for (int64_t i = begin; i < last; ++i) {
              attend(a, segment, i / group, kv_head * group + i % group, keys, values,
                     {scores, sums, reinterpret_cast<float*>(sums + a.head_dim)});
            }
          });
    }
  }
}

}  // namespace lathe

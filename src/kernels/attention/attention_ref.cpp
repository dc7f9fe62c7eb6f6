// The definition: per row and head, all scores, their softmax in double, the weighted sum.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

double load(KvElement element, const void* data, int64_t offset) {
  return element == KvElement::kF32
             ? double{static_cast<const float*>(data)[offset]}
             : double{float_from_bf16(static_cast<const uint16_t*>(data)[offset])};
}

void attend(const AttentionArgs& a, const AttentionSegment& segment, int64_t row, int64_t head,
            double* scores, double* sums) {
  const int64_t position = segment.first_position + row;
  const int64_t begin =
      a.sliding_window > 0 ? std::max<int64_t>(0, position - a.sliding_window + 1) : 0;
  const int64_t kv_head = head / (a.num_heads / a.num_kv_heads);
  const int64_t kv_head_offset = kv_head * kBlockSize * a.head_dim;
  const float* q = a.q + (segment.row_begin + row) * a.q_stride + head * a.head_dim;

  double largest = -HUGE_VAL;
  for (int64_t t = begin; t <= position; ++t) {
    const void* keys = segment.blocks[t / kBlockSize].keys;
    double dot = 0;
    for (int64_t j = 0; j < a.head_dim; ++j) {
      dot += double{q[j]} *
             load(a.element, keys, kv_head_offset + key_offset(a.element, t % kBlockSize, j));
    }
    double score = dot * double{a.scale};
    if (a.softcap > 0) score = double{a.softcap} * std::tanh(score / double{a.softcap});
    scores[t - begin] = score;
    largest = std::max(largest, score);
  }
  double sum = 0;
  std::fill_n(sums, a.head_dim, 0.0);
  for (int64_t t = begin; t <= position; ++t) {
    const void* values = segment.blocks[t / kBlockSize].values;
    const double p = std::exp(scores[t - begin] - largest);
    sum += p;
    for (int64_t j = 0; j < a.head_dim; ++j) {
      sums[j] += p * load(a.element, values,
                          kv_head_offset + value_offset(a.element, a.head_dim, t % kBlockSize, j));
    }
  }
  float* out = a.out + ((segment.row_begin + row) * a.num_heads + head) * a.head_dim;
  for (int64_t j = 0; j < a.head_dim; ++j) out[j] = static_cast<float>(sums[j] / sum);
}

}  // namespace

void attention_ref(const AttentionArgs& a, Exec& exec) {
  int64_t longest = 0;
  for (const AttentionSegment& segment : a.segments) {
    longest = std::max(longest, segment.first_position + segment.num_rows);
  }
  const int64_t stride = longest + a.head_dim;
  const Workspace::Scope scope(exec.workspace);
  auto* scratch = exec.workspace.allocate_as<double>(exec.threads.num_threads() * stride);
  for (const AttentionSegment& segment : a.segments) {
    exec.threads.parallel_for(
        segment.num_rows * a.num_heads, 1, [&](int64_t begin, int64_t end, int thread_idx) {
          double* scores = scratch + thread_idx * stride;
          for (int64_t i = begin; i < end; ++i) {
            attend(a, segment, i / a.num_heads, i % a.num_heads, scores, scores + longest);
          }
        });
  }
}

}  // namespace lathe

#include "compress/input_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "compress/gram.h"
#include "compress/magnitudes.h"
#include "kernels/features.h"
#include "kernels/registry.h"
#include "quant/hadamard.h"

namespace lathe {

void add_magnitudes_ref(const float* x, int64_t stride, int64_t rows, int64_t columns, float* amax,
                        double* sum) {
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t j = 0; j < columns; ++j) {
      const float a = std::fabs(x[t * stride + j]);
      amax[j] = std::max(amax[j], a);
      sum[j] += double{a};
    }
  }
}

InputStatistics::InputStatistics(int64_t k, bool gram)
    : k_(k), amax_(static_cast<std::size_t>(k)), sum_abs_(static_cast<std::size_t>(k)) {
  if (gram) {
    gram_ = Buffer(k * k * static_cast<int64_t>(sizeof(float)));
    std::memset(gram_.data(), 0, static_cast<std::size_t>(gram_.size()));
  }
}

InputStatistics::InputStatistics(int64_t tokens, Buffer gram, std::vector<float> amax,
                                 std::vector<double> sum_abs)
    : k_(static_cast<int64_t>(amax.size())),
      tokens_(tokens),
      gram_(std::move(gram)),
      amax_(std::move(amax)),
      sum_abs_(std::move(sum_abs)) {
  LATHE_CHECK(sum_abs_.size() == amax_.size());
  LATHE_CHECK(gram_.size() == 0 || gram_.size() == k_ * k_ * static_cast<int64_t>(sizeof(float)));
}

void InputStatistics::add(const float* x, int64_t tokens, Exec& exec, const GramShare& share) {
  if (tokens == 0) return;
  // Columns in strips, so that threads own their sums; the order of additions does not depend on
  // the number of threads. Some rows at a time: a strip alone would meet a page in each row.
  constexpr int64_t kStrip = 4 * kMagnitudeColumns;
  constexpr int64_t kRows = 64;
  for (int64_t row = 0; row < tokens; row += kRows) {
    const int64_t rows = std::min(kRows, tokens - row);
    exec.threads.parallel_for((k_ + kStrip - 1) / kStrip, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t strip = begin; strip < end; ++strip) {
        if (strip % share.parts != share.part) continue;
        const int64_t last = std::min(k_, (strip + 1) * kStrip);
        for (int64_t j = strip * kStrip; j < last; j += kMagnitudeColumns) {
          add_magnitudes(x + row * k_, rows, j, std::min(last - j, kMagnitudeColumns));
        }
      }
    });
  }
  share_ = share;
  if (gram_.size() > 0) add_to_gram(x, tokens, exec);
  tokens_ += tokens;
}

void InputStatistics::add_to_gram(const float* x, int64_t rows, Exec& exec) {
  if (!waiting_.empty()) {
    waiting_.insert(waiting_.end(), x, x + rows * k_);
    x = waiting_.data();
    rows = std::ssize(waiting_) / k_;
  }
  const int64_t whole = rows / kGramRows * kGramRows;
  if (whole > 0) add_gram(whole, k_, x, gram_.as<float>(), exec, share_);
  std::vector<float> rest(x + whole * k_, x + rows * k_);
  waiting_ = std::move(rest);
}

void InputStatistics::add_waiting(Exec& exec) {
  const int64_t rows = std::ssize(waiting_) / k_;
  if (rows > 0) add_gram(rows, k_, waiting_.data(), gram_.as<float>(), exec, share_);
  waiting_.clear();
}

void InputStatistics::add_magnitudes(const float* x, int64_t rows, int64_t first, int64_t columns) {
  float* amax = amax_.data() + first;
  double* sum = sum_abs_.data() + first;
  if (columns == kMagnitudeColumns && machine_has(kAvx2)) {
    add_magnitudes_avx2(x + first, k_, rows, amax, sum);
  } else {
    add_magnitudes_ref(x + first, k_, rows, columns, amax, sum);
  }
  for (int64_t j = 0; j < columns; ++j) {
    // Written so that a NaN fails.
    if (sum[j] <= std::numeric_limits<double>::max() && amax[j] <= 3.4e38f) continue;
    for (int64_t t = 0; t < rows; ++t) {
      const float value = x[t * k_ + first + j];
      if (std::fabs(value) <= 3.4e38f) continue;
      fail(ErrorCode::kInvalidArgument, "calibration input channel ", first + j, " became ", value,
           "; the model or the text is broken");
    }
  }
}

std::vector<float> InputStatistics::mean_abs() const {
  std::vector<float> mean(sum_abs_.size());
  const double n = static_cast<double>(std::max<int64_t>(tokens_, 1));
  for (std::size_t j = 0; j < mean.size(); ++j) mean[j] = static_cast<float>(sum_abs_[j] / n);
  return mean;
}

Buffer InputStatistics::take_hessian(Exec& exec) {
  LATHE_CHECK(has_gram());
  add_waiting(exec);
  Buffer h = std::move(gram_);
  gram_ = Buffer();
  const float factor = 2.0f / static_cast<float>(std::max<int64_t>(tokens_, 1));
  float* out = h.as<float>();
  // Scale the upper half, then mirror it: a thread owns rows of the lower half and reads columns of
  // the upper one in tiles, since a walk down a column misses the cache at every step.
  exec.threads.parallel_for(k_, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i; j < k_; ++j) out[i * k_ + j] *= factor;
    }
  });
  constexpr int64_t kTile = 32;
  exec.threads.parallel_for((k_ + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t ti = begin * kTile; ti < std::min(k_, end * kTile); ti += kTile) {
      for (int64_t tj = 0; tj <= ti; tj += kTile) {
        for (int64_t i = ti; i < std::min(k_, ti + kTile); ++i) {
          for (int64_t j = tj; j < std::min(i, tj + kTile); ++j) out[i * k_ + j] = out[j * k_ + i];
        }
      }
    }
  });
  return h;
}

Buffer InputStatistics::copy_hessian(Exec& exec) const {
  InputStatistics copy(k_, false);
  copy.tokens_ = tokens_;
  copy.waiting_ = waiting_;
  copy.share_ = share_;
  copy.gram_ = gram_.clone();
  return copy.take_hessian(exec);
}

void InputStatistics::divide_channels(const std::vector<float>& t) {
  for (std::size_t j = 0; j < t.size(); ++j) {
    amax_[j] /= t[j];
    sum_abs_[j] /= double{t[j]};
  }
  if (!has_gram()) return;
  for (std::size_t i = 0; i < waiting_.size(); ++i) waiting_[i] /= t[i % t.size()];
  float* gram = gram_.as<float>();
  for (int64_t i = 0; i < k_; ++i) {
    for (int64_t j = i; j < k_; ++j) {
      gram[i * k_ + j] /= t[static_cast<std::size_t>(i)] * t[static_cast<std::size_t>(j)];
    }
  }
}

void InputStatistics::join(Communicator& ranks, int root, Exec& exec) {
  if (ranks.size() == 1) return;
  all_reduce_max(ranks, amax_);
  reduce_sum(ranks, root, sum_abs_);
  if (!has_gram()) return;
  add_waiting(exec);
  // The upper triangle, some rows of it at a time, without what lies below.
  constexpr int64_t kFloats = int64_t{1} << 22;
  const bool is_root = ranks.rank() == root;
  float* gram = gram_.as<float>();
  std::vector<float> packed;
  for (int64_t first = 0; first < k_;) {
    packed.clear();
    int64_t last = first;
    for (; last < k_ && std::ssize(packed) < kFloats; ++last) {
      packed.insert(packed.end(), gram + last * k_ + last, gram + (last + 1) * k_);
    }
    reduce_sum(ranks, root, packed);
    const float* from = packed.data();
    for (int64_t i = first; is_root && i < last; ++i) {
      std::copy(from, from + (k_ - i), gram + i * k_ + i);
      from += k_ - i;
    }
    first = last;
  }
  if (!is_root) gram_ = Buffer();
}

void rotate_hessian(float* h, int64_t k, int64_t block, Exec& exec) {
  check_hadamard(block, k);
  if (block == 0) return;
  exec.threads.parallel_for(k, 64, [&](int64_t begin, int64_t end, int) {
    hadamard_rows(h + begin * k, end - begin, k, block);
  });
  // The other side: the rows of each block form a [block, k] matrix that is multiplied from the
  // left; butterflies on whole rows.
  const float normalisation = 1.0f / std::sqrt(static_cast<float>(block));
  exec.threads.parallel_for(k / block, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      float* rows = h + b * block * k;
      for (int64_t distance = 1; distance < block; distance *= 2) {
        for (int64_t pair = 0; pair < block; pair += 2 * distance) {
          for (int64_t i = pair; i < pair + distance; ++i) {
            float* upper = rows + i * k;
            float* lower = rows + (i + distance) * k;
            for (int64_t j = 0; j < k; ++j) {
              const float a = upper[j];
              const float c = lower[j];
              upper[j] = a + c;
              lower[j] = a - c;
            }
          }
        }
      }
      for (int64_t i = 0; i < block * k; ++i) rows[i] *= normalisation;
    }
  });
}

double output_error(const float* d, int64_t n, const float* h, int64_t k, Exec& exec) {
  return gram_dot(n, k, d, h, exec);
}

}  // namespace lathe

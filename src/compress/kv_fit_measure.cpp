#include "compress/kv_fit_measure.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/check.h"

namespace lathe {
namespace {

constexpr int64_t kRunRows = 64;  // rows that a thread takes at a time

}  // namespace

RowErrors row_errors(const float* exact, const float* made, int64_t width,
                     std::span<const int32_t> rows, Communicator* ranks) {
  RowErrors sums;
  std::vector<double> mean(static_cast<std::size_t>(width), 0.0);
  for (const int32_t row : rows) {
    for (int64_t j = 0; j < width; ++j) {
      const double x = double{exact[int64_t{row} * width + j]};
      const double difference = x - double{made[int64_t{row} * width + j]};
      mean[static_cast<std::size_t>(j)] += x;
      sums.energy += x * x;
      sums.error += difference * difference;
    }
  }
  double n = static_cast<double>(rows.size());
  const auto over_ranks = [&](double& value) {
    if (ranks != nullptr) all_reduce_sum(*ranks, {&value, 1});
  };
  if (ranks != nullptr) all_reduce_sum(*ranks, mean);
  over_ranks(sums.energy);
  over_ranks(sums.error);
  over_ranks(n);
  // Around the mean in a second pass: energy - n mean^2 would cancel where the mean is large.
  for (const int32_t row : rows) {
    for (int64_t j = 0; j < width; ++j) {
      const double centred =
          double{exact[int64_t{row} * width + j]} - mean[static_cast<std::size_t>(j)] / n;
      sums.variance += centred * centred;
    }
  }
  over_ranks(sums.variance);
  return sums;
}

std::vector<float> residual_sigma(const float* exact, const float* made, int64_t width,
                                  std::span<const int32_t> rows, Communicator* ranks) {
  std::vector<double> sums(static_cast<std::size_t>(width), 0.0);
  for (const int32_t row : rows) {
    for (int64_t j = 0; j < width; ++j) {
      const double difference =
          double{exact[int64_t{row} * width + j]} - double{made[int64_t{row} * width + j]};
      sums[static_cast<std::size_t>(j)] += difference * difference;
    }
  }
  double n = static_cast<double>(rows.size());
  if (ranks != nullptr) {
    all_reduce_sum(*ranks, sums);
    all_reduce_sum(*ranks, {&n, 1});
  }
  const double largest = *std::max_element(sums.begin(), sums.end());
  const double smallest = std::max(largest * 1e-12, 1e-30);
  std::vector<float> sigma;
  for (const double sum : sums) {
    sigma.push_back(static_cast<float>(std::sqrt(std::max(sum, smallest) / std::max(1.0, n))));
  }
  return sigma;
}

void predict_rows(const KvPlaneCoder& coder, const float* const* inputs, float* rows,
                  int64_t num_rows, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const int64_t per_thread = coder.scratch_floats(kRunRows);
  float* scratch = exec.workspace.allocate_as<float>(exec.threads.num_threads() * per_thread);
  exec.threads.parallel_for(num_rows, kRunRows, [&](int64_t begin, int64_t end, int thread_idx) {
    const float* parts[16];
    LATHE_CHECK(coder.inputs().size() <= std::size(parts));
    for (int64_t row = begin; row < end; row += kRunRows) {
      for (std::size_t i = 0; i < coder.inputs().size(); ++i) {
        parts[i] = inputs[i] + row * coder.input_width(i);
      }
      coder.predict(parts, rows + row * coder.width(), std::min(kRunRows, end - row),
                    scratch + thread_idx * per_thread, exec);
    }
  });
}

Buffer project_rows(const KvLatent& latent, std::span<const float* const> parts, int64_t num_rows,
                    int64_t width, Exec& exec) {
  Buffer result(num_rows * latent.rank * int64_t{sizeof(float)});
  const auto size = static_cast<int64_t>(parts.size()) * width;
  exec.threads.parallel_for(num_rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t r = 0; r < latent.rank; ++r) {
        double sum = 0;
        for (int64_t i = 0; i < size; ++i) {
          const float x = parts[static_cast<std::size_t>(i / width)][row * width + i % width];
          sum += double{latent.projection[static_cast<std::size_t>(r * size + i)]} *
                 (double{x} - double{latent.mean[static_cast<std::size_t>(i)]});
        }
        result.as<float>()[row * latent.rank + r] = static_cast<float>(sum);
      }
    }
  });
  return result;
}

}  // namespace lathe

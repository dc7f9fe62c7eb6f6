#include "kernels/peaks/peaks.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/features.h"
#include "kernels/registry.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int64_t kPrefetchBytes = 8192;

// Wider vectors would not read faster: one core is far from saturating its load ports here.
__attribute__((target("avx2"))) float sum_bytes(const std::byte* data, int64_t num_bytes) {
  const auto* floats = reinterpret_cast<const float*>(data);
  __m256 acc[8] = {};
  for (int64_t i = 0; i + 64 <= num_bytes / 4; i += 64) {
    // As the kernels do (linear/integer_panels.h): the ceiling should not be lower than they reach.
    for (int64_t j = 0; j < 4; ++j) __builtin_prefetch(data + 4 * i + kPrefetchBytes + 64 * j);
    for (int64_t j = 0; j < 8; ++j)
      acc[j] = _mm256_add_ps(acc[j], _mm256_load_ps(floats + i + 8 * j));
  }
  for (int i = 1; i < 8; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  return _mm256_cvtss_f32(acc[0]);
}

// Ten independent chains cover the latency of two units (Zen 3: 4 cycles, two per cycle).
constexpr int kChains = 10;

__attribute__((target("avx2,fma"))) float fma_chains_avx2(int64_t rounds) {
  __m256 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f);
  const __m256 b = _mm256_set1_ps(0.001f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 10
    for (int i = 0; i < kChains; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
  }
  __m256 total = _mm256_setzero_ps();
  for (const __m256& value : acc) total = _mm256_add_ps(total, value);
  return _mm256_cvtss_f32(total);
}

}  // namespace

double measure_read_bandwidth(Exec& exec, int64_t num_bytes, int rounds) {
  if (!machine_has(kAvx2)) return 0;
  Buffer buffer(num_bytes);
  constexpr int64_t kChunk = int64_t{1} << 20;
  const int64_t num_chunks = num_bytes / kChunk;
  exec.threads.parallel_for(num_chunks, 1, [&](int64_t begin, int64_t end, int) {
    std::memset(buffer.data() + begin * kChunk, 0,
                static_cast<std::size_t>((end - begin) * kChunk));
  });
  std::atomic<float> sink{0};
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
    exec.threads.parallel_for(num_chunks, 8, [&](int64_t begin, int64_t end, int) {
      sink.store(sum_bytes(buffer.data() + begin * kChunk, (end - begin) * kChunk),
                 std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(num_chunks * kChunk) / seconds_since(start));
  }
  return best;
}

double measure_fma_rate(Exec& exec) {
  if (!machine_has(kAvx2)) return 0;
  constexpr int64_t kRounds = 4'000'000;
  const int64_t num_threads = exec.threads.num_threads();
  std::atomic<float> sink{0};
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    const auto start = Clock::now();
    exec.threads.parallel_for(num_threads, 1, [&](int64_t, int64_t, int) {
      sink.store(fma_chains_avx2(kRounds), std::memory_order_relaxed);
    });
    best = std::max(
        best, static_cast<double>(num_threads * kRounds * kChains * 8 * 2) / seconds_since(start));
  }
  return best;
}

}  // namespace lathe

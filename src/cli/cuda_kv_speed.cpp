#include "cli/cuda_kv_speed.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "base/rng.h"
#include "cache/cuda_kv_cache.h"
#include "cache/predictive_codec.h"
#include "kernels/kv_rows/kv_rows_cuda.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;
using Pieces = std::vector<std::vector<std::byte>>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds.
double prefill(Model& model, KvCache& cache, KvSequence& sequence, int64_t num_tokens,
               int64_t chunk_tokens, Exec& exec) {
  Rng rng(5);
  std::vector<int32_t> tokens;
  std::vector<int64_t> positions;
  const auto start = Clock::now();
  while (sequence.num_tokens < num_tokens) {
    const int64_t count = std::min(chunk_tokens, num_tokens - sequence.num_tokens);
    tokens.clear(), positions.clear();
    for (int64_t i = 0; i < count; ++i) {
      tokens.push_back(
          static_cast<int32_t>(rng.below(static_cast<uint64_t>(model.config().vocab_size))));
      positions.push_back(sequence.num_tokens + i);
    }
    LATHE_CHECK(cache.reserve(sequence, count));  // sized for it
    const KvRows rows{&sequence, 0, count};
    model.forward(
        {.token_ids = tokens, .positions = positions, .sequences = {&rows, 1}, .logit_rows = {}},
        cache, nullptr, nullptr, exec);
  }
  return seconds_since(start);
}

// The values of a piece in the last layer: as the GPU's cache has them, and as the CPU decodes
// them.
double difference(const KvCodecFile& file, const PredictiveCodec& codec, CudaKvCache& cache,
                  const KvSequence& sequence, const std::vector<std::byte>& piece,
                  int64_t piece_idx, Exec& exec) {
  const int64_t blocks = file.chunk_tokens / kBlockSize, width = file.shape.width();
  const int64_t rows = file.chunk_tokens, layers = file.num_layers();
  std::vector<const std::byte*> codes;
  for (int64_t b = 0; b < blocks; ++b) {
    codes.push_back(piece.data() + b * codec.bytes_per_block());
  }
  std::vector<float> state(static_cast<std::size_t>(codec.state_floats(blocks)));
  std::vector<float> scratch(static_cast<std::size_t>(codec.scratch_floats(blocks)));
  KvLayerRows wanted;
  for (int64_t layer = 0; layer < layers; ++layer) {
    wanted = codec.decode_layer(layer, codes.data(), blocks, state.data(), scratch.data(), exec);
  }
  const std::vector<int32_t> ids(sequence.blocks.begin() + piece_idx * blocks,
                                 sequence.blocks.begin() + (piece_idx + 1) * blocks);
  const DeviceBuffer device_ids =
      DeviceBuffer::from_host(ids.data(), static_cast<int64_t>(ids.size() * 4));
  DeviceBuffer device(rows * width * 4);
  load_live_rows_cuda(
      {.layer = cache.layer(layers - 1), .blocks = device_ids.as<int32_t>(), .is_value = true},
      file.shape.num_heads, file.shape.head_dim, rows, device.as<float>(), nullptr);
  std::vector<float> got(static_cast<std::size_t>(rows * width));
  device.to_host(got.data(), device.size());
  double off = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    off += std::pow(double{got[i]} - double{wanted.values[i]}, 2);
    size += std::pow(double{wanted.values[i]}, 2);
  }
  return std::sqrt(off / size);
}

}  // namespace

CudaKvSpeed measure_cuda_kv_speed(Model& model, const KvCodecFile& file, KvFormat live,
                                  int64_t num_tokens, int64_t chunk_tokens, int repetitions,
                                  Exec& exec) {
  const PredictiveCodec codec(file);
  const auto cache = model.make_cache(live, num_tokens + kBlockSize, num_tokens);
  const auto parker = model.make_parker(*cache, file, codec, num_tokens);
  const int64_t count = num_tokens / parker->piece_tokens();
  if (count < 2) {
    fail(ErrorCode::kInvalidArgument, "--tokens ", num_tokens, ": at least two pieces of ",
         parker->piece_tokens());
  }
  CudaKvSpeed speed;
  KvSequence sequence = cache->new_sequence();
  // Once for the memory that steps of this size need.
  prefill(model, *cache, sequence, std::min(num_tokens, 2 * chunk_tokens), chunk_tokens, exec);
  cache->release(sequence);
  sequence = cache->new_sequence();
  speed.prefill = static_cast<double>(num_tokens) /
                  prefill(model, *cache, sequence, num_tokens, chunk_tokens, exec);
  const auto tokens = static_cast<double>(count * parker->piece_tokens());
  Pieces pieces(static_cast<std::size_t>(count));
  for (int i = -1; i < repetitions; ++i) {  // the first one warms up
    const auto start = Clock::now();
    parker->park(sequence, 0, count, exec, [&](int64_t idx, std::span<const std::byte> bytes) {
      pieces[static_cast<std::size_t>(idx)].assign(bytes.begin(), bytes.end());
    });
    if (i >= 0) speed.park.push_back(tokens / seconds_since(start));
  }
  for (int i = -1; i < repetitions; ++i) {
    cache->release(sequence);
    sequence = cache->new_sequence();
    LATHE_CHECK(cache->reserve(sequence, num_tokens));
    const auto start = Clock::now();
    parker->wake(pieces, 0, sequence, exec);
    if (i >= 0) speed.wake.push_back(tokens / seconds_since(start));
  }
  speed.difference = difference(file, codec, static_cast<CudaKvCache&>(*cache), sequence,
                                pieces[static_cast<std::size_t>(count / 2)], count / 2, exec);
  // bf16 blocks: 2^-9 of each number, and some times as much through the layers' TF32 products.
  // E4M3 has 2^-4, 4-bit codes are off by 0.09.
  const double limit = live == KvFormat::kBF16 ? 0x1p-6 : 0.15;
  if (!(speed.difference <= limit)) {
    fail(ErrorCode::kInternal, "woken values differ from the CPU's by ", speed.difference,
         " of their size; no speed is reported");
  }
  return speed;
}

}  // namespace lathe

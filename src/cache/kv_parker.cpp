#include "cache/kv_parker.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/rope/rope.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }

LiveBlocks& live_blocks_of(KvCache& cache) {
  LiveBlocks* live = cache.live_blocks();
  if (live == nullptr) {
    fail(ErrorCode::kUnsupported,
         "this cache cannot be parked: it has no live blocks in the host's "
         "memory");
  }
  return *live;
}

// Rows of sinks as they are stored.
void store_row(KvElement element, const float* from, int64_t count, std::byte* to) {
  if (element != KvElement::kBF16) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    const uint16_t bits = bf16_from_float(from[j]);
    std::memcpy(to + 2 * j, &bits, sizeof bits);
  }
}
void load_row(KvElement element, const std::byte* from, int64_t count, float* to) {
  if (element != KvElement::kBF16) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * j, sizeof bits);
    to[j] = float_from_bf16(bits);
  }
}

}  // namespace

KvParker::KvParker(KvCache& cache, const KvCodec& codec, std::vector<KvRope> rope,
                   std::vector<Buffer> rope_memory)
    : codec_(codec),
      policy_(codec.policy()),
      live_(live_blocks_of(cache)),
      rope_(std::move(rope)),
      rope_memory_(std::move(rope_memory)),
      piece_blocks_(policy_.chunk_tokens / kBlockSize) {
  const int64_t num_layers = live_.shape().num_layers;
  if (policy_.num_sinks < 0 || policy_.window < 0 || piece_blocks_ < 1 ||
      policy_.chunk_tokens % kBlockSize != 0 || static_cast<int64_t>(rope_.size()) != num_layers) {
    fail(ErrorCode::kInvalidArgument, "parking: ", policy_.num_sinks, " sinks, window ",
         policy_.window, ", chunks of ", policy_.chunk_tokens, " (a multiple of ", kBlockSize,
         "), rope for ", rope_.size(), " of ", num_layers, " layers");
  }
}

int64_t KvParker::num_sinks(int64_t piece_idx) const {
  return std::clamp<int64_t>(policy_.num_sinks - piece_idx * piece_tokens(), 0, piece_tokens());
}

int64_t KvParker::sink_row_bytes() const {
  return live_.shape().kv_size() * (live_.shape().element == KvElement::kBF16 ? 2 : 4);
}

int64_t KvParker::piece_bytes(int64_t piece_idx) const {
  return piece_blocks_ * codec_.bytes_per_block() +
         num_sinks(piece_idx) * live_.shape().num_layers * 2 * sink_row_bytes();
}

int64_t KvParker::floats_per_thread() const {
  return round_up(codec_.state_floats(piece_blocks_)) +
         round_up(codec_.scratch_floats(piece_blocks_)) + round_up(piece_floats());
}

// Keys or values of the block that has this token of the piece.
std::byte* KvParker::plane(int64_t layer, const KvSequence& sequence, int64_t piece_idx,
                           int64_t token, bool is_keys) const {
  const BlockId block =
      sequence.blocks[static_cast<std::size_t>(piece_idx * piece_blocks_ + token / kBlockSize)];
  return is_keys ? live_.keys(layer, block) : live_.values(layer, block);
}

std::byte* KvParker::sinks(int64_t layer, const KvSequence& sequence, int64_t piece_idx,
                           int64_t token, bool is_keys) const {
  const BlockId block = sequence.sink_block;
  if (block < 0 || piece_idx * piece_tokens() + token >= kLiveSinks) return nullptr;
  return is_keys ? live_.keys(layer, block) : live_.values(layer, block);
}

void KvParker::load(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
                    bool is_keys, float* row) const {
  if (const std::byte* exact = sinks(layer, sequence, piece_idx, token, is_keys)) {
    load_sink(live_.shape(), exact, token, row);
  } else {
    (is_keys ? load_key : load_value)(
        live_.shape(), plane(layer, sequence, piece_idx, token, is_keys), token % kBlockSize, row);
  }
}

void KvParker::store(int64_t layer, const KvSequence& sequence, int64_t piece_idx, int64_t token,
                     bool is_keys, const float* row) {
  if (std::byte* exact = sinks(layer, sequence, piece_idx, token, is_keys)) {
    store_sink(live_.shape(), row, token, exact);
  }
  (is_keys ? store_key : store_value)(live_.shape(), row, token % kBlockSize,
                                      plane(layer, sequence, piece_idx, token, is_keys));
}

// One token's key, all heads, to what it was before RoPE.
void KvParker::turn_back(int64_t layer, int64_t position, float* key) const {
  const KvRope& tables = rope_[static_cast<std::size_t>(layer)];
  const LiveBlockShape& shape = live_.shape();
  const int64_t half = tables.rotary_dim / 2;
  LATHE_CHECK(position < tables.num_positions);
  const float* cos = tables.cos + position * half;
  const float* sin = tables.sin + position * half;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    float* x = key + head * shape.head_dim;
    for (int64_t j = 0; j < half; ++j) {
      const float size = cos[j] * cos[j] + sin[j] * sin[j];  // the square of an attention factor
      const float a = x[j], b = x[j + half];
      x[j] = (a * cos[j] + b * sin[j]) / size;
      x[j + half] = (b * cos[j] - a * sin[j]) / size;
    }
  }
}

const float* KvParker::dropped_offset(int64_t layer) const {
  return kv_drops_key_offset(live_.shape().element)
             ? rope_[static_cast<std::size_t>(layer)].key_offset
             : nullptr;
}

// --- parking ------------------------------------------------------------------------------------

class KvParker::LiveRows final : public KvExactRows {
 public:
  LiveRows(const KvParker& parker, const KvSequence& sequence, int64_t piece_idx)
      : parker_(parker), sequence_(sequence), piece_idx_(piece_idx) {}
  void load(int64_t layer, KvLayerRows rows) const override {
    const LiveBlockShape& shape = parker_.live_.shape();
    for (int64_t t = 0; t < parker_.piece_tokens(); ++t) {
      float* key = rows.keys + t * shape.kv_size();
      parker_.load(layer, sequence_, piece_idx_, t, true, key);
      parker_.turn_back(layer, piece_idx_ * parker_.piece_tokens() + t, key);
      if (const float* offset = parker_.dropped_offset(layer)) {
        for (int64_t j = 0; j < shape.kv_size(); ++j) key[j] += offset[j];
      }
      parker_.load(layer, sequence_, piece_idx_, t, false, rows.values + t * shape.kv_size());
    }
  }

 private:
  const KvParker& parker_;
  const KvSequence& sequence_;
  int64_t piece_idx_;
};

void KvParker::park_one(const KvSequence& sequence, int64_t piece_idx, std::byte* piece,
                        float* memory, Exec& exec) {
  const LiveBlockShape& shape = live_.shape();
  float* state = memory;
  float* scratch = state + round_up(codec_.state_floats(piece_blocks_));
  float* row = scratch + round_up(codec_.scratch_floats(piece_blocks_));
  std::vector<std::byte*> codes(static_cast<std::size_t>(piece_blocks_));
  for (int64_t b = 0; b < piece_blocks_; ++b) {
    codes[static_cast<std::size_t>(b)] = piece + b * codec_.bytes_per_block();
  }
  codec_.encode(LiveRows(*this, sequence, piece_idx), piece_blocks_, codes.data(), state, scratch,
                exec);
  std::byte* to = piece + piece_blocks_ * codec_.bytes_per_block();
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    for (const bool is_keys : {true, false}) {
      for (int64_t t = 0; t < num_sinks(piece_idx); ++t, to += sink_row_bytes()) {
        load(layer, sequence, piece_idx, t, is_keys, row);
        store_row(shape.element, row, shape.kv_size(), to);
      }
    }
  }
}

void KvParker::park(const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
                    const std::function<void(int64_t, std::span<const std::byte>)>& done) {
  LATHE_CHECK(begin >= 0 && (begin + count) * piece_tokens() <= sequence.num_tokens);
  if (count <= 0) return;
  const Workspace::Scope scope(exec.workspace);
  const int num_threads = exec.threads.num_threads();
  float* memory = exec.workspace.allocate_as<float>(num_threads * floats_per_thread());
  // As many at once as there are threads: the codes of all of a long sequence would be large.
  const int64_t stride = round_up(std::max(piece_bytes(0), piece_bytes(1)));
  auto* pieces = exec.workspace.allocate_as<std::byte>(num_threads * stride);
  for (int64_t first = begin; first < begin + count; first += num_threads) {
    const int64_t num = std::min<int64_t>(num_threads, begin + count - first);
    exec.threads.parallel_for(num, 1, [&](int64_t from, int64_t to, int thread_idx) {
      for (int64_t i = from; i < to; ++i) {
        park_one(sequence, first + i, pieces + i * stride,
                 memory + thread_idx * floats_per_thread(), exec);
      }
    });
    for (int64_t i = 0; i < num; ++i) {
      done(first + i, {pieces + i * stride, static_cast<std::size_t>(piece_bytes(first + i))});
    }
  }
}

// --- waking -------------------------------------------------------------------------------------

void KvParker::wake_one(std::span<const std::byte> piece, int64_t piece_idx,
                        const KvSequence& sequence, float* memory, Exec& exec) {
  const LiveBlockShape& shape = live_.shape();
  float* state = memory;
  float* scratch = state + round_up(codec_.state_floats(piece_blocks_));
  float* rotated = scratch + round_up(codec_.scratch_floats(piece_blocks_));
  std::vector<const std::byte*> codes(static_cast<std::size_t>(piece_blocks_));
  for (int64_t b = 0; b < piece_blocks_; ++b) {
    codes[static_cast<std::size_t>(b)] = piece.data() + b * codec_.bytes_per_block();
  }
  std::vector<int64_t> positions(static_cast<std::size_t>(piece_tokens()));
  for (int64_t t = 0; t < piece_tokens(); ++t) {
    positions[static_cast<std::size_t>(t)] = piece_idx * piece_tokens() + t;
  }
  const int64_t num_exact = num_sinks(piece_idx);
  const std::byte* sink = piece.data() + piece_blocks_ * codec_.bytes_per_block();
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const KvLayerRows rows =
        codec_.decode_layer(layer, codes.data(), piece_blocks_, state, scratch, exec);
    const KvRope& tables = rope_[static_cast<std::size_t>(layer)];
    const float* keys = rows.keys;
    if (const float* offset = dropped_offset(layer)) {
      for (int64_t i = 0; i < piece_tokens() * shape.kv_size(); ++i) {
        rotated[i] = rows.keys[i] - offset[i % shape.kv_size()];
      }
      keys = rotated;
    }
    rope({.x = keys,
          .y = rotated,
          .positions = positions.data(),
          .cos = tables.cos,
          .sin = tables.sin,
          .num_positions = tables.num_positions,
          .num_rows = piece_tokens(),
          .num_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .rotary_dim = tables.rotary_dim},
         exec);
    for (int64_t t = num_exact; t < piece_tokens(); ++t) {
      store(layer, sequence, piece_idx, t, true, rotated + t * shape.kv_size());
      store(layer, sequence, piece_idx, t, false, rows.values + t * shape.kv_size());
    }
    for (const bool is_keys : {true, false}) {
      for (int64_t t = 0; t < num_exact; ++t, sink += sink_row_bytes()) {
        load_row(shape.element, sink, shape.kv_size(), rotated);
        store(layer, sequence, piece_idx, t, is_keys, rotated);
      }
    }
  }
}

void KvParker::wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
                    const KvSequence& sequence, Exec& exec) {
  const auto count = static_cast<int64_t>(pieces.size());
  LATHE_CHECK(static_cast<int64_t>(sequence.blocks.size()) >= (begin + count) * piece_blocks_);
  for (int64_t i = 0; i < count; ++i) {
    const auto size = static_cast<int64_t>(pieces[static_cast<std::size_t>(i)].size());
    if (size == piece_bytes(begin + i)) continue;
    fail(ErrorCode::kCorruptData, "a parked piece of ", size, " bytes; ", piece_bytes(begin + i),
         " expected");
  }
  const Workspace::Scope scope(exec.workspace);
  float* memory =
      exec.workspace.allocate_as<float>(exec.threads.num_threads() * floats_per_thread());
  exec.threads.parallel_for(count, 1, [&](int64_t from, int64_t to, int thread_idx) {
    for (int64_t i = from; i < to; ++i) {
      wake_one(pieces[static_cast<std::size_t>(i)], begin + i, sequence,
               memory + thread_idx * floats_per_thread(), exec);
    }
  });
}

}  // namespace lathe

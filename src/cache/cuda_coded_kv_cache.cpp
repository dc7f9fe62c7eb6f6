#include "cache/cuda_coded_kv_cache.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "kernels/kv_rows/coded_blocks_cuda.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

// Rows multiplied together: their fp32 products, 32 MiB at 1024 numbers a row, stay in an L2 cache
// of 50 MiB until they meet their codes.
constexpr int64_t kRunBlocks = 8192 / kBlockSize;

// Sizes of a step's rebuilding: as they are above what a graph is captured for; below, steps of an
// eighth to a quarter, so that a few graphs serve all.
int64_t padded_blocks(int64_t num_blocks) {
  if (num_blocks > kMostCapturedBlocks) return num_blocks;
  const auto size = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(num_blocks)));
  const int64_t step = std::max<int64_t>(1, size / 4);
  return (num_blocks + step - 1) / step * step;
}

}  // namespace

CudaCodedKvCache::CudaCodedKvCache(const ModelConfig& config, const KvCodecFile& file,
                                   const std::vector<KvRopeCuda>& rope,
                                   const CodedKvCacheOptions& options, int64_t cache_id,
                                   CudaContext& context)
    : CodedCache(config, {file.num_sinks, file.window, file.chunk_tokens}, options),
      context_(context),
      coder_(file, options.live_format == KvFormat::kF32 ? CudaElement::kF32 : CudaElement::kBF16,
             context),
      cache_id_(cache_id),
      element_(options.live_format == KvFormat::kF32 ? KvCudaElement::kF32 : KvCudaElement::kBF16),
      num_layers_(config.num_layers),
      num_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      plane_bytes_(num_heads_ * kv_cuda_head_bytes(element_, head_dim_)),
      run_blocks_(std::min(kRunBlocks, capacity())),
      num_positions_(blocks_for(options.max_sequence_tokens) * kBlockSize) {
  if (coder_.num_layers() != num_layers_ || coder_.num_heads() != num_heads_ ||
      coder_.head_dim() != head_dim_ || static_cast<int64_t>(rope.size()) != num_layers_) {
    fail(ErrorCode::kInvalidArgument, "a codec of ", coder_.num_layers(), " layers of ",
         coder_.num_heads(), " x ", coder_.head_dim(), " and rope for ", rope.size(),
         "; the model has ", num_layers_, " of ", num_heads_, " x ", head_dim_);
  }
  const int64_t plane_blocks = capacity() + num_layers_ * num_blocks();
  if (plane_blocks > std::numeric_limits<int32_t>::max()) {
    fail(ErrorCode::kInvalidArgument, "a coded cache of ", capacity(), " coded and ", num_layers_,
         " x ", num_blocks(), " live blocks: more than block tables can name");
  }
  int64_t code_bytes = 0;
  const auto take = [&](int64_t row_bytes) {
    const int64_t begin = code_bytes;
    code_bytes += (capacity() * kBlockSize * row_bytes + 255) / 256 * 256;
    return begin;
  };
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    key_codes_.push_back(take(coder_.row_bytes(layer, false)));
    value_codes_.push_back(take(coder_.row_bytes(layer, true)));
  }
  for (const CudaKvCoder::Latent& latent : coder_.latents()) {
    latent_codes_.push_back(take(latent.row_bytes));
  }
  context_.use();
  with_context(str("coded KV cache of ", options.coded_tokens, " tokens and ", options.live_tokens,
                   " exact ones"),
               [&] {
                 keys_ = DeviceBuffer(plane_blocks * plane_bytes_);
                 values_ = DeviceBuffer(plane_blocks * plane_bytes_);
                 codes_ = DeviceBuffer(code_bytes);
                 state_ = DeviceBuffer(coder_.state_bytes(capacity() * kBlockSize));
                 scratch_ = DeviceBuffer(coder_.scratch_floats(run_blocks_ * kBlockSize) * 4);
                 exact_ = DeviceBuffer(run_blocks_ * kBlockSize * coder_.width() * 4);
               });

  // Each different rotation once, for every position.
  int64_t rotation_floats = 0;
  std::vector<int64_t> first_with;  // layers that brought a new one
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const KvRopeCuda& own = rope[static_cast<std::size_t>(layer)];
    rotary_dim_.push_back(own.rotary_dim);
    const auto same = std::find_if(first_with.begin(), first_with.end(), [&](int64_t other) {
      return rope[static_cast<std::size_t>(other)].inverse_frequencies == own.inverse_frequencies;
    });
    if (same != first_with.end()) {
      rotation_of_.push_back(rotation_of_[static_cast<std::size_t>(*same)]);
      continue;
    }
    first_with.push_back(layer);
    rotation_of_.push_back(rotation_floats);
    rotation_floats += num_positions_ * own.rotary_dim;
  }
  rotations_ = DeviceBuffer(std::max<int64_t>(1, rotation_floats) * 4);
  host_ints_.resize(
      static_cast<std::size_t>(std::max((kNumLists + 1) * capacity() + 1, num_positions_)));
  ints_ = DeviceBuffer(static_cast<int64_t>(host_ints_.size()) * 4);
  std::iota(host_ints_.begin(), host_ints_.begin() + num_positions_, 0);
  const auto upload_ints = [&] {
    cuda_check(cudaMemcpyAsync(ints_.data(), host_ints_.data(), host_ints_.size() * 4,
                               cudaMemcpyHostToDevice, context_.stream()),
               "copying to the GPU");
  };
  upload_ints();
  for (const int64_t layer : first_with) {
    const KvRopeCuda& own = rope[static_cast<std::size_t>(layer)];
    float* cos = rotations_.as<float>() + rotation_of_[static_cast<std::size_t>(layer)];
    rope_tables_cuda(own.inverse_frequencies, own.attention_factor, own.rotary_dim / 2,
                     ints_.as<int32_t>(), num_positions_, cos,
                     cos + num_positions_ * (own.rotary_dim / 2), context_.stream());
  }
  std::fill(host_ints_.begin(), host_ints_.end(), 0);
  int32_t* const numbers = host_ints_.data() + kNumLists * capacity() + 1;
  std::iota(numbers, numbers + capacity(), 0);
  upload_ints();
  prepare_codes(file, config);
  context_.synchronize();
}

void CudaCodedKvCache::prepare_codes(const KvCodecFile& file, const ModelConfig& config) {
  const KvFormat live = element_ == KvCudaElement::kBF16 ? KvFormat::kBF16 : KvFormat::kF32;
  const bool same_rotation = std::all_of(rotary_dim_.begin(), rotary_dim_.end(),
                                         [&](int64_t dim) { return dim == config.rotary_dim; });
  if (!same_rotation || !gpu_attends_to_codes(file, config, live)) return;
  coder_.prepare_latent_attention(file);
  host_sinks_.assign(static_cast<std::size_t>(capacity()), -1);
  sinks_ = DeviceBuffer::from_host(host_sinks_.data(), capacity() * 4);
  for (int64_t layer_idx = 0; layer_idx < num_layers_; ++layer_idx) {
    const auto i = static_cast<std::size_t>(layer_idx);
    const float* cos = rotations_.as<float>() + rotation_of_[i];
    LatentKvCuda kv = coder_.latent_kv(layer_idx);
    kv.latents = codes_of_latent(coder_.latent_of_layer(layer_idx), 0);
    kv.keys = codes_of(layer_idx, false, 0);
    kv.values = codes_of(layer_idx, true, 0);
    kv.num_coded_blocks = capacity();
    kv.exact = layer(layer_idx);
    kv.sink_blocks = sinks_.as<int32_t>();
    kv.first_live = capacity() + layer_idx * num_blocks();
    kv.num_sinks = policy().num_sinks;
    kv.cos = cos;
    kv.sin = cos + num_positions_ * (rotary_dim_[i] / 2);
    layer_codes_.push_back(kv);
  }
}

CudaCodedKvCache::~CudaCodedKvCache() { cudaStreamSynchronize(context_.stream()); }

KvElement CudaCodedKvCache::element() const {
  return element_ == KvCudaElement::kF32 ? KvElement::kF32 : KvElement::kBF16;
}

int64_t CudaCodedKvCache::memory_bytes() const {
  return keys_.size() + values_.size() + codes_.size() + state_.size() + scratch_.size() +
         exact_.size() + rotations_.size() + ints_.size() + sinks_.size() + coder_.weight_bytes();
}

void CudaCodedKvCache::append(int64_t, const float*, const float*, const float*, int64_t, Exec&) {
  LATHE_UNREACHABLE("rows of a GPU's cache are appended by rope_append_cuda()");
}

std::span<const KvBlockView> CudaCodedKvCache::views(int64_t, int64_t) {
  LATHE_UNREACHABLE("a GPU's cache has no views");
}

// --- places -------------------------------------------------------------------------------------

std::byte* CudaCodedKvCache::plane(bool is_value, int64_t layer, BlockId live) {
  return (is_value ? values_ : keys_).data() +
         (capacity() + layer * num_blocks() + live) * plane_bytes_;
}

KvCudaLayer CudaCodedKvCache::layer(int64_t) {
  return {.element = element_, .keys = keys_.data(), .values = values_.data()};
}

KvCudaLayer CudaCodedKvCache::live_layer(int64_t layer) {
  return {.element = element_, .keys = plane(false, layer, 0), .values = plane(true, layer, 0)};
}

CudaKvCoder::Run CudaCodedKvCache::run(int64_t first_row, int64_t num_rows) {
  return {.state = state_.data(),
          .state_rows = capacity() * kBlockSize,
          .first_row = first_row,
          .num_rows = num_rows,
          .scratch = scratch_.as<float>()};
}

KvCodesCuda CudaCodedKvCache::codes_of(int64_t layer, bool is_value, int64_t first_block) {
  const int64_t row_bytes = coder_.row_bytes(layer, is_value);
  return {.data = codes_.data() +
                  (is_value ? value_codes_ : key_codes_)[static_cast<std::size_t>(layer)],
          .blocks = list(kCoded, first_block),
          .block_stride = kBlockSize * row_bytes,
          .row_bytes = row_bytes};
}

KvCodesCuda CudaCodedKvCache::codes_of_latent(int64_t group, int64_t first_block) {
  const auto i = static_cast<std::size_t>(group);
  const int64_t row_bytes = coder_.latents()[i].row_bytes;
  return {.data = codes_.data() + latent_codes_[i],
          .blocks = list(kCoded, first_block),
          .block_stride = kBlockSize * row_bytes,
          .row_bytes = row_bytes};
}

KvLiveRowsCuda CudaCodedKvCache::rows_in(const KvCudaLayer& to, const int32_t* blocks,
                                         int64_t layer, bool is_value, int64_t first_block) {
  const auto i = static_cast<std::size_t>(layer);
  const float* cos = rotations_.as<float>() + rotation_of_[i];
  return {.layer = to,
          .blocks = blocks + first_block,
          .is_value = is_value,
          .first_positions = list(kPositions, first_block),
          .cos = cos,
          .sin = cos + num_positions_ * (rotary_dim_[i] / 2),
          .rotary_dim = rotary_dim_[i]};
}

void CudaCodedKvCache::copy_live_block(BlockId from, BlockId to) {
  context_.use();
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const bool is_value : {false, true}) {
      cuda_check(cudaMemcpyAsync(plane(is_value, layer, to), plane(is_value, layer, from),
                                 static_cast<std::size_t>(plane_bytes_), cudaMemcpyDeviceToDevice,
                                 context_.stream()),
                 "copying a block of the cache");
    }
  }
}

// --- lists of blocks ----------------------------------------------------------------------------

// The first num_blocks entries of each list but those of sinks, which have num_sinks. From memory
// that is not pinned: it may be written again at return.
void CudaCodedKvCache::send_lists(int64_t num_blocks, int64_t num_sinks) {
  const auto send = [&](int64_t begin, int64_t count) {
    if (count == 0) return;
    cuda_check(cudaMemcpyAsync(ints_.as<int32_t>() + begin, host_ints_.data() + begin,
                               static_cast<std::size_t>(count) * 4, cudaMemcpyHostToDevice,
                               context_.stream()),
               "copying to the GPU");
  };
  for (const List which : {kCoded, kPositions, kLive}) send(which * capacity(), num_blocks);
  for (const List which : {kSinkFrom, kSinkTo, kSinkTokens}) send(which * capacity(), num_sinks);
  host_ints_[static_cast<std::size_t>(kNumLists * capacity())] = static_cast<int32_t>(num_sinks);
  send(kNumLists * capacity(), 1);
}

// blocks[i] to block to[i], or to rebuilt block i.
void CudaCodedKvCache::list_rebuilt(std::span<const Rebuilt> blocks, const BlockId* to) {
  int64_t num_sinks = 0;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Rebuilt& block = blocks[i];
    const BlockId target = to != nullptr ? to[i] : static_cast<BlockId>(i);
    host_list(kCoded)[i] = block.coded;
    host_list(kPositions)[i] = static_cast<int32_t>(block.first_position);
    host_list(kLive)[i] = target;
    if (block.sink_block < 0) continue;
    host_list(kSinkFrom)[num_sinks] = block.sink_block;
    host_list(kSinkTo)[num_sinks] = target;
    host_list(kSinkTokens)[num_sinks] =
        static_cast<int32_t>(sinks_in_block(block.first_position / kBlockSize));
    ++num_sinks;
  }
  auto num_blocks = static_cast<int64_t>(blocks.size());
  for (; to == nullptr && num_blocks < num_padded_; ++num_blocks) {  // the first one once more
    host_list(kCoded)[num_blocks] = host_list(kCoded)[0];
    host_list(kPositions)[num_blocks] = host_list(kPositions)[0];
    host_list(kLive)[num_blocks] = static_cast<int32_t>(num_blocks);
  }
  send_lists(num_blocks, num_sinks);
}

// --- encoding -----------------------------------------------------------------------------------

void CudaCodedKvCache::encode_blocks(std::span<const EncodeJob> jobs, Exec&) {
  context_.use();
  const auto num_jobs = static_cast<int64_t>(jobs.size());
  for (int64_t i = 0; i < num_jobs; ++i) {
    const EncodeJob& job = jobs[static_cast<std::size_t>(i)];
    host_list(kCoded)[i] = job.coded;
    host_list(kPositions)[i] = static_cast<int32_t>(job.first_position);
    host_list(kLive)[i] = job.live;
  }
  send_lists(num_jobs, 0);
  for (int64_t first = 0; first < num_jobs; first += run_blocks_) {
    encode_run(first, std::min(run_blocks_, num_jobs - first));
  }
}

void CudaCodedKvCache::encode_run(int64_t first_block, int64_t num_blocks) {
  const CudaKvCoder::Run rows = run(0, num_blocks * kBlockSize);
  const auto load = [&](int64_t layer, bool is_value, const float* mean, float* to) {
    load_live_rows_cuda(rows_in(live_layer(layer), list(kLive), layer, is_value, first_block),
                        num_heads_, head_dim_, rows.num_rows, to, context_.stream(), mean);
  };
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const int64_t group : coder_.latents_from(layer)) {
      coder_.encode_latent(group, rows, codes_of_latent(group, first_block), exact_.as<float>(),
                           load);
    }
    for (const bool is_value : {false, true}) {
      load(layer, is_value, nullptr, exact_.as<float>());
      coder_.encode(layer, is_value, rows, codes_of(layer, is_value, first_block),
                    exact_.as<float>());
    }
  }
}

// --- rebuilding ---------------------------------------------------------------------------------

// One layer of the listed blocks, to block blocks[i] of `to`. The state has the layers below.
void CudaCodedKvCache::rebuild(int64_t layer, int64_t num_blocks, const KvCudaLayer& to,
                               const int32_t* blocks) {
  for (int64_t first = 0; first < num_blocks; first += run_blocks_) {
    const CudaKvCoder::Run rows =
        run(first * kBlockSize, std::min(run_blocks_, num_blocks - first) * kBlockSize);
    for (const int64_t group : coder_.latents_from(layer)) {
      coder_.decode_latent(group, rows, codes_of_latent(group, first));
    }
    for (const bool is_value : {false, true}) {
      coder_.decode(layer, is_value, rows, codes_of(layer, is_value, first),
                    rows_in(to, blocks, layer, is_value, first));
    }
  }
}

// Over the rows that stand for them in `to`; first_block: of the layer's live blocks in it.
void CudaCodedKvCache::copy_sinks(const KvCudaLayer& to, int64_t first_block) {
  if (sinks_in_block(policy().num_sinks / kBlockSize) == 0) return;  // whole blocks are never coded
  copy_tokens_cuda({.layer = to,
                    .num_heads = num_heads_,
                    .head_dim = head_dim_,
                    .first_block = first_block,
                    .count = sink_count(),
                    .from = list(kSinkFrom),
                    .to = list(kSinkTo),
                    .tokens = list(kSinkTokens)},
                   context_.stream());
}

void CudaCodedKvCache::wake_blocks(std::span<const Rebuilt> blocks, const BlockId* live, Exec&) {
  context_.use();
  list_rebuilt(blocks, live);
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const KvCudaLayer to = live_layer(layer);
    rebuild(layer, static_cast<int64_t>(blocks.size()), to, list(kLive));
    copy_sinks(to, 0);
  }
}

void CudaCodedKvCache::start_step(Exec&) {
  context_.use();
  attends_to_codes_ =
      !layer_codes_.empty() && std::all_of(rows().begin(), rows().end(),
                                           [](const KvRows& own) { return own.num_rows == 1; });
  num_padded_ = 0;
  if (attends_to_codes_) {
    send_sinks();
    return;
  }
  const auto num_blocks = static_cast<int64_t>(rebuilt().size());
  if (num_blocks == 0) return;
  num_padded_ = std::min(padded_blocks(num_blocks), capacity());
  list_rebuilt(rebuilt(), nullptr);
}

// Where the exact first tokens of the step's sequences lie; from one step to the next it is mostly
// the same.
void CudaCodedKvCache::send_sinks() {
  bool changed = false;
  for (const Rebuilt& block : rebuilt()) {
    int32_t& known = host_sinks_[static_cast<std::size_t>(block.coded)];
    changed = changed || known != block.sink_block;
    known = block.sink_block;
  }
  if (!changed) return;
  cuda_check(cudaMemcpyAsync(sinks_.data(), host_sinks_.data(), host_sinks_.size() * 4,
                             cudaMemcpyHostToDevice, context_.stream()),
             "copying to the GPU");
}

const LatentKvCuda* CudaCodedKvCache::codes(int64_t layer) {
  return attends_to_codes_ ? &layer_codes_[static_cast<std::size_t>(layer)] : nullptr;
}

KvCudaTables CudaCodedKvCache::start_layers(const CudaBatch& batch, int32_t* memory) {
  const int64_t count = batch.num_sequences * batch.table_stride;
  layer_tables_cuda(batch.block_tables, count, num_layers_, capacity(), num_blocks(), memory,
                    context_.stream());
  return {memory, count};
}

void CudaCodedKvCache::prepare_layer(int64_t layer_idx) {
  if (num_padded_ == 0) return;
  rebuild(layer_idx, num_padded_, layer(layer_idx), identity());
  copy_sinks(layer(layer_idx), capacity() + layer_idx * num_blocks());
}

}  // namespace lathe

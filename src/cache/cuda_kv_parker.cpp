#include "cache/cuda_kv_parker.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "tensor/cuda_check.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// Rows in a run: products of that height fill a GPU, and the rows of a plane of 1024 numbers, three
// or four of them in use, are 16 MiB each.
constexpr int64_t kRunRows = 4096;

}  // namespace

// Pieces on their way: pinned memory, and where they arrive. Two of each, so that one run's are
// copied while another's are used.
struct CudaKvParker::Staging {
  std::byte* host[2] = {};
  DeviceBuffer device[2];
  cudaEvent_t sent[2] = {};
  cudaEvent_t used[2] = {};
  cudaStream_t stream = nullptr;

  explicit Staging(int64_t bytes) {
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    for (int i = 0; i < 2; ++i) {
      device[i] = DeviceBuffer(bytes);
      cuda_check(cudaHostAlloc(reinterpret_cast<void**>(&host[i]), static_cast<std::size_t>(bytes),
                               cudaHostAllocDefault),
                 "allocating pinned memory");
      cuda_check(cudaEventCreateWithFlags(&sent[i], cudaEventDisableTiming), "making an event");
      cuda_check(cudaEventCreateWithFlags(&used[i], cudaEventDisableTiming), "making an event");
    }
  }
  ~Staging() {
    for (int i = 0; i < 2; ++i) {
      if (sent[i] != nullptr) cudaEventDestroy(sent[i]);
      if (used[i] != nullptr) cudaEventDestroy(used[i]);
      if (host[i] != nullptr) cudaFreeHost(host[i]);
    }
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
};

CudaKvParker::CudaKvParker(CudaKvCache& cache, const KvCodecFile& file,
                           std::vector<KvRopeCuda> rope, CudaContext& context)
    : cache_(cache),
      context_(context),
      rope_(std::move(rope)),
      coder_(file, CudaElement::kF32, context),
      num_layers_(file.num_layers()),
      num_heads_(file.shape.num_heads),
      head_dim_(file.shape.head_dim),
      width_(file.shape.width()),
      sinks_(file.num_sinks),
      window_(file.window),
      piece_blocks_(file.chunk_tokens / kBlockSize) {
  if (file.num_sinks < 0 || file.window < 0 || piece_blocks_ < 1 ||
      file.chunk_tokens % kBlockSize != 0 || static_cast<int64_t>(rope_.size()) != num_layers_) {
    fail(ErrorCode::kInvalidArgument, "parking: ", file.num_sinks, " sinks, window ", file.window,
         ", chunks of ", file.chunk_tokens, " (a multiple of ", kBlockSize, "), rope for ",
         rope_.size(), " of ", num_layers_, " layers");
  }
  context_.use();
  run_pieces_ = std::max<int64_t>(1, kRunRows / piece_tokens());
  run_rows_ = run_pieces_ * piece_tokens();
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const bool is_value : {false, true}) {
      (is_value ? value_offset_ : key_offset_).push_back(block_bytes_);
      block_bytes_ += kBlockSize * coder_.row_bytes(layer, is_value);
    }
  }
  for (const CudaKvCoder::Latent& latent : coder_.latents()) {
    latent_offset_.push_back(block_bytes_);
    block_bytes_ += kBlockSize * latent.row_bytes;
  }
  state_ = DeviceBuffer(coder_.state_bytes(run_rows_));
  scratch_ = DeviceBuffer(coder_.scratch_floats(run_rows_) * 4);
  exact_ = DeviceBuffer(width_ * run_rows_ * 4);
  ints_ = DeviceBuffer((run_rows_ + run_rows_ / kBlockSize) * 4);
  int64_t rotation_floats = 0;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    int64_t same = 0;
    while (rope_[static_cast<std::size_t>(same)].inverse_frequencies !=
           rope_[static_cast<std::size_t>(layer)].inverse_frequencies) {
      ++same;
    }
    if (same < layer) {
      rotation_of_.push_back(rotation_of_[static_cast<std::size_t>(same)]);
      continue;
    }
    rotation_of_.push_back(rotation_floats);
    rotation_floats += run_rows_ * rope_[static_cast<std::size_t>(layer)].rotary_dim;
  }
  rotations_ = DeviceBuffer(std::max<int64_t>(1, rotation_floats) * 4);
  staging_ = std::make_unique<Staging>(run_pieces_ * code_bytes());
}

CudaKvParker::~CudaKvParker() { cudaStreamSynchronize(context_.stream()); }

// --- sizes --------------------------------------------------------------------------------------

int64_t CudaKvParker::num_sinks(int64_t piece_idx) const {
  return std::clamp<int64_t>(sinks_ - piece_idx * piece_tokens(), 0, piece_tokens());
}

int64_t CudaKvParker::sink_row_bytes() const {
  return width_ * (cache_.layer(0).element == KvCudaElement::kBF16 ? 2 : 4);
}

int64_t CudaKvParker::piece_bytes(int64_t piece_idx) const {
  return code_bytes() + num_sinks(piece_idx) * num_layers_ * 2 * sink_row_bytes();
}

int64_t CudaKvParker::memory_bytes() const {
  return coder_.weight_bytes() + state_.size() + scratch_.size() + exact_.size() +
         rotations_.size() + ints_.size() + 2 * run_pieces_ * code_bytes();
}

// --- a run --------------------------------------------------------------------------------------

// Positions, blocks and rotations of the rows of some pieces.
void CudaKvParker::start_run(const KvSequence& sequence, int64_t first_piece, int64_t num_pieces) {
  const int64_t num_rows = num_pieces * piece_tokens();
  const int64_t first_block = first_piece * piece_blocks_;
  LATHE_CHECK(static_cast<int64_t>(sequence.blocks.size()) >=
              first_block + num_pieces * piece_blocks_);
  sink_block_ = first_piece == 0 ? sequence.sink_block : BlockId{-1};
  const CudaStream stream = context_.stream();
  cuda_check(cudaStreamSynchronize(stream), "waiting for the GPU");  // host_ints_ are read no more
  host_ints_.resize(static_cast<std::size_t>(run_rows_ + run_rows_ / kBlockSize));
  for (int64_t t = 0; t < num_rows; ++t) {
    host_ints_[static_cast<std::size_t>(t)] =
        static_cast<int32_t>(first_piece * piece_tokens() + t);
  }
  for (int64_t b = 0; b < num_pieces * piece_blocks_; ++b) {
    host_ints_[static_cast<std::size_t>(run_rows_ + b)] =
        sequence.blocks[static_cast<std::size_t>(first_block + b)];
  }
  cuda_check(cudaMemcpyAsync(ints_.data(), host_ints_.data(), host_ints_.size() * 4,
                             cudaMemcpyHostToDevice, stream),
             "copying to the GPU");
  int64_t done = -1;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const int64_t at = rotation_of_[static_cast<std::size_t>(layer)];
    if (at <= done) continue;
    done = at;
    const KvRopeCuda& rope = rope_[static_cast<std::size_t>(layer)];
    const int64_t half = rope.rotary_dim / 2;
    float* cos = rotations_.as<float>() + at;
    rope_tables_cuda(rope.inverse_frequencies, rope.attention_factor, half, ints_.as<int32_t>(),
                     num_rows, cos, cos + run_rows_ * half, stream);
  }
}

KvLiveRowsCuda CudaKvParker::live_rows(int64_t layer, bool is_value, bool turned) const {
  const KvRopeCuda& rope = rope_[static_cast<std::size_t>(layer)];
  const float* cos = rotations_.as<float>() + rotation_of_[static_cast<std::size_t>(layer)];
  return {.layer = cache_.layer(layer),
          .blocks = ints_.as<int32_t>() + run_rows_,
          .is_value = is_value,
          .cos = turned ? cos : nullptr,
          .sin = turned ? cos + run_rows_ * (rope.rotary_dim / 2) : nullptr,
          .rotary_dim = rope.rotary_dim,
          .key_offset = turned && kv_cuda_drops_key_offset(cache_.layer(layer).element)
                            ? rope.key_offset
                            : nullptr,
          .sink_block = sink_block_};
}

KvCodesCuda CudaKvParker::codes_at(int64_t offset, int64_t row_bytes, std::byte* codes) const {
  return {.data = codes,
          .piece_stride = code_bytes(),
          .block_stride = block_bytes_,
          .piece_blocks = piece_blocks_,
          .offset = offset,
          .row_bytes = row_bytes};
}

KvCodesCuda CudaKvParker::codes_of(int64_t layer, bool is_value, std::byte* codes) const {
  return codes_at((is_value ? value_offset_ : key_offset_)[static_cast<std::size_t>(layer)],
                  coder_.row_bytes(layer, is_value), codes);
}

KvCodesCuda CudaKvParker::codes_of_latent(int64_t group, std::byte* codes) const {
  const auto i = static_cast<std::size_t>(group);
  return codes_at(latent_offset_[i], coder_.latents()[i].row_bytes, codes);
}

// --- layer by layer -----------------------------------------------------------------------------

void CudaKvParker::decode_run(int64_t num_rows, std::byte* codes) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const int64_t group : coder_.latents_from(layer)) {
      coder_.decode_latent(group, run(num_rows), codes_of_latent(group, codes));
    }
    for (const bool is_value : {false, true}) {
      coder_.decode(layer, is_value, run(num_rows), codes_of(layer, is_value, codes),
                    live_rows(layer, is_value, true));
    }
  }
}

void CudaKvParker::encode_run(int64_t num_rows, std::byte* codes) {
  const auto load = [&](int64_t layer, bool is_value, const float* mean, float* to) {
    load_live_rows_cuda(live_rows(layer, is_value, true), num_heads_, head_dim_, num_rows, to,
                        context_.stream(), mean);
  };
  float* exact = exact_.as<float>();
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const int64_t group : coder_.latents_from(layer)) {
      coder_.encode_latent(group, run(num_rows), codes_of_latent(group, codes), exact, load);
    }
    for (const bool is_value : {false, true}) {
      load(layer, is_value, nullptr, exact);
      coder_.encode(layer, is_value, run(num_rows), codes_of(layer, is_value, codes), exact);
    }
  }
}

// --- waking -------------------------------------------------------------------------------------

void CudaKvParker::wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
                        const KvSequence& sequence, Exec& exec) {
  const auto count = static_cast<int64_t>(pieces.size());
  for (int64_t i = 0; i < count; ++i) {
    const auto size = static_cast<int64_t>(pieces[static_cast<std::size_t>(i)].size());
    if (size == piece_bytes(begin + i)) continue;
    fail(ErrorCode::kCorruptData, "a parked piece of ", size, " bytes; ", piece_bytes(begin + i),
         " expected");
  }
  context_.use();
  const CudaStream stream = context_.stream();
  const auto bytes = static_cast<std::size_t>(code_bytes());
  // The pieces of one run to the device; its last use of the memory is behind us.
  const auto send = [&](int64_t first, int64_t num) {
    const auto turn = static_cast<std::size_t>(first / run_pieces_ % 2);
    cuda_check(cudaEventSynchronize(staging_->sent[turn]), "waiting for the GPU");
    exec.threads.parallel_for(num, 1, [&](int64_t from, int64_t to, int) {
      for (int64_t i = from; i < to; ++i) {
        std::memcpy(staging_->host[turn] + i * code_bytes(),
                    pieces[static_cast<std::size_t>(first + i)].data(), bytes);
      }
    });
    cuda_check(cudaStreamWaitEvent(staging_->stream, staging_->used[turn]), "waiting for the GPU");
    cuda_check(cudaMemcpyAsync(staging_->device[turn].data(), staging_->host[turn],
                               static_cast<std::size_t>(num) * bytes, cudaMemcpyHostToDevice,
                               staging_->stream),
               "copying to the GPU");
    cuda_check(cudaEventRecord(staging_->sent[turn], staging_->stream), "recording an event");
  };
  for (int64_t first = 0; first < count; first += run_pieces_) {
    const int64_t num = std::min(run_pieces_, count - first);
    const auto turn = static_cast<std::size_t>(first / run_pieces_ % 2);
    if (first == 0) send(first, num);
    start_run(sequence, begin + first, num);
    cuda_check(cudaStreamWaitEvent(stream, staging_->sent[turn]), "waiting for the GPU");
    decode_run(num * piece_tokens(), staging_->device[turn].data());
    cuda_check(cudaEventRecord(staging_->used[turn], stream), "recording an event");
    for (int64_t i = 0; i < num; ++i) {
      if (num_sinks(begin + first + i) == 0) break;
      const auto& piece = pieces[static_cast<std::size_t>(first + i)];
      if (i > 0) start_run(sequence, begin + first + i, 1);
      wake_sinks(std::span(piece).subspan(bytes), begin + first + i);
    }
    // The next run's pieces, while this one's kernels run.
    if (first + num < count) send(first + num, std::min(run_pieces_, count - first - num));
  }
  context_.synchronize();
}

// The exact rows over those that the codes stand for. The run in progress begins with this piece.
void CudaKvParker::wake_sinks(std::span<const std::byte> sinks, int64_t piece_idx) {
  const int64_t num = num_sinks(piece_idx);
  const bool is_bf16 = cache_.layer(0).element == KvCudaElement::kBF16;
  std::vector<float> rows(static_cast<std::size_t>(num_layers_ * 2 * num * width_));
  LATHE_CHECK(static_cast<int64_t>(sinks.size()) == num_layers_ * 2 * num * sink_row_bytes());
  if (is_bf16) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, sinks.data() + 2 * i, sizeof bits);
      rows[i] = float_from_bf16(bits);
    }
  } else {
    std::memcpy(rows.data(), sinks.data(), rows.size() * sizeof(float));
  }
  const DeviceBuffer device =
      DeviceBuffer::from_host(rows.data(), static_cast<int64_t>(rows.size() * 4));
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const bool is_value : {false, true}) {
      store_live_rows_cuda(live_rows(layer, is_value, false), num_heads_, head_dim_, num,
                           device.as<float>() + (layer * 2 + (is_value ? 1 : 0)) * num * width_,
                           context_.stream());
    }
  }
  context_.synchronize();  // before the rows are freed
}

// --- parking ------------------------------------------------------------------------------------

void CudaKvParker::park(const KvSequence& sequence, int64_t begin, int64_t count, Exec&,
                        const std::function<void(int64_t, std::span<const std::byte>)>& done) {
  LATHE_CHECK(begin >= 0 && (begin + count) * piece_tokens() <= sequence.num_tokens);
  context_.use();
  const CudaStream stream = context_.stream();
  std::byte* codes = staging_->device[0].data();
  const auto bytes = static_cast<std::size_t>(code_bytes());
  for (int64_t first = 0; first < count; first += run_pieces_) {
    const int64_t num = std::min(run_pieces_, count - first);
    start_run(sequence, begin + first, num);
    encode_run(num * piece_tokens(), codes);
    cuda_check(cudaMemcpyAsync(staging_->host[0], codes, static_cast<std::size_t>(num) * bytes,
                               cudaMemcpyDeviceToHost, stream),
               "copying from the GPU");
    context_.synchronize();
    for (int64_t i = 0; i < num; ++i) {
      const int64_t piece_idx = begin + first + i;
      const std::byte* from = staging_->host[0] + i * code_bytes();
      if (num_sinks(piece_idx) == 0) {
        done(piece_idx, {from, bytes});
        continue;
      }
      std::vector<std::byte> piece(from, from + bytes);
      if (i > 0) start_run(sequence, piece_idx, 1);
      const std::vector<std::byte> sinks = park_sinks(piece_idx);
      piece.insert(piece.end(), sinks.begin(), sinks.end());
      done(piece_idx, piece);
    }
  }
}

std::vector<std::byte> CudaKvParker::park_sinks(int64_t piece_idx) {
  const int64_t num = num_sinks(piece_idx);
  std::vector<float> rows(static_cast<std::size_t>(num_layers_ * 2 * num * width_));
  DeviceBuffer device(static_cast<int64_t>(rows.size() * 4));
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const bool is_value : {false, true}) {
      load_live_rows_cuda(live_rows(layer, is_value, false), num_heads_, head_dim_, num,
                          device.as<float>() + (layer * 2 + (is_value ? 1 : 0)) * num * width_,
                          context_.stream());
    }
  }
  context_.synchronize();
  device.to_host(rows.data(), device.size(), context_.stream());
  std::vector<std::byte> sinks(static_cast<std::size_t>(num_layers_ * 2 * num * sink_row_bytes()));
  if (cache_.layer(0).element != KvCudaElement::kBF16) {
    std::memcpy(sinks.data(), rows.data(), sinks.size());
    return sinks;
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const uint16_t bits = bf16_from_float(rows[i]);
    std::memcpy(sinks.data() + 2 * i, &bits, sizeof bits);
  }
  return sinks;
}

}  // namespace lathe

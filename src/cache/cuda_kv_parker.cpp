#include "cache/cuda_kv_parker.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "quant/higgs.h"
#include "tensor/cuda_check.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// Rows in a run: products of that height fill a GPU, and the rows of a plane of 1024 numbers, three
// or four of them in use, are 16 MiB each.
constexpr int64_t kRunRows = 4096;

}  // namespace

// --- what a codec is on the device --------------------------------------------------------------

struct CudaKvParker::Plane {
  struct Product {
    KvPredictorInput input;
    MultiplyRowsCudaArgs args;  // without x, y and m
    int64_t x_offset = 0, y_offset = 0;
  };
  KvRowsCudaFormat format;
  int64_t offset = 0;  // of its codes in a block's
  int64_t row_bytes = 0;
  std::vector<Product> products;  // to the rows, or to the rank's vector
  int64_t rank = 0;               // 0: there is no such vector
  const float* second = nullptr;  // [width, rank]
};

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
      num_layers_(file.num_layers()),
      num_heads_(file.shape.num_heads),
      head_dim_(file.shape.head_dim),
      width_(file.shape.width()),
      sinks_(file.num_sinks),
      window_(file.window),
      piece_blocks_(file.chunk_tokens / kBlockSize),
      slots_(plan_plane_slots(file)) {
  if (file.num_sinks < 0 || file.window < 0 || piece_blocks_ < 1 ||
      file.chunk_tokens % kBlockSize != 0 || static_cast<int64_t>(rope_.size()) != num_layers_) {
    fail(ErrorCode::kInvalidArgument, "parking: ", file.num_sinks, " sinks, window ", file.window,
         ", chunks of ", file.chunk_tokens, " (a multiple of ", kBlockSize, "), rope for ",
         rope_.size(), " of ", num_layers_, " layers");
  }
  if (!file.latents.empty()) {
    fail(ErrorCode::kUnsupported,
         "a codec with latents on a GPU; fit one of another variant, or use --device cpu");
  }
  context_.use();
  run_pieces_ = std::max<int64_t>(1, kRunRows / piece_tokens());
  run_rows_ = run_pieces_ * piece_tokens();
  int64_t largest_rank = 0;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (const bool is_value : {false, true}) {
      const KvPlane& plane = (is_value ? file.values : file.keys)[static_cast<std::size_t>(layer)];
      (is_value ? values_ : keys_).push_back(make_plane(file, plane, block_bytes_));
      block_bytes_ += kBlockSize * row_bytes(plane.format, file.shape);
      largest_rank = std::max(largest_rank, plane.predictor.rank);
    }
  }
  const int64_t row_floats = run_rows_ * static_cast<int64_t>(sizeof(float));
  rows_ = DeviceBuffer(slots_.num_slots * width_ * row_floats);
  exact_ = DeviceBuffer(width_ * row_floats);
  if (largest_rank > 0) low_rank_ = DeviceBuffer(largest_rank * row_floats);
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

const float* CudaKvParker::upload(const std::vector<float>& numbers) {
  if (numbers.empty()) return nullptr;
  weights_.push_back(
      DeviceBuffer::from_host(numbers.data(), static_cast<int64_t>(numbers.size() * 4)));
  return weights_.back().as<float>();
}

CudaKvParker::Plane CudaKvParker::make_plane(const KvCodecFile& file, const KvPlane& plane,
                                             int64_t offset) {
  using Weight = KvPredictor::Weight;
  if (plane.format.method != RowMethod::kHiggs) {
    fail(ErrorCode::kUnsupported, "a codec of uniform codes on a GPU; use HIGGS or --device cpu");
  }
  const HiggsGrid& grid = higgs_grid(plane.format.bits, plane.format.grid_dim);
  const float* points = nullptr;
  for (const auto& [known, at] : grids_) {
    if (known == &grid) points = at;
  }
  const int64_t coordinates = grid.num_points * grid.dim;
  if (points == nullptr) {
    std::vector<float> tables(grid.points, grid.points + coordinates);
    tables.insert(tables.end(), grid.twice_points, grid.twice_points + coordinates);
    tables.insert(tables.end(), grid.minus_norms, grid.minus_norms + grid.num_points);
    points = upload(tables);
    grids_.emplace_back(&grid, points);
  }
  std::vector<float> inverse_sigma;
  for (const float s : plane.sigma) inverse_sigma.push_back(1 / s);
  const KvPredictor& predictor = plane.predictor;
  Plane made;
  made.format = {.scale = plane.format.scale,
                 .hadamard = plane.format.hadamard,
                 .num_heads = static_cast<int>(num_heads_),
                 .head_dim = static_cast<int>(head_dim_),
                 .grid_dim = static_cast<int>(grid.dim),
                 .num_points = static_cast<int>(grid.num_points),
                 .code_bits = grid.code_bits,
                 .points = points,
                 .twice_points = points + coordinates,
                 .minus_norms = points + 2 * coordinates,
                 .sigma = upload(plane.sigma),
                 .inverse_sigma = upload(inverse_sigma),
                 .bias = upload(predictor.bias)};
  made.offset = offset;
  made.row_bytes = row_bytes(plane.format, file.shape);
  const float* weight = upload(predictor.w1);
  const int64_t in = kv_input_width(file, predictor);
  int64_t column = 0;
  for (std::size_t i = 0; i < predictor.inputs.size(); ++i) {
    Plane::Product product{.input = predictor.inputs[i], .args = {.add = i > 0}};
    if (predictor.weight == Weight::kBlockDiagonal) {  // head by head
      const int64_t stride = static_cast<int64_t>(predictor.inputs.size()) * head_dim_;
      product.args.w = weight + static_cast<int64_t>(i) * head_dim_;
      product.args.n = product.args.k = head_dim_;
      product.args.w_stride = stride;
      product.args.x_stride = product.args.y_stride = width_;
      product.args.count = num_heads_;
      product.args.x_step = product.args.y_step = head_dim_;
      product.args.w_step = head_dim_ * stride;
    } else {
      const int64_t k = kv_input_width(file, predictor.inputs[i]);
      product.args.w = weight + column;
      product.args.n = predictor.weight == Weight::kLowRank ? predictor.rank : width_;
      product.args.k = product.args.x_stride = k;
      product.args.w_stride = in;
      product.args.y_stride = product.args.n;
      column += k;
    }
    made.products.push_back(product);
  }
  if (predictor.weight == Weight::kLowRank) {
    made.rank = predictor.rank;
    made.second = upload(predictor.w2);
  }
  return made;
}

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
  int64_t bytes = rows_.size() + exact_.size() + low_rank_.size() + rotations_.size() +
                  ints_.size() + 2 * run_pieces_ * code_bytes();
  for (const DeviceBuffer& weight : weights_) bytes += weight.size();
  return bytes;
}

// --- a run --------------------------------------------------------------------------------------

// Positions, blocks and rotations of the rows of some pieces.
void CudaKvParker::start_run(const KvSequence& sequence, int64_t first_piece, int64_t num_pieces) {
  const int64_t num_rows = num_pieces * piece_tokens();
  const int64_t first_block = first_piece * piece_blocks_;
  LATHE_CHECK(static_cast<int64_t>(sequence.blocks.size()) >=
              first_block + num_pieces * piece_blocks_);
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
          .rotary_dim = rope.rotary_dim};
}

KvCodesCuda CudaKvParker::codes_of(const Plane& plane, std::byte* codes) const {
  return {.data = codes,
          .piece_stride = code_bytes(),
          .block_stride = block_bytes_,
          .piece_blocks = piece_blocks_,
          .offset = plane.offset,
          .row_bytes = plane.row_bytes};
}

// False: nothing is predicted but the bias.
bool CudaKvParker::predict(const Plane& plane, int64_t layer, bool is_value, int64_t num_rows) {
  if (plane.products.empty()) return false;
  float* rows = rows_of(layer, is_value);
  float* target = plane.rank > 0 ? low_rank_.as<float>() : rows;
  for (const Plane::Product& product : plane.products) {
    MultiplyRowsCudaArgs args = product.args;
    args.x = rows_of(product.input.index, product.input.kind == KvPredictorInput::Kind::kValues);
    args.y = target;
    args.m = num_rows;
    multiply_rows_cuda(args, context_);
  }
  if (plane.rank > 0) {
    multiply_rows_cuda({.x = target,
                        .w = plane.second,
                        .y = rows,
                        .m = num_rows,
                        .n = width_,
                        .k = plane.rank,
                        .x_stride = plane.rank,
                        .w_stride = plane.rank,
                        .y_stride = width_},
                       context_);
  }
  return true;
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
    std::byte* codes = staging_->device[turn].data();
    const int64_t num_rows = num * piece_tokens();
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      for (const bool is_value : {false, true}) {
        const Plane& plane = (is_value ? values_ : keys_)[static_cast<std::size_t>(layer)];
        const bool has_product = predict(plane, layer, is_value, num_rows);
        decode_kv_rows_cuda(plane.format, codes_of(plane, codes), has_product,
                            rows_of(layer, is_value), num_rows, live_rows(layer, is_value, true),
                            stream);
      }
    }
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
    const int64_t num_rows = num * piece_tokens();
    start_run(sequence, begin + first, num);
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      for (const bool is_value : {false, true}) {
        const Plane& plane = (is_value ? values_ : keys_)[static_cast<std::size_t>(layer)];
        load_live_rows_cuda(live_rows(layer, is_value, true), num_heads_, head_dim_, num_rows,
                            exact_.as<float>(), stream);
        const bool has_product = predict(plane, layer, is_value, num_rows);
        encode_kv_rows_cuda(plane.format, codes_of(plane, codes), has_product, exact_.as<float>(),
                            rows_of(layer, is_value), num_rows, stream);
      }
    }
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

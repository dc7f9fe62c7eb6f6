#include "cache/cuda_kv_coder.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "quant/higgs.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

int64_t round_up(int64_t count) { return (count + 7) / 8 * 8; }

}  // namespace

CudaKvCoder::CudaKvCoder(const KvCodecFile& file, CudaElement element, CudaContext& context)
    : shape_(file.shape),
      element_(element),
      context_(context),
      slots_(plan_plane_slots(file, PlaneReaders::kPredictors)) {
  LATHE_CHECK(element == CudaElement::kF32 || element == CudaElement::kBF16);
  context_.use();
  latents_from_.resize(static_cast<std::size_t>(file.num_layers()));
  for (const KvLatent& latent : file.latents) {
    latents_from_[static_cast<std::size_t>(latent.layers.front())].push_back(
        static_cast<int64_t>(latents_.size()));
    latents_.push_back(make_latent(file, latent));
    latent_column_.push_back(latent_columns_);
    latent_columns_ += latents_.back().stride;
    largest_rank_ = std::max(largest_rank_, latents_.back().stride);
  }
  for (int64_t layer = 0; layer < file.num_layers(); ++layer) {
    const auto i = static_cast<std::size_t>(layer);
    keys_.push_back(make_plane(file, file.keys[i]));
    values_.push_back(make_plane(file, file.values[i]));
    largest_rank_ = std::max({largest_rank_, keys_.back().rank, values_.back().rank});
  }
}

// --- what a codec is on the device --------------------------------------------------------------

const float* CudaKvCoder::upload(const std::vector<float>& numbers) {
  if (numbers.empty()) return nullptr;
  weights_.push_back(
      DeviceBuffer::from_host(numbers.data(), static_cast<int64_t>(numbers.size() * 4)));
  return weights_.back().as<float>();
}

// Some columns of a weight, dense but for zeros up to padded_columns, as the rows' element.
const void* CudaKvCoder::upload_weight(const float* w, int64_t num_rows, int64_t num_columns,
                                       int64_t stride, int64_t padded_columns) {
  std::vector<float> padded(static_cast<std::size_t>(num_rows * padded_columns), 0.0f);
  for (int64_t n = 0; n < num_rows; ++n) {
    std::copy_n(w + n * stride, num_columns, padded.data() + n * padded_columns);
  }
  if (element_ == CudaElement::kF32) return upload(padded);
  std::vector<uint16_t> rounded;
  rounded.reserve(padded.size());
  for (const float x : padded) rounded.push_back(bf16_from_float(x));
  weights_.push_back(
      DeviceBuffer::from_host(rounded.data(), static_cast<int64_t>(rounded.size() * 2)));
  return weights_.back().data();
}

const float* CudaKvCoder::grid_tables(const HiggsGrid& grid) {
  for (const auto& [known, at] : grids_) {
    if (known == &grid) return at;
  }
  const int64_t coordinates = grid.num_points * grid.dim;
  std::vector<float> tables(grid.points, grid.points + coordinates);
  tables.insert(tables.end(), grid.twice_points, grid.twice_points + coordinates);
  tables.insert(tables.end(), grid.minus_norms, grid.minus_norms + grid.num_points);
  grids_.emplace_back(&grid, upload(tables));
  return grids_.back().second;
}

int64_t CudaKvCoder::input_stride(const KvCodecFile& file, const KvPredictorInput& input) const {
  if (input.kind != KvPredictorInput::Kind::kLatent) return kv_input_width(file, input);
  return latents_[static_cast<std::size_t>(input.index)].stride;
}

CudaKvCoder::Plane CudaKvCoder::make_plane(const KvCodecFile& file, const KvPlane& plane) {
  using Weight = KvPredictor::Weight;
  if (plane.format.method != RowMethod::kHiggs) {
    fail(ErrorCode::kUnsupported, "a codec of uniform codes on a GPU; use HIGGS or --device cpu");
  }
  const HiggsGrid& grid = higgs_grid(plane.format.bits, plane.format.grid_dim);
  const float* points = grid_tables(grid);
  const int64_t coordinates = grid.num_points * grid.dim;
  std::vector<float> inverse_sigma;
  for (const float s : plane.sigma) inverse_sigma.push_back(1 / s);
  const KvPredictor& predictor = plane.predictor;
  Plane made;
  made.format = {.scale = plane.format.scale,
                 .hadamard = plane.format.hadamard,
                 .num_heads = static_cast<int>(shape_.num_heads),
                 .head_dim = static_cast<int>(shape_.head_dim),
                 .grid_dim = static_cast<int>(grid.dim),
                 .num_points = static_cast<int>(grid.num_points),
                 .code_bits = grid.code_bits,
                 .points = points,
                 .twice_points = points + coordinates,
                 .minus_norms = points + 2 * coordinates,
                 .sigma = upload(plane.sigma),
                 .inverse_sigma = upload(inverse_sigma),
                 .bias = upload(predictor.bias)};
  made.row_bytes = lathe::row_bytes(plane.format, file.shape);
  const int64_t width = shape_.width(), e = shape_.head_dim;
  const int64_t in = kv_input_width(file, predictor);
  int64_t column = 0;
  for (std::size_t i = 0; i < predictor.inputs.size(); ++i) {
    Plane::Product product{.input = predictor.inputs[i], .args = {.element = element_}};
    MultiplyRowsCudaArgs& args = product.args;
    args.add = i > 0;
    if (predictor.weight == Weight::kBlockDiagonal) {  // head by head
      const int64_t stride = static_cast<int64_t>(predictor.inputs.size()) * e;
      args.w =
          upload_weight(predictor.w1.data() + static_cast<int64_t>(i) * e, width, e, stride, e);
      args.n = args.k = args.w_stride = e;
      args.x_stride = args.y_stride = width;
      args.count = shape_.num_heads;
      args.x_step = args.y_step = e;
      args.w_step = e * e;
    } else {
      const int64_t k = kv_input_width(file, predictor.inputs[i]);
      args.n = predictor.weight == Weight::kLowRank ? predictor.rank : width;
      args.k = args.x_stride = args.w_stride = input_stride(file, predictor.inputs[i]);
      args.w = upload_weight(predictor.w1.data() + column, args.n, k, in, args.k);
      args.y_stride = args.n;
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

CudaKvCoder::Latent CudaKvCoder::make_latent(const KvCodecFile& file, const KvLatent& latent) {
  const HiggsGrid& grid = higgs_grid(4, 1);
  const float* points = grid_tables(grid);
  std::vector<float> steps, inverse_steps;  // as KvLatentCoder has them
  for (const float s : latent.sigma) steps.push_back(latent.bits == 8 ? s / 24 : s);
  for (const float s : steps) inverse_steps.push_back(1 / s);
  Latent made;
  made.layers = latent.layers;
  made.with_values = latent.with_values;
  made.row_bytes = kv_latent_bytes(latent);
  made.format = {.rank = static_cast<int>(latent.rank),
                 .bits = latent.bits,
                 .points = points,
                 .twice_points = points + grid.num_points,
                 .minus_norms = points + 2 * grid.num_points,
                 .step = upload(steps),
                 .inverse_step = upload(inverse_steps)};
  made.stride = round_up(latent.rank);
  const int64_t width = file.shape.width();
  const auto num_parts = static_cast<int64_t>(latent.layers.size()) * (latent.with_values ? 2 : 1);
  for (int64_t part = 0; part < num_parts; ++part) {
    std::vector<float> w(static_cast<std::size_t>(made.stride * width), 0.0f);
    for (int64_t j = 0; j < latent.rank; ++j) {
      std::copy_n(latent.projection.data() + (j * num_parts + part) * width, width,
                  w.data() + j * width);
    }
    made.projections.push_back(upload(w));
    made.means.push_back(upload(std::vector<float>(latent.mean.begin() + part * width,
                                                   latent.mean.begin() + (part + 1) * width)));
  }
  return made;
}

// --- attention to codes -------------------------------------------------------------------------

bool gpu_attends_to_codes(const KvCodecFile& file, const ModelConfig& config, KvFormat live) {
  const auto& sliding = config.layer_is_sliding;
  if (live != KvFormat::kBF16 || config.attention_softcap != 0 ||
      std::any_of(sliding.begin(), sliding.end(), [](bool slides) { return slides; })) {
    return false;
  }
  for (std::size_t i = 0; i < file.keys.size(); ++i) {
    const KvPlane &keys = file.keys[i], &values = file.values[i];
    if (!is_from_latent_alone(keys) || !is_from_latent_alone(values) ||
        keys.predictor.inputs.front().index != values.predictor.inputs.front().index) {
      return false;
    }
    const KvLatent& latent =
        file.latents[static_cast<std::size_t>(keys.predictor.inputs.front().index)];
    if (!can_attend_to_latents({.shape = file.shape,
                                .key_format = keys.format,
                                .value_format = values.format,
                                .with_sigma = !keys.sigma.empty() || !values.sigma.empty(),
                                .rank = latent.rank,
                                .latent_bits = latent.bits,
                                .rotary_dim = config.rotary_dim,
                                .num_heads = config.num_heads})) {
      return false;
    }
  }
  return true;
}

void CudaKvCoder::prepare_latent_attention(const KvCodecFile& file) {
  context_.use();
  for (std::size_t i = 0; i < file.keys.size(); ++i) {
    const KvPredictor &keys = file.keys[i].predictor, &values = file.values[i].predictor;
    const auto group = static_cast<std::size_t>(keys.inputs.front().index);
    const KvLatent& latent = file.latents[group];
    const float* step = latent.sigma.data();
    const std::vector<uint16_t> image = latent_key_image(shape_, latent.rank, keys.w1.data(), step);
    weights_.push_back(
        DeviceBuffer::from_host(image.data(), static_cast<int64_t>(image.size() * 2)));
    latent_kvs_.push_back(
        {.rank = latent.rank,
         .key_image = weights_.back().data(),
         .key_bias = keys_[i].format.bias,
         .value_weight = upload(latent_value_weight(shape_, latent.rank, values.w1.data(), step)),
         .value_bias = values_[i].format.bias,
         .points = keys_[i].format.points,
         .latent_points = latents_[group].format.points});
  }
}

// --- sizes --------------------------------------------------------------------------------------

int64_t CudaKvCoder::weight_bytes() const {
  int64_t bytes = 0;
  for (const DeviceBuffer& weight : weights_) bytes += weight.size();
  return bytes;
}

int64_t CudaKvCoder::state_bytes(int64_t num_rows) const {
  return num_rows * (slots_.num_slots * width() + latent_columns_) * element_size();
}

int64_t CudaKvCoder::scratch_floats(int64_t num_rows) const {
  return num_rows * (width() + round_up(largest_rank_));
}

// Null: no predictor reads them.
std::byte* CudaKvCoder::rows_of(const Run& run, int64_t layer, bool is_value) const {
  const auto i = static_cast<std::size_t>(layer);
  const int64_t slot = is_value ? slots_.values[i] : slots_.keys[i];
  if (slot == PlaneSlots::kNone) return nullptr;
  return run.state + (slot * run.state_rows + run.first_row) * width() * element_size();
}

std::byte* CudaKvCoder::latent_of(const Run& run, int64_t group) const {
  const auto i = static_cast<std::size_t>(group);
  return run.state + (run.state_rows * (slots_.num_slots * width() + latent_column_[i]) +
                      run.first_row * latents_[i].stride) *
                         element_size();
}

// --- rows ---------------------------------------------------------------------------------------

// [num_rows, width] in the scratch. Null: nothing is predicted but the bias.
const float* CudaKvCoder::predict(const Plane& plane, const Run& run) {
  if (plane.products.empty()) return nullptr;
  float* rows = run.scratch;
  float* target = plane.rank > 0 ? run.scratch + run.num_rows * width() : rows;
  for (const Plane::Product& product : plane.products) {
    MultiplyRowsCudaArgs args = product.args;
    const KvPredictorInput& input = product.input;
    args.x = input.kind == KvPredictorInput::Kind::kLatent
                 ? latent_of(run, input.index)
                 : rows_of(run, input.index, input.kind == KvPredictorInput::Kind::kValues);
    args.y = target;
    args.m = run.num_rows;
    multiply_rows_cuda(args, context_);
  }
  if (plane.rank > 0) {
    multiply_rows_cuda({.x = target,
                        .w = plane.second,
                        .y = rows,
                        .m = run.num_rows,
                        .n = width(),
                        .k = plane.rank,
                        .x_stride = plane.rank,
                        .w_stride = plane.rank,
                        .y_stride = width()},
                       context_);
  }
  return rows;
}

void CudaKvCoder::decode(int64_t layer, bool is_value, const Run& run, const KvCodesCuda& codes,
                         const KvLiveRowsCuda& live) {
  const Plane& own = plane(layer, is_value);
  decode_kv_rows_cuda(own.format, codes, predict(own, run),
                      {rows_of(run, layer, is_value), element_}, run.num_rows, live,
                      context_.stream());
}

void CudaKvCoder::encode(int64_t layer, bool is_value, const Run& run, const KvCodesCuda& codes,
                         const float* exact) {
  const Plane& own = plane(layer, is_value);
  encode_kv_rows_cuda(own.format, codes, predict(own, run), exact,
                      {rows_of(run, layer, is_value), element_}, run.num_rows, context_.stream());
}

void CudaKvCoder::decode_latent(int64_t group, const Run& run, const KvCodesCuda& codes) {
  const Latent& latent = latents_[static_cast<std::size_t>(group)];
  decode_kv_latents_cuda(latent.format, codes, {latent_of(run, group), element_}, latent.stride,
                         run.num_rows, context_.stream());
}

void CudaKvCoder::encode_latent(int64_t group, const Run& run, const KvCodesCuda& codes,
                                float* exact, const LoadExact& load) {
  const Latent& latent = latents_[static_cast<std::size_t>(group)];
  const std::size_t num_layers = latent.layers.size();
  for (std::size_t part = 0; part < latent.projections.size(); ++part) {
    load(latent.layers[part % num_layers], part >= num_layers, latent.means[part], exact);
    multiply_rows_cuda({.x = exact,
                        .w = latent.projections[part],
                        .y = run.scratch,
                        .m = run.num_rows,
                        .n = latent.stride,
                        .k = width(),
                        .x_stride = width(),
                        .w_stride = width(),
                        .y_stride = latent.stride,
                        .add = part > 0},
                       context_);
  }
  encode_kv_latents_cuda(latent.format, codes, run.scratch, {latent_of(run, group), element_},
                         latent.stride, run.num_rows, context_.stream());
}

}  // namespace lathe

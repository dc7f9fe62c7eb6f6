// Attention on the GPU: bytes of the cache per second for decode, against the bandwidth of a copy
// in the same run, and operations per second for prompts. Every shape is compared with the plain
// kernel before it is timed. Cold: each launch of a graph reads another cache, together more than
// four times the L2.
//   attention_cuda_bench [decode|short|prefill|rope|codes|latents|rows]
// rows: the keys or values of one layer from their codes (kv_rows_cuda.h), against a copy's
// bandwidth.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/attention/attention_cuda_kernels.h"
#include "kernels/attention/kv_codes_cuda.h"
#include "kernels/attention/latent_attention_cuda.h"
#include "quant/higgs.h"
#include "quant/row_codes.h"
#include "tensor/device_buffer.h"

namespace lathe {
namespace {

__device__ float normal(uint64_t i) {
  i = (i + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
  i ^= i >> 31;
  const float u = (static_cast<float>(i >> 40) + 0.5f) * 0x1p-24f;
  const float w = static_cast<float>(i & 0xffffff) * 0x1p-24f;
  return sqrtf(-2 * logf(u)) * cospif(2 * w);
}

template <typename T>
__global__ void fill_kernel(T* out, int64_t count, uint64_t seed, float factor) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    out[i] = T(factor * normal(seed * 0x100000001u + static_cast<uint64_t>(i)));
  }
}

void fill(CudaElement element, void* data, int64_t count, uint64_t seed, float factor = 1) {
  if (element == CudaElement::kE4M3) {
    fill_kernel<<<1024, 256>>>(static_cast<__nv_fp8_e4m3*>(data), count, seed, factor);
  } else {
    fill_kernel<<<1024, 256>>>(static_cast<__nv_bfloat16*>(data), count, seed, factor);
  }
  cuda_check_launch("fill");
}

// Random codes with scales that make them numbers of about one.
__global__ void fill_codes_kernel(uint8_t* heads, int64_t num_heads, int head_dim, float scale,
                                  uint64_t seed) {
  const int codes = static_cast<int>(kBlockSize) * head_dim / 2;
  const int bytes = codes + 2 * static_cast<int>(kBlockSize);
  for (int64_t head = blockIdx.x; head < num_heads; head += gridDim.x) {
    uint8_t* at = heads + head * bytes;
    for (int i = static_cast<int>(threadIdx.x); i < codes; i += static_cast<int>(blockDim.x)) {
      uint64_t x =
          (seed * 0x100000001u + static_cast<uint64_t>(head * codes + i)) * 0xbf58476d1ce4e5b9u;
      x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
      at[i] = static_cast<uint8_t>(x >> 56);
    }
    if (threadIdx.x < static_cast<unsigned>(kBlockSize)) {
      *reinterpret_cast<__nv_bfloat16*>(at + codes + 2 * threadIdx.x) = __float2bfloat16_rn(scale);
    }
  }
}

// Median microseconds of one of `per_graph` launches, over replays of a graph of them.
double time_us(int per_graph, const std::function<void(int, CudaStream)>& enqueue) {
  cudaStream_t stream;
  cuda_check(cudaStreamCreate(&stream), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < per_graph; ++i) enqueue(i, stream);
  cuda_check(cudaStreamEndCapture(stream, &graph), "end of capture");
  cuda_check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < 13; ++i) {
    cudaEventRecord(begin, stream);
    cuda_check(cudaGraphLaunch(exec, stream), "launch");
    cudaEventRecord(end, stream);
    cuda_check(cudaStreamSynchronize(stream), "replay");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 2) times.push_back(1e3 * ms / per_graph);
  }
  std::sort(times.begin(), times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

__global__ void read_kernel(const uint4* from, int64_t count, uint32_t* to) {
  uint32_t sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = from[i], b = from[i + stride], c = from[i + 2 * stride],
                d = from[i + 3 * stride];
    sum += a.x ^ b.y ^ c.z ^ d.w;
  }
  if (sum == 0x12345678u) *to = sum;
}

// Bytes per second of a kernel that only reads, in GB/s.
double read_bandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  DeviceBuffer from(kBytes), to(16);
  fill(CudaElement::kBF16, from.data(), kBytes / 2, 1);
  const double us = time_us(5, [&](int, CudaStream stream) {
    read_kernel<<<132 * 8, 256, 0, stream>>>(from.as<uint4>(), kBytes / 16, to.as<uint32_t>());
  });
  return 1e-3 * static_cast<double>(kBytes) / us;
}

// Bytes read plus bytes written per second of a device-to-device copy, in GB/s.
double copy_bandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  DeviceBuffer from(kBytes), to(kBytes);
  fill(CudaElement::kBF16, from.data(), kBytes / 2, 1);
  const double us = time_us(5, [&](int, CudaStream stream) {
    cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream);
  });
  return 2e-3 * static_cast<double>(kBytes) / us;
}

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim;
};

struct Case {
  Shape shape;
  KvCudaElement element;
  std::vector<int64_t> contexts;  // after the step
  int64_t rows = 1;               // per sequence
  int64_t window = 0;
  bool offset = false;  // of a cache of codes: keys are without their mean
};

class Setup {
 public:
  Setup(const Case& c, int num_layers) : c_(c) {
    const auto sequences = static_cast<int64_t>(c.contexts.size());
    std::vector<int32_t> positions, row_sequence, begin{0}, table, sinks;
    int64_t num_blocks = 0, stride = 0, max_context = 0;
    for (const int64_t context : c.contexts) {
      stride = std::max(stride, (context + kBlockSize - 1) / kBlockSize);
      max_context = std::max(max_context, context);
      num_blocks += (context + kBlockSize - 1) / kBlockSize;
    }
    table.resize(static_cast<std::size_t>(sequences * stride));
    int64_t next = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t context = c.contexts[static_cast<std::size_t>(s)];
      for (int64_t r = 0; r < c.rows; ++r) {
        positions.push_back(static_cast<int32_t>(context - c.rows + r));
        row_sequence.push_back(static_cast<int32_t>(s));
      }
      begin.push_back(static_cast<int32_t>(positions.size()));
      for (int64_t b = 0; b * kBlockSize < context; ++b) {
        // Scattered: a step of 7919 through the blocks visits each once.
        table[static_cast<std::size_t>(s * stride + b)] =
            static_cast<int32_t>(next++ * (num_blocks % 7919 == 0 ? 1 : 7919) % num_blocks);
      }
    }
    const auto upload = [&](const std::vector<int32_t>& v) {
      buffers_.push_back(DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4)));
      return buffers_.back().as<int32_t>();
    };
    batch.positions = upload(positions);
    batch.row_sequence = upload(row_sequence);
    batch.query_begin = upload(begin);
    batch.block_tables = upload(table);
    batch.table_stride = stride;
    batch.num_rows = static_cast<int64_t>(positions.size());
    batch.num_sequences = sequences;
    batch.max_rows_per_sequence = c.rows;
    batch.max_context = max_context;
    batch.only_long_runs = c.rows > kAttentionDecodeRows;

    const bool e4m3 = c.element == KvCudaElement::kE4M3;
    const bool coded = kv_cuda_is_coded(c.element);
    const int64_t exact_begin = num_blocks * c.shape.num_kv_heads;  // heads of exact rows
    if (coded) {
      for (int64_t s = 0; s < sequences; ++s) sinks.push_back(static_cast<int32_t>(num_blocks++));
      batch.sink_blocks = upload(sinks);
    }
    const int64_t heads = num_blocks * c.shape.num_kv_heads;
    const int64_t elements = heads * kBlockSize * c.shape.head_dim;
    if (coded)
      grid_ = DeviceBuffer::from_host(make_kv_cuda_grid(c.element).get(), sizeof(KvCudaGrid));
    for (int layer = 0; layer < num_layers; ++layer) {
      KvCudaLayer kv{.element = c.element, .key_scale = 1, .value_scale = 1};
      kv.grid = grid_.as<KvCudaGrid>();
      for (void** part : {&kv.keys, &kv.values}) {
        buffers_.emplace_back(heads * kv_cuda_head_bytes(c.element, c.shape.head_dim));
        *part = buffers_.back().data();
        if (coded) {
          fill_codes_kernel<<<4096, 128>>>(static_cast<uint8_t*>(*part), heads,
                                           static_cast<int>(c.shape.head_dim), 1.0f / 36,
                                           17 + buffers_.size());
          cuda_check_launch("fill_codes");
          const int64_t head_bytes = kv_cuda_head_bytes(c.element, c.shape.head_dim);
          fill(CudaElement::kBF16, static_cast<char*>(*part) + exact_begin * head_bytes,
               (heads - exact_begin) * head_bytes / 2, 18 + buffers_.size());
          continue;
        }
        fill(e4m3 ? CudaElement::kE4M3 : CudaElement::kBF16, *part, elements, 17 + buffers_.size());
      }
      layers.push_back(kv);
    }
    const int64_t q_count =
        batch.num_rows * (c.shape.num_heads + 2 * c.shape.num_kv_heads) * c.shape.head_dim;
    buffers_.emplace_back(q_count * 2);
    args.q = buffers_.back().data();
    fill(CudaElement::kBF16, buffers_.back().data(), q_count, 5);
    args.element = CudaElement::kBF16;
    args.q_stride = (c.shape.num_heads + 2 * c.shape.num_kv_heads) * c.shape.head_dim;
    args.num_heads = c.shape.num_heads;
    args.num_kv_heads = c.shape.num_kv_heads;
    args.head_dim = c.shape.head_dim;
    args.scale = 1 / std::sqrt(static_cast<float>(c.shape.head_dim));
    args.sliding_window = c.window;
    if (c.offset) set_key_offset(num_blocks);
    out_count = batch.num_rows * c.shape.num_heads * c.shape.head_dim;
    for (DeviceBuffer* out : {&out_, &plain_out_}) *out = DeviceBuffer(out_count * 2);
    args.out = out_.data();
    const int64_t workspace = attention_cuda_workspace_bytes(args, batch, c.element);
    buffers_.emplace_back(workspace);
    cuda_check(cudaMemset(buffers_.back().data(), 0, static_cast<std::size_t>(workspace)),
               "memset");
    args.workspace = buffers_.back().data();
  }

  // |out - plain| / |plain|, and NaN when something is missing.
  double error() {
    std::vector<uint16_t> bits[2];
    for (int plain = 0; plain < 2; ++plain) {
      DeviceBuffer& out = plain != 0 ? plain_out_ : out_;
      cuda_check(cudaMemset(out.data(), 0xff, static_cast<std::size_t>(out.size())), "memset");
      AttentionCudaArgs a = args;
      a.out = out.data();
      if (plain != 0) {
        attention_plain_cuda(a, batch, layers[0], /*short_runs_only=*/false, nullptr);
      } else {
        attention_cuda(a, batch, layers[0], nullptr);
      }
      bits[plain].resize(static_cast<std::size_t>(out_count));
      out.to_host(bits[plain].data(), out_count * 2);
    }
    double off = 0, norm = 0;
    for (std::size_t i = 0; i < bits[0].size(); ++i) {
      float v[2];
      for (int p = 0; p < 2; ++p) {
        const uint32_t word = static_cast<uint32_t>(bits[p][i]) << 16;
        std::memcpy(&v[p], &word, 4);
      }
      off += double{v[0] - v[1]} * double{v[0] - v[1]};
      norm += double{v[1]} * double{v[1]};
    }
    return std::sqrt(off / norm);
  }

  // rope_append_cuda() and attention, as in a layer.
  double time_layer() {
    const int64_t half = args.head_dim / 2;
    std::vector<float> frequencies;
    for (int64_t j = 0; j < half; ++j) {
      frequencies.push_back(std::pow(10000.0f, -static_cast<float>(j) / static_cast<float>(half)));
    }
    const DeviceBuffer inverse = DeviceBuffer::from_host(frequencies.data(), half * 4);
    DeviceBuffer cos(batch.num_rows * half * 4), sin(batch.num_rows * half * 4);
    rope_tables_cuda(inverse.as<float>(), 1, half, batch.positions, batch.num_rows, cos.as<float>(),
                     sin.as<float>(), nullptr);
    cuda_check(cudaDeviceSynchronize(), "rope_tables");
    const RopeAppendArgs rope{.qkv = const_cast<void*>(args.q),
                              .element = CudaElement::kBF16,
                              .stride = args.q_stride,
                              .cos = cos.as<float>(),
                              .sin = sin.as<float>(),
                              .num_heads = args.num_heads,
                              .num_kv_heads = args.num_kv_heads,
                              .head_dim = args.head_dim,
                              .rotary_dim = args.head_dim};
    AttentionCudaArgs after = args;
    after.follows_rope_append = true;
    const int per_graph = std::max(8, 2 * static_cast<int>(layers.size()));
    return time_us(per_graph, [&](int i, CudaStream stream) {
      const KvCudaLayer& layer = layers[static_cast<std::size_t>(i) % layers.size()];
      rope_append_cuda(rope, batch, layer, stream);
      attention_cuda(after, batch, layer, stream);
    });
  }

  double time() {
    const int per_graph = std::max(8, 2 * static_cast<int>(layers.size()));
    return time_us(per_graph, [&](int i, CudaStream stream) {
      attention_cuda(args, batch, layers[static_cast<std::size_t>(i) % layers.size()], stream);
    });
  }

  CudaBatch batch;
  AttentionCudaArgs args;
  std::vector<KvCudaLayer> layers;
  int64_t out_count = 0;

 private:
  // Any C and S of the queries, and true angles.
  void set_key_offset(int64_t num_blocks) {
    const int64_t dim = args.head_dim, half = dim / 2;
    std::vector<float> starts(static_cast<std::size_t>(num_blocks * dim));
    std::vector<float> inside(static_cast<std::size_t>(dim * kBlockSize));
    const auto put = [&](float* cos, float* sin, int64_t j, int64_t position) {
      const double frequency =
          std::pow(500000.0, -static_cast<double>(j) / static_cast<double>(half));
      *cos = static_cast<float>(std::cos(static_cast<double>(position) * frequency));
      *sin = static_cast<float>(std::sin(static_cast<double>(position) * frequency));
    };
    for (int64_t j = 0; j < half; ++j) {
      for (int64_t b = 0; b < num_blocks; ++b) {
        put(&starts[static_cast<std::size_t>(b * dim + j)],
            &starts[static_cast<std::size_t>(b * dim + half + j)], j, b * kBlockSize);
      }
      for (int64_t i = 0; i < kBlockSize; ++i) {
        put(&inside[static_cast<std::size_t>(j * kBlockSize + i)],
            &inside[static_cast<std::size_t>((half + j) * kBlockSize + i)], j, i);
      }
    }
    const auto upload = [&](const std::vector<float>& v) {
      buffers_.push_back(DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4)));
      return buffers_.back().as<float>();
    };
    const std::vector<float> offset(static_cast<std::size_t>(args.num_kv_heads * dim), 1.0f);
    const auto count = static_cast<std::size_t>(batch.num_rows * args.num_heads * dim);
    std::vector<float> products(count);
    for (std::size_t i = 0; i < count; ++i) {
      products[i] = static_cast<float>(static_cast<int>(i * 2654435761u >> 16 & 255) - 128) / 256;
    }
    args.key_offset = {.offset = upload(offset),
                       .block_starts = upload(starts),
                       .in_block = upload(inside),
                       .rotary_dim = dim,
                       .products = upload(products)};
  }

  Case c_;
  std::vector<DeviceBuffer> buffers_;
  DeviceBuffer out_, plain_out_, grid_;
};

const char* name_of(KvCudaElement element) {
  return kv_cuda_is_coded(element) ? "codes" : element == KvCudaElement::kE4M3 ? "e4m3" : "bf16";
}

void decode(const char* name, const Case& c, double peak) {
  double bytes = 0;
  for (int64_t context : c.contexts) {
    if (c.window > 0) context = std::min(context, c.window + c.rows - 1);
    bytes += 2.0 / static_cast<double>(kBlockSize) *
             static_cast<double>(context * c.shape.num_kv_heads *
                                 kv_cuda_head_bytes(c.element, c.shape.head_dim));
  }
  const int layers = static_cast<int>(std::clamp(400e6 / bytes, 1.0, 40.0)) + 1;
  Setup setup(c, layers);
  const double error = setup.error();
  const double us = setup.time();
  const double layer_us = setup.time_layer();
  std::printf(
      "%-24s %2ld/%ld/%-3ld %s rows %2ld %8.2f us %5.0f GB/s %5.1f %%, with rope %8.2f us  error "
      "%.1e%s\n",
      name, c.shape.num_heads, c.shape.num_kv_heads, c.shape.head_dim, name_of(c.element), c.rows,
      us, bytes / us / 1e3, 100 * bytes / us / 1e3 / peak, layer_us, error,
      error < 5e-3 ? "" : "  WRONG");
  std::fflush(stdout);
}

void prefill(const char* name, const Case& c) {
  double pairs = 0;
  for (const int64_t context : c.contexts) {
    for (int64_t r = 0; r < c.rows; ++r) {
      const auto seen = static_cast<double>(context - r);
      pairs += c.window > 0 ? std::min(seen, static_cast<double>(c.window)) : seen;
    }
  }
  Setup setup(c, 1);
  const double error = setup.error();
  const double us = setup.time();
  const double operations = 4 * pairs * static_cast<double>(c.shape.num_heads * c.shape.head_dim);
  std::printf("%-28s %2ld/%ld/%-3ld %s rows %4ld x %2zu %9.1f us %6.0f TFLOP/s  error %.1e%s\n",
              name, c.shape.num_heads, c.shape.num_kv_heads, c.shape.head_dim, name_of(c.element),
              c.rows, c.contexts.size(), us, operations / us / 1e6, error,
              error < 5e-3 ? "" : "  WRONG");
  std::fflush(stdout);
}

std::vector<int64_t> same(int64_t count, int64_t context) {
  return std::vector<int64_t>(static_cast<std::size_t>(count), context);
}

// The larger of a copy's bandwidth and that of only reading.
double peak_bandwidth() {
  const double copy = copy_bandwidth(), read = read_bandwidth();
  std::printf("copy %.0f GB/s, reading %.0f GB/s\n", copy, read);
  return std::max(copy, read);
}

void bench_decode() {
  const double peak = peak_bandwidth();
  const Shape llama8b{32, 8, 128}, qwen05b{14, 2, 64}, smol{9, 3, 64}, phi{32, 32, 96},
      gemma{8, 4, 256};
  for (const auto element : {KvCudaElement::kBF16, KvCudaElement::kE4M3}) {
    for (const int64_t context : {128, 512, 2048, 8192, 32768}) {
      decode("batch 1", {llama8b, element, same(1, context)}, peak);
      std::printf("   context %ld\n", context);
    }
    decode("batch 8 x 512", {llama8b, element, same(8, 512)}, peak);
    decode("batch 64 x 512", {llama8b, element, same(64, 512)}, peak);
    decode("batch 64 x 1100", {llama8b, element, same(64, 1100)}, peak);
    decode("batch 256 x 512", {llama8b, element, same(256, 512)}, peak);
    decode("batch 8 x 32768", {llama8b, element, same(8, 32768)}, peak);
    decode("batch 2 x 131072", {llama8b, element, same(2, 131072)}, peak);
    std::vector<int64_t> ragged = same(63, 512);
    ragged.push_back(32768);
    decode("63 x 512 and 32768", {llama8b, element, ragged}, peak);
    decode("window 4 of 8 x 4096", {llama8b, element, same(8, 4096), 4}, peak);
    decode("window 8 of 8 x 4096", {llama8b, element, same(8, 4096), 8}, peak);
    decode("window 16 of 8 x 32768", {llama8b, element, same(8, 32768), 16}, peak);
    decode("8 x 8192, sees 1024", {gemma, element, same(8, 8192), 1, 1024}, peak);
    decode("Gemma 3 4B, 8 x 8192", {gemma, element, same(8, 8192)}, peak);
    decode("Qwen2.5 0.5B, 16 x 2048", {qwen05b, element, same(16, 2048)}, peak);
    decode("Qwen2.5 0.5B, 1 x 2048", {qwen05b, element, same(1, 2048)}, peak);
    decode("SmolLM2 135M, 16 x 2048", {smol, element, same(16, 2048)}, peak);
    decode("Phi 3 mini, 8 x 4096", {phi, element, same(8, 4096)}, peak);
  }
}

void bench_short() {
  const double peak = peak_bandwidth();
  const Shape llama8b{32, 8, 128};
  for (const auto element : {KvCudaElement::kBF16, KvCudaElement::kE4M3}) {
    decode("1 x 512", {llama8b, element, same(1, 512)}, peak);
    decode("1 x 2048", {llama8b, element, same(1, 2048)}, peak);
    decode("1 x 32768", {llama8b, element, same(1, 32768)}, peak);
    decode("8 x 512", {llama8b, element, same(8, 512)}, peak);
    decode("64 x 512", {llama8b, element, same(64, 512)}, peak);
    decode("64 x 1100", {llama8b, element, same(64, 1100)}, peak);
    decode("256 x 512", {llama8b, element, same(256, 512)}, peak);
    decode("8 x 32768", {llama8b, element, same(8, 32768)}, peak);
    decode("window 4 of 8 x 4096", {llama8b, element, same(8, 4096), 4}, peak);
    decode("window 16 of 8 x 4096", {llama8b, element, same(8, 4096), 16}, peak);
    std::vector<int64_t> ragged = same(63, 512);
    ragged.push_back(32768);
    decode("63 x 512 and 32768", {llama8b, element, ragged}, peak);
  }
}

void bench_prefill() {
  const Shape llama8b{32, 8, 128}, qwen05b{14, 2, 64}, phi{32, 32, 96}, gemma{8, 4, 256};
  for (const auto element : {KvCudaElement::kBF16, KvCudaElement::kE4M3}) {
    prefill("prompt of 8192", {llama8b, element, same(1, 8192), 8192});
    prefill("prompts of 512", {llama8b, element, same(16, 512), 512});
    prefill("prompts of 2048", {llama8b, element, same(4, 2048), 2048});
    prefill("2048 more after 30720", {llama8b, element, same(1, 32768), 2048});
    prefill("prompt of 8192, sees 1024", {llama8b, element, same(1, 8192), 8192, 1024});
    prefill("Qwen2.5 0.5B", {qwen05b, element, same(2, 4096), 4096});
    prefill("Phi 3 mini", {phi, element, same(1, 4096), 4096});
    prefill("Gemma 3 4B", {gemma, element, same(1, 4096), 4096});
  }
}

// A cache of 4-bit codes beside the others.
void bench_codes() {
  const double peak = peak_bandwidth();
  const Shape llama8b{32, 8, 128}, qwen05b{14, 2, 64};
  for (const auto element : {KvCudaElement::kHiggs4, KvCudaElement::kBF16, KvCudaElement::kE4M3}) {
    decode("8 x 32768", {llama8b, element, same(8, 32768)}, peak);
    if (kv_cuda_is_coded(element)) {
      decode("8 x 32768, less the mean", {llama8b, element, same(8, 32768), 1, 0, true}, peak);
      decode("1 x 32768, less the mean", {llama8b, element, same(1, 32768), 1, 0, true}, peak);
    }
    decode("8 x 4096", {llama8b, element, same(8, 4096)}, peak);
    decode("64 x 4096", {llama8b, element, same(64, 4096)}, peak);
    decode("64 x 512", {llama8b, element, same(64, 512)}, peak);
    decode("1 x 32768", {llama8b, element, same(1, 32768)}, peak);
    decode("1 x 131072", {llama8b, element, same(1, 131072)}, peak);
    std::vector<int64_t> ragged = same(63, 512);
    ragged.push_back(32768);
    decode("63 x 512 and 32768", {llama8b, element, ragged}, peak);
    decode("window 4 of 8 x 32768", {llama8b, element, same(8, 32768), 4}, peak);
    decode("window 16 of 8 x 4096", {llama8b, element, same(8, 4096), 16}, peak);
    decode("Qwen2.5 0.5B, 16 x 8192", {qwen05b, element, same(16, 8192)}, peak);
    prefill("2048 more after 30720", {llama8b, element, same(1, 32768), 2048});
    prefill("prompt of 8192", {llama8b, element, same(1, 8192), 8192});
  }
}

// Random bytes, which are codes of something.
__global__ void fill_bytes_kernel(uint64_t* out, int64_t count, uint64_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    uint64_t x = (seed * 0x100000001u + static_cast<uint64_t>(i)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    out[i] = x ^ (x >> 31);
  }
}

DeviceBuffer random_bytes(int64_t count, uint64_t seed) {
  DeviceBuffer bytes((count + 7) / 8 * 8);
  fill_bytes_kernel<<<1024, 256>>>(bytes.as<uint64_t>(), bytes.size() / 8, seed);
  cuda_check_launch("fill_bytes");
  return bytes;
}

// One layer of an aqua2 cache with latents, attended to without rebuilding it. What comes out is
// for latent_attention_cuda_test to say.
void latents(int64_t num_sequences, int64_t context, int64_t rank, double peak) {
  constexpr int64_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kWidth = kKvHeads * kHeadDim;
  const int64_t blocks = num_sequences * context / kBlockSize;
  const RowFormat format{.bits = 2};
  const int64_t row = row_bytes(format, {kKvHeads, kHeadDim}), latent_row = rank / 2;
  const HiggsGrid &grid = higgs_grid(2, 2), &latent_grid = higgs_grid(4, 1);
  const auto numbers = [](int64_t count, uint64_t seed, float factor) {
    DeviceBuffer buffer(count * 4);
    fill_kernel<<<1024, 256>>>(buffer.as<float>(), count, seed, factor);
    return buffer;
  };
  const auto halves = [](int64_t count, uint64_t seed, float factor) {
    DeviceBuffer buffer(count * 2);
    fill(CudaElement::kBF16, buffer.data(), count, seed, factor);
    return buffer;
  };
  const DeviceBuffer points = DeviceBuffer::from_host(grid.points, grid.num_points * grid.dim * 4);
  const DeviceBuffer latent_points =
      DeviceBuffer::from_host(latent_grid.points, latent_grid.num_points * 4);
  const DeviceBuffer image = halves(kKvHeads * (kHeadDim + rank) * kHeadDim, 1, 0.03f),
                     q = halves(num_sequences * kHeads * kHeadDim, 3, 1),
                     value_weight = numbers(kWidth * rank, 4, 0.03f), bias = numbers(kWidth, 5, 1),
                     cos = numbers(context * kHeadDim / 2, 7, 0.7f),
                     sin = numbers(context * kHeadDim / 2, 8, 0.7f);
  // Further layers than fit into the L2.
  std::vector<DeviceBuffer> codes[3];
  const double bytes = static_cast<double>(num_sequences * context * (2 * row + latent_row));
  const auto num_layers = static_cast<int64_t>(std::clamp(400e6 / bytes, 1.0, 40.0)) + 1;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    for (int part = 0; part < 3; ++part) {
      codes[part].push_back(random_bytes(blocks * kBlockSize * (part == 0 ? latent_row : row),
                                         static_cast<uint64_t>(10 + layer * 3 + part)));
    }
  }
  std::vector<int32_t> table,
      query_begin = {0},
      positions(static_cast<std::size_t>(num_sequences), static_cast<int32_t>(context - 1)),
      sinks(static_cast<std::size_t>(blocks), -1);
  for (int64_t i = 0; i < blocks; ++i) {
    table.push_back(static_cast<int32_t>(i * (blocks % 7919 == 0 ? 1 : 7919) % blocks));
  }
  for (int64_t s = 0; s < num_sequences; ++s) {
    query_begin.push_back(static_cast<int32_t>(s + 1));
  }
  const auto upload = [](const std::vector<int32_t>& v) {
    return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
  };
  const DeviceBuffer device_table = upload(table), device_positions = upload(positions),
                     device_begin = upload(query_begin), device_sinks = upload(sinks);
  const CudaBatch batch = {.positions = device_positions.as<int32_t>(),
                           .query_begin = device_begin.as<int32_t>(),
                           .block_tables = device_table.as<int32_t>(),
                           .table_stride = context / kBlockSize,
                           .num_rows = num_sequences,
                           .num_sequences = num_sequences,
                           .max_rows_per_sequence = 1,
                           .max_context = context};
  LatentKvCuda kv = {.rank = rank,
                     .key_image = image.data(),
                     .key_bias = bias.as<float>(),
                     .value_weight = value_weight.as<float>(),
                     .value_bias = bias.as<float>(),
                     .points = points.as<float>(),
                     .latent_points = latent_points.as<float>(),
                     .num_coded_blocks = blocks,
                     .sink_blocks = device_sinks.as<int32_t>(),
                     .cos = cos.as<float>(),
                     .sin = sin.as<float>()};
  DeviceBuffer out(num_sequences * kHeads * kHeadDim * 2);
  LatentAttentionCudaArgs args = {.q = q.data(),
                                  .q_stride = kHeads * kHeadDim,
                                  .out = out.data(),
                                  .num_heads = kHeads,
                                  .num_kv_heads = kKvHeads,
                                  .head_dim = kHeadDim,
                                  .scale = 0.088f};
  DeviceBuffer workspace(latent_attention_workspace_floats(args, batch, kv) * 4);
  args.workspace = workspace.as<float>();
  const double us = time_us(std::max(8, 2 * static_cast<int>(num_layers)), [&](int i,
                                                                               CudaStream s) {
    const auto layer = static_cast<std::size_t>(i % num_layers);
    const auto place = [&](int part, int64_t size) {
      return KvCodesCuda{
          .data = codes[part][layer].data(), .block_stride = kBlockSize * size, .row_bytes = size};
    };
    kv.latents = place(0, latent_row), kv.keys = place(1, row), kv.values = place(2, row);
    latent_attention_cuda(args, batch, kv, s);
  });
  std::printf("latents, %2ld x %6ld, rank %3ld, %.3f bits %8.2f us %5.0f GB/s %5.1f %%\n",
              num_sequences, context, rank,
              // Four layers share a latent.
              4.0 * static_cast<double>(2 * row + latent_row / 4) / kWidth, us, bytes / us / 1e3,
              100 * bytes / us / 1e3 / peak);
  std::fflush(stdout);
}

void bench_latents() {
  const double peak = peak_bandwidth();
  for (const int64_t rank : {128, 256}) {
    latents(8, 32768, rank, peak);
    latents(1, 32768, rank, peak);
    latents(64, 4096, rank, peak);
  }
}

struct RowsCase {
  RowFormat format = {.bits = 2};
  RowShape shape = {8, 128};
  bool is_value = true;
  bool with_product = false;
  bool with_state = true;
  CudaElement state = CudaElement::kBF16;
  KvCudaElement live = KvCudaElement::kBF16;
  int64_t run_rows = 262144;  // in a launch; products of a run of 8192 stay in the L2
};

// One plane of a layer of 262,144 tokens. What comes out is for decode_heads_cuda_test to say.
void rows(const RowsCase& c, double copy) {
  constexpr int64_t kRows = 262144, kRunBlocks = kRows / kBlockSize;
  const int64_t width = c.shape.width(), head_dim = c.shape.head_dim, half = head_dim / 2;
  const int64_t row_size = row_bytes(c.format, c.shape);
  const int64_t head_bytes = kv_cuda_head_bytes(c.live, head_dim);
  const int64_t state_size = c.state == CudaElement::kBF16 ? 2 : 4;
  const HiggsGrid& grid = higgs_grid(c.format.bits, c.format.grid_dim);
  const DeviceBuffer points = DeviceBuffer::from_host(grid.points, grid.num_points * grid.dim * 4);
  DeviceBuffer codes = random_bytes(kRows * row_size, 1);
  DeviceBuffer state(c.with_state ? kRows * width * state_size : 0),
      plane(kRunBlocks * c.shape.num_heads * head_bytes), bias(width * 4),
      product(c.with_product ? c.run_rows * width * 4 : 0), cos(kRows * half * 4),
      sin(kRows * half * 4), device_grid;
  if (kv_cuda_is_coded(c.live)) {
    device_grid = DeviceBuffer::from_host(make_kv_cuda_grid(c.live).get(), sizeof(KvCudaGrid));
  }
  fill_kernel<<<1024, 256>>>(bias.as<float>(), width, 2, 1.0f);
  fill_kernel<<<1024, 256>>>(product.as<float>(), product.size() / 4, 3, 1.0f);
  fill_kernel<<<1024, 256>>>(cos.as<float>(), kRows * half, 4, 0.7f);
  fill_kernel<<<1024, 256>>>(sin.as<float>(), kRows * half, 5, 0.7f);
  cuda_check_launch("fill");
  std::vector<int32_t> blocks, positions;
  for (int64_t i = 0; i < kRunBlocks; ++i) {
    blocks.push_back(static_cast<int32_t>(i * 7919 % kRunBlocks));
    positions.push_back(static_cast<int32_t>(i * kBlockSize));
  }
  const DeviceBuffer device_blocks = DeviceBuffer::from_host(blocks.data(), kRunBlocks * 4),
                     device_positions = DeviceBuffer::from_host(positions.data(), kRunBlocks * 4);
  const KvRowsCudaFormat format = {.scale = c.format.scale,
                                   .hadamard = c.format.hadamard,
                                   .num_heads = static_cast<int>(c.shape.num_heads),
                                   .head_dim = static_cast<int>(head_dim),
                                   .grid_dim = static_cast<int>(grid.dim),
                                   .num_points = static_cast<int>(grid.num_points),
                                   .code_bits = grid.code_bits,
                                   .points = points.as<float>(),
                                   .bias = bias.as<float>()};
  const auto num_runs = static_cast<int>(kRows / c.run_rows);
  const int per_graph = std::max(4, num_runs);
  const double us = time_us(per_graph, [&](int i, CudaStream stream) {
    const int64_t first = i % num_runs * c.run_rows, block = first / kBlockSize;
    decode_kv_rows_cuda(
        format,
        {.data = codes.data(),
         .blocks = device_blocks.as<int32_t>() + block,
         .block_stride = kBlockSize * row_size,
         .row_bytes = row_size},
        product.as<float>(),
        {c.with_state ? state.data() + first * width * state_size : nullptr, c.state}, c.run_rows,
        {.layer = {.element = c.live,
                   .keys = plane.data(),
                   .values = plane.data(),
                   .grid = device_grid.as<KvCudaGrid>()},
         .blocks = device_blocks.as<int32_t>() + block,
         .is_value = c.is_value,
         .first_positions = device_positions.as<int32_t>() + block,
         .cos = cos.as<float>(),
         .sin = sin.as<float>(),
         .rotary_dim = head_dim},
        stream);
  });
  const double ms = 1e-3 * us * num_runs;
  const auto bytes = static_cast<double>(
      kRows *
      (row_size + (c.with_product ? 4 * width : 0) + (c.with_state ? state_size * width : 0) +
       c.shape.num_heads * head_bytes / kBlockSize + (c.is_value ? 0 : 8 * half)));
  std::printf(
      "rows %ld x %-3ld %d bits %ldD, %-6s to %s, %s, %s, runs of %6ld: %7.3f ms a plane %5.0f "
      "GB/s "
      "%5.1f %% of a copy\n",
      c.shape.num_heads, head_dim, c.format.bits, c.format.grid_dim, c.is_value ? "values" : "keys",
      c.live == KvCudaElement::kF32 ? "f32" : name_of(c.live),
      !c.with_state                   ? "no state  "
      : c.state == CudaElement::kBF16 ? "bf16 state"
                                      : "f32 state ",
      c.with_product ? "product   " : "no product", c.run_rows, ms, 1e-6 * bytes / ms,
      1e-4 * bytes / ms / copy);
  std::fflush(stdout);
}

void bench_rows() {
  const double copy = copy_bandwidth();
  std::printf("copy %.0f GB/s\n", copy);
  for (const bool is_value : {true, false}) {
    for (const bool with_product : {false, true}) {
      for (const bool with_state : {true, false}) {
        for (const int64_t run_rows : {8192, 262144}) {
          rows({.is_value = is_value,
                .with_product = with_product,
                .with_state = with_state,
                .run_rows = run_rows},
               copy);
        }
      }
    }
  }
  for (const bool is_value : {true, false}) {
    rows({.format = {.bits = 3}, .is_value = is_value}, copy);
    rows({.format = {.bits = 4}, .is_value = is_value}, copy);
    rows({.format = {.bits = 2, .grid_dim = 1}, .is_value = is_value}, copy);
    rows({.format = {.bits = 2, .grid_dim = 4}, .is_value = is_value}, copy);
    rows({.shape = {16, 64}, .is_value = is_value}, copy);
    rows({.shape = {2, 64}, .is_value = is_value}, copy);
    rows({.shape = {4, 256}, .is_value = is_value}, copy);
    rows({.shape = {8, 96}, .is_value = is_value}, copy);  // the kernel for any head
    // Waking parked pieces.
    for (const KvCudaElement live :
         {KvCudaElement::kBF16, KvCudaElement::kE4M3, KvCudaElement::kHiggs4}) {
      rows({.is_value = is_value,
            .with_product = true,
            .state = CudaElement::kF32,
            .live = live,
            .run_rows = 8192},
           copy);
    }
  }
}

void bench_rope() {
  const Shape llama8b{32, 8, 128};
  for (const auto element : {KvCudaElement::kBF16, KvCudaElement::kE4M3, KvCudaElement::kHiggs4}) {
    for (const int64_t rows : {1, 64, 8192}) {
      const Case c{llama8b, element, rows == 8192 ? same(1, rows) : same(rows, 512),
                   rows == 8192 ? rows : 1};
      Setup setup(c, 1);
      DeviceBuffer tables(rows * 128 * 4);
      fill(CudaElement::kBF16, tables.data(), rows * 256, 3);
      const RopeAppendArgs rope{.qkv = const_cast<void*>(setup.args.q),
                                .element = CudaElement::kBF16,
                                .stride = setup.args.q_stride,
                                .cos = tables.as<float>(),
                                .sin = tables.as<float>(),
                                .num_heads = 32,
                                .num_kv_heads = 8,
                                .head_dim = 128,
                                .rotary_dim = 128};
      const double us = time_us(16, [&](int, CudaStream stream) {
        rope_append_cuda(rope, setup.batch, setup.layers[0], stream);
      });
      const double kv_size = kv_cuda_is_coded(element)         ? 0.5
                             : element == KvCudaElement::kE4M3 ? 1
                                                               : 2;
      const double bytes = static_cast<double>(rows) * 128 * (32 * 4 + 16 * (2 + kv_size) + 4);
      std::printf("rope_append %5ld rows %s %8.2f us %6.0f GB/s\n", rows, name_of(element), us,
                  bytes / us / 1e3);
    }
  }
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "";
  try {
    cudaDeviceProp device;
    lathe::cuda_check(cudaGetDeviceProperties(&device, 0), "looking for a GPU");
    std::printf("%s\n", device.name);
    if (*what == 0 || std::strcmp(what, "rope") == 0) lathe::bench_rope();
    if (*what == 0 || std::strcmp(what, "decode") == 0) lathe::bench_decode();
    if (std::strcmp(what, "short") == 0) lathe::bench_short();
    if (*what == 0 || std::strcmp(what, "prefill") == 0) lathe::bench_prefill();
    if (*what == 0 || std::strcmp(what, "codes") == 0) lathe::bench_codes();
    if (*what == 0 || std::strcmp(what, "latents") == 0) lathe::bench_latents();
    if (*what == 0 || std::strcmp(what, "rows") == 0) lathe::bench_rows();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

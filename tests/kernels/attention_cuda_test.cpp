#include "kernels/attention/attention_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <map>
#include <utility>

#include "base/error.h"
#include "kernels/attention/attention_cuda_kernels.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"
#include "support/paged_kv_cuda.h"

namespace lathe {
namespace {

struct RowRun {  // rows of one sequence in a step
  int64_t first_position = 0;
  int64_t num_rows = 1;
};

struct Problem {
  CudaElement q_element = CudaElement::kBF16;
  KvCudaElement kv_element = KvCudaElement::kBF16;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  float softcap = 0;
  int64_t sliding_window = 0;
  double q_stddev = 1;
  std::vector<RowRun> runs = {};
  int64_t padding_rows = 0;
  int64_t offset_rotary_dim = -1;  // of codes of keys without an offset; -1: they have none
  bool has_sinks = false;          // codes: the first tokens are exact rows

  int64_t row_size() const { return num_heads * head_dim; }
  int64_t num_rows() const {
    int64_t rows = 0;
    for (const RowRun& run : runs) rows += run.num_rows;
    return rows;
  }
  int64_t first_seen(int64_t position) const {
    return sliding_window > 0 ? std::max<int64_t>(0, position - sliding_window + 1) : 0;
  }
};

std::ostream& operator<<(std::ostream& out, const Problem& p) {
  const char* elements[] = {"f32", "bf16", "e4m3", "higgs4"};
  out << elements[static_cast<int>(p.q_element)] << " on "
      << elements[static_cast<int>(p.kv_element)] << " heads=" << p.num_heads << ":"
      << p.num_kv_heads << " head_dim=" << p.head_dim << " softcap=" << p.softcap
      << " window=" << p.sliding_window << " offset=" << p.offset_rotary_dim
      << " sinks=" << p.has_sinks << " runs";
  for (const RowRun& run : p.runs) out << " " << run.first_position << "+" << run.num_rows;
  return out;
}

constexpr double kOffsetStddev = 5;

// What KeyOffsetCuda wants, with an attention factor.
class Offset {
 public:
  explicit Offset(const Problem& problem)
      : p(problem),
        half(p.offset_rotary_dim / 2),
        pairs(p.head_dim / 2),
        offset(normal_values(p.num_kv_heads * p.head_dim, 99, kOffsetStddev)) {
    if (p.offset_rotary_dim < 0) return;
    int64_t num_blocks = 1;
    for (const RowRun& run : p.runs) {
      num_blocks = std::max(num_blocks, (run.first_position + run.num_rows) / kBlockSize + 1);
    }
    std::vector<float> starts, in_block;
    for (int64_t b = 0; b < num_blocks; ++b) {
      for (const bool is_sin : {false, true}) {
        for (int64_t j = 0; j < pairs; ++j) {
          starts.push_back(static_cast<float>(turned(is_sin, b * kBlockSize, j)));
        }
      }
    }
    for (const bool is_sin : {false, true}) {
      for (int64_t j = 0; j < pairs; ++j) {
        for (int64_t t = 0; t < kBlockSize; ++t) {
          in_block.push_back(static_cast<float>((j < half ? kFactor : 1) * turned(is_sin, t, j)));
        }
      }
    }
    const auto upload = [](const std::vector<float>& v) {
      return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
    };
    d_offset_ = upload(offset);
    d_starts_ = upload(starts), d_in_block_ = upload(in_block);
  }

  // Of rows [num_rows, stride] of queries as attention takes them.
  KeyOffsetCuda args(const std::vector<float>& rows, int64_t stride) {
    if (p.offset_rotary_dim < 0) return {};
    std::vector<float> products;
    for (std::size_t row = 0; row < rows.size(); row += static_cast<std::size_t>(stride)) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        const auto one = products_of(&rows[row + static_cast<std::size_t>(h * p.head_dim)], h);
        products.insert(products.end(), one.begin(), one.end());
      }
    }
    d_products_ =
        DeviceBuffer::from_host(products.data(), static_cast<int64_t>(products.size() * 4));
    return {.offset = d_offset_.as<float>(),
            .block_starts = d_starts_.as<float>(),
            .in_block = d_in_block_.as<float>(),
            .rotary_dim = p.offset_rotary_dim,
            .products = d_products_.as<float>()};
  }

  // RoPE of the offset at a position, times the Hadamard matrix.
  std::vector<float> at(int64_t position, int64_t kv_head) const {
    const float* b = offset.data() + kv_head * p.head_dim;
    std::vector<float> x(b, b + p.head_dim);
    for (int64_t j = 0; j < half; ++j) {
      const double cos = kFactor * turned(false, position, j);
      const double sin = kFactor * turned(true, position, j);
      x[static_cast<std::size_t>(j)] =
          static_cast<float>(double{b[j]} * cos - double{b[j + half]} * sin);
      x[static_cast<std::size_t>(j + half)] =
          static_cast<float>(double{b[j + half]} * cos + double{b[j]} * sin);
    }
    kv_rotate(x.data(), p.head_dim);
    return x;
  }
  // How far the scores of q may be off, and how far their summands reach: those of a pair, |X cos|
  // + |Y sin|, to the length of (C, S). C and S are rounded to fp32 and turned there; the products
  // of bf16 queries have two factors in f16 (2^-11 each).
  struct Error {
    double error = 0, products = 0;
  };
  Error error(const float* q, int64_t head) const {
    if (p.offset_rotary_dim < 0) return {};
    const std::vector<float> cs = products_of(q, head);
    Error e;
    for (int64_t j = 0; j < p.head_dim / 2; ++j) {
      e.products += (j < half ? kFactor : 1) *
                    std::hypot(double{cs[static_cast<std::size_t>(j)]},
                               double{cs[static_cast<std::size_t>(p.head_dim / 2 + j)]});
    }
    e.error = e.products * (0x1p-21 + (p.q_element == CudaElement::kF32 ? 0 : 0x1p-10));
    return e;
  }

 private:
  static constexpr double kFactor = 1.25;
  // Pairs behind those that turn: at no angle.
  double turned(bool is_sin, int64_t position, int64_t j) const {
    if (j >= half) return is_sin ? 0 : 1;
    const double angle = static_cast<double>(position) *
                         std::pow(100.0, -static_cast<double>(j) / static_cast<double>(half));
    return is_sin ? std::sin(angle) : std::cos(angle);
  }
  // C, then S, of one query that is times the Hadamard matrix.
  std::vector<float> products_of(const float* rotated, int64_t head) const {
    std::vector<float> q(rotated, rotated + p.head_dim), products(q.size());
    kv_rotate(q.data(), p.head_dim);
    const float* b = offset.data() + head / (p.num_heads / p.num_kv_heads) * p.head_dim;
    for (int64_t j = 0; j < half; ++j) {
      const double a = double{q[static_cast<std::size_t>(j)]};
      const double c = double{q[static_cast<std::size_t>(j + half)]};
      products[static_cast<std::size_t>(j)] =
          static_cast<float>(a * double{b[j]} + c * double{b[j + half]});
      products[static_cast<std::size_t>(p.head_dim / 2 + j)] =
          static_cast<float>(c * double{b[j]} - a * double{b[j + half]});
    }
    double rest = 0;
    for (int64_t j = 2 * half; j < p.head_dim; ++j) {
      rest += double{q[static_cast<std::size_t>(j)]} * double{b[j]};
    }
    if (2 * half < p.head_dim) products[static_cast<std::size_t>(half)] = static_cast<float>(rest);
    return products;
  }

  const Problem p;
  int64_t half, pairs;  // that turn, of all
  std::vector<float> offset;
  DeviceBuffer d_offset_, d_starts_, d_in_block_, d_products_;
};

// The cache and the queries of a problem. Positions that no row sees hold NaN.
class Step {
 public:
  explicit Step(const Problem& problem, uint64_t seed = 1)
      : p(problem), kv(shape(p), begins(p), contexts(p), seed), offset(p) {
    q = normal_values((p.num_rows() + p.padding_rows) * q_stride(), seed + 100, p.q_stddev);
    if (p.q_element == CudaElement::kBF16) {
      for (float& x : q) x = float_from_bf16(bf16_from_float(x));
    }
  }

  int64_t q_stride() const { return p.row_size() + 2 * p.num_kv_heads * p.head_dim; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(p.head_dim)); }

  // One step over some of the rows: runs[i] of sequence i, whose first query is row
  // first_rows[i] of q. Returns [rows, row_size] without the padding.
  std::vector<float> run(const std::vector<RowRun>& runs, const std::vector<int64_t>& first_rows,
                         int64_t padding_rows, int64_t slack = 0) {
    std::vector<int32_t> positions, row_sequence, query_begin{0};
    std::vector<float> rows;
    int64_t max_rows = 0, max_context = 0;
    for (std::size_t s = 0; s < runs.size(); ++s) {
      for (int64_t r = 0; r < runs[s].num_rows; ++r) {
        positions.push_back(static_cast<int32_t>(runs[s].first_position + r));
        row_sequence.push_back(static_cast<int32_t>(s));
        const float* row = q.data() + (first_rows[s] + r) * q_stride();
        rows.insert(rows.end(), row, row + q_stride());
      }
      query_begin.push_back(static_cast<int32_t>(positions.size()));
      max_rows = std::max(max_rows, runs[s].num_rows);
      if (runs[s].num_rows > 0) {
        max_context = std::max(max_context, runs[s].first_position + runs[s].num_rows);
      }
    }
    const auto num_rows = static_cast<int64_t>(positions.size());
    for (int64_t r = 0; r < padding_rows; ++r) {
      positions.push_back(-1);
      row_sequence.push_back(-1);
      rows.insert(rows.end(), static_cast<std::size_t>(q_stride()), NAN);
    }
    const auto upload = [](const std::vector<int32_t>& v) {
      return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
    };
    const DeviceBuffer d_positions = upload(positions), d_sequence = upload(row_sequence),
                       d_begin = upload(query_begin);
    const bool f32 = p.q_element == CudaElement::kF32;
    const int64_t size = f32 ? 4 : 2;
    std::vector<uint16_t> halves;
    for (const float x : rows) halves.push_back(bf16_from_float(x));
    const DeviceBuffer d_q =
        DeviceBuffer::from_host(f32 ? static_cast<const void*>(rows.data()) : halves.data(),
                                static_cast<int64_t>(rows.size()) * size);
    const int64_t out_count = (num_rows + padding_rows) * p.row_size();
    DeviceBuffer d_out(out_count * size);
    EXPECT_EQ(cudaMemset(d_out.data(), 0xff, static_cast<std::size_t>(d_out.size())), cudaSuccess);

    const CudaBatch batch{.positions = d_positions.as<int32_t>(),
                          .row_sequence = d_sequence.as<int32_t>(),
                          .query_begin = d_begin.as<int32_t>(),
                          .block_tables = kv.tables(),
                          .table_stride = kv.table_stride(),
                          .sink_blocks = kv.sink_blocks(),
                          .num_rows = num_rows + padding_rows,
                          .num_sequences = static_cast<int64_t>(runs.size()),
                          .max_rows_per_sequence = max_rows + slack,
                          .max_context = max_context + 100 * slack};
    AttentionCudaArgs args{.q = d_q.data(),
                           .element = p.q_element,
                           .q_stride = q_stride(),
                           .out = d_out.data(),
                           .num_heads = p.num_heads,
                           .num_kv_heads = p.num_kv_heads,
                           .head_dim = p.head_dim,
                           .scale = scale(),
                           .softcap = p.softcap,
                           .sliding_window = p.sliding_window,
                           .key_offset = offset.args(rows, q_stride()),
                           .follows_rope_append = follows};
    const int64_t bytes = attention_cuda_workspace_bytes(args, batch, p.kv_element);
    if (workspace_.size() < bytes) {
      workspace_ = DeviceBuffer(bytes);
      EXPECT_EQ(cudaMemset(workspace_.data(), 0, static_cast<std::size_t>(bytes)), cudaSuccess);
    }
    args.workspace = workspace_.data();
    if (plain) {
      attention_plain_cuda(args, batch, kv.layer(), /*short_runs_only=*/false, nullptr);
    } else {
      attention_cuda(args, batch, kv.layer(), nullptr);
    }

    std::vector<float> out(static_cast<std::size_t>(out_count));
    if (f32) {
      d_out.to_host(out.data(), out_count * 4);
    } else {
      std::vector<uint16_t> bits(out.size());
      d_out.to_host(bits.data(), out_count * 2);
      for (std::size_t i = 0; i < bits.size(); ++i) out[i] = float_from_bf16(bits[i]);
    }
    for (std::size_t i = static_cast<std::size_t>(num_rows * p.row_size()); i < out.size(); ++i) {
      EXPECT_TRUE(std::isnan(out[i])) << "a row of padding was written";
      if (!std::isnan(out[i])) break;
    }
    out.resize(static_cast<std::size_t>(num_rows * p.row_size()));
    return out;
  }

  std::vector<float> run_all(int64_t slack = 0) {
    return run(p.runs, first_rows(), p.padding_rows, slack);
  }
  std::vector<int64_t> first_rows() const {
    std::vector<int64_t> rows{0};
    for (const RowRun& r : p.runs) rows.push_back(rows.back() + r.num_rows);
    return rows;
  }

  const Problem p;
  PagedKvCuda kv;
  Offset offset;
  std::vector<float> q;
  bool follows = false;  // start before the kernel before is done, of which there is none
  bool plain = false;    // attention_plain_cuda() whatever the sizes are

 private:
  static PagedKvCuda::Shape shape(const Problem& p) {
    const bool scaled = p.kv_element == KvCudaElement::kE4M3;
    return {.element = p.kv_element,
            .num_kv_heads = p.num_kv_heads,
            .head_dim = p.head_dim,
            .key_scale = scaled ? 0.03f : 1.0f,
            .value_scale = scaled ? 0.017f : 1.0f,
            .has_sinks = p.has_sinks};
  }
  static std::vector<int64_t> begins(const Problem& p) {
    std::vector<int64_t> result;
    for (const RowRun& run : p.runs) result.push_back(p.first_seen(run.first_position));
    return result;
  }
  static std::vector<int64_t> contexts(const Problem& p) {
    std::vector<int64_t> result;
    for (const RowRun& run : p.runs) {
      result.push_back(run.num_rows > 0 ? run.first_position + run.num_rows : 0);
    }
    return result;
  }
  DeviceBuffer workspace_;
};

// The definition in double, and how far a kernel may be off. With w the softmax weights and
// mag = sum_t w[t] |v[t]|:
//   - a score is a sum of head_dim products in fp32, off by ds <= head_dim eps sum |q k| scale
//     (tensor cores truncate: eps for both is 2^-23), and a soft cap adds a few eps of the cap;
//     that moves each weight by the factor exp(+-ds), the result by at most 2 ds mag
//   - the weights go into the second product as bf16 or f16: 2^-8 mag at most
//   - sums over the context in fp32, exp and the merging of parts: counted as
//     (16 + sqrt(n)) eps mag
//   - a bf16 result is rounded: 2^-8 |out|
// Codes: all of this in rotated coordinates, where q, keys and values are given. The rotation back
// adds head_dim numbers times +-head_dim^-1/2, so an element may be off by the sum of their errors
// times that, before it is rounded. Keys without an offset: Offset::error() more. Long runs of bf16
// have keys, values and the sum of a row rounded to bf16 in between: 2^-9 of each.
struct Expected {
  std::vector<float> out;
  std::vector<double> tolerance;
};

Expected reference(const Step& step) {
  const Problem& p = step.p;
  const int64_t group = p.num_heads / p.num_kv_heads;
  const bool exact = p.q_element == CudaElement::kF32;
  constexpr double kEps = 0x1p-23;
  Expected expected;
  std::map<std::pair<int64_t, int64_t>, std::vector<float>> offsets;  // by position and KV head
  int64_t row = 0;
  for (std::size_t s = 0; s < p.runs.size(); ++s) {
    for (int64_t r = 0; r < p.runs[s].num_rows; ++r, ++row) {
      const int64_t position = p.runs[s].first_position + r;
      const int64_t begin = p.first_seen(position);
      for (int64_t h = 0; h < p.num_heads; ++h) {
        const float* q = step.q.data() + row * step.q_stride() + h * p.head_dim;
        const int64_t kv_offset = h / group * p.head_dim;
        std::vector<double> weights;
        double largest = -HUGE_VAL, largest_products = 0;
        const Offset::Error offset_error = step.offset.error(q, h);
        for (int64_t t = begin; t <= position; ++t) {
          const float* k = step.kv.key(s, t) + kv_offset;
          double dot = 0, products = 0;
          for (int64_t j = 0; j < p.head_dim; ++j) {
            dot += double{q[j]} * double{k[j]};
            products += std::fabs(double{q[j]} * double{k[j]});
          }
          if (p.offset_rotary_dim >= 0) {
            std::vector<float>& offset = offsets[{t, h / group}];
            if (offset.empty()) offset = step.offset.at(t, h / group);
            double of_offset = 0;
            for (int64_t j = 0; j < p.head_dim; ++j) {
              const double product = double{q[j]} * double{offset[static_cast<std::size_t>(j)]};
              dot += product, of_offset += std::fabs(product);
            }
            products += std::max(of_offset, offset_error.products);
          }
          double score = dot * double{step.scale()};
          if (p.softcap > 0) score = double{p.softcap} * std::tanh(score / double{p.softcap});
          weights.push_back(score);
          largest = std::max(largest, score);
          largest_products = std::max(largest_products, products * double{step.scale()});
        }
        double total = 0;
        for (double& w : weights) total += w = std::exp(w - largest);
        std::vector<double> sum(static_cast<std::size_t>(p.head_dim)), mag(sum.size());
        for (int64_t t = begin; t <= position; ++t) {
          const float* v = step.kv.value(s, t) + kv_offset;
          const double w = weights[static_cast<std::size_t>(t - begin)] / total;
          for (std::size_t j = 0; j < sum.size(); ++j) {
            sum[j] += w * double{v[j]};
            mag[j] += w * std::fabs(double{v[j]});
          }
        }
        const double n = static_cast<double>(weights.size());
        const bool coded = kv_cuda_is_coded(p.kv_element);
        const double between =
            coded && !exact && p.runs[s].num_rows > kAttentionDecodeRows ? 0x1p-9 : 0;
        const double score_error =
            (static_cast<double>(p.head_dim) * kEps + between) * largest_products +
            8 * kEps * p.softcap + offset_error.error * double{step.scale()};
        if (coded) {
          std::vector<float> rotated(sum.begin(), sum.end());
          kv_rotate(rotated.data(), p.head_dim);
          for (std::size_t begin_dim = 0; begin_dim < sum.size();) {  // pieces of a power of two
            const std::size_t size = std::bit_floor(sum.size() - begin_dim);
            double off = 0;
            for (std::size_t j = begin_dim; j < begin_dim + size; ++j) {
              off += mag[j] * (2 * score_error + (16 + std::sqrt(n)) * kEps + between +
                               (exact ? 0 : 0x1p-8)) +
                     std::fabs(sum[j]) * (between + static_cast<double>(size) * kEps);
            }
            off /= std::sqrt(static_cast<double>(size));
            for (std::size_t j = begin_dim; j < begin_dim + size; ++j) {
              const double last = (exact ? 0 : 0x1p-8) * std::fabs(double{rotated[j]});
              expected.out.push_back(rotated[j]);
              expected.tolerance.push_back((off + last) * 1.01);
            }
            begin_dim += size;
          }
          continue;
        }
        for (std::size_t j = 0; j < sum.size(); ++j) {
          expected.out.push_back(static_cast<float>(sum[j]));
          double tolerance = mag[j] * (2 * score_error + (16 + std::sqrt(n)) * kEps);
          if (!exact) tolerance += 0x1p-8 * (mag[j] + std::fabs(sum[j]));
          expected.tolerance.push_back(tolerance * 1.01);
        }
      }
    }
  }
  return expected;
}

testing::AssertionResult close(const std::vector<float>& actual, const Expected& expected) {
  if (actual.size() != expected.out.size()) return testing::AssertionFailure() << "size";
  double worst = 0;
  std::size_t worst_idx = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double off = std::fabs(double{actual[i]} - double{expected.out[i]});
    const double ratio = off <= expected.tolerance[i] ? off / expected.tolerance[i] : HUGE_VAL;
    if (!(ratio <= worst)) worst = ratio, worst_idx = i;
    if (std::isnan(actual[i])) break;
  }
  if (worst <= 1) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "element " << worst_idx << " of " << actual.size() << " is " << actual[worst_idx]
         << ", expected " << expected.out[worst_idx] << " +- " << expected.tolerance[worst_idx];
}

class AttentionCuda : public testing::Test {
 protected:
  void SetUp() override { LATHE_NEEDS_GPU(); }
};

void expect_matches_reference(const Problem& p, uint64_t seed = 1) {
  SCOPED_TRACE(testing::Message() << p);
  Step step(p, seed);
  const Expected expected = reference(step);
  EXPECT_TRUE(close(step.run_all(), expected));
  step.plain = true;
  EXPECT_TRUE(close(step.run_all(), expected)) << "the plain kernel";
}

// Every kind of sequence in one step: a first token, decode rows, windows of a draft, chunks of a
// prompt, one of them at the start, and a sequence without rows.
std::vector<RowRun> mixed_runs() {
  return {{0, 1}, {31, 1}, {32, 1}, {700, 1}, {130, 5}, {0, 70}, {0, 0}, {250, 16}, {333, 90}};
}

struct Elements {
  CudaElement q;
  KvCudaElement kv;
};
constexpr Elements kElements[] = {
    {CudaElement::kBF16, KvCudaElement::kBF16},   {CudaElement::kBF16, KvCudaElement::kE4M3},
    {CudaElement::kF32, KvCudaElement::kF32},     {CudaElement::kF32, KvCudaElement::kBF16},
    {CudaElement::kBF16, KvCudaElement::kHiggs4}, {CudaElement::kF32, KvCudaElement::kHiggs4}};

TEST_F(AttentionCuda, HeadDims) {
  for (const auto& e : kElements) {
    for (const int64_t head_dim : {8, 12, 24, 64, 80, 96, 128, 256}) {
      if (kv_cuda_is_coded(e.kv) && head_dim % 8 != 0) continue;
      expect_matches_reference(
          {.q_element = e.q, .kv_element = e.kv, .head_dim = head_dim, .runs = mixed_runs()});
    }
  }
}

TEST_F(AttentionCuda, HeadGroups) {
  for (const auto& e : kElements) {
    for (const int64_t group : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16}) {
      expect_matches_reference({.q_element = e.q,
                                .kv_element = e.kv,
                                .num_heads = 2 * group,
                                .head_dim = 64,
                                .runs = mixed_runs()});
    }
  }
}

TEST_F(AttentionCuda, RaggedContexts) {
  Problem p{.num_heads = 8, .num_kv_heads = 2, .head_dim = 128};
  for (int64_t position = 0; position < 140; ++position) p.runs.push_back({position, 1});
  for (const int64_t context : {1023, 1024, 1025, 1151, 1300, 2047, 4095, 4096, 4500, 5000}) {
    p.runs.push_back({context, 1});
    p.runs.push_back({context - 1, 3});
  }
  for (const auto& e : kElements) {
    p.q_element = e.q, p.kv_element = e.kv;
    expect_matches_reference(p, 7);
  }
}

TEST_F(AttentionCuda, LongPrompts) {
  for (const auto& e : kElements) {
    for (const int64_t head_dim : {64, 128}) {
      expect_matches_reference({.q_element = e.q,
                                .kv_element = e.kv,
                                .num_heads = 4,
                                .num_kv_heads = 1,
                                .head_dim = head_dim,
                                .runs = {{0, 517}, {1000, 129}, {3, 260}}});
    }
  }
}

TEST_F(AttentionCuda, SlidingWindows) {
  for (const auto& e : kElements) {
    for (const int64_t window : {1, 5, 32, 100, 512, 4096}) {
      expect_matches_reference(
          {.q_element = e.q,
           .kv_element = e.kv,
           .head_dim = 128,
           .sliding_window = window,
           .runs = {{0, 1}, {700, 1}, {1300, 2}, {0, 70}, {640, 7}, {500, 150}}});
    }
  }
}

TEST_F(AttentionCuda, SoftCaps) {
  for (const auto& e : kElements) {
    for (const float softcap : {2.0f, 50.0f}) {
      expect_matches_reference({.q_element = e.q,
                                .kv_element = e.kv,
                                .head_dim = 256,
                                .softcap = softcap,
                                .q_stddev = 4,
                                .runs = mixed_runs()});
    }
  }
}

// Scores of some hundreds: a softmax that picks one key, and sums that must not overflow.
TEST_F(AttentionCuda, LargeScores) {
  for (const auto& e : kElements) {
    expect_matches_reference({.q_element = e.q,
                              .kv_element = e.kv,
                              .head_dim = 64,
                              .q_stddev = 100,
                              .runs = mixed_runs()});
  }
}

TEST_F(AttentionCuda, PaddingAndLooseBoundsChangeNothing) {
  for (const auto& e : kElements) {
    Problem p{.q_element = e.q, .kv_element = e.kv, .head_dim = 128, .runs = mixed_runs()};
    Step step(p);
    const auto expected = step.run_all();
    p.padding_rows = 9;
    Step padded(p);
    std::copy(step.q.begin(), step.q.end(), padded.q.begin());
    padded.follows = true;
    EXPECT_TRUE(same_bits(padded.run_all(/*slack=*/25), expected)) << p;
    EXPECT_TRUE(same_bits(step.run_all(), expected)) << p << ": a second time";
  }
}

// Codes of keys without an offset: all of a head turned, a part, nothing.
TEST_F(AttentionCuda, KeyOffsets) {
  for (const auto element : {CudaElement::kBF16, CudaElement::kF32}) {
    Problem p{.q_element = element, .kv_element = KvCudaElement::kHiggs4, .runs = mixed_runs()};
    for (const int64_t head_dim : {8, 24, 64, 80, 96, 128, 256}) {
      for (const int64_t rotary_dim : {head_dim, head_dim / 4 * 2, int64_t{0}}) {
        p.head_dim = head_dim, p.offset_rotary_dim = rotary_dim;
        expect_matches_reference(p);
      }
    }
    for (const int64_t group : {1, 3, 7, 8, 16}) {
      for (const int64_t head_dim : {64, 128}) {
        p.num_heads = 2 * group, p.head_dim = p.offset_rotary_dim = head_dim;
        expect_matches_reference(p);
      }
    }
    p.num_heads = 4;
    for (const int64_t window : {1, 32, 100}) {
      p.sliding_window = window, p.padding_rows = 3;
      expect_matches_reference(p);
    }
    p.sliding_window = 0, p.softcap = 20;
    expect_matches_reference(p);
    p.softcap = 0, p.runs = {{1023, 1}, {1024, 3}, {4095, 2}, {5000, 1}, {1000, 129}};
    expect_matches_reference(p);
  }
}

// The first tokens as exact rows beside codes of NaN. Rows before, among and behind them, in all
// kinds of runs, and windows that leave all or some of them out.
TEST_F(AttentionCuda, ExactRowsOfTheFirstTokens) {
  for (const auto element : {CudaElement::kBF16, CudaElement::kF32}) {
    Problem p{.q_element = element, .kv_element = KvCudaElement::kHiggs4, .has_sinks = true};
    const std::vector<RowRun> runs = {{0, 1},  {1, 1},    {2, 2},    {3, 1},   {4, 1},  {0, 9},
                                      {31, 1}, {32, 1},   {700, 1},  {130, 5}, {0, 70}, {0, 0},
                                      {2, 40}, {250, 16}, {1024, 3}, {333, 90}};
    p.runs = runs;
    for (const int64_t head_dim : {8, 24, 64, 80, 96, 128, 256}) {
      for (const int64_t rotary_dim : {int64_t{-1}, head_dim, head_dim / 4 * 2}) {
        p.head_dim = head_dim, p.offset_rotary_dim = rotary_dim;
        expect_matches_reference(p);
      }
    }
    for (const int64_t group : {1, 3, 7, 16}) {
      for (const int64_t head_dim : {64, 128}) {
        for (const int64_t rotary_dim : {int64_t{-1}, head_dim}) {
          p.num_heads = 2 * group, p.head_dim = head_dim, p.offset_rotary_dim = rotary_dim;
          expect_matches_reference(p);
        }
      }
    }
    p.num_heads = 4, p.padding_rows = 3;
    for (const int64_t window : {1, 2, 5, 32, 100}) {
      p.sliding_window = window;
      p.runs = {{0, 1}, {3, 1}, {4, 1}, {5, 2}, {33, 3}, {0, 70}, {1, 40}, {640, 7}, {60, 90}};
      expect_matches_reference(p);
    }
    p.sliding_window = 0, p.runs = runs, p.softcap = 20;
    expect_matches_reference(p);
    p.softcap = 0, p.q_stddev = 100, p.offset_rotary_dim = -1;
    expect_matches_reference(p);
  }
}

// A row of a short run has the same bits alone, in its window and in the whole batch.
TEST_F(AttentionCuda, ShortRunsAreTheSameAloneAndTogether) {
  struct Case {
    Elements elements;
    int64_t offset_rotary_dim;
    bool has_sinks;
  };
  std::vector<Case> cases;
  for (const auto& e : kElements) {
    cases.push_back({e, -1, false});
    if (!kv_cuda_is_coded(e.kv)) continue;
    cases.push_back({e, 128, false});
    cases.push_back({e, -1, true});
    cases.push_back({e, 128, true});
  }
  for (const auto& [e, offset_rotary_dim, has_sinks] : cases) {
    for (const int64_t window : {0, 300}) {
      Problem p{.q_element = e.q,
                .kv_element = e.kv,
                .num_heads = 14,
                .head_dim = 128,
                .sliding_window = window,
                .runs = {{0, 1}, {700, 1}, {1020, 16}, {5, 5}, {4090, 12}, {100, 2}, {30, 3}},
                .offset_rotary_dim = offset_rotary_dim,
                .has_sinks = has_sinks};
      Step step(p);
      const auto together = step.run_all();
      const auto first_rows = step.first_rows();
      for (std::size_t s = 0; s < p.runs.size(); ++s) {
        for (int64_t r = 0; r < p.runs[s].num_rows; ++r) {
          // The block tables belong to sequence s: the others take part without rows.
          std::vector<RowRun> runs(p.runs.size(), {0, 0});
          std::vector<int64_t> rows(p.runs.size(), 0);
          runs[s] = {p.runs[s].first_position + r, 1};
          rows[s] = first_rows[s] + r;
          const auto alone = step.run(runs, rows, 0);
          const auto* begin = together.data() + (first_rows[s] + r) * p.row_size();
          EXPECT_TRUE(same_bits(alone, {begin, static_cast<std::size_t>(p.row_size())}))
              << p << ": row " << r << " of sequence " << s;
        }
      }
    }
  }
}

// A row of a long run has the same bits however the prompt is cut into long runs.
TEST_F(AttentionCuda, LongRunsAreTheSameInPieces) {
  for (const auto& e : kElements) {
    for (const int64_t window : {0, 100}) {
      Problem p{.q_element = e.q,
                .kv_element = e.kv,
                .num_heads = 6,
                .head_dim = 64,
                .sliding_window = window,
                .runs = {{0, 400}},
                .has_sinks = kv_cuda_is_coded(e.kv)};
      Step step(p);
      const auto whole = step.run_all();
      std::vector<float> pieces;
      for (const int64_t cut : {0, 37, 101, 150, 383, 400}) {
        const auto begin = static_cast<int64_t>(pieces.size()) / p.row_size();
        if (cut == begin) continue;
        const auto piece = step.run({{begin, cut - begin}}, {begin}, 0);
        pieces.insert(pieces.end(), piece.begin(), piece.end());
      }
      EXPECT_TRUE(same_bits(pieces, whole)) << p;
    }
  }
}

TEST_F(AttentionCuda, RejectsBadSizes) {
  const auto code = [](AttentionCudaArgs args) {
    try {
      attention_cuda(args, {}, {}, nullptr);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  const AttentionCudaArgs good{
      .q_stride = 256, .num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .scale = 1};
  AttentionCudaArgs args = good;
  args.head_dim = 61;
  EXPECT_EQ(code(args), ErrorCode::kInvalidArgument);
  args = good, args.num_kv_heads = 3;
  EXPECT_EQ(code(args), ErrorCode::kInvalidArgument);
  args = good, args.q_stride = 255;
  EXPECT_EQ(code(args), ErrorCode::kInvalidArgument);
  args = good, args.element = CudaElement::kE4M3;
  EXPECT_EQ(code(args), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace lathe

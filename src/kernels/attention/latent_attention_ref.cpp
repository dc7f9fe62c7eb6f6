#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/attention/latent_attention.h"
#include "quant/higgs.h"

namespace lathe {
namespace {

using Doubles = std::vector<double>;

std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }

void check(const LatentAttentionArgs& a) {
  if (a.shape.num_heads < 1 || a.num_heads < 1 || a.num_heads % a.shape.num_heads != 0 ||
      a.rank < 1 || (a.latent_bits != 4 && a.latent_bits != 8) || a.rank * a.latent_bits % 8 != 0 ||
      a.first_token < 0 || a.num_tokens <= a.first_token || a.rotary_dim < 0 ||
      a.rotary_dim > a.shape.head_dim || a.rotary_dim % 2 != 0) {
    fail(ErrorCode::kInvalidArgument, "latent attention: ", a.num_heads, " query heads on ",
         a.shape.num_heads, ", rank ", a.rank, " of ", a.latent_bits, " bits, tokens ",
         a.first_token, " to ", a.num_tokens, ", rotary_dim ", a.rotary_dim);
  }
  for (const RowFormat& format : {a.key_format, a.value_format}) {
    if (format.method != RowMethod::kHiggs) {
      fail(ErrorCode::kInvalidArgument, "latent attention: uniform codes; HIGGS alone");
    }
    check_row_format(format, a.shape);
  }
}

void decode_latent(const LatentAttentionArgs& a, int64_t t, float* z) {
  const HiggsGrid& grid = higgs_grid(4, 1);
  std::vector<uint8_t> codes(index(a.rank));
  unpack_codes(a.latent_codes + t * (a.rank * a.latent_bits / 8), a.rank, a.latent_bits,
               codes.data());
  for (int64_t j = 0; j < a.rank; ++j) {
    const uint8_t code = codes[index(j)];
    z[j] = a.latent_step[j] *
           (a.latent_bits == 4 ? grid.points[code] : static_cast<float>(static_cast<int8_t>(code)));
  }
}

// y[n] += W[n, k] x[k]; nothing where there is no W.
template <typename T>
void add_product(const float* w, const T* x, int64_t n, int64_t k, double* y) {
  if (w == nullptr) return;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) y[i] += double{w[i * k + j]} * static_cast<double>(x[j]);
  }
}

// What a query head adds up, weights relative to the largest score so far.
struct Sums {
  double largest = -INFINITY;
  double total = 0;
  Doubles z, r, s;  // [rank], [d], [head_dim] of its own KV head

  void add(double score, int64_t rank, const float* z_row, int64_t width, const float* r_row,
           int64_t head_dim, const float* s_row) {
    const double before = std::exp(largest - std::max(largest, score));
    largest = std::max(largest, score);
    const double p = std::exp(score - largest);
    total = total * before + p;
    const auto add_row = [&](Doubles& sums, const float* row, int64_t count) {
      for (int64_t j = 0; j < count; ++j) sums[index(j)] = sums[index(j)] * before + p * row[j];
    };
    add_row(z, z_row, rank);
    add_row(r, r_row, width);
    add_row(s, s_row, head_dim);
  }
};

}  // namespace

void absorb_latent_values(const LatentAttentionArgs& a, float* latent_weight, float* bias) {
  const int64_t d = a.shape.width();
  Doubles column(index(d)), sum(index(d));
  for (int64_t r = 0; r <= a.rank; ++r) {  // the last one: the bias
    const bool is_bias = r == a.rank;
    for (int64_t j = 0; j < d; ++j) {
      column[index(j)] = double{is_bias ? a.key_bias[j] : a.key_weight[j * a.rank + r]};
      sum[index(j)] = is_bias ? double{a.value_bias[j]}
                      : a.value_latent_weight == nullptr
                          ? 0
                          : double{a.value_latent_weight[j * a.rank + r]};
    }
    add_product(a.value_key_weight, column.data(), d, d, sum.data());
    for (int64_t j = 0; j < d; ++j) {
      (is_bias ? bias[j] : latent_weight[j * a.rank + r]) = static_cast<float>(sum[index(j)]);
    }
  }
}

void latent_attention_ref(const LatentAttentionArgs& a) {
  check(a);
  const int64_t d = a.shape.width(), e = a.shape.head_dim, half = a.rotary_dim / 2;
  const int64_t group = a.num_heads / a.shape.num_heads;
  std::vector<Sums> sums(index(a.num_heads));
  for (Sums& own : sums)
    own.z.resize(index(a.rank)), own.r.resize(index(d)), own.s.resize(index(e));

  std::vector<float> z(index(a.rank)), r(index(d)), s(index(d));
  for (int64_t t = a.first_token; t < a.num_tokens; ++t) {
    decode_latent(a, t, z.data());
    decode_row(a.key_format, a.shape, a.key_sigma,
               a.key_codes + t * row_bytes(a.key_format, a.shape), r.data());
    decode_row(a.value_format, a.shape, a.value_sigma,
               a.value_codes + t * row_bytes(a.value_format, a.shape), s.data());
    Doubles key(a.key_bias, a.key_bias + d);
    add_product(a.key_weight, z.data(), d, a.rank, key.data());
    for (int64_t j = 0; j < d; ++j) key[index(j)] += double{r[index(j)]};
    for (int64_t head = 0; head < a.num_heads; ++head) {
      const double* own_key = key.data() + head / group * e;
      const float* q = a.q + head * e;
      double score = 0;
      for (int64_t j = 0; j < e; ++j) {
        double turned = own_key[j];
        if (j < 2 * half) {
          const double cos = double{a.cos[t * half + j % half]};
          const double sin = double{a.sin[t * half + j % half]};
          turned = j < half ? own_key[j] * cos - own_key[j + half] * sin
                            : own_key[j] * cos + own_key[j - half] * sin;
        }
        score += double{q[j]} * turned;
      }
      sums[index(head)].add(score * double{a.scale}, a.rank, z.data(), d, r.data(), e,
                            s.data() + head / group * e);
    }
  }

  // (B U + C) z + B u = B (U z + u p) + C z
  for (int64_t head = 0; head < a.num_heads; ++head) {
    const Sums& own = sums[index(head)];
    const int64_t begin = head / group * e;
    Doubles key = own.r;
    add_product(a.key_weight, own.z.data(), d, a.rank, key.data());
    for (int64_t j = 0; j < d; ++j) key[index(j)] += double{a.key_bias[j]} * own.total;
    Doubles out = own.s;
    for (int64_t j = 0; j < e; ++j) out[index(j)] += double{a.value_bias[begin + j]} * own.total;
    const auto rows = [&](const float* w, int64_t k) { return w == nullptr ? w : w + begin * k; };
    add_product(rows(a.value_key_weight, d), key.data(), e, d, out.data());
    add_product(rows(a.value_latent_weight, a.rank), own.z.data(), e, a.rank, out.data());
    for (int64_t j = 0; j < e; ++j) {
      a.out[head * e + j] = static_cast<float>(out[index(j)] / own.total);
    }
    a.log_sum[head] = static_cast<float>(own.largest + std::log(own.total));
  }
}

}  // namespace lathe

// Rows of keys or values of one token (all KV heads side by side, [num_heads, head_dim]) as bytes:
// what HIGGS and plain uniform quantization store, and the definition of their arithmetic. The fast
// versions (kernels/kv_rows) give the same bytes and the same floats, bit for bit: every sum has
// its order written here, fused multiply-adds stand where fma() is named and nowhere else.
//
// One row:   scales of all heads (or groups) | codes, a bit stream, lowest bits first
//
// HIGGS, per head x [e], e = head_dim:
//   1. u = x / sigma, where static per-channel scales are given: u[j] = x[j] * inverse_sigma[j]
//   2. s = |u|, rounded to the scale's format *before* the codes are chosen; s = 0 gives zeros
//   3. the head in pieces of powers of two, largest first (80 = 64 + 16); for each of size g
//        y = H_g u * (sqrt(e / g) / s)     H_g: Hadamard, entries +-1, natural order; so mean(y^2)
//                                          is about 1 over the head. Without it: y = u * sqrt(e)/s
//        codes: the nearest grid point of each `dim` consecutive numbers
//   4. decoding: u = H_g p * (s / sqrt(e g)); without Hadamard u = p * (s / sqrt(e)); x = u * sigma
// The sum of squares runs in 16 lanes: lane i takes u[i], u[i + 16], ... by fma from zero, then
// lanes i and i + 8, i + 4, i + 2, i + 1 are added. The butterflies run at distances 1, 2, 4, ...
// The scale is the norm, so a decoded row is shorter by sqrt(1 - mse of the grid) on average.
// A norm that is not finite decodes to NaN: an error of a model stays visible.
//
// Uniform, per group of `group` consecutive numbers of the row (64, or head_dim): lowest value and
// step (max - min) / (2^bits - 1) as fp16, both rounded first;
//   q = clamp(round_half_even((x - low) * (1 / step)), 0, 2^bits - 1),  x' = low + q * step (fma).
// Source: spec/aqua-kv.md 3.1, 3.3, 3.5.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "quant/higgs.h"

namespace lathe {

enum class RowMethod { kHiggs, kUniform };

enum class RowScale {
  kLog8,  // one byte: 0 is zero, 1..254 are 2^((code - 127) / 8), 255 is NaN
  kF16,   // larger norms become 65504
  kF32,
};

struct RowFormat {
  RowMethod method = RowMethod::kHiggs;
  int bits = 2;                      // per number: HIGGS 2, 3, 4; uniform 2, 3, 4, 8
  int64_t grid_dim = 2;              // HIGGS
  RowScale scale = RowScale::kLog8;  // HIGGS
  bool hadamard = true;              // HIGGS; off where static per-channel scales do its work
  int64_t group = 64;                // uniform

  bool operator==(const RowFormat&) const = default;
};

struct RowShape {
  int64_t num_heads = 0;
  int64_t head_dim = 0;  // a multiple of 8

  int64_t width() const { return num_heads * head_dim; }
  bool operator==(const RowShape&) const = default;
};

std::string_view row_scale_name(RowScale scale);      // "log8", "f16", "f32"
RowScale row_scale_from_name(std::string_view name);  // else kUnsupported

// Throws kInvalidArgument, naming the number that cannot be, when the row has no such code: more
// than kMaxRowWidth numbers, a head_dim that is no multiple of 8 or above 512, a group that does
// not divide the row.
void check_row_format(const RowFormat& format, const RowShape& shape);
inline constexpr int64_t kMaxRowWidth = 16384;
inline constexpr int64_t kMaxRowHeadDim = 512;

int64_t row_scale_bytes(const RowFormat& format, const RowShape& shape);  // of a whole row
int64_t row_code_bytes(const RowFormat& format, const RowShape& shape);   // without scales
int64_t row_bytes(const RowFormat& format, const RowShape& shape);        // both

// Rounds a norm (>= 0) to a scale's format: its stored bits, and what they are worth.
uint32_t round_row_scale(RowScale format, float norm);
float row_scale_value(RowScale format, uint32_t bits);

// The reference. inverse_sigma and sigma: [width], or null for none. x may not overlap `code`.
// decode_row accepts any bytes.
void encode_row(const RowFormat& format, const RowShape& shape, const float* inverse_sigma,
                const float* x, std::byte* code);
void decode_row(const RowFormat& format, const RowShape& shape, const float* sigma,
                const std::byte* code, float* x);

// Parts of it, shared with the fast versions and their tests.
// The size of the first piece of a rest of n numbers: the largest power of two in it.
int64_t hadamard_piece(int64_t n);
// Butterflies in place, without normalisation; n a power of two.
void hadamard_butterflies(float* x, int64_t n);
// The sum of squares in the order described above.
float sum_of_squares(const float* x, int64_t n);
// The factors of step 3 and 4 for a piece of g numbers (g = 1: no Hadamard).
float encode_factor(int64_t head_dim, int64_t g, float scale);
float decode_factor(int64_t head_dim, int64_t g, float scale);
// Codes of `width` bits each, packed lowest bits first; num_codes * width is a multiple of 8.
void pack_codes(const uint8_t* codes, int64_t num_codes, int width, std::byte* out);
void unpack_codes(const std::byte* in, int64_t num_codes, int width, uint8_t* codes);

}  // namespace lathe

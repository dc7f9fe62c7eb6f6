#include "kernels/attention/kv_codes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "quant/fp8.h"
#include "quant/higgs.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int64_t kMaxHeadDim = 512;
constexpr uint16_t kNan = 0x7fc0;
// Below this largest magnitude a group is zero: its scale could underflow, and nothing is lost.
constexpr float kSmallest = 1e-30f;

// Byte of (token, slot) in a plane of n slots.
int64_t slot_offset(KvPart plane, int64_t n, int64_t token, int64_t slot) {
  return plane == KvPart::kKeys ? (slot / 2 * kBlockSize + token) * 2 + slot % 2
                                : (token / 2 * n + slot) * 2 + token % 2;
}

// Largest magnitude; NaN when a number is NaN or infinite.
float largest_magnitude(const float* x, int64_t n) {
  float largest = 0;
  float poison = 0;
  for (int64_t j = 0; j < n; ++j) {
    largest = std::max(largest, std::fabs(x[j]));
    poison += x[j] * 0;
  }
  return largest + poison;
}

uint16_t bf16_rounded_up(float positive) {
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(positive) + 0xffffu) >> 16);
}

int rounded(float x) { return static_cast<int>(std::nearbyint(x)); }

// One token of one head while it is stored.
struct Target {
  KvElement element;
  KvPart plane;
  int64_t head_dim;
  int64_t token;
  std::byte* head;

  uint8_t& code(int64_t n, int64_t slot, int64_t plane_begin = 0) const {
    return reinterpret_cast<uint8_t*>(head)[plane_begin + slot_offset(plane, n, token, slot)];
  }
  uint16_t& scale(int64_t group) const {
    return reinterpret_cast<uint16_t*>(
        head + kv_scales_offset(element, head_dim))[group * kBlockSize + token];
  }
};

void store_fp8(const Target& to, const float* x) {
  for (int64_t j = 0; j < to.head_dim; ++j) to.code(to.head_dim, j) = e4m3_from_double(x[j]);
}

void store_int8(const Target& to, const float* x) {
  const float largest = largest_magnitude(x, to.head_dim);
  const bool usable = largest >= kSmallest;
  to.scale(0) = std::isnan(largest) ? kNan : usable ? bf16_rounded_up(largest / 127) : uint16_t{0};
  const float inverse = usable ? 1 / float_from_bf16(to.scale(0)) : 0;
  for (int64_t j = 0; j < to.head_dim; ++j) {
    // The scale is rounded up, so nothing exceeds 127.
    to.code(to.head_dim, j) = usable ? static_cast<uint8_t>(rounded(x[j] * inverse)) : uint8_t{0};
  }
}

// The scale with the least squared error among some around the one that maps the number of largest
// magnitude to code 0 (-8), as q4_0 does. Returns bf16.
uint16_t choose_q4_scale(const float* x, int64_t n, float largest) {
  float extreme = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (std::fabs(x[j]) == largest) extreme = x[j];
  }
  const float to_unit = 1 / largest;  // squares must not overflow
  uint16_t best = 0;
  float best_error = std::numeric_limits<float>::max();
  for (int i = -2; i <= 8; ++i) {
    const uint16_t scale = bf16_from_float(extreme / (-8.5f + 0.25f * static_cast<float>(i)));
    const float step = float_from_bf16(scale);
    const float inverse = 1 / step;
    float error = 0;
    for (int64_t j = 0; j < n; ++j) {
      // Adding 1.5 * 2^23 and taking it away rounds to nearest even.
      const float code = x[j] * inverse + 12582912.0f - 12582912.0f;
      const float diff = std::min(std::max(code, -8.0f), 7.0f) * step - x[j];
      error += diff * to_unit * (diff * to_unit);
    }
    if (error < best_error) {
      best_error = error;
      best = scale;
    }
  }
  return best;
}

void store_q4(const Target& to, const float* x) {
  const int64_t half = to.head_dim / 2;
  uint8_t codes[kMaxHeadDim];
  for (int64_t group = 0; group * kQ4Group < to.head_dim; ++group) {
    const int64_t begin = group * kQ4Group;
    const int64_t n = std::min(kQ4Group, to.head_dim - begin);
    const float largest = largest_magnitude(x + begin, n);
    const bool usable = largest >= kSmallest;
    uint16_t& scale = to.scale(group);
    scale = std::isnan(largest) ? kNan
            : usable            ? choose_q4_scale(x + begin, n, largest)
                                : uint16_t{0};
    const float inverse = usable ? 1 / float_from_bf16(scale) : 0;
    for (int64_t j = begin; j < begin + n; ++j) {
      const float code = usable ? std::nearbyint(x[j] * inverse) : 0;
      codes[j] = static_cast<uint8_t>(std::min(std::max(code, -8.0f), 7.0f) + 8);
    }
  }
  for (int64_t j = 0; j < half; ++j) {
    to.code(half, j) = static_cast<uint8_t>(codes[j] | codes[j + half] << 4);
  }
}

// --- HIGGS --------------------------------------------------------------------------------------

// A grid and, for each square of the plane, the points that can be the nearest of some position in
// it: a few, where a search through all would look at 256.
struct SearchableGrid {
  static constexpr int kCells = KvGridSearch::kCells;
  static constexpr float kCellSize = KvGridSearch::kCellSize;
  KvGrid grid = {};
  std::vector<uint8_t> candidates;
  std::array<int32_t, kCells* kCells + 1> begin = {};

  explicit SearchableGrid(int bits) {
    const HiggsGrid& source = higgs_grid(bits, 2);
    grid.num_points = static_cast<int>(source.num_points);
    float largest = 0;
    for (int64_t i = 0; i < 2 * source.num_points; ++i) {
      largest = std::max(largest, std::fabs(source.points[i]));
    }
    grid.step = largest / 127;
    for (int i = 0; i < grid.num_points; ++i) {
      grid.first[i] = static_cast<int8_t>(rounded(source.points[2 * i] / grid.step));
      grid.second[i] = static_cast<int8_t>(rounded(source.points[2 * i + 1] / grid.step));
    }
    for (int cell = 0; cell < kCells * kCells; ++cell) {
      list_candidates(cell);
      begin[static_cast<std::size_t>(cell) + 1] = static_cast<int32_t>(candidates.size());
    }
  }

  void list_candidates(int cell) {
    const float x = static_cast<float>(cell % kCells - kCells / 2) * kCellSize;
    const float y = static_cast<float>(cell / kCells - kCells / 2) * kCellSize;
    // Squared distance of the closest and of the farthest position of the cell.
    const auto closest = [&](int i) {
      const auto outside = [](float p, float low) {
        return std::max({low - p, p - low - kCellSize, 0.0f});
      };
      const float dx = outside(grid.first[i], x), dy = outside(grid.second[i], y);
      return dx * dx + dy * dy;
    };
    const auto farthest = [&](int i) {
      const float dx =
          std::max(std::fabs(grid.first[i] - x), std::fabs(grid.first[i] - x - kCellSize));
      const float dy =
          std::max(std::fabs(grid.second[i] - y), std::fabs(grid.second[i] - y - kCellSize));
      return dx * dx + dy * dy;
    };
    float bound = std::numeric_limits<float>::max();
    for (int i = 0; i < grid.num_points; ++i) bound = std::min(bound, farthest(i));
    for (int i = 0; i < grid.num_points; ++i) {
      if (closest(i) <= bound) candidates.push_back(static_cast<uint8_t>(i));
    }
  }

  // The nearest point, the first of equals; x and y in steps.
  int nearest(float x, float y) const {
    int best = 0;
    float best_distance = std::numeric_limits<float>::max();
    const auto consider = [&](int i) {
      const float dx = x - grid.first[i], dy = y - grid.second[i];
      const float distance = dx * dx + dy * dy;
      if (distance < best_distance) {
        best_distance = distance;
        best = i;
      }
    };
    constexpr float kLimit = kCellSize * kCells / 2;
    if (x >= -kLimit && x < kLimit && y >= -kLimit && y < kLimit) {
      // Just below the limit the sum rounds up to what would be a cell more.
      const auto along = [](float sum) {
        return std::min(static_cast<int>(sum / kCellSize), kCells - 1);
      };
      const auto cell = static_cast<std::size_t>(along(y + kLimit) * kCells + along(x + kLimit));
      for (int32_t c = begin[cell]; c < begin[cell + 1]; ++c) {
        consider(candidates[static_cast<std::size_t>(c)]);
      }
    } else {
      for (int i = 0; i < grid.num_points; ++i) consider(i);
    }
    return best;
  }
};

const SearchableGrid& searchable_grid(KvElement element) {
  static const SearchableGrid two(2), three(3), four(4);
  return element == KvElement::kHiggs2 ? two : element == KvElement::kHiggs3 ? three : four;
}

void store_higgs(const Target& to, const float* x) {
  const int64_t half = to.head_dim / 2;
  const SearchableGrid& search = searchable_grid(to.element);
  float rotated[kMaxHeadDim];
  std::copy_n(x, to.head_dim, rotated);
  kv_rotate(rotated, to.head_dim);
  double squares = 0;
  for (int64_t j = 0; j < to.head_dim; ++j) squares += double{rotated[j]} * rotated[j];
  const auto rms = static_cast<float>(std::sqrt(squares / static_cast<double>(to.head_dim)));
  const bool finite = std::isfinite(rms);
  const bool usable = finite && rms >= kSmallest;
  to.scale(0) = !finite ? kNan : usable ? bf16_from_float(rms * search.grid.step) : uint16_t{0};
  const float inverse = usable ? 1 / float_from_bf16(to.scale(0)) : 0;
  uint8_t codes[kMaxHeadDim / 2];
  for (int64_t j = 0; j < half; ++j) {
    codes[j] = !usable ? uint8_t{0}
                       : static_cast<uint8_t>(
                             search.nearest(rotated[j] * inverse, rotated[j + half] * inverse));
  }
  if (to.element == KvElement::kHiggs4) {
    for (int64_t j = 0; j < half; ++j) to.code(half, j) = codes[j];
    return;
  }
  const int64_t quarter = half / 2;
  for (int64_t j = 0; j < quarter; ++j) {
    to.code(quarter, j) = static_cast<uint8_t>((codes[j] & 15) | (codes[j + quarter] & 15) << 4);
  }
  if (to.element == KvElement::kHiggs2) return;
  const int64_t eighth = half / 4;
  for (int64_t j = 0; j < eighth; ++j) {
    int high = 0;
    for (int64_t i = 0; i < 4; ++i) high |= codes[j + i * eighth] >> 4 << (2 * i);
    to.code(eighth, j, kBlockSize * quarter) = static_cast<uint8_t>(high);
  }
}

}  // namespace

void check_kv_element(KvElement element, int64_t head_dim) {
  const int64_t multiple = kv_is_plain(element) ? 2 : element == KvElement::kHiggs3 ? 16 : 8;
  if (head_dim % multiple != 0) {
    fail(ErrorCode::kUnsupported, "head_dim ", head_dim, " is no multiple of ", multiple,
         ", which this cache format needs");
  }
  if (kv_has_scales(element) && head_dim > kMaxHeadDim) {
    fail(ErrorCode::kUnsupported, "head_dim ", head_dim, " is above ", kMaxHeadDim,
         ", the limit of cache formats with integer codes; use --kv bf16 or fp8");
  }
}

const KvGrid& kv_grid(KvElement element) {
  LATHE_CHECK(kv_is_rotated(element));
  return searchable_grid(element).grid;
}

KvGridSearch kv_grid_search(KvElement element) {
  LATHE_CHECK(kv_is_rotated(element));
  const SearchableGrid& search = searchable_grid(element);
  return {search.begin, search.candidates};
}

void kv_rotate(float* x, int64_t head_dim) {
  for (int64_t begin = 0; begin < head_dim;) {
    const auto size = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(head_dim - begin)));
    float* piece = x + begin;
    for (int64_t distance = 1; distance < size; distance *= 2) {
      for (int64_t i = 0; i < size; i += 2 * distance) {
        for (int64_t j = i; j < i + distance; ++j) {
          const float a = piece[j], b = piece[j + distance];
          piece[j] = a + b;
          piece[j + distance] = a - b;
        }
      }
    }
    const float factor = 1 / std::sqrt(static_cast<float>(size));
    for (int64_t j = 0; j < size; ++j) piece[j] *= factor;
    begin += size;
  }
}

namespace {

void store_plain(const Target& to, const float* x) {
  if (to.element == KvElement::kF32) {
    auto* out = reinterpret_cast<float*>(to.head);
    if (to.plane == KvPart::kKeys) {
      for (int64_t j = 0; j < to.head_dim; ++j) out[j * kBlockSize + to.token] = x[j];
    } else {
      std::copy_n(x, to.head_dim, out + to.token * to.head_dim);
    }
  } else if (to.plane == KvPart::kKeys) {  // a pair of dims is one aligned 32-bit word
    auto* out = reinterpret_cast<uint32_t*>(to.head) + to.token;
    for (int64_t j = 0; j < to.head_dim; j += 2) {
      out[j / 2 * kBlockSize] =
          bf16_from_float(x[j]) | static_cast<uint32_t>(bf16_from_float(x[j + 1])) << 16;
    }
  } else {
    uint16_t* out = reinterpret_cast<uint16_t*>(to.head) +
                    value_offset(KvElement::kBF16, to.head_dim, to.token, 0);
    for (int64_t j = 0; j < to.head_dim; ++j) out[2 * j] = bf16_from_float(x[j]);
  }
}

}  // namespace

void kv_store(KvElement element, KvPart plane, int64_t head_dim, const float* x, int64_t token,
              std::byte* head) {
  const Target to{element, plane, head_dim, token, head};
  switch (element) {
    case KvElement::kF32:
    case KvElement::kBF16:
      return store_plain(to, x);
    case KvElement::kFp8:
      return store_fp8(to, x);
    case KvElement::kInt8:
      return store_int8(to, x);
    case KvElement::kQ4:
      return store_q4(to, x);
    case KvElement::kHiggs4:
    case KvElement::kHiggs3:
    case KvElement::kHiggs2:
      return store_higgs(to, x);
  }
}

namespace {

// The integer of dim j.
int code_value(const Target& from, int64_t j) {
  const int64_t half = from.head_dim / 2;
  if (from.element == KvElement::kInt8) return static_cast<int8_t>(from.code(from.head_dim, j));
  const int64_t slot = j % half;
  if (from.element == KvElement::kQ4) {
    return (j < half ? from.code(half, slot) & 15 : from.code(half, slot) >> 4) - 8;
  }
  int code = 0;
  if (from.element == KvElement::kHiggs4) {
    code = from.code(half, slot);
  } else {
    const int64_t quarter = half / 2, eighth = half / 4;
    const uint8_t byte = from.code(quarter, slot % quarter);
    code = slot < quarter ? byte & 15 : byte >> 4;
    if (from.element == KvElement::kHiggs3) {
      const uint8_t high = from.code(eighth, slot % eighth, kBlockSize * quarter);
      code |= (high >> (2 * (slot / eighth)) & 3) << 4;
    }
  }
  const KvGrid& grid = kv_grid(from.element);
  return j < half ? grid.first[code] : grid.second[code];
}

}  // namespace

void kv_load(KvElement element, KvPart plane, int64_t head_dim, const std::byte* head,
             int64_t token, float* x) {
  // Only read through.
  const Target from{element, plane, head_dim, token, const_cast<std::byte*>(head)};
  for (int64_t j = 0; j < head_dim; ++j) {
    const int64_t offset = plane == KvPart::kKeys ? key_offset(element, token, j)
                                                  : value_offset(element, head_dim, token, j);
    if (element == KvElement::kF32) {
      x[j] = reinterpret_cast<const float*>(head)[offset];
    } else if (element == KvElement::kBF16) {
      x[j] = float_from_bf16(reinterpret_cast<const uint16_t*>(head)[offset]);
    } else if (element == KvElement::kFp8) {
      x[j] = e4m3_to_float(from.code(head_dim, j));
    } else {
      const int64_t group = element == KvElement::kQ4 ? j / kQ4Group : 0;
      // 8 bits times 7: exact.
      x[j] = static_cast<float>(code_value(from, j)) * float_from_bf16(from.scale(group));
    }
  }
}

void kv_store_sink(KvElement element, int64_t head_dim, const float* x, int64_t token,
                   std::byte* head) {
  float rotated[kMaxHeadDim];
  if (kv_is_rotated(element)) {
    std::copy_n(x, head_dim, rotated);
    kv_rotate(rotated, head_dim);
    x = rotated;
  }
  auto* out = reinterpret_cast<uint16_t*>(head) + token * head_dim;
  for (int64_t j = 0; j < head_dim; ++j) out[j] = bf16_from_float(x[j]);
}

void kv_load_sink(int64_t head_dim, const std::byte* head, int64_t token, float* x) {
  const auto* from = reinterpret_cast<const uint16_t*>(head) + token * head_dim;
  for (int64_t j = 0; j < head_dim; ++j) x[j] = float_from_bf16(from[j]);
}

}  // namespace lathe

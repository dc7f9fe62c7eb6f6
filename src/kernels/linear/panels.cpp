#include "kernels/linear/panels.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace lathe {

const int8_t kE2m1Table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
const int8_t kInt4Table[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
const int8_t kOffsetE2m1Table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
const int8_t kOffsetInt4Table[16] = {12, 13, 14, 15, 16, 17, 18, 19, 4, 5, 6, 7, 8, 9, 10, 11};

namespace {

// Nibbles 0..7 of `word` in the order 0 4 1 5 2 6 3 7: byte j then holds nibbles j and 4 + j.
uint32_t interleave_nibbles(uint32_t word) {
  // Swap the middle bytes, then the middle nibbles of each half.
  word = (word & 0xff0000ffu) | (word & 0x0000ff00u) << 8 | (word & 0x00ff0000u) >> 8;
  return (word & 0xf00ff00fu) | (word & 0x00f000f0u) << 4 | (word & 0x0f000f00u) >> 4;
}

// Where a row of the stacked weight comes from.
struct RowSource {
  const LinearPart* part = nullptr;  // null: padding
  int64_t row = 0;
};

RowSource find_row(const LinearParts& parts, int64_t row) {
  for (const LinearPart& part : parts.parts) {
    if (row < part_rows(part)) return {&part, row};
    row -= part_rows(part);
  }
  return {};
}

PanelElement choose_element(const LinearParts& parts) {
  if (parts.format == nullptr) {
    const DType dtype = parts.parts[0].dense->dtype();
    return dtype == DType::kF32    ? PanelElement::kF32
           : dtype == DType::kBF16 ? PanelElement::kBF16
                                   : PanelElement::kF16;
  }
  switch (parts.format->element) {
    case ElementType::kE2M1:
      return PanelElement::kE2M1;
    case ElementType::kInt4:
      return PanelElement::kInt4;
    case ElementType::kInt8:
      return PanelElement::kInt8;
    case ElementType::kE4M3:
      break;
  }
  return PanelElement::kE4M3;
}

// Kernels decode byte scales with shifts, which know no NaN and no sign; a weight that holds such
// bytes (broken, but it must show as NaN) gets float scales.
bool all_bytes_within(const LinearParts& parts, uint8_t lowest, uint8_t highest) {
  for (const LinearPart& part : parts.parts) {
    const auto* bytes = part.quantized->scales.as<uint8_t>();
    if (std::any_of(bytes, bytes + part.quantized->scales.size(),
                    [=](uint8_t byte) { return byte < lowest || byte > highest; })) {
      return false;
    }
  }
  return true;
}

PanelScale choose_scale(const LinearParts& parts) {
  if (parts.format == nullptr || parts.format->group_size == 0) return PanelScale::kNone;
  switch (parts.format->scale) {
    case ScaleType::kE8M0:
      return all_bytes_within(parts, 0, 0xfe) ? PanelScale::kE8M0 : PanelScale::kF32;
    case ScaleType::kE4M3:
      return all_bytes_within(parts, 0, 0x7e) ? PanelScale::kE4M3 : PanelScale::kF32;
    case ScaleType::kBF16:
      return PanelScale::kBF16;
    case ScaleType::kF16:
    case ScaleType::kF32:
    case ScaleType::kLogLinear8:
      break;
  }
  return PanelScale::kF32;
}

int64_t element_bits_of(PanelElement element) {
  switch (element) {
    case PanelElement::kE2M1:
    case PanelElement::kInt4:
      return 4;
    case PanelElement::kInt8:
    case PanelElement::kE4M3:
      return 8;
    case PanelElement::kBF16:
    case PanelElement::kF16:
      return 16;
    case PanelElement::kF32:
      break;
  }
  return 32;
}

// Whether bf16 holds every weight times its group's scale: E2M1 has 2 significant bits, a scale of
// E8M0 one, of E4M3 four.
bool exact_in_bf16(PanelElement element, PanelScale scale) {
  return element == PanelElement::kBF16 ||
         (element == PanelElement::kE2M1 &&
          (scale == PanelScale::kE8M0 || scale == PanelScale::kE4M3));
}

class Packer {
 public:
  Packer(const LinearParts& parts, Arithmetic arithmetic, PanelWeight& weight)
      : parts_(parts), arithmetic_(arithmetic), weight_(weight), panels_(weight.panels) {}

  void pack_row(int64_t row) {
    const RowSource source = find_row(parts_, row);
    const int64_t panel = row / panels_.rows;
    const int64_t lane = row % panels_.rows;
    std::byte* codes = weight_.codes.data() + panel * panels_.code_bytes;
    auto* row_scale = weight_.row_scales.as<float>() + row;
    auto* bias = weight_.bias.as<float>() + row;
    *row_scale = 0;
    *bias = 0;
    if (source.part == nullptr) return;  // codes and scales of padding were zeroed
    *row_scale = 1;
    if (source.part->bias != nullptr) *bias = source.part->bias[source.row];
    if (source.part->dense != nullptr) {
      const int64_t size = element_bits_of(panels_.element) / 8;
      const std::byte* from = source.part->dense->data() + source.row * panels_.k * size;
      if (panels_.pairs) {
        for (int64_t col = 0; col < panels_.k; col += 2) {
          std::memcpy(codes + (col * panels_.rows + 2 * lane) * size, from + col * size,
                      static_cast<std::size_t>(2 * size));
        }
        return;
      }
      for (int64_t col = 0; col < panels_.k; ++col) {
        std::memcpy(codes + (col * panels_.rows + lane) * size, from + col * size,
                    static_cast<std::size_t>(size));
      }
      return;
    }
    const QuantizedMatrix& matrix = *source.part->quantized;
    const auto* from = matrix.codes.as<uint8_t>() + source.row * matrix.code_row_bytes();
    pack_codes(from, lane, reinterpret_cast<uint8_t*>(codes));
    *row_scale = pack_scales(matrix, source.row, panel, lane);
  }

 private:
  void pack_codes(const uint8_t* from, int64_t lane, uint8_t* to) const {
    const int64_t rows = panels_.rows;
    const bool nibbles = element_bits_of(panels_.element) == 4;
    if (arithmetic_ == Arithmetic::kInteger && nibbles) {
      for (int64_t i = 0; i < panels_.k / 8; ++i) {
        uint32_t word;
        std::memcpy(&word, from + 4 * i, 4);
        word = interleave_nibbles(word);
        std::memcpy(to + (i * rows + lane) * 4, &word, 4);
      }
    } else if (arithmetic_ == Arithmetic::kInteger) {
      const uint32_t signs = rows == kVnniPanelRows ? 0x80808080u : 0;  // adds 128 to every byte
      for (int64_t i = 0; i < panels_.k / 4; ++i) {
        uint32_t word;
        std::memcpy(&word, from + 4 * i, 4);
        word ^= signs;
        std::memcpy(to + (i * rows + lane) * 4, &word, 4);
      }
    } else {
      const int64_t num_bytes = nibbles ? panels_.k / 2 : panels_.k;
      for (int64_t i = 0; i < num_bytes; ++i) to[i * rows + lane] = from[i];
    }
  }

  // Returns the factor that the whole row shares.
  float pack_scales(const QuantizedMatrix& matrix, int64_t row, int64_t panel, int64_t lane) {
    // Floating-point kernels halve the scale itself: a doubled code times 2^127 would overflow.
    const bool doubled = arithmetic_ == Arithmetic::kInteger;
    const float half = doubled && panels_.element == PanelElement::kE2M1 ? 0.5f : 1.0f;
    if (panels_.scale == PanelScale::kNone) return half * effective_scale(matrix, row, 0);
    const int64_t num_groups = panels_.k / panels_.group;
    const int64_t repeat = matrix.format.group_size / panels_.group;
    std::byte* to = weight_.scales.data() + panel * panels_.scale_bytes;
    const int64_t size = panel_scale_bytes(panels_.scale);
    const std::byte* from = matrix.scales.data() + row * matrix.num_groups() * size;
    for (int64_t g = 0; g < num_groups; ++g) {
      std::byte* slot = to + (g * panels_.rows + lane) * size;
      if (panels_.scale == PanelScale::kF32) {
        const float scale = effective_scale(matrix, row, g / repeat);
        std::memcpy(slot, &scale, sizeof scale);
      } else {
        std::memcpy(slot, from + g / repeat * size, static_cast<std::size_t>(size));
      }
    }
    if (panels_.scale == PanelScale::kF32) return half;
    return static_cast<float>(double{half} / double{matrix.global_scale});
  }

  const LinearParts& parts_;
  Arithmetic arithmetic_;
  PanelWeight& weight_;
  const Panels& panels_;
};

}  // namespace

bool fits_amx(const LinearParts& parts, ComputeType compute) {
  if (parts.k % kAmxColumns != 0) return false;
  const PanelScale scale = choose_scale(parts);
  if (compute == ComputeType::kF32 && !exact_in_bf16(choose_element(parts), scale)) return false;
  // Of 2^(b - 127) neither the half may be subnormal nor 6 times as much infinite.
  return scale != PanelScale::kE8M0 || all_bytes_within(parts, 2, 252);
}

std::unique_ptr<PackedWeight> pack_panels(const LinearParts& parts, Arithmetic arithmetic,
                                          int64_t group, int64_t panel_rows, int input_terms,
                                          Exec& exec) {
  auto weight = std::make_unique<PanelWeight>();
  Panels& panels = weight->panels;
  panels.n = parts.n;
  panels.k = parts.k;
  panels.rows = panel_rows;
  panels.num_panels = (parts.n + panel_rows - 1) / panel_rows;
  panels.element = choose_element(parts);
  panels.scale = choose_scale(parts);
  panels.input_terms = input_terms;
  panels.pairs = input_terms != 0 && panels.element == PanelElement::kBF16;
  panels.exact_bf16 = exact_in_bf16(panels.element, panels.scale);
  if (arithmetic == Arithmetic::kInteger) {
    panels.group = group;
  } else {
    panels.group = panels.scale == PanelScale::kNone ? parts.k : parts.format->group_size;
  }
  panels.code_bytes = parts.k * panel_rows * element_bits_of(panels.element) / 8;
  panels.scale_bytes = parts.k / panels.group * panel_rows * panel_scale_bytes(panels.scale);
  weight->codes = Buffer(panels.num_panels * panels.code_bytes);
  weight->scales = Buffer(panels.num_panels * panels.scale_bytes);
  weight->row_scales = Buffer(panels.num_panels * panel_rows * int64_t{sizeof(float)});
  weight->bias = Buffer(panels.num_panels * panel_rows * int64_t{sizeof(float)});
  panels.codes = weight->codes.data();
  panels.scales = weight->scales.data();
  panels.row_scales = weight->row_scales.as<float>();
  panels.bias = weight->bias.as<float>();
  weight->weight_bytes = weight->codes.size() + weight->scales.size();

  exec.threads.parallel_for(panels.num_panels, 4, [&](int64_t begin, int64_t end, int) {
    Packer packer(parts, arithmetic, *weight);
    for (int64_t panel = begin; panel < end; ++panel) {
      if ((panel + 1) * panel_rows > panels.n) {
        std::memset(weight->codes.data() + panel * panels.code_bytes, 0,
                    static_cast<std::size_t>(panels.code_bytes));
        if (panels.scale_bytes > 0) {
          std::memset(weight->scales.data() + panel * panels.scale_bytes, 0,
                      static_cast<std::size_t>(panels.scale_bytes));
        }
      }
      for (int64_t lane = 0; lane < panel_rows; ++lane) packer.pack_row(panel * panel_rows + lane);
    }
  });
  return weight;
}

}  // namespace lathe

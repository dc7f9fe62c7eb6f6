// Weights as the vector kernels read them: panels of a few output rows (8 for AVX2's integer
// kernel, 16 for its floating-point kernel, 32 for both of AVX-512), padded with zero rows at the
// end. Inside a panel the rows stand side by side, so that one load brings the same columns of all
// of them:
//
//   kInteger, 4 bits   [k / group][group / 8][rows][4]  byte j of a word: column j low, 4 + j high
//   kInteger, 8 bits   [k / 4][rows][4]                 for VNNI with 128 added, so unsigned
//   kFloat, 4 bits     [k / 2][rows]                    column 2 i low, 2 i + 1 high
//   kFloat, others     [k][rows]
//   bf16 in pairs      [k / 2][rows][2]                 what the tiles of AMX multiply
//   scales             [k / group][rows]
//
// Bits per weight are those of the checkpoint: 4.25 for MXFP4, 4.5 for NVFP4. What a whole row
// shares (1 / global scale, a per-channel scale, the 1/2 of E2M1 codes doubled) is applied once,
// with the bias.
#pragma once
#include <cstdint>
#include <memory>

#include "kernels/linear/linear_kernels.h"

namespace lathe {

enum class PanelElement { kE2M1, kInt4, kInt8, kE4M3, kF32, kBF16, kF16 };
enum class PanelScale { kNone, kE8M0, kE4M3, kBF16, kF32 };

constexpr int64_t panel_scale_bytes(PanelScale scale) {
  switch (scale) {
    case PanelScale::kNone:
      return 0;
    case PanelScale::kE8M0:
    case PanelScale::kE4M3:
      return 1;
    case PanelScale::kBF16:
      return 2;
    case PanelScale::kF32:
      break;
  }
  return 4;
}

// Plain pointers: files built for one instruction set call nothing that other files share.
struct Panels {
  int64_t n = 0;
  int64_t k = 0;
  int64_t group = 0;  // columns that share a scale; kFloat: k when a row has one scale or none
  int64_t rows = 0;   // of a panel
  int64_t num_panels = 0;
  PanelElement element = PanelElement::kF32;
  PanelScale scale = PanelScale::kNone;
  bool pairs = false;       // kBF16 only
  bool exact_bf16 = false;  // bf16 holds the weights (but for row_scales) exactly
  int input_terms = 0;      // numbers of bf16 that a kernel with AMX makes of an input: 2, or all 3
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  const float* row_scales = nullptr;  // [num_panels * rows]
  const float* bias = nullptr;        // [num_panels * rows]
  int64_t code_bytes = 0;             // of a panel
  int64_t scale_bytes = 0;            // of a panel
};

// Rows of a panel for the integer kernel with VNNI; 8 bits have 128 added there.
inline constexpr int64_t kVnniPanelRows = 32;

struct PanelWeight : PackedWeight {
  Panels panels;
  Buffer codes, scales, row_scales, bias;
};

// input_terms: see Panels; 0 for a kernel without AMX.
std::unique_ptr<PackedWeight> pack_panels(const LinearParts& parts, Arithmetic arithmetic,
                                          int64_t group, int64_t panel_rows, int input_terms,
                                          Exec& exec);

// Whether the kernel with AMX takes the weights: whole tiles, no scales at the ends of the range
// (since it counts subnormal numbers as zero), and for kF32 only what bf16 holds exactly.
bool fits_amx(const LinearParts& parts, ComputeType compute);

// Nibble -> integer: E2M1 times two, INT4 as it is; and both plus kCodeOffset.
extern const int8_t kE2m1Table[16];
extern const int8_t kInt4Table[16];
extern const int8_t kOffsetE2m1Table[16];
extern const int8_t kOffsetInt4Table[16];

}  // namespace lathe

// Scales of a panel, kWidth output rows side by side, to fp32.
#pragma once
#include "kernels/linear/panels.h"

namespace lathe {
namespace {

template <typename V, PanelScale kScale>
typename V::F decode_scales(const std::byte* scales) {
  if constexpr (kScale == PanelScale::kE8M0) {
    // Byte b is 2^(b - 127), whose float has b in the exponent field; b = 0 is the subnormal
    // 2^-127. 255 (NaN) is packed as kF32.
    const auto bits = V::template shift_left<23>(V::load_u8(scales));
    return V::as_float(V::max_u32(bits, V::set_int(0x00400000)));
  } else if constexpr (kScale == PanelScale::kE4M3) {
    // Shifted into place the exponent is too small by 127 - 7: exact, for subnormals too.
    const auto bits = V::template shift_left<20>(V::load_u8(scales));
    return V::mul(V::as_float(bits), V::set(0x1p120f));
  } else if constexpr (kScale == PanelScale::kBF16) {
    return V::as_float(V::template shift_left<16>(V::load_u16(scales)));
  } else if constexpr (kScale == PanelScale::kF32) {
    return V::load(reinterpret_cast<const float*>(scales));
  } else {
    return V::set(1.0f);
  }
}

template <typename V>
typename V::F decode_scales(PanelScale type, const std::byte* scales) {
  switch (type) {
    case PanelScale::kNone:
      break;
    case PanelScale::kE8M0:
      return decode_scales<V, PanelScale::kE8M0>(scales);
    case PanelScale::kE4M3:
      return decode_scales<V, PanelScale::kE4M3>(scales);
    case PanelScale::kBF16:
      return decode_scales<V, PanelScale::kBF16>(scales);
    case PanelScale::kF32:
      return decode_scales<V, PanelScale::kF32>(scales);
  }
  return V::set(1.0f);
}

}  // namespace
}  // namespace lathe

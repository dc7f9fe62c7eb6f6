// exp and the functions made of it, for a vector type S of simd_avx2.h or simd_avx512.h.
//
// exp(x) = 2^n (1 + r + r^2 p(r)) with n = round(x / ln 2), r = x - n ln 2 in two steps (Cody and
// Waite), |r| <= ln(2) / 2, and p the degree-4 polynomial that minimises the relative error of the
// whole: 3.1e-9, a twentieth of half an ulp, found by Lawson's reweighted least squares on 20,001
// Chebyshev points. Measured over every 1009th float: 0.96 ulp (tests/kernels/exp_simd_test.cpp).
#pragma once

namespace lathe {
namespace {

// Below -86.6 the result is 0 (the smallest other result is 2.4e-38: never a subnormal, which would
// be slow); above 88.72 it is infinity; NaN stays NaN.
template <typename S>
inline typename S::F exp_of(typename S::F x) {
  using F = typename S::F;
  const F lowest = S::set(-86.6f);
  // max and min return their second operand for NaN.
  const F clamped = S::min(S::set(89.0f), S::max(lowest, x));
  const F n = S::round(S::mul(clamped, S::set(0x1.715476p+0f)));
  F r = S::fnma(n, S::set(0x1.62e400p-1f), clamped);  // 15 bits of ln 2: n times it is exact
  r = S::fnma(n, S::set(0x1.7f7d1cp-20f), r);         // the rest
  F p = S::set(0x1.6a2434p-10f);
  p = S::fma(p, r, S::set(0x1.1239e2p-7f));
  p = S::fma(p, r, S::set(0x1.5558f2p-5f));
  p = S::fma(p, r, S::set(0x1.555492p-3f));
  p = S::fma(p, r, S::set(0x1.fffffcp-2f));
  const F one_plus = S::add(S::fma(S::mul(r, r), p, r), S::set(1));
  // 2^128 is no float: multiply by 2^(n - 1), then by 2.
  const F result = S::mul(S::mul(one_plus, S::half_power_of_two(n)), S::set(2));
  return S::zero_where_less(result, x, lowest);
}

// x / (1 + exp(-x)).
template <typename S>
inline typename S::F silu_of(typename S::F x) {
  const typename S::F e = exp_of<S>(S::sub(S::zero(), x));
  return S::div(x, S::add(S::set(1), e));
}

// x / 2 (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3): without the
// cancellation of 1 + tanh.
template <typename S>
inline typename S::F gelu_tanh_of(typename S::F x) {
  const typename S::F x2 = S::mul(x, x);
  const typename S::F factor = S::fma(x2, S::set(0.044715f), S::set(1));
  const typename S::F minus_2u = S::mul(S::mul(x, S::set(-1.5957691216057308f)), factor);
  return S::div(x, S::add(S::set(1), exp_of<S>(minus_2u)));
}

// 1 - 2 / (1 + exp(2x)); the error is absolute, 2 eps.
template <typename S>
inline typename S::F tanh_of(typename S::F x) {
  const typename S::F e = exp_of<S>(S::add(x, x));
  return S::sub(S::set(1), S::div(S::set(2), S::add(S::set(1), e)));
}

}  // namespace
}  // namespace lathe

// One number or sixteen side by side: the type in which the pixels of a row are worked out.
//
// The bodies of splat.cuh and voxelize.cuh are templates of it.  On a card, and in the float64 oracle, V is a
// plain number; in the fast host builds it is a vector of sixteen floats, which the compiler keeps in one
// 512-bit register or in two or four narrower ones.
#pragma once
#include "math.cuh"

namespace xreg {
inline namespace XREG_ISA {

template <class V>
struct Lanes {
  using Scalar = V;
  static constexpr int kCount = 1;
};

template <class V>
using ScalarOf = typename Lanes<V>::Scalar;

HD float select(bool mask, float yes, float no) { return mask ? yes : no; }
HD double select(bool mask, double yes, double no) { return mask ? yes : no; }

// 2^x for x <= 0.
HD float exp2_of(float x) { return exp2f(x); }
HD double exp2_of(double x) { return exp2(x); }
HD float inverse_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return rsqrtf(x);
#else
  return 1.0f / sqrtf(x);
#endif
}
HD double inverse_sqrt(double x) { return 1.0 / sqrt(x); }
HD float root_of(float x) { return sqrtf(x); }
HD double root_of(double x) { return sqrt(x); }

// 0, 1, 2 ... along the lanes.
template <class V>
HD V ramp() { return V(0); }
template <class V>
HD V splat_of(ScalarOf<V> x) { return x; }
template <class V>
HD V load(const ScalarOf<V>* p) { return *p; }
template <class V>
HD void store(ScalarOf<V>* p, V v) { *p = v; }
HD double sum_of(float v) { return v; }
HD double sum_of(double v) { return v; }

#if !defined(__CUDACC__) && !defined(XREG_SCALAR)

typedef float Float16Lanes __attribute__((vector_size(64)));
typedef int32_t Int16Lanes __attribute__((vector_size(64)));

template <>
struct Lanes<Float16Lanes> {
  using Scalar = float;
  static constexpr int kCount = 16;
};

template <>
HD Float16Lanes ramp<Float16Lanes>() {
  return Float16Lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}
template <>
HD Float16Lanes splat_of<Float16Lanes>(float x) { return x - Float16Lanes{}; }
template <>
HD Float16Lanes load<Float16Lanes>(const float* p) {
  Float16Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <>
HD void store<Float16Lanes>(float* p, Float16Lanes v) { std::memcpy(p, &v, sizeof v); }

HD Float16Lanes select(Int16Lanes mask, Float16Lanes yes, Float16Lanes no) { return mask ? yes : no; }

// Relative error below 3e-7 (tests/splat/test_splat_lanes.py); zero below 2^-125.  The polynomial is the minimax of
// 2^f on [-1/2, 1/2].
HD Float16Lanes exp2_of(Float16Lanes x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Float16Lanes low = splat_of<Float16Lanes>(-125.0f);
  const auto tiny = x < low;
  x = tiny ? low : x;
  const Float16Lanes shifted = x + kRounder;
  const Float16Lanes f = x - (shifted - kRounder);
  Float16Lanes p = f * 1.3240888e-3f + 9.674739e-3f;
  p = p * f + 5.5508375e-2f;
  p = p * f + 2.4022155e-1f;
  p = p * f + 6.931469e-1f;
  p = p * f + 1.0f;
  const Float16Lanes whole = (Float16Lanes)((Int16Lanes)p + ((Int16Lanes)shifted << 23));
  return tiny ? Float16Lanes{} : whole;
}

// Relative error below 1e-6 for x of an ordinary size, without a division.  The first step's constants are those of
// L. Moroz et al., Fast calculation of inverse square root with the use of magic constant (2018).
HD Float16Lanes inverse_sqrt(Float16Lanes x) {
  Float16Lanes y = (Float16Lanes)(0x5f1ffff9 - ((Int16Lanes)x >> 1));
  y *= 0.703952253f * (2.38924456f - x * y * y);
  y *= 1.5f - 0.5f * x * y * y;
  return y;
}

HD Float16Lanes root_of(Float16Lanes x) {
  Float16Lanes y;
  XREG_LANES
  for (int l = 0; l < 16; ++l) y[l] = sqrtf(x[l]);
  return y;
}

// In one order, whatever the registers.
HD double sum_of(Float16Lanes v) {
  double total = 0.0;
  for (int l = 0; l < 8; ++l) total += static_cast<double>(v[l] + v[l + 8]);
  return total;
}

#endif

}  // namespace XREG_ISA
}  // namespace xreg

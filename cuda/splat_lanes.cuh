// One number or several side by side: the type in which the pixels of a row are worked out.
//
// The bodies of splat.cuh and voxelize.cuh are templates of it.  On a card, and in the float64 oracle, V is a
// plain number; in the fast host builds it is a vector of floats that fills a register: sixteen, eight or four.
#pragma once
#include "math.cuh"

#if !defined(__CUDACC__) && defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace xreg {
inline namespace XREG_ISA {

template <class V>
struct Lanes {
  using Scalar = V;
  static constexpr int kCount = 1;
  static constexpr int kAcross = 1, kDown = 1;  // the lanes as a block of pixels
};

template <class V>
using ScalarOf = typename Lanes<V>::Scalar;

HD float select(bool mask, float yes, float no) { return mask ? yes : no; }
HD double select(bool mask, double yes, double no) { return mask ? yes : no; }

// 2^x where x > least, zero elsewhere; -125 <= least, x < 1.
HD float exp2_above(float x, float least) { return x > least ? exp2f(x) : 0.0f; }
HD double exp2_above(double x, double least) { return x > least ? exp2(x) : 0.0; }
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

// 1 / sqrt(1 + e), relative error below 4e-7 where |e| <= kSlight: the minimax polynomial of it.
constexpr double kSlight = 0.1;
template <class V>
HD V inverse_sqrt_near_one(V e) {
  const V low = 1.0f - e * 0.499992218f, high = 0.374987659f - e * 0.315603797f, ee = e * e;
  return ee * (ee * 0.276803729f + high) + low;
}

// 0, 1, 2 ... along the lanes; and a lane's column and row in the block of pixels.
template <class V>
HD V ramp() { return V(0); }
template <class V>
HD V block_columns() { return V(0); }
template <class V>
HD V block_rows() { return V(0); }
template <class V>
HD V splat_of(ScalarOf<V> x) { return x; }
template <class V>
HD V load(const ScalarOf<V>* p) { return *p; }
template <class V>
HD void store(ScalarOf<V>* p, V v) { *p = v; }
template <class V>
HD void store_whole(int32_t* p, V v) { *p = static_cast<int32_t>(v); }
HD double sum_of(float v) { return v; }
HD double sum_of(double v) { return v; }

#if !defined(__CUDACC__) && !defined(XREG_SCALAR)

// As wide as a register: of a wider vector GCC compares and selects one number after another.
#if defined(__AVX512F__)
constexpr int kFastLanes = 16;
#elif defined(__AVX2__)
constexpr int kFastLanes = 8;
#else
constexpr int kFastLanes = 4;
#endif
typedef float FloatLanes __attribute__((vector_size(4 * kFastLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kFastLanes)));

template <>
struct Lanes<FloatLanes> {
  using Scalar = float;
  static constexpr int kCount = kFastLanes;
  static constexpr int kAcross = 4, kDown = kFastLanes / 4;
};

template <>
HD FloatLanes ramp<FloatLanes>() {
  FloatLanes v;
  for (int l = 0; l < kFastLanes; ++l) v[l] = static_cast<float>(l);
  return v;
}
template <>
HD FloatLanes block_columns<FloatLanes>() {
  FloatLanes v;
  for (int l = 0; l < kFastLanes; ++l) v[l] = static_cast<float>(l % 4);
  return v;
}
template <>
HD FloatLanes block_rows<FloatLanes>() {
  FloatLanes v;
  for (int l = 0; l < kFastLanes; ++l) v[l] = static_cast<float>(l / 4);
  return v;
}
template <>
HD FloatLanes splat_of<FloatLanes>(float x) { return x - FloatLanes{}; }
template <>
HD FloatLanes load<FloatLanes>(const float* p) {
  FloatLanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <>
HD void store<FloatLanes>(float* p, FloatLanes v) { std::memcpy(p, &v, sizeof v); }
template <>
HD void store_whole<FloatLanes>(int32_t* p, FloatLanes v) {
  const IntLanes whole = __builtin_convertvector(v, IntLanes);
  std::memcpy(p, &whole, sizeof whole);
}

HD FloatLanes select(IntLanes mask, FloatLanes yes, FloatLanes no) { return mask ? yes : no; }

// Relative error below 3e-7 (tests/splat/test_splat_lanes.py).
#if defined(__AVX512F__) && defined(__AVX512DQ__)
// The machine takes the whole part off and puts it back; the polynomial is the minimax of 2^f on [0, 1].
HD FloatLanes exp2_above(FloatLanes x, float least) {
  const __m512 t = (__m512)x;
  const FloatLanes f = (FloatLanes)_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);
  FloatLanes p = f * 1.865049e-3f + 9.0226587e-3f;
  p = p * f + 5.5794518e-2f;
  p = p * f + 2.4016659e-1f;
  p = p * f + 6.9315106e-1f;
  p = p * f + 1.0f;
  const __mmask16 counts = _mm512_cmp_ps_mask(t, _mm512_set1_ps(least), _CMP_GT_OQ);
  return (FloatLanes)_mm512_maskz_scalef_ps(counts, (__m512)p, t);
}
#else
// The polynomial is the minimax of 2^f on [-1/2, 1/2].
HD FloatLanes exp2_above(FloatLanes x, float least) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  const FloatLanes shifted = kRounder + x;
  const FloatLanes f = x - (shifted - kRounder);
  const FloatLanes low = f * 6.931469e-1f + 1.0f, middle = f * 5.5508375e-2f + 2.4022155e-1f, ff = f * f;
  const FloatLanes p = ff * (ff * (f * 1.3240888e-3f + 9.674739e-3f) + middle) + low;
  return select(x > least, (FloatLanes)((IntLanes)p + ((IntLanes)shifted << 23)), FloatLanes{});
}
#endif

// Relative error below 1e-6 for x of an ordinary size, without a division.  The first step's constants are those of
// L. Moroz et al., Fast calculation of inverse square root with the use of magic constant (2018).
HD FloatLanes inverse_sqrt(FloatLanes x) {
#if defined(__AVX512F__)
  FloatLanes y = (FloatLanes)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)x);  // the machine's own first step, of 14 bits
#else
  FloatLanes y = (FloatLanes)(0x5f1ffff9 - ((IntLanes)x >> 1));
  y *= 0.703952253f * (2.38924456f - x * y * y);
#endif
  y *= 1.5f - 0.5f * x * y * y;
  return y;
}

HD FloatLanes root_of(FloatLanes x) {
  FloatLanes y;
  XREG_LANES
  for (int l = 0; l < kFastLanes; ++l) y[l] = sqrtf(x[l]);
  return y;
}

// In one order, whatever the registers.
HD double sum_of(FloatLanes v) {
  double total = 0.0;
  for (int l = 0; l < kFastLanes / 2; ++l) total += static_cast<double>(v[l] + v[l + kFastLanes / 2]);
  return total;
}

#endif

// Between which x lies a x^2 + b x + c <= 0, for a > 0; both ends are the middle where it is nowhere.
template <class V>
HD void roots_of(ScalarOf<V> a, V b, V c, V& lo, V& hi) {
  using Real = ScalarOf<V>;
  V disc = b * b - (Real(4) * a) * c;
  const V zero = splat_of<V>(0);
  disc = select(disc > zero, disc, zero);
  const V root = root_of(disc);
  const Real inverse = Real(0.5) / a;
  lo = (-b - root) * inverse;
  hi = (root - b) * inverse;
}

}  // namespace XREG_ISA
}  // namespace xreg

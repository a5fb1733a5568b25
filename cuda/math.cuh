// Small pieces that every kernel shares.  One source for host and device: on the host a "lane" is
// one of L neighbouring rays that the compiler packs into vector registers; on the device L is 1
// and a thread owns its ray.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define HD __host__ __device__ __forceinline__
#define XREG_LANES
#elif defined(XREG_SCALAR)
#define HD inline
#define XREG_INLINE
#define XREG_LANES
#else
#define HD inline __attribute__((always_inline))
#define XREG_INLINE __attribute__((always_inline))
#define XREG_LANES _Pragma("omp simd")
#endif

// Each instruction-set build of the host kernels lives in its own namespace, so that the linker
// can never hand an AVX-512 copy of an inline function to a machine without it.
#ifndef XREG_ISA
#define XREG_ISA base
#endif
#define XREG_JOIN_(a, b) a##b
#define XREG_JOIN(a, b) XREG_JOIN_(a, b)
#define XREG_NAMED(prefix) XREG_JOIN(prefix, XREG_ISA)

namespace xreg {
inline namespace XREG_ISA {

template <class T>
HD constexpr T lower(T a, T b) { return a < b ? a : b; }
template <class T>
HD constexpr T upper(T a, T b) { return a > b ? a : b; }
template <class T>
HD T clamp(T v, T lo, T hi) { return lower(upper(v, lo), hi); }
template <class T>
HD T magnitude(T v) { return v < T(0) ? -v : v; }

// Largest integer not above v, without a libm call (|v| < 2^31).
template <class Real>
HD int floor_int(Real v) {
  int i = static_cast<int>(v);
  return i - (static_cast<Real>(i) > v ? 1 : 0);
}

constexpr double kFar = 1e30;  // "never" for a crossing time; finite, so that products stay finite

}  // namespace XREG_ISA
}  // namespace xreg

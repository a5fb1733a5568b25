// Sums that have one result in any order: a scattered value is rounded to a whole number of grains and
// added as a 64-bit integer.  On a card, where rays meet in a voxel in no fixed order, this gives the
// adjoint the same bits each time.
#pragma once
#include "math.cuh"

namespace xreg {
inline namespace XREG_ISA {

struct Whole {
  int64_t grains;
};

// Grains in a unit: a power of two so fine that the largest sum still fits.
//
// A ray's weights in t add up to at most 1, so no voxel receives more than rays * most, `most` being the largest
// |scale * length * cotangent|.  That leaves 61 - log2(rays) bits below `most`.  The cap keeps a float32 factor
// finite when all cotangents are tiny.  0 where nothing is scattered; NaN where a cotangent is not finite.
HD double grains_in_one(double most, double rays) {
  const double total = most * rays;
  if (total == 0.0) return 0.0;
  if (!(total < 1e300)) return NAN;
  const int e = 61 - ilogb(total);
  return ldexp(1.0, e < 90 ? e : 90);
}

// What the grains of a voxel are worth.
HD double worth(Whole sum, double grains) {
  return grains == 0.0 ? 0.0 : static_cast<double>(sum.grains) / grains;
}

// One sample's share of a voxel.
template <class Real>
HD void deposit(Real* cell, Real value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(cell, value);
#else
  *cell += value;
#endif
}

template <class Real>
HD void deposit(Whole* cell, Real grains) {
#if defined(__CUDA_ARCH__)
  const long long n = sizeof(Real) == 8 ? __double2ll_rn(grains) : __float2ll_rn(static_cast<float>(grains));
  atomicAdd(reinterpret_cast<unsigned long long*>(&cell->grains), static_cast<unsigned long long>(n));
#else
  cell->grains += std::llrint(grains);
#endif
}

}  // namespace XREG_ISA
}  // namespace xreg

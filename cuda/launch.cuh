// What the launchers of host and card share: from the plain interface to the types of the bodies.
#pragma once
#include "api.h"
#include "project.cuh"

#include <type_traits>

namespace xreg {
inline namespace XREG_ISA {

inline Beam beam_of(const XregBeam& b, Integrator integrator) {
  return Beam{{b.metric[0], b.metric[1], b.metric[2], b.metric[3], b.metric[4], b.metric[5]},
              b.height, b.width, integrator, b.steps};
}
inline Beam beam_of(const XregBeam& b) { return beam_of(b, static_cast<Integrator>(b.integrator)); }

template <class T>
using Result = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f(grid, result) with the stored voxel type and the type of the results.  float64 is an oracle, and is not
// compiled for 32-bit indices.
template <class Index, class F>
void with_grid(const XregVolume& v, const F& f) {
  auto call = [&](auto voxel) {
    using T = decltype(voxel);
    f(Voxels<T, Index>{static_cast<const T*>(v.voxels), v.nx, v.ny, v.nz}, Result<T>{});
  };
  if (v.dtype == XREG_INT16) call(int16_t{});
  if (v.dtype == XREG_FLOAT32) call(float{});
  if constexpr (std::is_same_v<Index, int64_t>)
    if (v.dtype == XREG_FLOAT64) call(double{});
}

}  // namespace XREG_ISA
}  // namespace xreg

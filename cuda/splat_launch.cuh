// What the CUDA launchers of the splatter and the voxeliser share.
#pragma once
#include "splat_bins.cuh"
#include "splat_chain.cuh"

#include <type_traits>

namespace xreg {
namespace {

constexpr int kThreads = 128, kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

// The sum over a warp, with the same bits in all lanes.
template <class Real>
__device__ Real over_warp(Real v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

template <class F>
cudaError_t with_real(int32_t dtype, const F& f) {
  return dtype == XREG_FLOAT64 ? f(double{}) : f(float{});
}

}  // namespace
}  // namespace xreg

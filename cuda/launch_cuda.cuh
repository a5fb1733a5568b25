// What the CUDA launchers share: one thread a ray, the bodies of project.cuh with one lane.
#pragma once
#include "api_cuda.h"
#include "launch.cuh"

#include <type_traits>

namespace xreg {
namespace {

constexpr int kBlockU = 8, kBlockV = 16;  // pixels of a block; a warp covers 8 x 4
constexpr int kThreads = kBlockU * kBlockV;
constexpr int64_t kMostViews = 65535;  // of one launch: the limit of a grid's third dimension

// The integrator is fixed when a kernel is compiled: its registers are then those of one march and not
// those of the hungriest of the four.
template <Integrator I>
using Fixed = std::integral_constant<Integrator, I>;

// The thread's pixel and view; false outside the image.
__device__ bool own_pixel(const Beam& beam, int64_t view0, Pixel& p, int64_t& number) {
  const int u = blockIdx.x * kBlockU + threadIdx.x, v = blockIdx.y * kBlockV + threadIdx.y;
  if (u >= beam.width || v >= beam.height) return false;
  p = pixel_of(beam, u, v);
  number = view0 + blockIdx.z;
  return true;
}

// Calls launch(integrator, beam, blocks, threads, first view) until all views are on their way.
template <class Launch>
cudaError_t over_views(const XregBeam& b, const Launch& launch) {
  const auto all = [&](auto integrator) {
    const Beam beam = beam_of(b, integrator);
    for (int64_t view0 = 0; view0 < b.views; view0 += kMostViews) {
      const int64_t views = lower(b.views - view0, kMostViews);
      const dim3 blocks((b.width + kBlockU - 1) / kBlockU, (b.height + kBlockV - 1) / kBlockV,
                        static_cast<unsigned>(views));
      launch(integrator, beam, blocks, dim3(kBlockU, kBlockV), view0);
    }
  };
  switch (b.integrator) {
    case kTrilinear: all(Fixed<kTrilinear>{}); break;
    case kJoseph: all(Fixed<kJoseph>{}); break;
    case kSiddon: all(Fixed<kSiddon>{}); break;
    case kExact: all(Fixed<kExact>{}); break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace xreg

// The CUDA launchers: one thread a ray, the bodies of project.cuh with one lane.
#include "api_cuda.h"
#include "project.cuh"

#include <type_traits>

namespace xreg {
namespace {

constexpr int kBlockU = 8, kBlockV = 16;  // pixels of a block; a warp covers 8 x 4

Beam beam_of(const XregBeam& b) {
  return Beam{{b.metric[0], b.metric[1], b.metric[2], b.metric[3], b.metric[4], b.metric[5]},
              b.height, b.width, static_cast<Integrator>(b.integrator), b.steps};
}

// The thread's pixel and view; false outside the image.
__device__ bool own_pixel(const Beam& beam, Pixel& p) {
  const int u = blockIdx.x * kBlockU + threadIdx.x, v = blockIdx.y * kBlockV + threadIdx.y;
  if (u >= beam.width || v >= beam.height) return false;
  p = pixel_of(beam, u, v);
  return true;
}

template <class Grid, class Real, bool Moments>
__global__ void __launch_bounds__(kBlockU* kBlockV)
    project_kernel(Grid grid, const double* rays, Beam beam, double scale, Real* image, Real* moments, int64_t view0) {
  Pixel p;
  if (!own_pixel(beam, p)) return;
  const int64_t number = view0 + blockIdx.z;
  Integral<Grid, Real, 1, Moments> sink;
  sink.grid = grid;
  const bool own[1] = {true};
  render_packet<1>(sink, View{rays + 18 * number}, beam, p.at, own, scale, image + number * p.stride,
                   Moments ? moments + 6 * number * p.stride : nullptr);
}

template <LabelRule Rule, class Grid, class Real>
__global__ void __launch_bounds__(kBlockU* kBlockV)
    sort_kernel(Grid grid, XregLabels labels, const double* rays, Beam beam, double scale, Real* image, int64_t view0) {
  Pixel p;
  if (!own_pixel(beam, p)) return;
  const int64_t number = view0 + blockIdx.z;
  sort_pixel<Rule>(grid, labels.data, labels.channels, View{rays + 18 * number}, beam, p, scale,
                   image + number * labels.channels * p.stride);
}

template <LabelRule Rule, class Grid, class Real>
__global__ void __launch_bounds__(kBlockU* kBlockV)
    label_moments_kernel(Grid grid, XregLabels labels, const double* rays, Beam beam, double scale,
                         const Real* cotangent, Real* moments, int64_t view0) {
  Pixel p;
  if (!own_pixel(beam, p)) return;
  const int64_t number = view0 + blockIdx.z;
  label_moments_pixel<Rule>(grid, labels.data, labels.channels, View{rays + 18 * number}, beam, p, scale,
                            cotangent + number * labels.channels * p.stride, moments + 6 * number * p.stride);
}

template <LabelRule Rule, class Grid, class Real>
__global__ void __launch_bounds__(kBlockU* kBlockV)
    spread_kernel(Grid grid, XregLabels labels, int channels, const double* rays, Beam beam, double scale,
                  const Real* cotangent, Real* volume, int64_t view0) {
  Pixel p;
  if (!own_pixel(beam, p)) return;
  const int64_t number = view0 + blockIdx.z;
  spread_pixel<Rule>(grid, labels.data, channels, View{rays + 18 * number}, beam, p, scale,
                     cotangent + number * channels * p.stride, volume, 0, grid.nz);
}

// Launches kernel(view0) for at most 65535 views at a time, the limit of a grid's third dimension.
template <class Launch>
cudaError_t over_views(const XregBeam& b, const Launch& launch) {
  const dim3 block(kBlockU, kBlockV);
  for (int64_t view0 = 0; view0 < b.views; view0 += 65535) {
    const int64_t views = lower<int64_t>(b.views - view0, 65535);
    const dim3 grid((b.width + kBlockU - 1) / kBlockU, (b.height + kBlockV - 1) / kBlockV, static_cast<unsigned>(views));
    launch(grid, block, view0);
  }
  return cudaGetLastError();
}

// Calls f(grid, result) with the stored voxel type, the narrowest index, and the type of the results.
template <class F>
void with_grid(const XregVolume& v, const F& f) {
  const bool wide = static_cast<int64_t>(v.nx) * v.ny * v.nz >= (int64_t{1} << 31) - 8;
  auto call = [&](auto voxel) {
    using T = decltype(voxel);
    using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const T* data = static_cast<const T*>(v.voxels);
    if (wide) f(Voxels<T, int64_t>{data, v.nx, v.ny, v.nz}, Real{});
    else f(Voxels<T, int32_t>{data, v.nx, v.ny, v.nz}, Real{});
  };
  if (v.dtype == XREG_INT16) call(int16_t{});
  if (v.dtype == XREG_FLOAT32) call(float{});
  if (v.dtype == XREG_FLOAT64) call(double{});
}

}  // namespace
}  // namespace xreg

using namespace xreg;

extern "C" cudaError_t xreg_cuda_project(const XregVolume* vol, const XregBeam* b, void* image, void* moments,
                                         cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_grid(*vol, [&](auto grid, auto real) {
    using Real = decltype(real);
    using Grid = decltype(grid);
    Real* out = static_cast<Real*>(image);
    Real* jac = static_cast<Real*>(moments);
    error = over_views(*b, [&](dim3 blocks, dim3 block, int64_t view0) {
      if (jac)
        project_kernel<Grid, Real, true>
            <<<blocks, block, 0, stream>>>(grid, b->rays, beam_of(*b), vol->scale, out, jac, view0);
      else
        project_kernel<Grid, Real, false>
            <<<blocks, block, 0, stream>>>(grid, b->rays, beam_of(*b), vol->scale, out, jac, view0);
    });
  });
  return error;
}

extern "C" cudaError_t xreg_cuda_project_labels(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                                void* image, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_grid(*vol, [&](auto grid, auto real) {
    auto* out = static_cast<decltype(real)*>(image);
    error = over_views(*b, [&](dim3 blocks, dim3 block, int64_t view0) {
      if (labels->soft)
        sort_kernel<kSoft><<<blocks, block, 0, stream>>>(grid, *labels, b->rays, beam_of(*b), vol->scale, out, view0);
      else
        sort_kernel<kHard><<<blocks, block, 0, stream>>>(grid, *labels, b->rays, beam_of(*b), vol->scale, out, view0);
    });
  });
  return error;
}

extern "C" cudaError_t xreg_cuda_label_moments(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                               const void* cotangent, void* moments, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_grid(*vol, [&](auto grid, auto real) {
    const auto* g = static_cast<const decltype(real)*>(cotangent);
    auto* out = static_cast<decltype(real)*>(moments);
    error = over_views(*b, [&](dim3 blocks, dim3 block, int64_t view0) {
      if (labels->soft)
        label_moments_kernel<kSoft>
            <<<blocks, block, 0, stream>>>(grid, *labels, b->rays, beam_of(*b), vol->scale, g, out, view0);
      else
        label_moments_kernel<kHard>
            <<<blocks, block, 0, stream>>>(grid, *labels, b->rays, beam_of(*b), vol->scale, g, out, view0);
    });
  });
  return error;
}

extern "C" cudaError_t xreg_cuda_backproject(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                             const void* cotangent, void* volume, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  auto call = [&](auto real) {
    using Real = decltype(real);
    const Voxels<Real, int64_t> grid{nullptr, vol->nx, vol->ny, vol->nz};  // only its shape is used
    const Real* g = static_cast<const Real*>(cotangent);
    Real* out = static_cast<Real*>(volume);
    const XregLabels lab = labels ? *labels : XregLabels{};
    const int channels = labels ? labels->channels : 1;
    error = over_views(*b, [&](dim3 blocks, dim3 block, int64_t view0) {
      if (!labels)
        spread_kernel<kUnlabelled>
            <<<blocks, block, 0, stream>>>(grid, lab, channels, b->rays, beam_of(*b), vol->scale, g, out, view0);
      else if (labels->soft)
        spread_kernel<kSoft>
            <<<blocks, block, 0, stream>>>(grid, lab, channels, b->rays, beam_of(*b), vol->scale, g, out, view0);
      else
        spread_kernel<kHard>
            <<<blocks, block, 0, stream>>>(grid, lab, channels, b->rays, beam_of(*b), vol->scale, g, out, view0);
    });
  };
  if (vol->dtype == XREG_FLOAT64) call(double{});
  else call(float{});
  return error;
}

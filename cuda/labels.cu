// Labels on CUDA: one image a label, and the moments of a labelled cotangent.
#include "launch_cuda.cuh"

namespace xreg {
namespace {

template <class I, LabelRule Rule, class Grid, class Real>
__global__ void __launch_bounds__(kThreads)
    sort_kernel(Grid grid, XregLabels labels, const double* rays, Beam beam, double scale, Real* image, int64_t view0) {
  Pixel p;
  int64_t number;
  if (!own_pixel(beam, view0, p, number)) return;
  beam.integrator = I::value;
  sort_pixel<Rule>(grid, labels.data, labels.channels, View{rays + 18 * number}, beam, p, scale,
                   image + number * labels.channels * p.stride);
}

template <class I, LabelRule Rule, class Grid, class Real>
__global__ void __launch_bounds__(kThreads)
    label_moments_kernel(Grid grid, XregLabels labels, const double* rays, Beam beam, double scale,
                         const Real* cotangent, Real* moments, int64_t view0) {
  Pixel p;
  int64_t number;
  if (!own_pixel(beam, view0, p, number)) return;
  beam.integrator = I::value;
  label_moments_pixel<Rule>(grid, labels.data, labels.channels, View{rays + 18 * number}, beam, p, scale,
                            cotangent + number * labels.channels * p.stride, moments + 6 * number * p.stride);
}

}  // namespace
}  // namespace xreg

using namespace xreg;

extern "C" cudaError_t xreg_cuda_project_labels(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                                void* image, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_grid<int64_t>(*vol, [&](auto grid, auto real) {
    using Real = decltype(real);
    using Grid = decltype(grid);
    Real* out = static_cast<Real*>(image);
    error = over_views(*b, [&](auto i, const Beam& beam, dim3 blocks, dim3 threads, int64_t view0) {
      using I = decltype(i);
      auto* kernel = labels->soft ? sort_kernel<I, kSoft, Grid, Real> : sort_kernel<I, kHard, Grid, Real>;
      kernel<<<blocks, threads, 0, stream>>>(grid, *labels, b->rays, beam, vol->scale, out, view0);
    });
  });
  return error;
}

extern "C" cudaError_t xreg_cuda_label_moments(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                               const void* cotangent, void* moments, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_grid<int64_t>(*vol, [&](auto grid, auto real) {
    using Real = decltype(real);
    using Grid = decltype(grid);
    const Real* g = static_cast<const Real*>(cotangent);
    Real* out = static_cast<Real*>(moments);
    error = over_views(*b, [&](auto i, const Beam& beam, dim3 blocks, dim3 threads, int64_t view0) {
      using I = decltype(i);
      auto* kernel =
          labels->soft ? label_moments_kernel<I, kSoft, Grid, Real> : label_moments_kernel<I, kHard, Grid, Real>;
      kernel<<<blocks, threads, 0, stream>>>(grid, *labels, b->rays, beam, vol->scale, g, out, view0);
    });
  });
  return error;
}

// The transpose of the projector on CUDA: a cotangent is scattered to the volume with atomic additions,
// so sums that meet in a voxel are rounded in no fixed order.
#include "launch_cuda.cuh"

namespace xreg {
namespace {

template <class I, LabelRule Rule, class Grid, class Real>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(Grid grid, XregLabels labels, const double* rays, Beam beam, double scale, const Real* cotangent,
                  Real* volume, int64_t view0) {
  Pixel p;
  int64_t number;
  if (!own_pixel(beam, view0, p, number)) return;
  beam.integrator = I::value;
  const int channels = Rule == kUnlabelled ? 1 : labels.channels;
  spread_pixel<Rule>(grid, labels.data, channels, View{rays + 18 * number}, beam, p, scale,
                     cotangent + number * channels * p.stride, volume, 0, grid.nz);
}

template <class Real>
cudaError_t spread(const XregVolume& vol, const XregBeam& b, const XregLabels* labels, const void* cotangent,
                   void* volume, cudaStream_t stream) {
  using Grid = Voxels<Real, int64_t>;
  const Grid grid{nullptr, vol.nx, vol.ny, vol.nz};  // only its shape is used
  const XregLabels lab = labels ? *labels : XregLabels{};
  const Real* g = static_cast<const Real*>(cotangent);
  Real* out = static_cast<Real*>(volume);
  return over_views(b, [&](auto i, const Beam& beam, dim3 blocks, dim3 threads, int64_t view0) {
    using I = decltype(i);
    auto* kernel = !labels    ? spread_kernel<I, kUnlabelled, Grid, Real>
                   : lab.soft ? spread_kernel<I, kSoft, Grid, Real>
                              : spread_kernel<I, kHard, Grid, Real>;
    kernel<<<blocks, threads, 0, stream>>>(grid, lab, b.rays, beam, vol.scale, g, out, view0);
  });
}

}  // namespace
}  // namespace xreg

extern "C" cudaError_t xreg_cuda_backproject(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                             const void* cotangent, void* volume, cudaStream_t stream) {
  const auto call = vol->dtype == XREG_FLOAT64 ? xreg::spread<double> : xreg::spread<float>;
  return call(*vol, *b, labels, cotangent, volume, stream);
}

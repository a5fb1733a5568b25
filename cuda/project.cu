// The projector on CUDA: image and moments.
#include "launch_cuda.cuh"

namespace xreg {
namespace {

template <class I, class Grid, class Real, bool Moments>
__global__ void __launch_bounds__(kThreads)
    project_kernel(Grid grid, const double* rays, Beam beam, double scale, Real* image, Real* moments, int64_t view0) {
  Pixel p;
  int64_t number;
  if (!own_pixel(beam, view0, p, number)) return;
  beam.integrator = I::value;
  Integral<Grid, Real, 1, Moments> sink;
  sink.grid = grid;
  const bool own[1] = {true};
  render_packet<1>(sink, View{rays + 18 * number}, beam, p.at, own, scale, image + number * p.stride,
                   Moments ? moments + 6 * number * p.stride : nullptr);
}

// Calls f(grid, result) with the narrowest index; as on the host, float64 is an oracle and always takes 64 bits.
template <class F>
void with_narrowest_grid(const XregVolume& v, const F& f) {
  const bool wide = static_cast<int64_t>(v.nx) * v.ny * v.nz >= XREG_WIDE_VOXELS;
  if (wide || v.dtype == XREG_FLOAT64) with_grid<int64_t>(v, f);
  else with_grid<int32_t>(v, f);
}

}  // namespace
}  // namespace xreg

using namespace xreg;

extern "C" cudaError_t xreg_cuda_project(const XregVolume* vol, const XregBeam* b, void* image, void* moments,
                                         cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_narrowest_grid(*vol, [&](auto grid, auto real) {
    using Real = decltype(real);
    using Grid = decltype(grid);
    Real* out = static_cast<Real*>(image);
    Real* jac = static_cast<Real*>(moments);
    error = over_views(*b, [&](auto i, const Beam& beam, dim3 blocks, dim3 threads, int64_t view0) {
      using I = decltype(i);
      auto* kernel = jac ? project_kernel<I, Grid, Real, true> : project_kernel<I, Grid, Real, false>;
      kernel<<<blocks, threads, 0, stream>>>(grid, b->rays, beam, vol->scale, out, jac, view0);
    });
  });
  return error;
}

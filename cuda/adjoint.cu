// The transpose of the projector on CUDA: a cotangent is scattered to the volume.
//
// Sums are whole numbers of grains (whole.cuh), so the result has the same bits each time.  Without the memory
// for them it adds floating-point numbers, which are rounded in no fixed order.
#include "launch_cuda.cuh"

namespace xreg {
namespace {

constexpr int kFlat = 256;  // threads of a block of the kernels that go through an array

// The largest |cotangent| and the longest ray, as the bits of doubles; for numbers that are not negative, the
// greater bits are the greater number, and those of NaN are the greatest.
struct Largest {
  unsigned long long cotangent, length;
};

__device__ void raise(unsigned long long* to, double value) {
  atomicMax(to, static_cast<unsigned long long>(__double_as_longlong(value)));
}

// The length is convex in (u, v), so a corner of the image has the longest ray of a view.
template <class Real>
__global__ void __launch_bounds__(kFlat)
    largest_kernel(const Real* cotangent, int64_t count, const double* rays, int64_t views, Beam beam, Largest* out) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFlat + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kFlat;
  double found = 0.0;
  for (int64_t i = first; i < count; i += stride) {
    const double g = magnitude(static_cast<double>(cotangent[i]));
    found = g <= found || found != found ? found : g;  // takes a NaN, and keeps it
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, found, lanes);
    found = other <= found || found != found ? found : other;
  }
  if (threadIdx.x % 32 == 0) raise(&out->cotangent, magnitude(found));
  for (int64_t i = first; i < 4 * views; i += stride) {
    const Pixels<1> corner{{i & 1 ? beam.width - 1 : 0}, {i & 2 ? beam.height - 1 : 0}};
    raise(&out->length, ray_length(rays_of(View{rays + 18 * (i / 4)}, corner), beam));
  }
}

__device__ double grains_of(const Largest& largest, double scale, double rays) {
  const double g = __longlong_as_double(static_cast<long long>(largest.cotangent));
  return grains_in_one(magnitude(scale) * __longlong_as_double(static_cast<long long>(largest.length)) * g, rays);
}

template <class Real>
__global__ void __launch_bounds__(kFlat)
    weigh_kernel(const Whole* sums, int64_t voxels, const Largest* largest, double scale, double rays, Real* volume) {
  const double grains = grains_of(*largest, scale, rays);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFlat + threadIdx.x; i < voxels;
       i += static_cast<int64_t>(gridDim.x) * kFlat)
    volume[i] = static_cast<Real>(worth(sums[i], grains));
}

// `largest` is null where Cell is Real: then a sum is the number itself.
template <class I, LabelRule Rule, class Grid, class Real, class Cell>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(Grid grid, XregLabels labels, const double* rays, Beam beam, double scale, const Real* cotangent,
                  Cell* volume, const Largest* largest, double count, int64_t view0) {
  Pixel p;
  int64_t number;
  if (!own_pixel(beam, view0, p, number)) return;
  beam.integrator = I::value;
  if constexpr (std::is_same_v<Cell, Whole>) {
    const double grains = grains_of(*largest, scale, count);
    if (!(grains > 0.0)) return;
    scale *= grains;
  }
  const int channels = Rule == kUnlabelled ? 1 : labels.channels;
  spread_pixel<Rule>(grid, labels.data, channels, View{rays + 18 * number}, beam, p, scale,
                     cotangent + number * channels * p.stride, volume, 0, grid.nz);
}

unsigned blocks_for(int64_t count) { return static_cast<unsigned>(clamp<int64_t>((count + kFlat - 1) / kFlat, 1, 4096)); }

template <class Real, class Cell>
cudaError_t scatter(const XregVolume& vol, const XregBeam& b, const XregLabels* labels, const Real* g, Cell* out,
                    const Largest* largest, double count, cudaStream_t stream) {
  using Grid = Voxels<Real, int64_t>;
  const Grid grid{nullptr, vol.nx, vol.ny, vol.nz};  // only its shape is used
  const XregLabels lab = labels ? *labels : XregLabels{};
  return over_views(b, [&](auto i, const Beam& beam, dim3 blocks, dim3 threads, int64_t view0) {
    using I = decltype(i);
    auto* kernel = spread_kernel<I, kUnlabelled, Grid, Real, Cell>;
    if constexpr (std::is_same_v<Cell, Whole>) {
      if (labels) kernel = lab.soft ? spread_kernel<I, kSoft, Grid, Real, Cell> : spread_kernel<I, kHard, Grid, Real, Cell>;
    }
    kernel<<<blocks, threads, 0, stream>>>(grid, lab, b.rays, beam, vol.scale, g, out, largest, count, view0);
  });
}

template <class Real>
cudaError_t spread(const XregVolume& vol, const XregBeam& b, const XregLabels* labels, const void* cotangent,
                   void* volume, void* sums, cudaStream_t stream) {
  const Real* g = static_cast<const Real*>(cotangent);
  Real* out = static_cast<Real*>(volume);
  if (!sums) return labels ? cudaErrorInvalidValue : scatter<Real, Real>(vol, b, labels, g, out, nullptr, 0.0, stream);
  const int64_t rays = b.views * b.height * b.width, voxels = static_cast<int64_t>(vol.nx) * vol.ny * vol.nz;
  if (rays == 0) return cudaSuccess;
  Whole* cells = static_cast<Whole*>(sums);
  Largest* largest = reinterpret_cast<Largest*>(cells + voxels);
  const int64_t count = rays * (labels ? labels->channels : 1);
  const Beam beam = beam_of(b);
  largest_kernel<Real><<<blocks_for(count), kFlat, 0, stream>>>(g, count, b.rays, b.views, beam, largest);
  const double most = static_cast<double>(rays);
  const cudaError_t error = scatter<Real, Whole>(vol, b, labels, g, cells, largest, most, stream);
  weigh_kernel<Real><<<blocks_for(voxels), kFlat, 0, stream>>>(cells, voxels, largest, vol.scale, most, out);
  return error == cudaSuccess ? cudaGetLastError() : error;
}

}  // namespace
}  // namespace xreg

extern "C" cudaError_t xreg_cuda_backproject(const XregVolume* vol, const XregBeam* b, const XregLabels* labels,
                                             const void* cotangent, void* volume, void* sums, cudaStream_t stream) {
  const auto call = vol->dtype == XREG_FLOAT64 ? xreg::spread<double> : xreg::spread<float>;
  return call(*vol, *b, labels, cotangent, volume, sums, stream);
}

// The splatter on CUDA: a block a tile forward, a warp a Gaussian backward, the bodies of splat.cuh in both.  No atomics: each sum has
// one writer and one order.
#include "splat_launch.cuh"
#include "splat_tiles.cuh"

namespace xreg {
namespace {

constexpr int64_t kMostRecords = 1 << 22;  // footprints held at a time: 64 bytes each
constexpr int64_t kMostViews = 65535;       // of one launch: the limit of a grid's second dimension
constexpr int kPixels = kTile * kTile;

struct Shot {  // what all kernels need to know of the views
  const double* rays;
  int64_t count;  // of Gaussians
  int height, width, tiles_u, tiles_v;
  double cutoff, limit;
};

template <SplatKind K>
using Kind = std::integral_constant<SplatKind, K>;

// A thread a Gaussian and view: its footprint, and how many tiles it touches; or, on a second call, which.
template <class Real, class K, bool Fill>
__global__ void __launch_bounds__(kThreads)
    splat_prepare_kernel(GaussianArrays<Real> all, Shot shot, int64_t views, Footprint<Real>* prints, int64_t* counts,
                         CellPairs pairs) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= views * shot.count) return;
  const int64_t view = i / shot.count;
  const Lens lens = lens_of<K::value>(shot.rays + 18 * view);
  Sight sight;
  Outline outline;
  Footprint<Real> f;
  int64_t touched = 0, at = Fill && i > 0 ? counts[i - 1] : 0;
  if (look<K::value>(lens, gaussian_at(all, i - view * shot.count), shot.cutoff, shot.height, shot.width, sight, f,
                     outline)) {
    for (int row = outline.v0 / kTile; row <= outline.v1 / kTile; ++row) {
      int first, last;
      tiles_of_row(sight, outline, row, first, last);
      if (Fill)
        for (int tile = first; tile <= last; ++tile, ++at) {
          pairs.cells[at] = static_cast<uint32_t>((view * shot.tiles_v + row) * shot.tiles_u + tile);
          pairs.ids[at] = static_cast<int32_t>(i);
        }
      touched += last - first + 1;
    }
    if (!Fill) prints[i] = f;
  }
  if (!Fill) counts[i] = touched;
}

// A block a tile, a thread a pixel; the footprints of the list pass through shared memory.
template <class Real, class K, bool Moments>
__global__ void __launch_bounds__(kPixels)
    splat_kernel(const Footprint<Real>* prints, CellLists lists, Shot shot, Real* image, Real* moments) {
  constexpr int kBatch = 64;
  __shared__ Footprint<Real> batch[kBatch];
  const int64_t cell = blockIdx.x, tiles = static_cast<int64_t>(shot.tiles_u) * shot.tiles_v;
  const int64_t view = cell / tiles;
  const int tile = static_cast<int>(cell - view * tiles);
  const int u = tile % shot.tiles_u * kTile + threadIdx.x % kTile, v = tile / shot.tiles_u * kTile + threadIdx.x / kTile;
  const Real limit = static_cast<Real>(shot.limit);
  PixelMoments<Real> sum{};
  const int64_t end = lists.ends[cell];
  for (int64_t first = cell ? lists.ends[cell - 1] : 0; first < end; first += kBatch) {
    const int some = static_cast<int>(lower<int64_t>(end - first, kBatch));
    __syncthreads();
    if (threadIdx.x < some) batch[threadIdx.x] = prints[lists.ids[first + threadIdx.x]];
    __syncthreads();
    for (int n = 0; n < some; ++n) {
      const Footprint<Real>& f = batch[n];
      const RowTerms<Real> row = row_terms<K::value>(f, offset_v(f, v));
      const Real x = offset_u(f, u);
      if constexpr (Moments) accumulate<K::value>(sum, f, row, x, limit);
      else sum.image += f.weight * value_of<K::value>(falloff_of<K::value>(along_row<K::value>(f, row, x)), limit);
    }
  }
  if (u >= shot.width || v >= shot.height) return;
  const Lens lens = lens_of<K::value>(shot.rays + 18 * view);
  const int64_t plane = static_cast<int64_t>(shot.height) * shot.width, at = static_cast<int64_t>(v) * shot.width + u;
  const double length = K::value == kSplatAffine ? 1.0 : ray_length(lens, u, v);
  const double value = length * static_cast<double>(sum.image);
  image[view * plane + at] = static_cast<Real>(value);
  if constexpr (Moments)
    write_moments(ray_frame<K::value>(lens, u, v), value, sum.su, sum.sv, sum.du, sum.dv,
                  moments + 6 * view * plane + at, plane);
}

// The cotangent times the rays' lengths.
template <class Real, class K>
__global__ void __launch_bounds__(kThreads) splat_weigh_kernel(Shot shot, int64_t pixels, const Real* g, Real* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= pixels) return;
  const int64_t plane = static_cast<int64_t>(shot.height) * shot.width, view = i / plane, at = i - view * plane;
  const double length = K::value == kSplatAffine
                            ? 1.0
                            : ray_length(lens_of<K::value>(shot.rays + 18 * view), static_cast<double>(at % shot.width),
                                         static_cast<double>(at / shot.width));
  out[i] = static_cast<Real>(length * static_cast<double>(g[i]));
}

// A warp a Gaussian and view: its sums over its pixels, two rows of sixteen at a time.
template <class Real, class K>
__global__ void __launch_bounds__(kThreads)
    splat_sums_kernel(GaussianArrays<Real> all, Shot shot, int64_t views, const Real* cotangent, PixelSums<Real>* sums) {
  const int lane = threadIdx.x % kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= views * shot.count) return;
  const int64_t view = i / shot.count;
  Sight sight;
  Outline outline;
  Footprint<Real> f;
  if (!look<K::value>(lens_of<K::value>(shot.rays + 18 * view), gaussian_at(all, i - view * shot.count), shot.cutoff,
                      shot.height, shot.width, sight, f, outline))
    return;
  const Conic<Real> conic = narrow<Real>(outline.conic);
  const Real* g = cotangent + view * shot.height * shot.width;
  const Real limit = static_cast<Real>(shot.limit), slack = static_cast<Real>(0.02);
  PixelSums<Real> s;
  s.clear();
  for (int v = outline.v0 + lane / kTile; v <= outline.v1; v += kWarp / kTile) {
    const RowTerms<Real> row = row_terms<K::value>(f, offset_v(f, v));
    Real lo, hi;
    chord(conic, row.y, lo, hi);
    const int u0 = within(lo + f.fu - slack, outline.u0 - f.u, outline.u1 - f.u) + f.u;
    const int u1 = within(hi + f.fu + slack, outline.u0 - f.u, outline.u1 - f.u) + f.u;
    for (int u = u0 + lane % kTile; u <= u1; u += kTile)
      gather<K::value>(s, f, row, offset_u(f, u), g[static_cast<int64_t>(v) * shot.width + u], limit);
  }
  s = {over_warp(s.w), over_warp(s.au), over_warp(s.av), over_warp(s.auu), over_warp(s.auv), over_warp(s.avv),
       over_warp(s.b), over_warp(s.bu), over_warp(s.bv), over_warp(s.buu), over_warp(s.buv), over_warp(s.bvv)};
  if (lane == 0) sums[i] = s;
}

// A thread a Gaussian: from its sums to its gradient, view after view; parts [views][blocks][18] is what a block adds to
// a view's gradient.
template <class Real, class K>
__global__ void __launch_bounds__(kThreads)
    splat_chain_kernel(GaussianArrays<Real> all, Shot shot, int64_t views, const PixelSums<Real>* sums,
                       GaussianGrads<Real> grads, double* parts) {
  __shared__ double shares[kThreads / kWarp][18];
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t view = 0; view < views; ++view) {
    const Lens lens = lens_of<K::value>(shot.rays + 18 * view);
    LensGrad to_lens{};
    Sight sight;
    Outline outline;
    Footprint<Real> f;
    if (n < shot.count) {
      const Gaussian gaussian = gaussian_at(all, n);
      if (look<K::value>(lens, gaussian, shot.cutoff, shot.height, shot.width, sight, f, outline)) {
        const PixelSums<Real> s = sums[view * shot.count + n];
        GaussianGrad mine;
        chain<K::value, Real>(lens, gaussian, sight, {s.w, s.au, s.av, s.auu, s.auv, s.avv, s.b, s.bu, s.bv, s.buu, s.buv, s.bvv},
                              mine, to_lens);
        add_gradient(gaussian, mine.mean, mine.whiten, mine.density, n, grads);
      }
    }
    if (!parts) continue;
    double mine[18] = {};
    add_to(mine, to_lens);
    for (int q = 0; q < 18; ++q) {
      const double total = over_warp(mine[q]);
      if (threadIdx.x % kWarp == 0) shares[threadIdx.x / kWarp][q] = total;
    }
    __syncthreads();
    if (threadIdx.x < 18) {
      double total = 0.0;
      for (int w = 0; w < kThreads / kWarp; ++w) total += shares[w][threadIdx.x];
      parts[(view * gridDim.x + blockIdx.x) * 18 + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

// One number of one view's gradient: the blocks' parts in one order.
__global__ void __launch_bounds__(kThreads) add_parts_kernel(const double* parts, int64_t blocks, double* rays) {
  __shared__ double sums[kThreads];
  double total = 0.0;
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) total += parts[(blockIdx.y * blocks + b) * 18 + blockIdx.x];
  sums[threadIdx.x] = total;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
  }
  if (threadIdx.x == 0) rays[blockIdx.y * 18 + blockIdx.x] += sums[0];
}

Shot shot_of(const XregGaussians& g, const XregSplatView& v, int64_t first) {
  return {v.rays + 18 * first, g.count, v.height, v.width, (v.width + kTile - 1) / kTile, (v.height + kTile - 1) / kTile,
          v.cutoff, kHalfLog2E * v.cutoff * v.cutoff};
}

// Some views at once: footprints, lists, images.
template <class Real, class K>
cudaError_t splat_some(const XregGaussians& g, const Shot& shot, int64_t views, Real* image, Real* moments,
                       const XregScratch& scratch, cudaStream_t stream) {
  const GaussianArrays<Real> all = arrays_of<Real>(g);
  const int64_t records = views * g.count, cells = views * shot.tiles_u * shot.tiles_v;
  auto* prints = room_for<Footprint<Real>>(scratch, records);
  auto* counts = room_for<int64_t>(scratch, records);
  if (records) splat_prepare_kernel<Real, K, false><<<blocks_for(records, kThreads), kThreads, 0, stream>>>(all, shot, views, prints, counts, {});
  int64_t total = 0;
  cudaError_t error = count_pairs(scratch, records, counts, &total, stream);
  if (error != cudaSuccess) return error;
  const CellPairs pairs{room_for<uint32_t>(scratch, total), room_for<int32_t>(scratch, total)};
  if (records) splat_prepare_kernel<Real, K, true><<<blocks_for(records, kThreads), kThreads, 0, stream>>>(all, shot, views, prints, counts, pairs);
  CellLists lists{};
  error = sort_pairs(scratch, total, pairs, cells, &lists, stream);
  if (error != cudaSuccess) return error;
  const unsigned blocks = static_cast<unsigned>(cells);
  if constexpr (K::value != kSplatAffine)
    if (moments) {
      splat_kernel<Real, K, true><<<blocks, kPixels, 0, stream>>>(prints, lists, shot, image, moments);
      return cudaGetLastError();
    }
  splat_kernel<Real, K, false><<<blocks, kPixels, 0, stream>>>(prints, lists, shot, image, moments);
  return cudaGetLastError();
}

// Views per pass, so that scratch memory has a limit.
int64_t views_at_once(const XregGaussians& g) {
  return lower<int64_t>(kMostViews, upper<int64_t>(1, kMostRecords / upper<int64_t>(1, g.count)));
}

template <class Real, class K>
cudaError_t splat_all(const XregGaussians& g, const XregSplatView& v, Real* image, Real* moments,
                      const XregScratch& scratch, cudaStream_t stream) {
  const int64_t plane = static_cast<int64_t>(v.height) * v.width;
  const int64_t some = views_at_once(g);
  for (int64_t first = 0; first < v.views; first += some) {
    const cudaError_t error =
        splat_some<Real, K>(g, shot_of(g, v, first), lower(some, v.views - first), image + first * plane,
                            moments ? moments + 6 * first * plane : nullptr, scratch, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class Real, class K>
cudaError_t backward_all(const XregGaussians& g, const XregSplatView& v, const Real* cotangent,
                         const XregGaussianGrads& out, const XregScratch& scratch, cudaStream_t stream) {
  if (g.count == 0 || v.views == 0) return cudaSuccess;
  const GaussianArrays<Real> all = arrays_of<Real>(g);
  const int64_t plane = static_cast<int64_t>(v.height) * v.width, most = lower(views_at_once(g), v.views);
  const unsigned blocks = blocks_for(g.count, kThreads);
  Real* weighed = room_for<Real>(scratch, most * plane);
  auto* sums = room_for<PixelSums<Real>>(scratch, most * g.count);
  double* parts = out.rays ? room_for<double>(scratch, most * blocks * 18) : nullptr;
  for (int64_t first = 0; first < v.views; first += most) {
    const int64_t some = lower(most, v.views - first), pixels = some * plane;
    const Shot shot = shot_of(g, v, first);
    splat_weigh_kernel<Real, K><<<blocks_for(pixels, kThreads), kThreads, 0, stream>>>(shot, pixels, cotangent + first * plane, weighed);
    splat_sums_kernel<Real, K><<<blocks_for(some * g.count, kThreads / kWarp), kThreads, 0, stream>>>(all, shot, some, weighed, sums);
    splat_chain_kernel<Real, K><<<blocks, kThreads, 0, stream>>>(all, shot, some, sums, grads_of<Real>(out), parts);
    if (parts)
      add_parts_kernel<<<dim3(18, static_cast<unsigned>(some)), kThreads, 0, stream>>>(parts, blocks, out.rays + 18 * first);
  }
  return cudaGetLastError();
}

template <class F>
cudaError_t with_kind(int32_t kind, const F& f) {
  if (kind == kSplatParallel) return f(Kind<kSplatParallel>{});
  return kind == kSplatAffine ? f(Kind<kSplatAffine>{}) : f(Kind<kSplatExact>{});
}

}  // namespace
}  // namespace xreg

using namespace xreg;

extern "C" cudaError_t xreg_cuda_splat(const XregGaussians* g, const XregSplatView* v, void* image, void* moments,
                                       const XregScratch* scratch, cudaStream_t stream) {
  return with_real(g->dtype, [&](auto real) {
    using Real = decltype(real);
    return with_kind(v->kind, [&](auto kind) {
      return splat_all<Real, decltype(kind)>(*g, *v, static_cast<Real*>(image), static_cast<Real*>(moments), *scratch, stream);
    });
  });
}

extern "C" cudaError_t xreg_cuda_splat_backward(const XregGaussians* g, const XregSplatView* v, const void* cotangent,
                                                const XregGaussianGrads* out, const XregScratch* scratch,
                                                cudaStream_t stream) {
  return with_real(g->dtype, [&](auto real) {
    using Real = decltype(real);
    return with_kind(v->kind, [&](auto kind) {
      return backward_all<Real, decltype(kind)>(*g, *v, static_cast<const Real*>(cotangent), *out, *scratch, stream);
    });
  });
}

// The voxeliser on CUDA: a block a brick of voxels forward, a warp a Gaussian backward.
#include "splat_launch.cuh"
#include "voxelize.cuh"

namespace xreg {
namespace {

constexpr int kBrick = 8, kVoxels = kBrick * kBrick * kBrick;
constexpr int64_t kMostBricks = 1 << 22;  // of one pass over the Gaussians: 2^31 voxels

struct Bricks {
  int x, y, z0, z1;  // bricks along x and y, and the layers [z0, z1) of this pass
};

// A thread a Gaussian: how many bricks of these layers its box touches; or, on a second call, which.
template <class Real, bool Fill>
__global__ void __launch_bounds__(kThreads)
    voxel_prepare_kernel(GaussianArrays<Real> all, int64_t count, Grid3 grid, double cutoff, Bricks bricks,
                         Blob<Real>* blobs, int64_t* counts, CellPairs pairs) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= count) return;
  Blob<Real> b;
  int64_t touched = 0;
  if (blob_of(grid, gaussian_at(all, n), cutoff, b)) {
    const int z0 = upper(b.k0 / kBrick, bricks.z0), z1 = lower(b.k1 / kBrick, bricks.z1 - 1);
    const int y0 = b.j0 / kBrick, y1 = b.j1 / kBrick, x0 = b.i0 / kBrick, x1 = b.i1 / kBrick;
    if (z0 <= z1) touched = static_cast<int64_t>(z1 - z0 + 1) * (y1 - y0 + 1) * (x1 - x0 + 1);
    if (Fill) {
      int64_t at = n > 0 ? counts[n - 1] : 0;
      for (int z = z0; z <= z1; ++z)
        for (int y = y0; y <= y1; ++y)
          for (int x = x0; x <= x1; ++x, ++at) {
            pairs.cells[at] = static_cast<uint32_t>(((z - bricks.z0) * bricks.y + y) * bricks.x + x);
            pairs.ids[at] = static_cast<int32_t>(n);
          }
    } else {
      blobs[n] = b;
    }
  }
  if (!Fill) counts[n] = touched;
}

template <class Real>
__global__ void __launch_bounds__(kVoxels)
    voxel_kernel(const Blob<Real>* blobs, CellLists lists, Grid3 grid, Bricks bricks, Real limit, Real* volume) {
  constexpr int kBatch = 64;
  __shared__ Blob<Real> batch[kBatch];
  const int64_t cell = blockIdx.x;
  const int bx = static_cast<int>(cell % bricks.x), by = static_cast<int>(cell / bricks.x % bricks.y);
  const int bz = static_cast<int>(cell / (static_cast<int64_t>(bricks.x) * bricks.y)) + bricks.z0;
  const int i = bx * kBrick + threadIdx.x % kBrick, j = by * kBrick + threadIdx.x / kBrick % kBrick;
  const int k = bz * kBrick + threadIdx.x / (kBrick * kBrick);
  Real sum = 0;
  const int64_t end = lists.ends[cell];
  for (int64_t first = cell ? lists.ends[cell - 1] : 0; first < end; first += kBatch) {
    const int some = static_cast<int>(lower<int64_t>(end - first, kBatch));
    __syncthreads();
    if (threadIdx.x < some) batch[threadIdx.x] = blobs[lists.ids[first + threadIdx.x]];
    __syncthreads();
    for (int n = 0; n < some; ++n) {
      const Blob<Real>& b = batch[n];
      const Real x = static_cast<Real>(i - b.i) - b.fi, y = static_cast<Real>(j - b.j) - b.fj;
      sum += b.density * voxel_falloff(b, x, y, static_cast<Real>(k - b.k) - b.fk, limit);
    }
  }
  if (i < grid.nx && j < grid.ny && k < grid.nz)
    volume[(static_cast<int64_t>(k) * grid.ny + j) * grid.nx + i] = sum;
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    voxel_backward_kernel(GaussianArrays<Real> all, int64_t count, Grid3 grid, double cutoff, const Real* g,
                          GaussianGrads<Real> grads) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp;
  Blob<Real> b;
  if (n >= count) return;
  const Gaussian gaussian = gaussian_at(all, n);
  if (!blob_of(grid, gaussian, cutoff, b)) return;
  const Real limit = static_cast<Real>(kHalfLog2E * cutoff * cutoff);
  VoxelSums<Real> s;
  s.clear();
  const int wide = b.i1 - b.i0 + 1, high = b.j1 - b.j0 + 1;
  const int64_t all_voxels = static_cast<int64_t>(wide) * high * (b.k1 - b.k0 + 1);
  for (int64_t m = lane; m < all_voxels; m += kWarp) {
    const int i = b.i0 + static_cast<int>(m % wide), j = b.j0 + static_cast<int>(m / wide % high);
    const int k = b.k0 + static_cast<int>(m / (static_cast<int64_t>(wide) * high));
    gather(s, b, static_cast<Real>(i - b.i) - b.fi, static_cast<Real>(j - b.j) - b.fj, static_cast<Real>(k - b.k) - b.fk,
           g[(static_cast<int64_t>(k) * grid.ny + j) * grid.nx + i], limit);
  }
  const VoxelSums<double> sums{over_warp(s.w),  over_warp(s.x),  over_warp(s.y),  over_warp(s.z),  over_warp(s.xx),
                               over_warp(s.yy), over_warp(s.zz), over_warp(s.xy), over_warp(s.xz), over_warp(s.yz)};
  if (lane) return;
  GaussianGrad mine;
  chain_voxels(grid, gaussian, sums, mine.mean, mine.whiten, mine.density);
  add_gradient(gaussian, mine.mean, mine.whiten, mine.density, n, grads);
}

template <class Real>
cudaError_t voxelize_layers(const XregGaussians& g, const Grid3& grid, double cutoff, const Bricks& bricks, Real* volume,
                            const XregScratch& scratch, cudaStream_t stream) {
  const GaussianArrays<Real> all = arrays_of<Real>(g);
  auto* blobs = room_for<Blob<Real>>(scratch, g.count);
  auto* counts = room_for<int64_t>(scratch, g.count);
  const unsigned blocks = blocks_for(g.count, kThreads);
  voxel_prepare_kernel<Real, false><<<blocks, kThreads, 0, stream>>>(all, g.count, grid, cutoff, bricks, blobs, counts, {});
  int64_t total = 0;
  cudaError_t error = count_pairs(scratch, g.count, counts, &total, stream);
  if (error != cudaSuccess) return error;
  const CellPairs pairs{room_for<uint32_t>(scratch, total), room_for<int32_t>(scratch, total)};
  voxel_prepare_kernel<Real, true><<<blocks, kThreads, 0, stream>>>(all, g.count, grid, cutoff, bricks, blobs, counts, pairs);
  const int64_t cells = static_cast<int64_t>(bricks.x) * bricks.y * (bricks.z1 - bricks.z0);
  CellLists lists{};
  error = sort_pairs(scratch, total, pairs, cells, &lists, stream);
  if (error != cudaSuccess) return error;
  const Real limit = static_cast<Real>(kHalfLog2E * cutoff * cutoff);
  voxel_kernel<Real><<<static_cast<unsigned>(cells), kVoxels, 0, stream>>>(blobs, lists, grid, bricks, limit, volume);
  return cudaGetLastError();
}

}  // namespace
}  // namespace xreg

using namespace xreg;

extern "C" cudaError_t xreg_cuda_voxelize(const XregGaussians* g, const XregGrid* xg, void* volume,
                                          const XregScratch* scratch, cudaStream_t stream) {
  if (g->count == 0) return cudaSuccess;
  const Grid3 grid = grid_of(xg->affine, xg->nx, xg->ny, xg->nz);
  const int x = (xg->nx + kBrick - 1) / kBrick, y = (xg->ny + kBrick - 1) / kBrick, z = (xg->nz + kBrick - 1) / kBrick;
  const int layers = static_cast<int>(clamp<int64_t>(kMostBricks / (static_cast<int64_t>(x) * y), 1, z));
  return with_real(g->dtype, [&](auto real) {
    for (int z0 = 0; z0 < z; z0 += layers) {
      const Bricks bricks{x, y, z0, lower(z0 + layers, z)};
      const cudaError_t error =
          voxelize_layers(*g, grid, xg->cutoff, bricks, static_cast<decltype(real)*>(volume), *scratch, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

extern "C" cudaError_t xreg_cuda_voxelize_backward(const XregGaussians* g, const XregGrid* xg, const void* cotangent,
                                                   const XregGaussianGrads* out, cudaStream_t stream) {
  if (g->count == 0) return cudaSuccess;
  const Grid3 grid = grid_of(xg->affine, xg->nx, xg->ny, xg->nz);
  return with_real(g->dtype, [&](auto real) {
    using Real = decltype(real);
    voxel_backward_kernel<Real><<<blocks_for(g->count, kThreads / kWarp), kThreads, 0, stream>>>(
        arrays_of<Real>(*g), g->count, grid, xg->cutoff, static_cast<const Real*>(cotangent), grads_of<Real>(*out));
    return cudaGetLastError();
  });
}

// The host launchers of the voxeliser.
#pragma once
#include "splat_cpu.h"
#include "voxelize.cuh"

namespace xreg {
inline namespace XREG_ISA {

constexpr int64_t kSlabBytes = 1 << 18;  // of the volume that one job writes: what a core's cache holds

// Calls row(z, j, k, first i, last i) for the rows of a Gaussian's ellipsoid in slices [k0, k1].
template <class V, class Row>
HD void each_row(const Blob<ScalarOf<V>>& b, ScalarOf<V> limit, int k0, int k1, const Row& row) {
  using Real = ScalarOf<V>;
  constexpr int kLanes = Lanes<V>::kCount;
  for (int k = k0; k <= k1; ++k) {
    const Real z = static_cast<Real>(k - b.k) - b.fk;
    for (int first = b.j0; first <= b.j1; first += kLanes) {
      V lo, hi;
      voxel_chord(b, ramp<V>() + (static_cast<Real>(first - b.j) - b.fj), z, limit, lo, hi);
      alignas(64) Real from[kLanes], to[kLanes];
      store(from, lo + (b.fi - static_cast<Real>(0.02)));
      store(to, hi + (b.fi + static_cast<Real>(0.02)));
      for (int j = first; j <= b.j1 && j < first + kLanes; ++j) {
        const int i0 = within(from[j - first], b.i0 - b.i, b.i1 - b.i) + b.i;
        const int i1 = within(to[j - first], b.i0 - b.i, b.i1 - b.i) + b.i;
        if (i0 <= i1) row(z, j, k, i0, i1);
      }
    }
  }
}

template <class V>
V load_part(const ScalarOf<V>* p, int count) {
  if (count >= Lanes<V>::kCount) return load<V>(p);
  ScalarOf<V> padded[Lanes<V>::kCount] = {};
  for (int l = 0; l < count; ++l) padded[l] = p[l];
  return load<V>(padded);
}

template <class V>
void add_part(ScalarOf<V>* p, V value, int count) {
  if (count >= Lanes<V>::kCount) return store(p, load<V>(p) + value);
  ScalarOf<V> padded[Lanes<V>::kCount];
  store(padded, value);
  for (int l = 0; l < count; ++l) p[l] += padded[l];
}

// A slab of slices has one writer, which takes the Gaussians in order.
template <class V>
void voxelize_as(const XregGaussians& gaussians, const XregGrid& xg, void* volume, XregFor run) {
  using Real = ScalarOf<V>;
  const GaussianArrays<Real> all = arrays_of<Real>(gaussians);
  const Grid3 grid = grid_of(xg.affine, xg.nx, xg.ny, xg.nz);
  const Real limit = static_cast<Real>(kHalfLog2E * xg.cutoff * xg.cutoff);
  const int64_t slice = static_cast<int64_t>(xg.nx) * xg.ny;
  const int thick = static_cast<int>(clamp<int64_t>(kSlabBytes / (slice * sizeof(Real)), 1, 16));
  const int64_t slabs = (xg.nz + thick - 1) / thick;
  Buffer<Blob<Real>> blobs;
  blobs.resize(gaussians.count);
  Bins<int32_t> bins;
  bins.build(gaussians.count, slabs, run, [&](int64_t i, const auto& put) {
    Blob<Real>& b = blobs[i];
    if (!blob_of(grid, gaussian_at(all, i), xg.cutoff, b)) return;
    for (int k = b.k0 / thick; k <= b.k1 / thick; ++k) put(k, static_cast<int32_t>(i));
  });
  Real* out = static_cast<Real*>(volume);
  parallel(run, slabs, [&](int64_t slab) {
    const int from = static_cast<int>(slab) * thick, to = lower(from + thick, xg.nz) - 1;
    for (int64_t n = bins.begin(slab); n < bins.end(slab); ++n) {
      const Blob<Real>& b = blobs[bins[n]];
      each_row<V>(b, limit, upper(from, b.k0), lower(to, b.k1), [&](Real z, int j, int k, int i0, int i1) XREG_INLINE {
        const Real y = static_cast<Real>(j - b.j) - b.fj;
        Real* row = out + k * slice + static_cast<int64_t>(j) * xg.nx;
        for (int i = i0; i <= i1; i += Lanes<V>::kCount) {
          const V x = ramp<V>() + (static_cast<Real>(i - b.i) - b.fi);
          add_part<V>(row + i, b.density * voxel_falloff(b, x, y, z, limit), xg.nx - i);
        }
      });
    }
  });
}

// Gaussians by where they are, so that one finds the voxels of the one before still in the cache.
template <class Real>
void by_place(const GaussianArrays<Real>& all, int64_t count, const Grid3& grid, XregFor run, Bins<int32_t>& bins) {
  constexpr int kParts = 16;  // along j and k
  const auto part = [](double at, int n) { return static_cast<int64_t>(clamp(at * kParts / n, 0.0, kParts - 1.0)); };
  bins.build(count, kParts * kParts, run, [&](int64_t i, const auto& put) {
    const Real* m = all.mean + 3 * i;
    const Vec3 mean = {static_cast<double>(m[0]), static_cast<double>(m[1]), static_cast<double>(m[2])};
    const Vec3 c = grid.index_from_world * (mean - grid.origin);
    put(part(c.z, grid.nz) * kParts + part(c.y, grid.ny), static_cast<int32_t>(i));
  });
}

// Each Gaussian gathers over its own voxels.
template <class V>
void voxelize_backward_as(const XregGaussians& gaussians, const XregGrid& xg, const void* cotangent,
                          const XregGaussianGrads& result, XregFor run) {
  using Real = ScalarOf<V>;
  const GaussianArrays<Real> all = arrays_of<Real>(gaussians);
  const GaussianGrads<Real> grads = grads_of<Real>(result);
  const Grid3 grid = grid_of(xg.affine, xg.nx, xg.ny, xg.nz);
  const Real limit = static_cast<Real>(kHalfLog2E * xg.cutoff * xg.cutoff);
  const int64_t slice = static_cast<int64_t>(xg.nx) * xg.ny;
  const Real* from = static_cast<const Real*>(cotangent);
  Bins<int32_t> order;
  by_place(all, gaussians.count, grid, run, order);
  parallel(run, pieces_of(gaussians.count), [&](int64_t piece) {
    const int64_t end = lower(gaussians.count, (piece + 1) * kPiece);
    for (int64_t m = piece * kPiece; m < end; ++m) {
      const int64_t n = order[m];
      const Gaussian g = gaussian_at(all, n);
      Blob<Real> b;
      if (!blob_of(grid, g, xg.cutoff, b)) continue;
      VoxelSums<V> s;
      s.clear();
      each_row<V>(b, limit, b.k0, b.k1, [&](Real z, int j, int k, int i0, int i1) XREG_INLINE {
        const Real y = static_cast<Real>(j - b.j) - b.fj;
        const Real* row = from + k * slice + static_cast<int64_t>(j) * xg.nx;
        for (int i = i0; i <= i1; i += Lanes<V>::kCount) {
          const V x = ramp<V>() + (static_cast<Real>(i - b.i) - b.fi);
          gather(s, b, x, y, z, load_part<V>(row + i, xg.nx - i), limit);
        }
      });
      const VoxelSums<double> sums{sum_of(s.w),  sum_of(s.x),  sum_of(s.y),  sum_of(s.z),  sum_of(s.xx),
                                   sum_of(s.yy), sum_of(s.zz), sum_of(s.xy), sum_of(s.xz), sum_of(s.yz)};
      GaussianGrad mine;
      chain_voxels(grid, g, sums, mine.mean, mine.whiten, mine.density);
      add_gradient(g, mine.mean, mine.whiten, mine.density, n, grads);
    }
  });
}

}  // namespace XREG_ISA
}  // namespace xreg

// One Gaussian on a grid of voxels: its value at their centres, written once for host and card.
//
// Everything is in index coordinates, where the grid is 0, 1, 2 ... along each axis: W' = W M with M the affine's
// linear part (world from index).  A Gaussian counts where |W' (index - centre)| < cutoff.
#pragma once
#include "splat.cuh"

namespace xreg {
inline namespace XREG_ISA {

// A grid in the world, and which of its slices are wanted.
struct Grid3 {
  Mat3 world_from_index, index_from_world;
  Vec3 origin;  // of index (0, 0, 0)
  int nx, ny, nz;
};

HD Mat3 inverse_of(const Mat3& m) {
  const Vec3 a = cross(m.row1, m.row2), b = cross(m.row2, m.row0), c = cross(m.row0, m.row1);
  const double inv = 1.0 / dot(m.row0, a);
  return {{inv * a.x, inv * b.x, inv * c.x}, {inv * a.y, inv * b.y, inv * c.y}, {inv * a.z, inv * b.z, inv * c.z}};
}

HD Mat3 transposed(const Mat3& m) {
  return {{m.row0.x, m.row1.x, m.row2.x}, {m.row0.y, m.row1.y, m.row2.y}, {m.row0.z, m.row1.z, m.row2.z}};
}

HD Mat3 times(const Mat3& a, const Mat3& b) { return {turned(b, a.row0), turned(b, a.row1), turned(b, a.row2)}; }

// affine: rows of the 3x4 matrix, world from index.
HD Grid3 grid_of(const double* affine, int nx, int ny, int nz) {
  const Mat3 m = {vec3(affine), vec3(affine + 4), vec3(affine + 8)};
  return {m, inverse_of(m), {affine[3], affine[7], affine[11]}, nx, ny, nz};
}

template <class Real>
struct Blob {
  int32_t i, j, k;  // the centre is at (i + fi, j + fj, k + fk)
  Real fi, fj, fk;
  Real xx, yy, zz, xy, xz, yz;  // |W' x|^2 in powers of two: xx x^2 + ... + xy x y + ...
  Real density;
  int32_t i0, i1, j0, j1, k0, k1;  // its box cut to the grid, both ends included
};

// False where it misses the grid.
template <class Real>
HD bool blob_of(const Grid3& grid, const Gaussian& g, double cutoff, Blob<Real>& b) {
  const Vec3 c = grid.index_from_world * (g.mean - grid.origin);
  const Vec3 e = {cutoff * reach(g, grid.index_from_world.row0), cutoff * reach(g, grid.index_from_world.row1),
                  cutoff * reach(g, grid.index_from_world.row2)};
  if (!(c.x + e.x >= 0 && c.y + e.y >= 0 && c.z + e.z >= 0 && c.x - e.x <= grid.nx - 1 && c.y - e.y <= grid.ny - 1 &&
        c.z - e.z <= grid.nz - 1))
    return false;
  const Vec3 base = {floor(clamp(c.x, -kMostPixels, kMostPixels)), floor(clamp(c.y, -kMostPixels, kMostPixels)),
                     floor(clamp(c.z, -kMostPixels, kMostPixels))};
  b.i = static_cast<int32_t>(base.x);
  b.j = static_cast<int32_t>(base.y);
  b.k = static_cast<int32_t>(base.z);
  b.fi = static_cast<Real>(c.x - base.x);
  b.fj = static_cast<Real>(c.y - base.y);
  b.fk = static_cast<Real>(c.z - base.z);
  const Mat3 w = transposed(times(g.whiten, grid.world_from_index));  // its rows are the columns of W'
  b.xx = static_cast<Real>(kHalfLog2E * dot(w.row0, w.row0));
  b.yy = static_cast<Real>(kHalfLog2E * dot(w.row1, w.row1));
  b.zz = static_cast<Real>(kHalfLog2E * dot(w.row2, w.row2));
  b.xy = static_cast<Real>(2 * kHalfLog2E * dot(w.row0, w.row1));
  b.xz = static_cast<Real>(2 * kHalfLog2E * dot(w.row0, w.row2));
  b.yz = static_cast<Real>(2 * kHalfLog2E * dot(w.row1, w.row2));
  b.density = static_cast<Real>(g.density);
  const double slack = 1e-3;
  b.i0 = static_cast<int32_t>(upper(ceil(c.x - e.x - slack), 0.0));
  b.j0 = static_cast<int32_t>(upper(ceil(c.y - e.y - slack), 0.0));
  b.k0 = static_cast<int32_t>(upper(ceil(c.z - e.z - slack), 0.0));
  b.i1 = static_cast<int32_t>(lower(floor(c.x + e.x + slack), grid.nx - 1.0));
  b.j1 = static_cast<int32_t>(lower(floor(c.y + e.y + slack), grid.ny - 1.0));
  b.k1 = static_cast<int32_t>(lower(floor(c.z + e.z + slack), grid.nz - 1.0));
  return b.i0 <= b.i1 && b.j0 <= b.j1 && b.k0 <= b.k1;
}

// Where a row (y, z away from the centre) meets the ellipsoid, as x away from the centre; V rows at a time.
template <class V, class Real>
HD void voxel_chord(const Blob<Real>& b, V y, Real z, Real limit, V& lo, V& hi) {
  roots_of<V>(b.xx, b.xy * y + b.xz * z, b.yy * y * y + (b.yz * z) * y + (b.zz * z * z - limit), lo, hi);
}

// exp(-|W' x|^2 / 2) along x, zero outside the ellipsoid.
template <class V, class Real>
HD V voxel_falloff(const Blob<Real>& b, V x, Real y, Real z, Real limit) {
  const Real row = b.yy * y * y + b.yz * y * z + b.zz * z * z;
  const V e = row + x * (b.xy * y + b.xz * z + b.xx * x);
  return exp2_above(-e, -limit);
}

// Sums over the voxels of a Gaussian: of w (1, x, y, z, xx, yy, zz, xy, xz, yz), w the cotangent times the falloff.
template <class V>
struct VoxelSums {
  V w, x, y, z, xx, yy, zz, xy, xz, yz;
  HD void clear() { w = x = y = z = xx = yy = zz = xy = xz = yz = splat_of<V>(0); }
};

template <class V, class Real>
HD void gather(VoxelSums<V>& s, const Blob<Real>& b, V x, Real y, Real z, V cotangent, Real limit) {
  const V w = cotangent * voxel_falloff(b, x, y, z, limit);
  const V wx = w * x, wy = w * y, wz = w * z;
  s.w += w;
  s.x += wx;
  s.y += wy;
  s.z += wz;
  s.xx += wx * x;
  s.yy += wy * y;
  s.zz += wz * z;
  s.xy += wx * y;
  s.xz += wx * z;
  s.yz += wy * z;
}

// d/dc = W'^T W' x and d/dW' = -W' x x^T, times the value; then c = M^-1 (m - o) and W' = W M.
HD void chain_voxels(const Grid3& grid, const Gaussian& g, const VoxelSums<double>& s, Vec3& mean, Mat3& whiten,
                     double& density) {
  const Mat3 w = times(g.whiten, grid.world_from_index);
  const Mat3 second = {{s.xx, s.xy, s.xz}, {s.xy, s.yy, s.yz}, {s.xz, s.yz, s.zz}};
  const Vec3 c = g.density * turned(w, w * Vec3{s.x, s.y, s.z});
  const Mat3 outer = times(times(w, second), transposed(grid.world_from_index));
  density = s.w;
  mean = turned(grid.index_from_world, c);
  whiten = {-g.density * outer.row0, -g.density * outer.row1, -g.density * outer.row2};
}

}  // namespace XREG_ISA
}  // namespace xreg

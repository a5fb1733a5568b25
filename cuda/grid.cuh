// A volume in memory and what one point of it is worth.
//
// Sample centres sit at integer indices (i, j, k) = (x, y, z).  Outside the grid the voxels are
// zero and the trilinear field falls to zero over one voxel, so it is continuous everywhere.
#pragma once
#include "math.cuh"

namespace xreg {
inline namespace XREG_ISA {

// Voxels as stored: int16_t (times a scale applied once per ray), float or double.
// Index is int32_t for volumes below 2^31 voxels (32-bit gathers are twice as wide) and int64_t above.
template <class Voxel, class Index>
struct Voxels {
  using IndexType = Index;
  const Voxel* data;
  int nx, ny, nz;

  // What a sample nearest to voxel (i, j, k) counts for.
  HD float gate(int, int, int) const { return 1.0f; }

  HD Index offset(int i, int j, int k) const {
    return (static_cast<Index>(k) * ny + j) * static_cast<Index>(nx) + i;
  }
  template <class Real>
  HD Real at(Index n) const { return static_cast<Real>(data[n]); }
  HD void prefetch(Index n) const {
#if !defined(__CUDA_ARCH__)
    __builtin_prefetch(data + n);
#endif
  }

  // As `at`, for an n known not to be 0.
  template <class Real>
  HD Real single(Index n) const { return at<Real>(n); }

  // Two x-neighbours at once.
  template <class Real>
  HD void pair(Index n, Real& a, Real& b) const {
    a = static_cast<Real>(data[n]);
    b = static_cast<Real>(data[n + 1]);
  }
};

#if !defined(__CUDA_ARCH__)
// There is no 16-bit gather, so a 32-bit one fetches two neighbours (little endian).
template <>
template <>
HD float Voxels<int16_t, int32_t>::at<float>(int32_t n) const {
  const int32_t one = n > 0;  // the voxel before the first is not ours to read
  int32_t both;
  std::memcpy(&both, data + (n - one), 4);
  return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(both) << (16 - 16 * one)) >> 16);
}

template <>
template <>
HD float Voxels<int16_t, int32_t>::single<float>(int32_t n) const {
  int32_t both;
  std::memcpy(&both, data + (n - 1), 4);
  return static_cast<float>(both >> 16);
}

template <>
template <>
HD void Voxels<int16_t, int32_t>::pair<float>(int32_t n, float& a, float& b) const {
  int32_t both;
  std::memcpy(&both, data + n, 4);
  a = static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(both) << 16) >> 16);
  b = static_cast<float>(both >> 16);
}
#endif

enum LabelRule { kUnlabelled = 0, kHard = 1, kSoft = 2 };

// The same voxels weighted by a value of their label: the field whose integral has the gradient
// sum_c g_c dI_c.  `weight` is a table over labels, set for each ray.  Soft: each voxel by its own
// label.  Hard: each sample by the label of the voxel of the grid nearest to it (the jump at a border
// between labels has no derivative in this).
template <class Base, class Real_, LabelRule Rule>
struct Weighted {
  using IndexType = typename Base::IndexType;
  Base base;
  const int16_t* label;
  const Real_* weight;  // of label c: weight[c * stride]
  int64_t stride;
  int channels;
  int nx, ny, nz;

  HD IndexType offset(int i, int j, int k) const { return base.offset(i, j, k); }
  HD void prefetch(IndexType) const {}
  HD Real_ of(IndexType n) const {
    const int c = label[n];
    return c >= 0 && c < channels ? weight[c * stride] : Real_(0);
  }
  template <class Real>
  HD Real at(IndexType n) const {
    return Rule == kSoft ? base.template at<Real>(n) * of(n) : base.template at<Real>(n);
  }
  HD Real_ gate(int i, int j, int k) const {
    if (Rule == kSoft) return Real_(1);
    return of(offset(clamp(i, 0, nx - 1), clamp(j, 0, ny - 1), clamp(k, 0, nz - 1)));
  }
  template <class Real>
  HD Real single(IndexType n) const { return at<Real>(n); }
  template <class Real>
  HD void pair(IndexType n, Real& a, Real& b) const {
    a = at<Real>(n);
    b = at<Real>(n + 1);
  }
};

// The eight voxels around a cell (i, j, k)..(i+1, j+1, k+1); c[z][y][x] flattened.
template <class Real>
struct Corners {
  Real c000, c100, c010, c110, c001, c101, c011, c111;
};

template <class Real>
struct Sampled {
  Real value, gx, gy, gz;
};

template <class Real, class Grid>
HD Real voxel_or_zero(const Grid& g, int i, int j, int k) {
  const bool inside = (i >= 0) & (i < g.nx) & (j >= 0) & (j < g.ny) & (k >= 0) & (k < g.nz);
  const int ci = clamp(i, 0, g.nx - 1), cj = clamp(j, 0, g.ny - 1), ck = clamp(k, 0, g.nz - 1);
  const Real v = g.template at<Real>(g.offset(ci, cj, ck));
  return inside ? v : Real(0);
}

template <bool Bounded, class Real, class Grid>
HD Corners<Real> load_cell(const Grid& g, int i, int j, int k) {
  Corners<Real> c;
  if (Bounded) {
    c.c000 = voxel_or_zero<Real>(g, i, j, k);
    c.c100 = voxel_or_zero<Real>(g, i + 1, j, k);
    c.c010 = voxel_or_zero<Real>(g, i, j + 1, k);
    c.c110 = voxel_or_zero<Real>(g, i + 1, j + 1, k);
    c.c001 = voxel_or_zero<Real>(g, i, j, k + 1);
    c.c101 = voxel_or_zero<Real>(g, i + 1, j, k + 1);
    c.c011 = voxel_or_zero<Real>(g, i, j + 1, k + 1);
    c.c111 = voxel_or_zero<Real>(g, i + 1, j + 1, k + 1);
  } else {
    using Index = typename Grid::IndexType;
    const Index n = g.offset(i, j, k), row = g.nx, slice = static_cast<Index>(g.nx) * g.ny;
    g.template pair<Real>(n, c.c000, c.c100);
    g.template pair<Real>(n + row, c.c010, c.c110);
    g.template pair<Real>(n + slice, c.c001, c.c101);
    g.template pair<Real>(n + slice + row, c.c011, c.c111);
  }
  return c;
}

// Value and gradient (per voxel) of the trilinear field at fractions (fx, fy, fz) of a cell.
template <class Real>
HD Sampled<Real> interpolate(const Corners<Real>& c, Real fx, Real fy, Real fz) {
  const Real dx00 = c.c100 - c.c000, dx10 = c.c110 - c.c010;
  const Real dx01 = c.c101 - c.c001, dx11 = c.c111 - c.c011;
  const Real v00 = c.c000 + fx * dx00, v10 = c.c010 + fx * dx10;
  const Real v01 = c.c001 + fx * dx01, v11 = c.c011 + fx * dx11;
  const Real dy0 = v10 - v00, dy1 = v11 - v01;
  const Real v0 = v00 + fy * dy0, v1 = v01 + fy * dy1;
  const Real dx0 = dx00 + fy * (dx10 - dx00), dx1 = dx01 + fy * (dx11 - dx01);
  Sampled<Real> s;
  s.gz = v1 - v0;
  s.value = v0 + fz * s.gz;
  s.gx = dx0 + fz * (dx1 - dx0);
  s.gy = dy0 + fz * (dy1 - dy0);
  return s;
}

}  // namespace XREG_ISA
}  // namespace xreg

// Rays of a view, in voxel coordinates.
//
// A view is an affine bundle: pixel (u, v) has the source s(u,v) = s0 + u su + v sv and the
// direction d(u,v) = d0 + u du + v dv; x(t) = s + t d runs from the source (t = 0) to the detector
// (t = 1).  A pinhole has su = sv = 0, a parallel beam has du = dv = 0.
#pragma once
#include "math.cuh"

namespace xreg {
inline namespace XREG_ISA {

struct View {
  const double* basis;  // [6][3]: s0, su, sv, d0, du, dv
  HD double source(int a, double u, double v) const { return basis[a] + u * basis[3 + a] + v * basis[6 + a]; }
  HD double direction(int a, double u, double v) const {
    return basis[9 + a] + u * basis[12 + a] + v * basis[15 + a];
  }
};

// Squared millimetres of a voxel-space vector: d^T G d, with G = M^T M of the affine's linear part.
struct Metric {
  double xx, xy, xz, yy, yz, zz;
  HD void apply(const double d[3], double out[3]) const {
    out[0] = xx * d[0] + xy * d[1] + xz * d[2];
    out[1] = xy * d[0] + yy * d[1] + yz * d[2];
    out[2] = xz * d[0] + yz * d[1] + zz * d[2];
  }
};

struct Box {
  double lo[3], hi[3];
};

template <int L>
struct Rays {
  double s[3][L], d[3][L];
};

// Where a ray is inside a box, cut to [0, 1]; t0 > t1 when it misses.
template <int L>
struct Span {
  double t0[L], t1[L];
};

template <int L>
HD Span<L> clip(const Rays<L>& r, const Box& box) {
  Span<L> span;
  XREG_LANES
  for (int l = 0; l < L; ++l) {
    double t0 = 0.0, t1 = 1.0;
    for (int a = 0; a < 3; ++a) {
      const double d = r.d[a][l], s = r.s[a][l];
      const bool flat = magnitude(d) < 1e-12;
      const double inv = flat ? 0.0 : 1.0 / (flat ? 1.0 : d);
      const double ta = (box.lo[a] - s) * inv, tb = (box.hi[a] - s) * inv;
      const bool empty = box.lo[a] > box.hi[a];
      const bool outside = empty | (flat & ((s < box.lo[a]) | (s > box.hi[a])));
      const double near = outside ? 2.0 : flat ? 0.0 : lower(ta, tb);
      const double far = outside ? -1.0 : flat ? 1.0 : upper(ta, tb);
      t0 = upper(t0, near);
      t1 = lower(t1, far);
    }
    span.t0[l] = t0;
    span.t1[l] = t1;
  }
  return span;
}

}  // namespace XREG_ISA
}  // namespace xreg

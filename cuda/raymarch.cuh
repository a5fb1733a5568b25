// One packet of rays through one volume: the body, written once for host and device.
//
// The three marches differ in where they sample; the sink decides what a sample is for.  After a
// march an Integral holds sum = ∫ mu dt, a = ∫ grad mu dt and b = ∫ t grad mu dt, with t from the
// source (0) to the detector (1) and everything in voxel coordinates.
#pragma once
#include "ray.cuh"
#include "sinks.cuh"

namespace xreg {
inline namespace XREG_ISA {

enum Integrator { kTrilinear = 0, kJoseph = 1, kSiddon = 2, kExact = 3 };

constexpr double kMargin = 1e-3;  // voxels; keeps float rounding inside the unchecked interior

// Where a march looks: `outer` is all that can be other than zero, in `inner` every corner of a
// cell exists and no index needs a check.
struct Region {
  Box outer, inner;
};

// Slices [k0, k1) of a grid; the whole of it for a forward march.  A march cuts its samples anew where it
// enters `inner`, which is nothing to sums but may give a sample another nearest voxel: under labels (`whole`)
// it is that of the whole grid.
template <class Grid>
HD Region region_of(const Grid& g, int k0, int k1, bool whole = false) {
  const double low = whole ? 0.0 : k0, high = whole ? g.nz : k1;
  return Region{{{-1.0, -1.0, k0 - 1.0}, {double(g.nx), double(g.ny), double(k1)}},
                {{kMargin, kMargin, low + kMargin}, {g.nx - 1 - kMargin, g.ny - 1 - kMargin, high - 1 - kMargin}}};
}

// The packet's position at step n is start + n * step.
template <int L, class Real>
struct Track {
  Real start[3][L], step[3][L];
};

// ---------------------------------------------------------------- trilinear, fixed step
// Samples at t_k = (k + 1/2) / steps: planes parallel to the detector, the same for every pixel of
// a view, so that samples do not move with the clipping and the sum's derivative is exact.

template <bool Bounded, int L, class Sink, class Real>
HD void walk_trilinear(Sink& sink, const Track<L, Real>& track, int begin, int end, Real weight) {
  for (int n = begin; n < end; ++n) {
    const Real rn = static_cast<Real>(n);
    if (!Bounded) sink.template look_ahead<L>(track, n, end);
    XREG_LANES
    for (int l = 0; l < L; ++l) {
      sink.template point<Bounded>(l, track.start[0][l] + rn * track.step[0][l],
                                   track.start[1][l] + rn * track.step[1][l],
                                   track.start[2][l] + rn * track.step[2][l], weight, rn);
    }
  }
}

// Sample numbers [first, last) whose t lies in a span.
HD int first_sample(double t, double steps) { return static_cast<int>(ceil(t * steps - 0.5)); }
HD int last_sample(double t, double steps) { return static_cast<int>(floor(t * steps - 0.5)) + 1; }

template <int L, class Sink>
HD void march_trilinear(Sink& sink, const Rays<L>& r, const Region& region, int steps) {
  using Real = typename Sink::Real;
  const Span<L> outer = clip(r, region.outer), inner = clip(r, region.inner);
  int begin = steps, end = 0, safe = 0, last_safe = steps;
  for (int l = 0; l < L; ++l) {
    if (outer.t0[l] < outer.t1[l]) {
      begin = lower(begin, first_sample(outer.t0[l], steps));
      end = upper(end, last_sample(outer.t1[l], steps));
    }
    const bool some = inner.t0[l] < inner.t1[l];
    safe = upper(safe, some ? first_sample(inner.t0[l], steps) : steps);
    last_safe = lower(last_safe, some ? last_sample(inner.t1[l], steps) : 0);
  }
  if (begin >= end) return;
  const double h = 1.0 / steps, t0 = (begin + 0.5) * h;
  Track<L, Real> track;
  XREG_LANES
  for (int l = 0; l < L; ++l)
    for (int q = 0; q < 3; ++q) {
      track.start[q][l] = static_cast<Real>(r.s[q][l] + t0 * r.d[q][l]);
      track.step[q][l] = static_cast<Real>(h * r.d[q][l]);
    }
  const int stop = end - begin, a = clamp(safe - begin, 0, stop), b = clamp(last_safe - begin, a, stop);
  const Real weight = Sink::kIntegral ? Real(1) : static_cast<Real>(h);
  walk_trilinear<true>(sink, track, 0, a, weight);
  walk_trilinear<false>(sink, track, a, b, weight);
  walk_trilinear<true>(sink, track, b, stop, weight);
  XREG_LANES
  for (int l = 0; l < L; ++l) sink.settle(l, static_cast<Real>(h), static_cast<Real>(t0), static_cast<Real>(h));
}

// ---------------------------------------------------------------- Joseph
// Planes at integer index along the ray's dominant axis, bilinear in the plane.  A plane stands for
// half a voxel on each side, and counts in part where the source or the detector cuts that.

template <int L>
struct Dominant {
  int axis[L];
};

template <int L, class Real>
struct Planes {
  Real y[L], z[L], dy[L], dz[L];  // in-plane position at n = 0 and its change a plane
  Real lo[L], hi[L];              // extent of the ray along the axis, relative to plane n = 0
  Real length[L];                 // 1 / |d|, the t that a plane stands for
};

template <int Axis, bool Bounded, int L, class Sink, class Real>
HD void walk_joseph(Sink& sink, const Planes<L, Real>& p, int origin, int begin, int end) {
  for (int n = begin; n < end; ++n) {
    const Real rn = static_cast<Real>(n), half = Real(0.5);
    if (!Bounded) sink.template look_ahead_plane<Axis, L>(p, origin, n, end);
    XREG_LANES
    for (int l = 0; l < L; ++l) {
      Real w = Sink::kIntegral ? Real(1) : p.length[l];
      Real cut_lo = Real(0), cut_hi = Real(0);
      if (Bounded) {
        w *= clamp(lower(rn + half, p.hi[l]) - upper(rn - half, p.lo[l]), Real(0), Real(1));
        cut_lo = magnitude(p.lo[l] - rn) < half ? Real(1) : Real(0);
        cut_hi = magnitude(p.hi[l] - rn) < half ? Real(1) : Real(0);
      }
      sink.template plane<Axis, Bounded>(l, origin + n, p.y[l] + rn * p.dy[l], p.z[l] + rn * p.dz[l], w, rn, cut_lo,
                                         cut_hi);
    }
  }
}

template <int Axis, int L, class Sink>
HD void joseph_along(Sink& sink, const Rays<L>& r, const Region& region, const Dominant<L>& dominant) {
  using Real = typename Sink::Real;
  constexpr int kY = Axis == 0 ? 1 : 0, kZ = Axis == 2 ? 1 : 2;
  // A plane reaches half a voxel past the ray's ends, so planes are sought along a ray that is that much longer.
  Rays<L> longer;
  for (int l = 0; l < L; ++l) {
    const double extra = 0.5 / upper(magnitude(r.d[Axis][l]), 1e-12);
    for (int a = 0; a < 3; ++a) {
      longer.s[a][l] = r.s[a][l] - extra * r.d[a][l];
      longer.d[a][l] = r.d[a][l] * (1.0 + 2.0 * extra);
    }
  }
  const Span<L> outer = clip(longer, region.outer), inner = clip(r, region.inner);
  const int floor_plane = static_cast<int>(region.outer.lo[Axis]) + 1, ceil_plane = static_cast<int>(region.outer.hi[Axis]);
  int begin = ceil_plane, end = floor_plane, safe = floor_plane, last_safe = ceil_plane;
  for (int l = 0; l < L; ++l) {
    const bool mine = dominant.axis[l] == Axis;
    const double s = r.s[Axis][l], d = r.d[Axis][l];
    if (mine & (outer.t0[l] < outer.t1[l])) {
      const double p = longer.s[Axis][l] + outer.t0[l] * longer.d[Axis][l];
      const double q = longer.s[Axis][l] + outer.t1[l] * longer.d[Axis][l];
      begin = lower(begin, static_cast<int>(floor(lower(p, q))));
      end = upper(end, static_cast<int>(ceil(upper(p, q))) + 1);
    }
    const bool some = mine & (inner.t0[l] < inner.t1[l]);
    const double p = s + inner.t0[l] * d, q = s + inner.t1[l] * d;
    const double lo = upper(lower(s, s + d) + 0.5 + kMargin, lower(p, q)), hi = lower(upper(s, s + d) - 0.5 - kMargin, upper(p, q));
    safe = upper(safe, some & (lo < hi) ? upper(static_cast<int>(ceil(lo)), 1) : ceil_plane);
    last_safe = lower(last_safe, some & (lo < hi) ? static_cast<int>(floor(hi)) + 1 : floor_plane);
  }
  begin = upper(begin, floor_plane);
  end = lower(end, ceil_plane);
  if (begin >= end) return;
  Planes<L, Real> planes;
  XREG_LANES
  for (int l = 0; l < L; ++l) {
    const bool mine = dominant.axis[l] == Axis;
    const double s = r.s[Axis][l], d = mine ? r.d[Axis][l] : 1.0, inv = 1.0 / d, t = (begin - s) * inv;
    planes.y[l] = static_cast<Real>(mine ? r.s[kY][l] + t * r.d[kY][l] : -2.0);
    planes.z[l] = static_cast<Real>(mine ? r.s[kZ][l] + t * r.d[kZ][l] : -2.0);
    planes.dy[l] = static_cast<Real>(mine ? r.d[kY][l] * inv : 0.0);
    planes.dz[l] = static_cast<Real>(mine ? r.d[kZ][l] * inv : 0.0);
    planes.lo[l] = static_cast<Real>(mine ? lower(s, s + d) - begin : 1e9);
    planes.hi[l] = static_cast<Real>(mine ? upper(s, s + d) - begin : -1e9);
    planes.length[l] = static_cast<Real>(magnitude(inv));
  }
  const int stop = end - begin, a = clamp(safe - begin, 0, stop), b = clamp(last_safe - begin, a, stop);
  walk_joseph<Axis, true>(sink, planes, begin, 0, a);
  walk_joseph<Axis, false>(sink, planes, begin, a, b);
  walk_joseph<Axis, true>(sink, planes, begin, b, stop);
  XREG_LANES
  for (int l = 0; l < L; ++l) {
    const bool mine = dominant.axis[l] == Axis;
    const double d = mine ? r.d[Axis][l] : 1.0, inv = 1.0 / d, t0 = (begin - r.s[Axis][l]) * inv;
    if (mine) sink.template settle_planes<Axis>(l, Real(t0), Real(inv), planes.dy[l], planes.dz[l]);
  }
}

template <int L, class Sink>
HD void march_joseph(Sink& sink, const Rays<L>& r, const Region& region) {
  Dominant<L> dominant;
  bool any[3] = {false, false, false};
  for (int l = 0; l < L; ++l) {
    const double x = magnitude(r.d[0][l]), y = magnitude(r.d[1][l]), z = magnitude(r.d[2][l]);
    const int axis = (x >= y) & (x >= z) ? 0 : y >= z ? 1 : 2;
    dominant.axis[l] = axis;
    any[axis] = true;
  }
  if (any[0]) joseph_along<0>(sink, r, region, dominant);
  if (any[1]) joseph_along<1>(sink, r, region, dominant);
  if (any[2]) joseph_along<2>(sink, r, region, dominant);
}

// ---------------------------------------------------------------- cell by cell: exact and Siddon
// Each lane walks its own cells.  Crossing times come from plane numbers, not from sums, so they do
// not drift.  Inside a cell the trilinear field is a cubic in t, and t grad mu is one too, so two
// Gauss points integrate both exactly.

template <int L, class Real>
struct Walk {
  Real x[3][L], d[3][L], inv[3][L], plane[3][L];
  int cell[3][L], sign[3][L];
  Real time[L], stop[L], offset[L];
};

// Start at t0 with cell borders at integers shifted by `shift`; returns the steps that are enough.
template <int L, class Real>
HD int enter(Walk<L, Real>& w, const Rays<L>& r, const Span<L>& from, const double (&t_ref)[L], double shift) {
  int steps = 0;
  for (int l = 0; l < L; ++l) {
    const bool some = from.t0[l] < from.t1[l];
    const double t0 = some ? from.t0[l] : 0.0, t1 = some ? from.t1[l] : 0.0;
    int crossings = 4;
    for (int a = 0; a < 3; ++a) {
      const double d = r.d[a][l], x = r.s[a][l] + t0 * d + shift;
      const bool flat = magnitude(d) < 1e-12;
      const double here = floor(x), there = floor(x + (t1 - t0) * d);
      crossings += static_cast<int>(magnitude(there - here));
      const int sign = flat ? 0 : d > 0 ? 1 : -1;
      w.x[a][l] = static_cast<Real>(x);
      w.d[a][l] = static_cast<Real>(d);
      w.inv[a][l] = static_cast<Real>(flat ? 0.0 : 1.0 / (flat ? 1.0 : d));
      w.sign[a][l] = sign;
      w.cell[a][l] = some ? static_cast<int>(here) : 0;
      w.plane[a][l] = static_cast<Real>(sign > 0 ? here + 1.0 : here);
    }
    w.time[l] = Real(0);
    w.stop[l] = static_cast<Real>(t1 - t0);
    w.offset[l] = static_cast<Real>(some ? t0 - t_ref[l] : 0.0);
    steps = upper(steps, some ? crossings : 0);
  }
  return steps;
}

template <class Real>
struct Segment {
  Real from, to;
  Real x, y, z;  // 1 where it ends at a border across that axis, else 0
};

// When a lane reaches its next border across one axis.
template <int L, class Real>
HD Real crossing(const Walk<L, Real>& w, int axis, int l) {
  return w.sign[axis][l] == 0 ? Real(kFar) : (w.plane[axis][l] - w.x[axis][l]) * w.inv[axis][l];
}

template <int L, class Real>
HD Real cross(Walk<L, Real>& w, int axis, int l, bool hit) {
  const int move = hit ? w.sign[axis][l] : 0;
  w.cell[axis][l] += move;
  w.plane[axis][l] += static_cast<Real>(move);
  return hit ? Real(1) : Real(0);
}

// The lane's next segment; moves the lane on.  (Scalars, not arrays: an array in a lane's body keeps
// the compiler from packing the lanes.)
template <int L, class Real>
HD Segment<Real> next_segment(Walk<L, Real>& w, int l) {
  const Real tx = crossing(w, 0, l), ty = crossing(w, 1, l), tz = crossing(w, 2, l);
  Segment<Real> s;
  s.from = w.time[l];
  s.to = upper(s.from, lower(lower(tx, ty), lower(tz, w.stop[l])));
  s.x = cross(w, 0, l, tx <= s.to);
  s.y = cross(w, 1, l, ty <= s.to);
  s.z = cross(w, 2, l, tz <= s.to);
  w.time[l] = s.to;
  return s;
}

// The cell a lane is in; the walk may leave the box it was clipped to by a rounding.
template <bool Bounded>
HD int cell_number(int cell, int n) {
  return Bounded ? clamp(cell, -2, n) : clamp(cell, 0, n - 2);
}

template <bool Bounded, int L, class Sink, class Real>
HD void walk_cells(Sink& sink, Walk<L, Real>& w, int steps) {
  const Real gauss = Real(0.57735026918962576451);
  for (int n = 0; n < steps; ++n) {
    XREG_LANES
    for (int l = 0; l < L; ++l) {
      Spot<Real> p, q;
      p.i = q.i = cell_number<Bounded>(w.cell[0][l], sink.grid.nx);
      p.j = q.j = cell_number<Bounded>(w.cell[1][l], sink.grid.ny);
      p.k = q.k = cell_number<Bounded>(w.cell[2][l], sink.grid.nz);
      const Segment<Real> s = next_segment(w, l);
      const Real middle = (s.from + s.to) * Real(0.5), half = (s.to - s.from) * Real(0.5);
      const Real t0 = middle - gauss * half, t1 = middle + gauss * half;
      const Real bx = w.x[0][l] - p.i, by = w.x[1][l] - p.j, bz = w.x[2][l] - p.k;
      p.fx = bx + t0 * w.d[0][l];
      p.fy = by + t0 * w.d[1][l];
      p.fz = bz + t0 * w.d[2][l];
      q.fx = bx + t1 * w.d[0][l];
      q.fy = by + t1 * w.d[1][l];
      q.fz = bz + t1 * w.d[2][l];
      sink.template cell<Bounded>(l, p, q, half, w.offset[l] + t0, w.offset[l] + t1);
    }
  }
}

template <int L, class Sink>
HD void march_exact(Sink& sink, const Rays<L>& r, const Region& region) {
  using Real = typename Sink::Real;
  const Span<L> outer = clip(r, region.outer);
  Span<L> safe = clip(r, region.inner), before, after;
  double t_ref[L];
  XREG_LANES
  for (int l = 0; l < L; ++l) {
    t_ref[l] = outer.t0[l];
    const bool some = safe.t0[l] < safe.t1[l];
    safe.t0[l] = some ? upper(safe.t0[l], outer.t0[l]) : outer.t1[l];
    safe.t1[l] = some ? lower(safe.t1[l], outer.t1[l]) : outer.t1[l];
    safe.t0[l] = lower(safe.t0[l], outer.t1[l]);
    safe.t1[l] = upper(safe.t1[l], safe.t0[l]);
    before.t0[l] = outer.t0[l];
    before.t1[l] = safe.t0[l];
    after.t0[l] = safe.t1[l];
    after.t1[l] = outer.t1[l];
  }
  Walk<L, Real> w;
  int steps = enter(w, r, before, t_ref, 0.0);
  walk_cells<true>(sink, w, steps);
  steps = enter(w, r, safe, t_ref, 0.0);
  walk_cells<false>(sink, w, steps);
  steps = enter(w, r, after, t_ref, 0.0);
  walk_cells<true>(sink, w, steps);
  XREG_LANES
  for (int l = 0; l < L; ++l) sink.settle(l, Real(1), Real(t_ref[l]), Real(1));
}

// Siddon: the field is constant in each voxel (borders at half-integers), so its gradient is a jump
// at each border crossed.  The walk begins and ends in the empty voxel around the grid.
template <int L, class Sink>
HD void march_siddon(Sink& sink, const Rays<L>& r, const Region& region) {
  using Real = typename Sink::Real;
  const Span<L> outer = clip(r, region.outer);
  double t_ref[L];
  Real before[L], pending[3][L];
  for (int l = 0; l < L; ++l) {
    t_ref[l] = outer.t0[l];
    before[l] = pending[0][l] = pending[1][l] = pending[2][l] = Real(0);
  }
  Walk<L, Real> w;
  const int steps = enter(w, r, outer, t_ref, 0.5);
  for (int n = 0; n < steps; ++n) {
    XREG_LANES
    for (int l = 0; l < L; ++l) {
      const int i = w.cell[0][l], j = w.cell[1][l], k = w.cell[2][l];
      const Real live = w.time[l] < w.stop[l] ? Real(1) : Real(0);
      const Segment<Real> s = next_segment(w, l);
      const Real v = sink.voxel(l, i, j, k, s.to - s.from);
      if (Sink::kMoments) {
        const Real jump = live * (v - before[l]);
        before[l] += jump;
        sink.jump(0, l, jump * pending[0][l], s.from);
        sink.jump(1, l, jump * pending[1][l], s.from);
        sink.jump(2, l, jump * pending[2][l], s.from);
        const Real rest = Real(1) - s.x;  // a corner counts once
        pending[0][l] = s.x * w.inv[0][l];
        pending[1][l] = rest * s.y * w.inv[1][l];
        pending[2][l] = rest * (Real(1) - s.y) * s.z * w.inv[2][l];
      }
    }
  }
  XREG_LANES
  for (int l = 0; l < L; ++l) sink.settle(l, Real(1), Real(t_ref[l]), Real(1));
}

template <int L, class Sink>
HD void march(Sink& sink, const Rays<L>& r, const Region& region, Integrator integrator, int steps) {
  if (integrator == kTrilinear) march_trilinear<L>(sink, r, region, steps);
  if (integrator == kJoseph) march_joseph<L>(sink, r, region);
  if (integrator == kSiddon) march_siddon<L>(sink, r, region);
  if (integrator == kExact) march_exact<L>(sink, r, region);
}

}  // namespace XREG_ISA
}  // namespace xreg

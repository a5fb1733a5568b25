// What is done with the samples of a march: integrate them, scatter a value back along them, or
// sort them by label.  A march calls point / cell / plane / voxel; a sink says what each means.
#pragma once
#include "grid.cuh"
#include "whole.cuh"

namespace xreg {
inline namespace XREG_ISA {

constexpr int kAhead = 12;  // steps between asking for a cache line and using it

// Trilinear sample at (x, y, z): the cell it lies in and the fractions there.
template <class Real>
struct Spot {
  int i, j, k;
  Real fx, fy, fz;
};

template <class Real>
HD int nearest(int i, Real fraction) { return i + (fraction >= Real(0.5) ? 1 : 0); }

template <bool Bounded, class Real, class Grid>
HD Spot<Real> locate(const Grid& g, Real x, Real y, Real z) {
  Spot<Real> s;
  if (Bounded) {  // far outside is as good as just outside: every voxel there is zero
    x = clamp(x, Real(-2), static_cast<Real>(g.nx + 1));
    y = clamp(y, Real(-2), static_cast<Real>(g.ny + 1));
    z = clamp(z, Real(-2), static_cast<Real>(g.nz + 1));
    s.i = floor_int(x);
    s.j = floor_int(y);
    s.k = floor_int(z);
  } else {  // inside, so positive: truncation is floor
    s.i = static_cast<int>(x);
    s.j = static_cast<int>(y);
    s.k = static_cast<int>(z);
  }
  s.fx = x - static_cast<Real>(s.i);
  s.fy = y - static_cast<Real>(s.j);
  s.fz = z - static_cast<Real>(s.k);
  return s;
}

// The integral of the field and, with Moments, A = sum w grad and B = sum w n grad, where n is the
// march's own time along the ray.
template <class Grid_, class Real_, int L_, bool Moments>
struct Integral {
  using Grid = Grid_;
  using Real = Real_;
  static constexpr int L = L_;
  static constexpr bool kMoments = Moments;
  static constexpr bool kIntegral = true;  // steps are summed with weight 1 and scaled when settled
  Grid grid;
  Real sum[L];
  Real a[3][L], b[3][L];
  Real end_lo[L], end_hi[L];  // Joseph's planes that a ray's end cuts in two

  HD void clear() {
    XREG_LANES
    for (int l = 0; l < L; ++l) {
      sum[l] = end_lo[l] = end_hi[l] = Real(0);
      for (int q = 0; q < 3; ++q) a[q][l] = b[q][l] = Real(0);
    }
  }
  HD void gather(int l, const Sampled<Real>& f, Real w, Real n) {
    sum[l] += w * f.value;
    if (Moments) {
      const Real gx = w * f.gx, gy = w * f.gy, gz = w * f.gz;
      a[0][l] += gx;
      a[1][l] += gy;
      a[2][l] += gz;
      b[0][l] += n * gx;
      b[1][l] += n * gy;
      b[2][l] += n * gz;
    }
  }
  HD Real gate(const Spot<Real>& s) const {
    return grid.gate(nearest(s.i, s.fx), nearest(s.j, s.fy), nearest(s.k, s.fz));
  }
  template <bool Bounded>
  HD void point(int l, Real x, Real y, Real z, Real w, Real n) {
    const Spot<Real> s = locate<Bounded>(grid, x, y, z);
    const Corners<Real> c = load_cell<Bounded, Real>(grid, s.i, s.j, s.k);
    gather(l, interpolate(c, s.fx, s.fy, s.fz), w * gate(s), n);
  }
  // Two samples of one cell, loaded once.
  template <bool Bounded>
  HD void cell(int l, const Spot<Real>& p, const Spot<Real>& q, Real w, Real np, Real nq) {
    const Corners<Real> c = load_cell<Bounded, Real>(grid, p.i, p.j, p.k);
    gather(l, interpolate(c, p.fx, p.fy, p.fz), w * gate(p), np);
    gather(l, interpolate(c, q.fx, q.fy, q.fz), w * gate(q), nq);
  }
  // One sample in plane p of Axis; (y, z), (x, z) or (x, y) are the coordinates in the plane.
  template <int Axis, bool Bounded>
  HD void plane(int l, int p, Real y, Real z, Real w, Real n, Real cut_lo, Real cut_hi) {
    constexpr int kY = Axis == 0 ? 1 : 0, kZ = Axis == 2 ? 1 : 2;
    if (Bounded) {
      y = clamp(y, Real(-2), static_cast<Real>((kY == 0 ? grid.nx : grid.ny) + 1));
      z = clamp(z, Real(-2), static_cast<Real>((kZ == 1 ? grid.ny : grid.nz) + 1));
    }
    const int iy = Bounded ? floor_int(y) : static_cast<int>(y);
    const int iz = Bounded ? floor_int(z) : static_cast<int>(z);
    const Real fy = y - static_cast<Real>(iy), fz = z - static_cast<Real>(iz);
    Real v00, v10, v01, v11;
    square<Axis, Bounded>(p, iy, iz, v00, v10, v01, v11);
    const Real d0 = v10 - v00, d1 = v11 - v01;
    const Real v0 = v00 + fy * d0, v1 = v01 + fy * d1;
    const Real dz = v1 - v0, value = v0 + fz * dz;
    const int ny = nearest(iy, fy), nz = nearest(iz, fz);
    const Real open = Axis == 0 ? grid.gate(p, ny, nz) : Axis == 1 ? grid.gate(ny, p, nz) : grid.gate(ny, nz, p);
    w *= open;
    sum[l] += w * value;
    if (Moments) {
      const Real gy = w * (d0 + fz * (d1 - d0)), gz = w * dz;
      a[kY][l] += gy;
      a[kZ][l] += gz;
      b[kY][l] += n * gy;
      b[kZ][l] += n * gz;
      if (Bounded) {
        end_lo[l] += cut_lo * open * value;
        end_hi[l] += cut_hi * open * value;
      }
    }
  }
  template <int Axis, bool Bounded>
  HD void square(int p, int y, int z, Real& v00, Real& v10, Real& v01, Real& v11) const {
    if (Bounded) {
      v00 = in_plane<Axis>(p, y, z);
      v10 = in_plane<Axis>(p, y + 1, z);
      v01 = in_plane<Axis>(p, y, z + 1);
      v11 = in_plane<Axis>(p, y + 1, z + 1);
      return;
    }
    using Index = typename Grid::IndexType;
    const Index row = grid.nx, slice = static_cast<Index>(grid.nx) * grid.ny;
    const Index n = Axis == 0 ? grid.offset(p, y, z) : Axis == 1 ? grid.offset(y, p, z) : grid.offset(y, z, p);
    if (Axis == 0) {  // neighbours along y and z: four single loads
      v00 = grid.template single<Real>(n);
      v10 = grid.template single<Real>(n + row);
      v01 = grid.template single<Real>(n + slice);
      v11 = grid.template single<Real>(n + slice + row);
    } else {
      grid.template pair<Real>(n, v00, v10);
      grid.template pair<Real>(n + (Axis == 1 ? slice : row), v01, v11);
    }
  }
  template <int Axis>
  HD Real in_plane(int p, int y, int z) const {
    return Axis == 0   ? voxel_or_zero<Real>(grid, p, y, z)
           : Axis == 1 ? voxel_or_zero<Real>(grid, y, p, z)
                       : voxel_or_zero<Real>(grid, y, z, p);
  }
  // A constant voxel crossed over a length w.
  HD Real voxel(int l, int i, int j, int k, Real w) {
    const Real v = voxel_or_zero<Real>(grid, i, j, k) * grid.gate(i, j, k);
    sum[l] += w * v;
    return v;
  }
  HD void jump(int axis, int l, Real g, Real n) {
    a[axis][l] += g;
    b[axis][l] += n * g;
  }

  // The sums ran over steps n of length dt from t0, each worth w.
  HD void settle(int l, Real w, Real t0, Real dt) {
    sum[l] *= w;
    if (Moments) {
      for (int q = 0; q < 3; ++q) {
        a[q][l] *= w;
        b[q][l] = t0 * a[q][l] + dt * w * b[q][l];
      }
    }
  }
  // Joseph: planes stay where they are, so a shift along the axis moves the ray across them; t of
  // plane n is t0 + n inv, and (my, mz) is the in-plane shift a plane.
  template <int Axis>
  HD void settle_planes(int l, Real t0, Real inv, Real my, Real mz) {
    constexpr int kY = Axis == 0 ? 1 : 0, kZ = Axis == 2 ? 1 : 2;
    const Real w = magnitude(inv);
    settle(l, w, t0, inv);
    if (Moments) {
      const Real hi = w * end_hi[l], lo = w * end_lo[l];
      a[Axis][l] = hi - lo - my * a[kY][l] - mz * a[kZ][l];
      b[Axis][l] = (inv > Real(0) ? hi : -lo) - my * b[kY][l] - mz * b[kZ][l] - inv * sum[l];
    }
  }

  // Ask for the lines that the packet will need kAhead steps from now.
  template <int Lanes, class Track>
  HD void look_ahead(const Track& t, int n, int end) const {
#if !defined(__CUDA_ARCH__)
    const Real m = static_cast<Real>(lower(n + kAhead, end - 1));
    typename Grid::IndexType at[Lanes];
    XREG_LANES
    for (int l = 0; l < Lanes; ++l) {
      const int i = static_cast<int>(t.start[0][l] + m * t.step[0][l]);
      const int j = static_cast<int>(t.start[1][l] + m * t.step[1][l]);
      const int k = static_cast<int>(t.start[2][l] + m * t.step[2][l]);
      at[l] = grid.offset(i, j, k);
    }
    for (int l = 0; l < Lanes; ++l) grid.prefetch(at[l]);
#endif
  }
  template <int Axis, int Lanes, class Planes>
  HD void look_ahead_plane(const Planes& p, int origin, int n, int end) const {
#if !defined(__CUDA_ARCH__)
    const int ahead = lower(n + kAhead, end - 1), plane = origin + ahead;
    const Real m = static_cast<Real>(ahead);
    typename Grid::IndexType at[Lanes];
    XREG_LANES
    for (int l = 0; l < Lanes; ++l) {
      const int y = static_cast<int>(p.y[l] + m * p.dy[l]), z = static_cast<int>(p.z[l] + m * p.dz[l]);
      at[l] = Axis == 0   ? grid.offset(plane, y, z)
              : Axis == 1 ? grid.offset(y, plane, z)
                          : grid.offset(y, z, plane);
    }
    for (int l = 0; l < Lanes; ++l) grid.prefetch(at[l]);
#endif
  }
};

// Sinks that handle each voxel a ray touches, with its weight.  Derived::add<Bounded>(i, j, k, weight, at)
// does it; `at` is the voxel nearest to the sample, whose label decides under hard labels.  Where it is not
// Bounded, the voxel is known to be one of those that are asked for.
template <class Derived, class Real_>
struct Deposit {
  using Real = Real_;
  static constexpr int L = 1;
  static constexpr bool kMoments = false;
  static constexpr bool kIntegral = false;
  struct Nearest {
    int i, j, k;
  };
  HD Derived& self() { return *static_cast<Derived*>(this); }
  template <bool Bounded>
  HD void spread(const Spot<Real>& s, Real w) {
    const Real one = Real(1), gx = one - s.fx, gy = one - s.fy, gz = one - s.fz;
    const Nearest at{nearest(s.i, s.fx), nearest(s.j, s.fy), nearest(s.k, s.fz)};
    self().template add<Bounded>(s.i, s.j, s.k, w * gx * gy * gz, at);
    self().template add<Bounded>(s.i + 1, s.j, s.k, w * s.fx * gy * gz, at);
    self().template add<Bounded>(s.i, s.j + 1, s.k, w * gx * s.fy * gz, at);
    self().template add<Bounded>(s.i + 1, s.j + 1, s.k, w * s.fx * s.fy * gz, at);
    self().template add<Bounded>(s.i, s.j, s.k + 1, w * gx * gy * s.fz, at);
    self().template add<Bounded>(s.i + 1, s.j, s.k + 1, w * s.fx * gy * s.fz, at);
    self().template add<Bounded>(s.i, s.j + 1, s.k + 1, w * gx * s.fy * s.fz, at);
    self().template add<Bounded>(s.i + 1, s.j + 1, s.k + 1, w * s.fx * s.fy * s.fz, at);
  }
  template <bool Bounded>
  HD void point(int, Real x, Real y, Real z, Real w, Real) {
    spread<Bounded>(locate<Bounded>(self().grid, x, y, z), w);
  }
  template <bool Bounded>
  HD void cell(int, const Spot<Real>& p, const Spot<Real>& q, Real w, Real, Real) {
    if (w == Real(0)) return;
    spread<Bounded>(p, w);
    spread<Bounded>(q, w);
  }
  template <int Axis, bool Bounded>
  HD void plane(int, int p, Real y, Real z, Real w, Real, Real, Real) {
    const int iy = Bounded ? floor_int(clamp(y, Real(-2), Real(1 << 30))) : static_cast<int>(y);
    const int iz = Bounded ? floor_int(clamp(z, Real(-2), Real(1 << 30))) : static_cast<int>(z);
    const Real fy = y - static_cast<Real>(iy), fz = z - static_cast<Real>(iz);
    if (w == Real(0)) return;
    if (Bounded && (fy > Real(1) || fz > Real(1) || fy < Real(0) || fz < Real(0))) return;
    const int ny = nearest(iy, fy), nz = nearest(iz, fz);
    const Nearest at = Axis == 0 ? Nearest{p, ny, nz} : Axis == 1 ? Nearest{ny, p, nz} : Nearest{ny, nz, p};
    for (int q = 0; q < 4; ++q) {
      const int y1 = iy + (q & 1), z1 = iz + (q >> 1);
      const Real share = w * ((q & 1) ? fy : Real(1) - fy) * ((q >> 1) ? fz : Real(1) - fz);
      if (Axis == 0) self().template add<Bounded>(p, y1, z1, share, at);
      if (Axis == 1) self().template add<Bounded>(y1, p, z1, share, at);
      if (Axis == 2) self().template add<Bounded>(y1, z1, p, share, at);
    }
  }
  HD Real voxel(int, int i, int j, int k, Real w) {
    if (w != Real(0)) self().template add<true>(i, j, k, w, Nearest{i, j, k});
    return Real(0);
  }
  HD void settle(int, Real, Real, Real) {}
  HD void jump(int, int, Real, Real) {}
  template <int Axis>
  HD void settle_planes(int, Real, Real, Real, Real) {}
  template <int Lanes, class Track>
  HD void look_ahead(const Track&, int, int) const {}
  template <int Axis, int Lanes, class Planes>
  HD void look_ahead_plane(const Planes&, int, int, int) const {}
  template <class Grid>
  HD static bool inside(const Grid& g, int i, int j, int k) {
    return i >= 0 && i < g.nx && j >= 0 && j < g.ny && k >= 0 && k < g.nz;
  }
  // Of the voxel of the grid nearest to a sample, which may lie up to a voxel outside.
  template <class Grid>
  HD static typename Grid::IndexType offset_of(const Grid& g, const Nearest& at) {
    return g.offset(clamp(at.i, 0, g.nx - 1), clamp(at.j, 0, g.ny - 1), clamp(at.k, 0, g.nz - 1));
  }
};

// Adds factor * cotangent * weight to every voxel of slices [k0, k1): the exact transpose of Integral.
// With labels the cotangent is that of the label's channel.  On the host a slab has one writer that
// takes the rays in order, so the result does not depend on the number of threads; on a card Cell is
// Whole, and the order does not matter.
template <class Grid_, class Out, LabelRule Rule, class Cell>
struct Scatter : Deposit<Scatter<Grid_, Out, Rule, Cell>, Out> {
  using Grid = Grid_;
  Grid grid;
  Cell* out;
  int k0, k1;
  Out factor;  // without labels the cotangent is in it
  const int16_t* label;
  const Out* cotangent;  // of label c: cotangent[c * stride]
  int64_t stride;
  int channels;

  HD Out of(typename Grid::IndexType n) const {
    const int c = label[n];
    return c >= 0 && c < channels ? cotangent[c * stride] : Out(0);
  }
  template <bool Bounded, class Nearest>
  HD void add(int i, int j, int k, Out w, const Nearest& at) {
    constexpr bool kKnown = !Bounded && Rule == kUnlabelled;  // see region_of
    if (!kKnown && (k < k0 || k >= k1 || !this->inside(grid, i, j, k))) return;
    const auto n = grid.offset(i, j, k);
    Out g = factor;
    if (Rule == kSoft) g *= of(n);
    if (Rule == kHard) g *= of(this->offset_of(grid, at));
    deposit(out + n, g * w);
  }
};

// Sorts the samples of one ray by label: sum[c * stride] += factor * w * mu, for the label of each
// voxel (soft) or of the voxel nearest to the sample (hard).
template <class Grid_, class Out, LabelRule Rule>
struct LabelSum : Deposit<LabelSum<Grid_, Out, Rule>, Out> {
  using Grid = Grid_;
  Grid grid;
  const int16_t* label;
  Out* sum;
  int64_t stride;
  Out factor;
  int channels;

  template <bool Bounded, class Nearest>
  HD void add(int i, int j, int k, Out w, const Nearest& at) {
    if (Bounded && !this->inside(grid, i, j, k)) return;
    const auto n = grid.offset(i, j, k);
    const int c = label[Rule == kHard ? this->offset_of(grid, at) : n];
    if (c >= 0 && c < channels) sum[c * stride] += factor * w * grid.template at<Out>(n);
  }
};

}  // namespace XREG_ISA
}  // namespace xreg

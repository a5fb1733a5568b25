// One Gaussian seen from one camera: the integral along each ray in closed form, written once for host and card.
//
// With r = mean - source and d the direction of a pixel's ray, p = W r and q = W d, the integral over the whole line is
//
//   I = density * |d| * sqrt(2 pi / D) * exp(-N / (2 D)),   N = |p x q|^2,   D = |q|^2,
//
// since c - b^2 / a = |p x q|^2 / |q|^2 for a = q.q, b = p.q, c = p.p; the cross product has no cancellation.  For a
// pinhole p is the same for all pixels and q is affine in (u, v), for a parallel beam the other way round, so p x q is
// affine too.  About the pixel (uc, vc) where the ray meets the mean, p x q vanishes:
//
//   N = |x xu + y xv|^2,   D = |q + x qu + y qv|^2,   x = u - uc, y = v - vc.
//
// A Gaussian counts where N / D < cutoff^2, that is inside an ellipse; the integral is not cut at the detector.  It
// counts for a view only where its ellipsoid of `cutoff` sigmas lies wholly in front of the source.
//
// The affine kind takes the projection as linear about the mean (M. Zwicker et al., EWA volume splatting, 2001):
// D and |d| as they are at (uc, vc).  For a parallel beam that is no approximation.
#pragma once
#include "splat_gaussian.cuh"
#include "splat_lanes.cuh"

namespace xreg {
inline namespace XREG_ISA {

enum SplatKind { kSplatExact = 0, kSplatAffine = 1, kSplatParallel = 2 };  // as numbered in api.h

constexpr double kHalfLog2E = 0.72134752044448170368;  // exp(-e / 2) = 2^(-kHalfLog2E e)
constexpr double kRootTwoPi = 2.50662827463100050242;
constexpr double kMostPixels = 1 << 22;  // centres further away are counted from here

// A view and what follows from it alone.
struct Lens {
  Vec3 s0, su, sv, d0, du, dv;
  Vec3 along_u, along_v, normal;  // r . these, over r . normal, give the pixel of a point (pinhole)
  double det;
};

template <SplatKind K>
HD Lens lens_of(const double* basis) {
  Lens c{vec3(basis), vec3(basis + 3), vec3(basis + 6), vec3(basis + 9), vec3(basis + 12), vec3(basis + 15), {}, {}, {}, 0};
  const Vec3 eu = K == kSplatParallel ? c.su : c.du, ev = K == kSplatParallel ? c.sv : c.dv;
  c.along_u = cross(ev, c.d0);
  c.along_v = cross(c.d0, eu);
  c.normal = cross(eu, ev);
  c.det = dot(c.d0, c.normal);
  return c;
}

// The length of a pixel's ray; for the affine kind it is part of a Gaussian's weight instead.
HD double ray_length(const Lens& c, double u, double v) {
  const Vec3 d = c.d0 + u * c.du + v * c.dv;
  return sqrt(dot(d, d));
}

// The vectors of the formulas above, for one Gaussian and one view.
struct Sight {
  bool seen;
  double t, uc, vc;  // r = t (d0 + uc du + vc dv), or r = t d0 + uc su + vc sv
  Vec3 r, p, q, qu, qv, pu, pv, xu, xv;
};

template <SplatKind K>
HD Sight sight_of(const Lens& c, const Gaussian& g, double cutoff) {
  Sight a{};
  a.r = g.mean - c.s0;
  const double hw = dot(a.r, c.normal);
  a.t = hw / c.det;
  a.q = g.whiten * c.d0;
  if (K == kSplatParallel) {
    a.uc = dot(a.r, c.along_u) / c.det;
    a.vc = dot(a.r, c.along_v) / c.det;
    a.p = g.whiten * (a.r - a.uc * c.su - a.vc * c.sv);
    a.pu = -1.0 * (g.whiten * c.su);
    a.pv = -1.0 * (g.whiten * c.sv);
    a.xu = cross(a.pu, a.q);
    a.xv = cross(a.pv, a.q);
    a.seen = magnitude(c.det) > 0;
  } else {
    a.uc = dot(a.r, c.along_u) / hw;
    a.vc = dot(a.r, c.along_v) / hw;
    a.p = g.whiten * a.r;
    a.qu = g.whiten * c.du;
    a.qv = g.whiten * c.dv;
    a.q = (1.0 / a.t) * a.p;
    a.xu = cross(a.p, a.qu);
    a.xv = cross(a.p, a.qv);
    // the ellipsoid in front of the plane through the source, parallel to the detector
    a.seen = a.t > 0 && magnitude(hw) > cutoff * (1 + 1e-6) * reach(g, c.normal);
  }
  return a;
}

// What the pixels need to know of a Gaussian.  Lengths are divided by D at the centre, and N also by 2 / log2(e).
template <class Real>
struct alignas(16 * sizeof(Real)) Footprint {
  int32_t u, v;  // the centre's pixel is (u + fu, v + fv)
  Real fu, fv;
  Real a, b, c;                // N = a x^2 + 2 b x y + c y^2
  Real du, dv, duu, duv, dvv;  // D = 1 + du x + dv y + duu x^2 + duv x y + dvv y^2
  Real weight;                 // of 2^(-N/D) / sqrt(D)
  Real m0, m1, m2;             // for the moments: (1 / t, b1, b2), or (t, tu, tv) of a parallel beam
};

template <SplatKind K>
HD Footprint<double> footprint_of(const Gaussian& g, const Sight& s) {
  Footprint<double> f{};
  const double d = dot(s.q, s.q), inverse = 1.0 / d, scale = kHalfLog2E * inverse;
  const double u = floor(clamp(s.uc, -kMostPixels, kMostPixels)), v = floor(clamp(s.vc, -kMostPixels, kMostPixels));
  f.u = static_cast<int32_t>(u);
  f.v = static_cast<int32_t>(v);
  f.fu = s.uc - u;
  f.fv = s.vc - v;
  f.a = scale * dot(s.xu, s.xu);
  f.b = scale * dot(s.xu, s.xv);
  f.c = scale * dot(s.xv, s.xv);
  if (K == kSplatExact) {
    f.du = 2 * dot(s.q, s.qu) * inverse;
    f.dv = 2 * dot(s.q, s.qv) * inverse;
    f.duu = dot(s.qu, s.qu) * inverse;
    f.duv = 2 * dot(s.qu, s.qv) * inverse;
    f.dvv = dot(s.qv, s.qv) * inverse;
    const Vec3 n = cross(s.qu, s.qv);
    f.m0 = 1.0 / s.t;
    f.m1 = dot(n, s.xu) * inverse;
    f.m2 = dot(n, s.xv) * inverse;
  }
  if (K == kSplatParallel) {
    f.m0 = dot(s.p, s.q) * inverse;
    f.m1 = dot(s.pu, s.q) * inverse;
    f.m2 = dot(s.pv, s.q) * inverse;
  }
  const double length = K == kSplatAffine ? sqrt(dot(s.r, s.r)) / s.t : 1.0;
  f.weight = g.density * kRootTwoPi * length / sqrt(d);
  return f;
}

template <class Real>
HD Footprint<Real> narrow(const Footprint<double>& f) {
  const auto r = [](double x) { return static_cast<Real>(x); };
  return {f.u, f.v, r(f.fu), r(f.fv), r(f.a), r(f.b), r(f.c), r(f.du), r(f.dv), r(f.duu), r(f.duv), r(f.dvv),
          r(f.weight), r(f.m0), r(f.m1), r(f.m2)};
}

// The distance to the centre along v, and what follows while u alone changes: of a row, or of the rows of a block.
template <class V>
struct RowTerms {
  V y, n0, n1, d0, d1;
};

template <SplatKind K, bool Slight = false, class V, class Real>
HD RowTerms<V> row_terms(const Footprint<Real>& f, V y) {
  RowTerms<V> row;
  row.y = y;
  row.n0 = -f.c * y * y;
  row.n1 = Real(-2) * f.b * y;
  row.d0 = y * (f.dv + f.dvv * y) + Real(Slight ? 0 : 1);
  row.d1 = f.du + f.duv * y;
  return row;
}

template <class Real>
HD Real offset_u(const Footprint<Real>& f, int u) { return static_cast<Real>(u - f.u) - f.fu; }
template <class Real>
HD Real offset_v(const Footprint<Real>& f, int v) { return static_cast<Real>(v - f.v) - f.fv; }

// -N and D at the pixels x; D - 1 in place of D where that is slight.
template <class V>
struct Quotient {
  V n, d;
};

template <SplatKind K, class V, class Real>
HD Quotient<V> along_row(const Footprint<Real>& f, const RowTerms<V>& row, V x) {
  return {row.n0 + x * (row.n1 - f.a * x), K == kSplatExact ? row.d0 + x * (row.d1 + f.duu * x) : splat_of<V>(1)};
}

// The parts of 2^t / sqrt(D): t = -N / D, y = 1 / sqrt(D), y2 = 1 / D.
template <class V>
struct Falloff {
  V t, y, y2;
};

template <SplatKind K, bool Slight = false, class V>
HD Falloff<V> falloff_of(const Quotient<V>& at) {
  using Real = ScalarOf<V>;
  if (K != kSplatExact) return {at.n, splat_of<V>(1), splat_of<V>(1)};
  if (Slight) {
    const V y = inverse_sqrt_near_one(at.d), y2 = y * y;
    return {at.n * y2, y, y2};
  }
  const V tiny = splat_of<V>(static_cast<Real>(1e-20));  // rounding may pass below zero, but only outside the ellipse
  const V y = inverse_sqrt(upper(tiny, at.d)), y2 = y * y;
  return {at.n * y2, y, y2};
}

// 2^t / sqrt(D), zero outside the ellipse.
template <SplatKind K, class V>
HD V value_of(const Falloff<V>& f, ScalarOf<V> limit) {
  const V value = exp2_above(f.t, -limit);
  return K == kSplatExact ? f.y * value : value;
}

// Sums over the pixels of a Gaussian, from which all of its gradients follow: of w, w (1, x, y, xx, xy, yy) / D, and the
// same times (e - 1); w is the cotangent times the falloff.
template <class V>
struct PixelSums {
  V w, au, av, auu, auv, avv, b, bu, bv, buu, buv, bvv;
  HD void clear() { w = au = av = auu = auv = avv = b = bu = bv = buu = buv = bvv = splat_of<V>(0); }
};

template <SplatKind K, bool Slight = false, class V, class Real>
HD void gather(PixelSums<V>& s, const Footprint<Real>& f, const RowTerms<V>& row, V x, V cotangent, Real limit) {
  const Falloff<V> at = falloff_of<K, Slight>(along_row<K>(f, row, x));
  const V w = cotangent * value_of<K>(at, limit);
  const V y = row.y;
  const V a = w * at.y2, ax = a * x, ay = a * y;
  s.w += w;
  s.au += ax;
  s.av += ay;
  s.auu += ax * x;
  s.auv += ax * y;
  s.avv += ay * y;
  if (K == kSplatAffine) return;
  const V b = a * (at.t * static_cast<Real>(-1 / kHalfLog2E) - Real(1));
  s.b += b;
  if (K == kSplatParallel) return;
  const V bx = b * x, by = b * y;
  s.bu += bx;
  s.bv += by;
  s.buu += bx * x;
  s.buv += bx * y;
  s.bvv += by * y;
}

// The image at a pixel, and its change along two directions of the source and of the ray's direction: those of the
// basis, (du, dv) of a pinhole or (su, sv) of a parallel beam.  With the ray itself, along which nothing changes,
// they make up the six moments.
template <class V>
struct PixelMoments {
  V image, su, sv, du, dv;
};

template <SplatKind K, bool Slight = false, class V, class Real>
HD void accumulate(PixelMoments<V>& m, const Footprint<Real>& f, const RowTerms<V>& row, V x, Real limit) {
  const Falloff<V> at = falloff_of<K, Slight>(along_row<K>(f, row, x));
  const V value = f.weight * value_of<K>(at, limit);
  const Real half = static_cast<Real>(1 / kHalfLog2E);
  const V y = row.y;
  const V a = value * at.y2;
  const V nu = half * (f.a * x + f.b * y), nv = half * (f.b * x + f.c * y);  // half the slope of N
  m.image += value;
  if (K == kSplatParallel) {
    const V t = f.m0 + x * f.m1 + y * f.m2;
    m.su -= value * nu;
    m.sv -= value * nv;
    m.du += value * (f.m1 - t * nu);
    m.dv += value * (f.m2 - t * nv);
  } else {
    const V b = Real(-0.5) * (half * at.t + Real(1));
    const V turn = f.m1 * x + f.m2 * y;
    m.su += a * (y * turn - f.m0 * nu);
    m.sv -= a * (x * turn + f.m0 * nv);
    m.du += a * (b * (row.d1 + Real(2) * f.duu * x) - nu);
    m.dv += a * (b * (f.dv + Real(2) * f.dvv * y + f.duv * x) - nv);
  }
}

// The six moments of a pixel from its four directional ones: g.d = 0, g.e1 and g.e2 are known.
struct RayFrame {
  Vec3 d, for_1, for_2, e1, e2;
  double length;
};

template <SplatKind K>
HD RayFrame ray_frame(const Lens& c, int u, int v) {
  RayFrame f;
  f.e1 = K == kSplatParallel ? c.su : c.du;
  f.e2 = K == kSplatParallel ? c.sv : c.dv;
  f.d = c.d0 + static_cast<double>(u) * c.du + static_cast<double>(v) * c.dv;
  f.length = sqrt(dot(f.d, f.d));
  const double inverse = 1.0 / dot(cross(f.e1, f.e2), f.d);
  f.for_1 = inverse * cross(f.e2, f.d);
  f.for_2 = inverse * cross(f.d, f.e1);
  return f;
}

template <class Real>
HD void write_moments(const RayFrame& f, double image, double su, double sv, double du, double dv, Real* out,
                      int64_t stride) {
  const Vec3 s = f.length * (su * f.for_1 + sv * f.for_2);
  const double stretch = image / (f.length * f.length);  // of |d|
  const Vec3 d = (f.length * du + stretch * dot(f.d, f.e1)) * f.for_1 + (f.length * dv + stretch * dot(f.d, f.e2)) * f.for_2;
  const double six[6] = {s.x, s.y, s.z, d.x, d.y, d.z};
  for (int i = 0; i < 6; ++i) out[i * stride] = static_cast<Real>(six[i]);
}

}  // namespace XREG_ISA
}  // namespace xreg

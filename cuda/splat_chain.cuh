// From sums over pixels to the gradient of a Gaussian and of the rays: the chain rule of splat.cuh, once a Gaussian.
#pragma once
#include "splat.cuh"

namespace xreg {
inline namespace XREG_ISA {

// Gradient to the six vectors of a view.
struct LensGrad {
  Vec3 s0, su, sv, d0, du, dv;
};

HD void add_to(double* out, const LensGrad& g) {
  const Vec3 all[6] = {g.s0, g.su, g.sv, g.d0, g.du, g.dv};
  for (int i = 0; i < 6; ++i) {
    out[3 * i] += all[i].x;
    out[3 * i + 1] += all[i].y;
    out[3 * i + 2] += all[i].z;
  }
}

// The gradient of one Gaussian's mean, W and density, and its share in that of the view.
struct GaussianGrad {
  Vec3 mean{};
  Mat3 whiten{};
  double density = 0;
};

// Exact and parallel.  The centre (uc, vc) is a place to count from here, not a variable: N and D are polynomials, the
// same from wherever they are counted.
template <SplatKind K, class Real>
HD void chain_exact(const Lens& c, const Gaussian& g, const Sight& s, const PixelSums<double>& m, GaussianGrad& out,
                    LensGrad& lens) {
  const double d = dot(s.q, s.q), unit = kRootTwoPi / sqrt(d), weight = g.density * unit;
  const double fn = -0.5 * weight / d, fd = 0.5 * weight / d;  // of the sums over a and over b
  out.density += unit * m.w;
  // x = p x q = x0 + x xu + y xv with x0 = 0
  const Vec3 gx0 = 2 * fn * (m.au * s.xu + m.av * s.xv);
  const Vec3 gxu = 2 * fn * (m.auu * s.xu + m.auv * s.xv);
  const Vec3 gxv = 2 * fn * (m.auv * s.xu + m.avv * s.xv);
  Vec3 gq = 2 * fd * (m.b * s.q + m.bu * s.qu + m.bv * s.qv);
  Vec3 gp = cross(s.q, gx0);
  gq += cross(gx0, s.p);
  if (K == kSplatParallel) {  // xu = pu x q, xv = pv x q; p = W (m - s0 - uc su - vc sv), pu = -W su
    const Vec3 gpu = cross(s.q, gxu), gpv = cross(s.q, gxv);
    gq += cross(gxu, s.pu) + cross(gxv, s.pv);
    const Vec3 rc = s.r - s.uc * c.su - s.vc * c.sv;
    add_outer(out.whiten, gp, rc);
    add_outer(out.whiten, gq, c.d0);
    add_outer(out.whiten, -1.0 * gpu, c.su);
    add_outer(out.whiten, -1.0 * gpv, c.sv);
    const Vec3 gr = turned(g.whiten, gp);
    out.mean += gr;
    lens.s0 += -1.0 * gr;
    lens.su += -1.0 * (s.uc * gr + turned(g.whiten, gpu));
    lens.sv += -1.0 * (s.vc * gr + turned(g.whiten, gpv));
    lens.d0 += turned(g.whiten, gq);
  } else {  // xu = p x qu, xv = p x qv; q = W (d0 + uc du + vc dv), qu = W du
    const Vec3 gqu = cross(gxu, s.p) + 2 * fd * (m.bu * s.q + m.buu * s.qu + m.buv * s.qv);
    const Vec3 gqv = cross(gxv, s.p) + 2 * fd * (m.bv * s.q + m.buv * s.qu + m.bvv * s.qv);
    gp += cross(s.qu, gxu) + cross(s.qv, gxv);
    const Vec3 dc = c.d0 + s.uc * c.du + s.vc * c.dv;
    add_outer(out.whiten, gp, s.r);
    add_outer(out.whiten, gq, dc);
    add_outer(out.whiten, gqu, c.du);
    add_outer(out.whiten, gqv, c.dv);
    const Vec3 gr = turned(g.whiten, gp), gd = turned(g.whiten, gq);
    out.mean += gr;
    lens.s0 += -1.0 * gr;
    lens.d0 += gd;
    lens.du += s.uc * gd + turned(g.whiten, gqu);
    lens.dv += s.vc * gd + turned(g.whiten, gqv);
  }
}

// Affine: here the centre is a variable.  With N = A x^2 + 2 B x y + C y^2, A = |xu|^2 / D and so on, D = |p|^2 / t^2.
template <class Real>
HD void chain_affine(const Lens& c, const Gaussian& g, const Sight& s, const PixelSums<double>& m, GaussianGrad& out,
                     LensGrad& lens) {
  const double d = dot(s.q, s.q), r2 = dot(s.r, s.r), p2 = dot(s.p, s.p);
  const double unit = kRootTwoPi * sqrt(r2 / p2), weight = g.density * unit, f = -0.5 * weight;
  const double a = dot(s.xu, s.xu) / d, b = dot(s.xu, s.xv) / d, cc = dot(s.xv, s.xv) / d;
  const double ga = f * m.auu, gb = 2 * f * m.auv, gc = f * m.avv;
  const double gu = -2 * f * (a * m.au + b * m.av), gv = -2 * f * (b * m.au + cc * m.av);
  out.density += unit * m.w;
  const Vec3 gxu = (1 / d) * (2 * ga * s.xu + gb * s.xv), gxv = (1 / d) * (gb * s.xu + 2 * gc * s.xv);
  const double gd = -(a * ga + b * gb + cc * gc) / d;
  Vec3 gp = cross(s.qu, gxu) + cross(s.qv, gxv) + (2 * gd / (s.t * s.t)) * s.p - (weight * m.w / p2) * s.p;
  const Vec3 gqu = cross(gxu, s.p), gqv = cross(gxv, s.p);
  const double gt = -2 * gd * d / s.t;
  // uc = r.along_u / r.normal, vc = r.along_v / r.normal, t = r.normal / det
  const double hw = dot(s.r, c.normal);
  const double hu = gu / hw, hv = gv / hw, hn = -(s.uc * gu + s.vc * gv) / hw + gt / c.det;
  const double gdet = -gt * s.t / c.det;
  Vec3 gr = (weight * m.w / r2) * s.r + hu * c.along_u + hv * c.along_v + hn * c.normal + turned(g.whiten, gp);
  const Vec3 gau = hu * s.r, gav = hv * s.r, gn = hn * s.r + gdet * c.d0;
  // along_u = dv x d0, along_v = d0 x du, normal = du x dv, det = d0 . normal
  add_outer(out.whiten, gp, s.r);
  add_outer(out.whiten, gqu, c.du);
  add_outer(out.whiten, gqv, c.dv);
  out.mean += gr;
  lens.s0 += -1.0 * gr;
  lens.d0 += cross(gau, c.dv) + cross(c.du, gav) + gdet * c.normal;
  lens.du += cross(gav, c.d0) + cross(c.dv, gn) + turned(g.whiten, gqu);
  lens.dv += cross(c.d0, gau) + cross(gn, c.du) + turned(g.whiten, gqv);
}

template <SplatKind K, class Real>
HD void chain(const Lens& c, const Gaussian& g, const Sight& s, const PixelSums<double>& m, GaussianGrad& out,
              LensGrad& lens) {
  if constexpr (K == kSplatAffine) chain_affine<Real>(c, g, s, m, out, lens);
  else chain_exact<K, Real>(c, g, s, m, out, lens);
}

}  // namespace XREG_ISA
}  // namespace xreg

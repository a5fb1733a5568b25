// One Gaussian, G(x) = density * exp(-|W (x - mean)|^2 / 2) with W = diag(1 / scale) R^T, and how W follows from its
// scale and its quaternion.  Everything here is float64: it is done once a Gaussian, not once a pixel.
#pragma once
#include "api.h"
#include "math.cuh"

namespace xreg {
inline namespace XREG_ISA {

struct Vec3 {
  double x, y, z;
};
HD Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
HD Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
HD Vec3 operator*(double s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
HD void operator+=(Vec3& a, Vec3 b) { a = a + b; }
HD double dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
HD Vec3 cross(Vec3 a, Vec3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
HD Vec3 vec3(const double* p) { return {p[0], p[1], p[2]}; }

struct Mat3 {
  Vec3 row0, row1, row2;
};
HD Vec3 operator*(const Mat3& m, Vec3 a) { return {dot(m.row0, a), dot(m.row1, a), dot(m.row2, a)}; }
// m^T a
HD Vec3 turned(const Mat3& m, Vec3 a) { return a.x * m.row0 + a.y * m.row1 + a.z * m.row2; }
// m += a b^T
HD void add_outer(Mat3& m, Vec3 a, Vec3 b) {
  m.row0 += a.x * b;
  m.row1 += a.y * b;
  m.row2 += a.z * b;
}

template <class Real>
struct GaussianArrays {
  const Real *mean, *scale, *rotation, *density;  // [n][3], [n][3], [n][4] as (x, y, z, w), [n]
};

template <class Real>
struct GaussianGrads {
  Real *mean, *scale, *rotation, *density;
};

template <class Real>
GaussianArrays<Real> arrays_of(const XregGaussians& g) {
  return {static_cast<const Real*>(g.mean), static_cast<const Real*>(g.scale), static_cast<const Real*>(g.rotation),
          static_cast<const Real*>(g.density)};
}

template <class Real>
GaussianGrads<Real> grads_of(const XregGaussianGrads& g) {
  return {static_cast<Real*>(g.mean), static_cast<Real*>(g.scale), static_cast<Real*>(g.rotation),
          static_cast<Real*>(g.density)};
}

struct Gaussian {
  Vec3 mean, scale;
  double density;
  double qx, qy, qz, qw, norm;  // the quaternion of norm 1, and the norm that was given
  Mat3 turn;                    // R^T: its rows are the Gaussian's axes
  Mat3 whiten;                  // W
};

template <class Real>
HD Gaussian gaussian_at(const GaussianArrays<Real>& all, int64_t n) {
  Gaussian g;
  const Real *m = all.mean + 3 * n, *s = all.scale + 3 * n, *q = all.rotation + 4 * n;
  g.mean = {static_cast<double>(m[0]), static_cast<double>(m[1]), static_cast<double>(m[2])};
  g.scale = {static_cast<double>(s[0]), static_cast<double>(s[1]), static_cast<double>(s[2])};
  g.density = static_cast<double>(all.density[n]);
  double x = q[0], y = q[1], z = q[2], w = q[3];
  g.norm = sqrt(x * x + y * y + z * z + w * w);
  const double inv = 1.0 / g.norm;
  x *= inv, y *= inv, z *= inv, w *= inv;
  g.qx = x, g.qy = y, g.qz = z, g.qw = w;
  g.turn.row0 = {1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)};
  g.turn.row1 = {2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)};
  g.turn.row2 = {2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)};
  g.whiten.row0 = (1.0 / g.scale.x) * g.turn.row0;
  g.whiten.row1 = (1.0 / g.scale.y) * g.turn.row1;
  g.whiten.row2 = (1.0 / g.scale.z) * g.turn.row2;
  return g;
}

// The longest reach of the unit ellipsoid along n: sqrt(n^T Sigma n).
HD double reach(const Gaussian& g, Vec3 n) {
  const Vec3 t = g.turn * n;
  const Vec3 s = {g.scale.x * t.x, g.scale.y * t.y, g.scale.z * t.z};
  return sqrt(dot(s, s));
}

// Adds the gradient of one Gaussian to the results, given those of its mean, of W and of its density.
template <class Real>
HD void add_gradient(const Gaussian& g, Vec3 mean, const Mat3& w, double density, int64_t n,
                     const GaussianGrads<Real>& out) {
  const Vec3 inv = {1.0 / g.scale.x, 1.0 / g.scale.y, 1.0 / g.scale.z};
  const Vec3 scale = {-inv.x * dot(w.row0, g.whiten.row0), -inv.y * dot(w.row1, g.whiten.row1),
                      -inv.z * dot(w.row2, g.whiten.row2)};
  const Vec3 a = inv.x * w.row0, b = inv.y * w.row1, c = inv.z * w.row2;  // gradient of R^T, by rows
  const double x = g.qx, y = g.qy, z = g.qz, q = g.qw;
  double gx = 2 * (y * (a.y + b.x) + z * (a.z + c.x) + q * (b.z - c.y)) - 4 * x * (b.y + c.z);
  double gy = 2 * (x * (a.y + b.x) + z * (b.z + c.y) + q * (c.x - a.z)) - 4 * y * (a.x + c.z);
  double gz = 2 * (x * (a.z + c.x) + y * (b.z + c.y) + q * (a.y - b.x)) - 4 * z * (a.x + b.y);
  double gw = 2 * (x * (b.z - c.y) + y * (c.x - a.z) + z * (a.y - b.x));
  const double along = gx * x + gy * y + gz * z + gw * q;  // the norm changes nothing
  const double inverse = 1.0 / g.norm;
  const auto add = [](Real& to, double value) { to = static_cast<Real>(to + value); };
  add(out.mean[3 * n], mean.x);
  add(out.mean[3 * n + 1], mean.y);
  add(out.mean[3 * n + 2], mean.z);
  add(out.scale[3 * n], scale.x);
  add(out.scale[3 * n + 1], scale.y);
  add(out.scale[3 * n + 2], scale.z);
  add(out.rotation[4 * n], inverse * (gx - along * x));
  add(out.rotation[4 * n + 1], inverse * (gy - along * y));
  add(out.rotation[4 * n + 2], inverse * (gz - along * z));
  add(out.rotation[4 * n + 3], inverse * (gw - along * q));
  add(out.density[n], density);
}

}  // namespace XREG_ISA
}  // namespace xreg

// Which pixels and tiles the ellipse of a Gaussian touches, exactly: the outline of an ellipsoid is a conic.
#pragma once
#include "splat.cuh"

namespace xreg {
inline namespace XREG_ISA {

constexpr int kTile = 16;  // pixels along each side of a tile on a card

// xx x^2 + xy x y + yy y^2 + x x + y y + one <= 0, about the Gaussian's centre.
template <class Real>
struct Conic {
  Real xx, xy, yy, x, y, one;
};

// limit: cutoff^2 in powers of two, as the footprint's numbers are.
HD Conic<double> conic_of(const Footprint<double>& f, double limit) {
  return {f.a - limit * f.duu, 2 * f.b - limit * f.duv, f.c - limit * f.dvv, -limit * f.du, -limit * f.dv, -limit};
}

template <class Real>
HD Conic<Real> narrow(const Conic<double>& c) {
  const auto r = [](double x) { return static_cast<Real>(x); };
  return {r(c.xx), r(c.xy), r(c.yy), r(c.x), r(c.y), r(c.one)};
}

// Where the line y meets the ellipse; both ends are the middle where it does not.
template <class V, class Real>
HD void chord(const Conic<Real>& c, V y, V& lo, V& hi) {
  roots_of<V>(c.xx, c.xy * y + c.x, c.one + y * (c.y + c.yy * y), lo, hi);
}

// The box of the ellipse, and at which y its leftmost and rightmost points lie.
struct EllipseBox {
  bool real;
  double x0, x1, y0, y1, y_of_x0, y_of_x1;
};

HD EllipseBox box_of(const Conic<double>& c) {
  EllipseBox box{};
  const double det = 4 * c.xx * c.yy - c.xy * c.xy;
  const double inverse = 1.0 / det;
  const double mx = (c.xy * c.y - 2 * c.yy * c.x) * inverse, my = (c.xy * c.x - 2 * c.xx * c.y) * inverse;  // the middle
  const double size = -(c.one + 0.5 * (c.x * mx + c.y * my));  // xx x^2 + xy x y + yy y^2 = size about it
  const double wx = sqrt(4 * c.yy * size * inverse), wy = sqrt(4 * c.xx * size * inverse);
  box.real = det > 0 && c.xx > 0 && size > 0 && wx < 1e12 && wy < 1e12;
  box.x0 = mx - wx;
  box.x1 = mx + wx;
  box.y0 = my - wy;
  box.y1 = my + wy;
  const double tilt = -c.xy / (2 * c.yy);
  box.y_of_x0 = my - tilt * wx;
  box.y_of_x1 = my + tilt * wx;
  return box;
}

// Leftmost and rightmost x of the ellipse between the lines ya <= yb; false where it does not reach them.
HD bool span_between(const Conic<double>& c, const EllipseBox& box, double ya, double yb, double& lo, double& hi) {
  ya = upper(ya, box.y0);
  yb = lower(yb, box.y1);
  if (!(ya <= yb)) return false;
  double la, ha, lb, hb;
  chord(c, ya, la, ha);
  chord(c, yb, lb, hb);
  lo = ya <= box.y_of_x0 && box.y_of_x0 <= yb ? box.x0 : lower(la, lb);
  hi = ya <= box.y_of_x1 && box.y_of_x1 <= yb ? box.x1 : upper(ha, hb);
  return true;
}

constexpr double kSlack = 1e-3;  // pixels: what rounding in float32 may move an outline

// A chord's end as a whole number of [least, most], rounded towards zero.
template <class Real>
HD int within(Real x, int least, int most) {
  return static_cast<int>(lower(upper(x, static_cast<Real>(least)), static_cast<Real>(most)));
}

HD int32_t pixel_from(double x, int64_t least) {
  return static_cast<int32_t>(upper(ceil(upper(x, -1e9) - kSlack), static_cast<double>(least)));
}
HD int32_t pixel_to(double x, int64_t most) {
  return static_cast<int32_t>(lower(floor(lower(x, 1e9) + kSlack), static_cast<double>(most)));
}

// Where one Gaussian lies in a view.
struct Outline {
  Conic<double> conic;
  EllipseBox box;
  int32_t u0, u1, v0, v1;  // pixels of the box in the image, both ends included
};

// One Gaussian ready for the pixels of a view; false where it has none.
template <SplatKind K, class Real>
HD bool look(const Lens& c, const Gaussian& g, double cutoff, int height, int width, Sight& s, Footprint<Real>& f,
             Outline& o) {
  s = sight_of<K>(c, g, cutoff);
  if (!s.seen) return false;
  const Footprint<double> fine = footprint_of<K>(g, s);
  f = narrow<Real>(fine);
  o.conic = conic_of(fine, kHalfLog2E * cutoff * cutoff);
  o.box = box_of(o.conic);
  if (!o.box.real) return false;
  o.u0 = pixel_from(s.uc + o.box.x0, 0);
  o.u1 = pixel_to(s.uc + o.box.x1, width - 1);
  o.v0 = pixel_from(s.vc + o.box.y0, 0);
  o.v1 = pixel_to(s.vc + o.box.y1, height - 1);
  return o.u0 <= o.u1 && o.v0 <= o.v1;
}

// Tiles [first, last] of tile row `row` that the ellipse touches; first > last where it touches none.
HD void tiles_of_row(const Sight& s, const Outline& o, int row, int& first, int& last) {
  first = 0;
  last = -1;
  const int va = upper(row * kTile, o.v0), vb = lower(row * kTile + kTile - 1, o.v1);
  double lo, hi;
  if (va > vb || !span_between(o.conic, o.box, va - s.vc - kSlack, vb - s.vc + kSlack, lo, hi)) return;
  const int u0 = upper(pixel_from(s.uc + lo, 0), o.u0), u1 = lower(pixel_to(s.uc + hi, 1 << 30), o.u1);
  if (u0 > u1) return;
  first = u0 / kTile;
  last = u1 / kTile;
}

}  // namespace XREG_ISA
}  // namespace xreg

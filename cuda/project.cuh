// From pixels to results: sets a packet's rays up, marches them and writes what comes out.
#pragma once
#include "raymarch.cuh"

namespace xreg {
inline namespace XREG_ISA {

struct Beam {
  Metric metric;
  int height, width;
  Integrator integrator;
  int steps;
};

template <int L>
struct Pixels {
  int u[L], v[L];
};

template <int L>
HD Rays<L> rays_of(const View& view, const Pixels<L>& px) {
  Rays<L> r;
  XREG_LANES
  for (int l = 0; l < L; ++l)
    for (int a = 0; a < 3; ++a) {
      r.s[a][l] = view.source(a, px.u[l], px.v[l]);
      r.d[a][l] = view.direction(a, px.u[l], px.v[l]);
    }
  return r;
}

// |d| in mm and the metric applied to d, for the part of dI/dd that comes from the length.
template <int L>
HD double length_of(const Rays<L>& r, int l, const Metric& m, double gd[3]) {
  const double d[3] = {r.d[0][l], r.d[1][l], r.d[2][l]};
  m.apply(d, gd);
  return sqrt(d[0] * gd[0] + d[1] * gd[1] + d[2] * gd[2]);
}

// I = length * sum;  dI/ds = length * a;  dI/dd = length * b + sum * G d / length.
template <int L, class Sink, class Real>
HD void write_packet(const Sink& sink, const Rays<L>& r, const Beam& beam, const Pixels<L>& px, const bool (&own)[L],
                     double scale, Real* image, Real* moments) {
  const int64_t plane = static_cast<int64_t>(beam.height) * beam.width;
  for (int l = 0; l < L; ++l) {
    if (!own[l]) continue;
    double gd[3];
    const double length = length_of(r, l, beam.metric, gd);
    const int64_t at = static_cast<int64_t>(px.v[l]) * beam.width + px.u[l];
    if (image) image[at] = static_cast<Real>(scale * length * sink.sum[l]);
    if (!Sink::kMoments) continue;
    for (int q = 0; q < 3; ++q) {
      moments[q * plane + at] = static_cast<Real>(scale * length * sink.a[q][l]);
      moments[(3 + q) * plane + at] =
          static_cast<Real>(scale * (length * sink.b[q][l] + sink.sum[l] * gd[q] / length));
    }
  }
}

template <int L, class Sink, class Real>
HD void render_packet(Sink& sink, const View& view, const Beam& beam, const Pixels<L>& px, const bool (&own)[L],
                      double scale, Real* image, Real* moments) {
  const Rays<L> r = rays_of(view, px);
  sink.clear();
  march<L>(sink, r, region_of(sink.grid, 0, sink.grid.nz), beam.integrator, beam.steps);
  write_packet(sink, r, beam, px, own, scale, image, moments);
}

// Length in mm of the ray of one pixel: the factor between a sum over t and a line integral.
HD double ray_length(const Rays<1>& r, const Beam& beam) {
  double gd[3];
  return length_of(r, 0, beam.metric, gd);
}

}  // namespace XREG_ISA
}  // namespace xreg

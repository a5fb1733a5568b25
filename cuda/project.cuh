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
    if constexpr (Sink::kMoments) {
      for (int q = 0; q < 3; ++q) {
        moments[q * plane + at] = static_cast<Real>(scale * length * sink.a[q][l]);
        moments[(3 + q) * plane + at] =
            static_cast<Real>(scale * (length * sink.b[q][l] + sink.sum[l] * gd[q] / length));
      }
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

HD double ray_length(const Rays<1>& r, const Beam& beam) {
  double gd[3];
  return length_of(r, 0, beam.metric, gd);
}

// What the ray-by-ray kernels know of a pixel; channels of one pixel are `stride` apart.
struct Pixel {
  Pixels<1> at;
  int64_t index, stride;
};

HD Pixel pixel_of(const Beam& beam, int u, int v) {
  Pixel p;
  p.at.u[0] = u;
  p.at.v[0] = v;
  p.index = static_cast<int64_t>(v) * beam.width + u;
  p.stride = static_cast<int64_t>(beam.height) * beam.width;
  return p;
}

// image [channels][h][w] of one view, zero before.
template <LabelRule Rule, class Grid, class Real>
HD void sort_pixel(const Grid& grid, const int16_t* label, int channels, const View& view, const Beam& beam,
                   const Pixel& p, double scale, Real* image) {
  const Rays<1> r = rays_of(view, p.at);
  LabelSum<Grid, Real, Rule> sink{};
  sink.grid = grid;
  sink.label = label;
  sink.sum = image + p.index;
  sink.stride = p.stride;
  sink.factor = static_cast<Real>(scale * ray_length(r, beam));
  sink.channels = channels;
  march<1>(sink, r, region_of(grid, 0, grid.nz), beam.integrator, beam.steps);
}

// moments [6][h][w] of sum_c cotangent[c] I_c for one view.
template <LabelRule Rule, class Grid, class Real>
HD void label_moments_pixel(const Grid& grid, const int16_t* label, int channels, const View& view, const Beam& beam,
                            const Pixel& p, double scale, const Real* cotangent, Real* moments) {
  const Rays<1> r = rays_of(view, p.at);
  Integral<Weighted<Grid, Real, Rule>, Real, 1, true> sink;
  sink.grid = {grid, label, cotangent + p.index, p.stride, channels, grid.nx, grid.ny, grid.nz};
  sink.clear();
  march<1>(sink, r, region_of(grid, 0, grid.nz), beam.integrator, beam.steps);
  const bool own[1] = {true};
  write_packet<1>(sink, r, beam, p.at, own, scale, static_cast<Real*>(nullptr), moments);
}

// Spreads one pixel's cotangent over slices [k0, k1) of the volume.
template <LabelRule Rule, class Grid, class Real, class Cell>
HD void spread_pixel(const Grid& grid, const int16_t* label, int channels, const View& view, const Beam& beam,
                     const Pixel& p, double scale, const Real* cotangent, Cell* volume, int k0, int k1) {
  const Region region = region_of(grid, k0, k1, Rule != kUnlabelled);
  const Rays<1> r = rays_of(view, p.at);
  if (Rule == kUnlabelled && cotangent[p.index] == Real(0)) return;
  Scatter<Grid, Real, Rule, Cell> sink{};
  sink.grid = grid;
  sink.out = volume;
  sink.k0 = k0;
  sink.k1 = k1;
  sink.factor = static_cast<Real>(scale * ray_length(r, beam));
  if (Rule == kUnlabelled) sink.factor *= cotangent[p.index];
  sink.label = label;
  sink.cotangent = cotangent + p.index;
  sink.stride = p.stride;
  sink.channels = channels;
  march<1>(sink, r, region, beam.integrator, beam.steps);
}

}  // namespace XREG_ISA
}  // namespace xreg

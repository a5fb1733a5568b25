// What the host launchers share: jobs, and pixels of a view in packets.
#pragma once
#include "launch.cuh"

namespace xreg {
inline namespace XREG_ISA {

template <class F>
void parallel(XregFor run, int64_t n, const F& body) {
  run(n, [](int64_t i, void* c) { (*static_cast<const F*>(c))(i); }, const_cast<F*>(&body));
}

// Tile x Tile pixels a packet; a job is a row of packets.
template <int Tile, bool Moments, class Grid, class Real>
void project_grid(const Grid& grid, const XregVolume& vol, const XregBeam& xb, Real* image, Real* moments, XregFor run) {
  const Beam beam = beam_of(xb);
  const int64_t plane = static_cast<int64_t>(beam.height) * beam.width;
  const int rows = (beam.height + Tile - 1) / Tile, cols = (beam.width + Tile - 1) / Tile;
  parallel(run, xb.views * rows, [&](int64_t job) {
    const int64_t view = job / rows;
    const int v0 = static_cast<int>(job % rows) * Tile;
    const View rays{xb.rays + 18 * view};
    constexpr int kLanes = Tile * Tile;
    Integral<Grid, Real, kLanes, Moments> sink;
    sink.grid = grid;
    for (int c = 0; c < cols; ++c) {
      Pixels<kLanes> px;
      bool own[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        const int u = c * Tile + l % Tile, v = v0 + l / Tile;
        own[l] = u < beam.width && v < beam.height;
        px.u[l] = lower(u, beam.width - 1);
        px.v[l] = lower(v, beam.height - 1);
      }
      render_packet<kLanes>(sink, rays, beam, px, own, vol.scale, image + view * plane,
                            Moments ? moments + 6 * view * plane : nullptr);
    }
  });
}

}  // namespace XREG_ISA
}  // namespace xreg

// Host kernels that go ray by ray: labels, the adjoint, and the float64 build that serves as oracle.
// Volumes of 2^31 voxels and more are projected here too, with 64-bit indices.
#define XREG_SCALAR
#define XREG_ISA scalar
#include "launch_cpu.h"

#include <vector>

namespace xreg {
inline namespace XREG_ISA {
namespace {

// Calls f(view number, view, pixel) for each pixel of row `job`.
template <class F>
void each_pixel_of_row(const XregBeam& xb, const Beam& beam, int64_t job, const F& f) {
  const int64_t number = job / beam.height;
  const View view{xb.rays + 18 * number};
  for (int u = 0; u < beam.width; ++u) f(number, view, pixel_of(beam, u, static_cast<int>(job % beam.height)));
}

template <LabelRule Rule, class Grid, class Real>
void sort_all(const Grid& grid, const XregLabels& labels, const XregVolume& vol, const XregBeam& xb, Real* image,
              XregFor run) {
  const Beam beam = beam_of(xb);
  parallel(run, xb.views * beam.height, [&](int64_t job) {
    each_pixel_of_row(xb, beam, job, [&](int64_t number, const View& view, const Pixel& p) {
      sort_pixel<Rule>(grid, labels.data, labels.channels, view, beam, p, vol.scale,
                       image + number * labels.channels * p.stride);
    });
  });
}

template <LabelRule Rule, class Grid, class Real>
void label_moments_all(const Grid& grid, const XregLabels& labels, const XregVolume& vol, const XregBeam& xb,
                       const Real* cotangent, Real* moments, XregFor run) {
  const Beam beam = beam_of(xb);
  parallel(run, xb.views * beam.height, [&](int64_t job) {
    each_pixel_of_row(xb, beam, job, [&](int64_t number, const View& view, const Pixel& p) {
      label_moments_pixel<Rule>(grid, labels.data, labels.channels, view, beam, p, vol.scale,
                                cotangent + number * labels.channels * p.stride, moments + 6 * number * p.stride);
    });
  });
}

// Slabs of slices are written by one job each, rays in order: no atomics, and the same bits on any
// number of threads.
constexpr int kSlabs = 16;
constexpr int64_t kRaysAtOnce = 1 << 20;  // whose slabs are kept, two bytes each

// The slabs [first, end) that a ray may touch.
struct Reach {
  uint8_t first = 0, end = 0;
};

// No slab but these is worth the setting up of a march.  Joseph's planes reach half a voxel past a ray's ends
// along its steepest axis, so no further across; a march touches slices k0 - 1 < z < k1 for slab [k0, k1).
template <class Grid>
Reach reach_of(const Grid& grid, const View& view, const Pixel& p, int thick, int slabs) {
  const Rays<1> r = rays_of(view, p.at);
  const double room = 2.0, slack = 1.0;
  const Span<1> span = clip(r, {{-room, -room, -room}, {grid.nx + room, grid.ny + room, grid.nz + room}});
  if (!(span.t0[0] <= span.t1[0])) return {};
  const double a = r.s[2][0] + span.t0[0] * r.d[2][0], b = r.s[2][0] + span.t1[0] * r.d[2][0];
  const double lowest = (lower(a, b) - slack) / thick, highest = (upper(a, b) + 1.0 + slack) / thick;
  Reach reach;
  reach.first = static_cast<uint8_t>(clamp(floor(lowest), 0.0, double(slabs)));
  reach.end = static_cast<uint8_t>(clamp(floor(highest) + 1.0, 0.0, double(slabs)));
  return reach;
}

template <LabelRule Rule, class Grid, class Real>
void spread_all(const Grid& grid, const XregLabels& labels, const XregBeam& xb, double scale, const Real* cotangent,
                Real* volume, XregFor run) {
  const Beam beam = beam_of(xb);
  const int channels = Rule == kUnlabelled ? 1 : labels.channels;
  const int thick = (grid.nz + kSlabs - 1) / kSlabs, slabs = (grid.nz + thick - 1) / thick;
  const int64_t rows = xb.views * beam.height, at_once = upper<int64_t>(kRaysAtOnce / beam.width, 1);
  std::vector<Reach> reach(static_cast<size_t>(lower(rows, at_once) * beam.width));
  for (int64_t row0 = 0; row0 < rows; row0 += at_once) {
    const int64_t row1 = lower(row0 + at_once, rows);
    parallel(run, row1 - row0, [&](int64_t row) {
      Reach* out = reach.data() + row * beam.width;
      each_pixel_of_row(xb, beam, row0 + row, [&](int64_t number, const View& view, const Pixel& p) {
        const bool nothing = Rule == kUnlabelled && cotangent[number * p.stride + p.index] == Real(0);
        *out++ = nothing ? Reach{} : reach_of(grid, view, p, thick, slabs);
      });
    });
    parallel(run, slabs, [&](int64_t slab) {
      const int k0 = static_cast<int>(slab) * thick, k1 = lower(k0 + thick, grid.nz);
      const Reach* ray = reach.data();
      for (int64_t row = row0; row < row1; ++row)
        each_pixel_of_row(xb, beam, row, [&](int64_t number, const View& view, const Pixel& p) {
          const Reach touched = *ray++;
          if (slab < touched.first || slab >= touched.end) return;
          spread_pixel<Rule>(grid, labels.data, channels, view, beam, p, scale,
                             cotangent + number * channels * p.stride, volume, k0, k1);
        });
    });
  }
}

}  // namespace
}  // namespace XREG_ISA
}  // namespace xreg

extern "C" {

void xreg_project_scalar(const XregVolume* vol, const XregBeam* beam, void* image, void* moments, XregFor run) {
  using namespace xreg;
  with_grid<int64_t>(*vol, [&](auto grid, auto real) {
    using Real = decltype(real);
    Real* out = static_cast<Real*>(image);
    Real* jac = static_cast<Real*>(moments);
    if (jac) project_grid<1, true>(grid, *vol, *beam, out, jac, run);
    else project_grid<1, false>(grid, *vol, *beam, out, jac, run);
  });
}

void xreg_project_labels(const XregVolume* vol, const XregBeam* beam, const XregLabels* labels, void* image,
                         XregFor run) {
  using namespace xreg;
  with_grid<int64_t>(*vol, [&](auto grid, auto real) {
    auto* out = static_cast<decltype(real)*>(image);
    if (labels->soft) sort_all<kSoft>(grid, *labels, *vol, *beam, out, run);
    else sort_all<kHard>(grid, *labels, *vol, *beam, out, run);
  });
}

void xreg_label_moments(const XregVolume* vol, const XregBeam* beam, const XregLabels* labels, const void* cotangent,
                        void* moments, XregFor run) {
  using namespace xreg;
  with_grid<int64_t>(*vol, [&](auto grid, auto real) {
    const auto* g = static_cast<const decltype(real)*>(cotangent);
    auto* out = static_cast<decltype(real)*>(moments);
    if (labels->soft) label_moments_all<kSoft>(grid, *labels, *vol, *beam, g, out, run);
    else label_moments_all<kHard>(grid, *labels, *vol, *beam, g, out, run);
  });
}

void xreg_backproject(const XregVolume* vol, const XregBeam* beam, const XregLabels* labels, const void* cotangent,
                      void* volume, XregFor run) {
  using namespace xreg;
  auto call = [&](auto real) {
    using Real = decltype(real);
    const Voxels<Real, int64_t> grid{nullptr, vol->nx, vol->ny, vol->nz};  // only its shape is used
    const Real* g = static_cast<const Real*>(cotangent);
    Real* out = static_cast<Real*>(volume);
    if (!labels) spread_all<kUnlabelled>(grid, XregLabels{}, *beam, vol->scale, g, out, run);
    else if (labels->soft) spread_all<kSoft>(grid, *labels, *beam, vol->scale, g, out, run);
    else spread_all<kHard>(grid, *labels, *beam, vol->scale, g, out, run);
  };
  if (vol->dtype == XREG_FLOAT64) call(double{});
  else call(float{});
}

}  // extern "C"

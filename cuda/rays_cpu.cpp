// Host kernels that go ray by ray: labels, the adjoint, and the float64 build that serves as oracle.
// Volumes of 2^31 voxels and more are projected here too, with 64-bit indices.
#define XREG_SCALAR
#define XREG_ISA scalar
#include "launch_cpu.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace xreg {
inline namespace XREG_ISA {
namespace {

template <class T>
using Result = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f(grid, result) with the stored voxel type and the type of the results.
template <class F>
void with_grid(const XregVolume& v, const F& f) {
  auto call = [&](auto voxel) {
    using T = decltype(voxel);
    f(Voxels<T, int64_t>{static_cast<const T*>(v.voxels), v.nx, v.ny, v.nz}, Result<T>{});
  };
  if (v.dtype == XREG_INT16) call(int16_t{});
  if (v.dtype == XREG_FLOAT32) call(float{});
  if (v.dtype == XREG_FLOAT64) call(double{});
}

// Calls f(view, pixel, ray) for each pixel of row `job`.
template <class F>
void each_ray_of_row(const XregBeam& xb, int64_t job, const F& f) {
  const int64_t view = job / xb.height;
  const View rays{xb.rays + 18 * view};
  Pixels<1> px;
  px.v[0] = static_cast<int>(job % xb.height);
  for (px.u[0] = 0; px.u[0] < xb.width; ++px.u[0])
    f(view, static_cast<int64_t>(px.v[0]) * xb.width + px.u[0], rays_of(rays, px));
}

template <LabelRule Rule, class Grid, class Real>
void project_labels_grid(const Grid& grid, const int16_t* label, const XregVolume& vol, const XregBeam& xb, int channels,
                         Real* image, XregFor run) {
  const Beam beam = beam_of(xb);
  const int64_t plane = static_cast<int64_t>(beam.height) * beam.width;
  parallel(run, xb.views * beam.height, [&](int64_t job) {
    std::vector<Real> sum(channels);
    each_ray_of_row(xb, job, [&](int64_t view, int64_t pixel, const Rays<1>& r) {
      std::fill(sum.begin(), sum.end(), Real(0));
      LabelSum<Grid, Real, Rule> sink{};
      sink.grid = grid;
      sink.label = label;
      sink.sum = sum.data();
      sink.channels = channels;
      march<1>(sink, r, region_of(grid, 0, grid.nz), beam.integrator, beam.steps);
      const double length = vol.scale * ray_length(r, beam);
      for (int c = 0; c < channels; ++c)
        image[(view * channels + c) * plane + pixel] = static_cast<Real>(length * sum[c]);
    });
  });
}

template <LabelRule Rule, class Grid, class Real>
void label_moments_grid(const Grid& grid, const int16_t* label, const XregVolume& vol, const XregBeam& xb, int channels,
                        const Real* cotangent, Real* moments, XregFor run) {
  const Beam beam = beam_of(xb);
  const int64_t plane = static_cast<int64_t>(beam.height) * beam.width;
  parallel(run, xb.views * beam.height, [&](int64_t job) {
    std::vector<Real> weight(channels);
    Pixels<1> px;
    each_ray_of_row(xb, job, [&](int64_t view, int64_t pixel, const Rays<1>& r) {
      for (int c = 0; c < channels; ++c) weight[c] = cotangent[(view * channels + c) * plane + pixel];
      Integral<Weighted<Grid, Real, Rule>, Real, 1, true> sink;
      sink.grid = {grid, label, weight.data(), channels, grid.nx, grid.ny, grid.nz};
      sink.clear();
      march<1>(sink, r, region_of(grid, 0, grid.nz), beam.integrator, beam.steps);
      px.u[0] = static_cast<int>(pixel % beam.width);
      px.v[0] = static_cast<int>(pixel / beam.width);
      const bool own[1] = {true};
      write_packet<1>(sink, r, beam, px, own, vol.scale, static_cast<Real*>(nullptr), moments + 6 * view * plane);
    });
  });
}

// Slabs of slices are written by one job each, rays in order: no atomics, and the same bits on any
// number of threads.
constexpr int kSlabs = 16;

template <LabelRule Rule, class Grid, class Real>
void backproject_grid(const Grid& grid, const int16_t* label, const XregBeam& xb, int channels, const Real* cotangent,
                      Real* volume, double scale, XregFor run) {
  const Beam beam = beam_of(xb);
  const int64_t plane = static_cast<int64_t>(beam.height) * beam.width;
  const int thick = (grid.nz + kSlabs - 1) / kSlabs, slabs = (grid.nz + thick - 1) / thick;
  parallel(run, slabs, [&](int64_t slab) {
    std::vector<Real> weight(upper(channels, 1));
    Scatter<Grid, Real, Rule> sink{};
    sink.grid = grid;
    sink.out = volume;
    sink.k0 = static_cast<int>(slab) * thick;
    sink.k1 = lower(sink.k0 + thick, grid.nz);
    sink.label = label;
    sink.weight = weight.data();
    sink.channels = channels;
    const Region region = region_of(grid, sink.k0, sink.k1);
    for (int64_t job = 0; job < xb.views * beam.height; ++job)
      each_ray_of_row(xb, job, [&](int64_t view, int64_t pixel, const Rays<1>& r) {
        const Span<1> span = clip(r, region.outer);
        if (!(span.t0[0] < span.t1[0])) return;
        const double length = scale * ray_length(r, beam);
        if (Rule == kUnlabelled) {
          const Real g = cotangent[view * plane + pixel];
          if (g == Real(0)) return;
          sink.value = static_cast<Real>(length * g);
        } else {
          for (int c = 0; c < channels; ++c)
            weight[c] = static_cast<Real>(length * cotangent[(view * channels + c) * plane + pixel]);
        }
        march<1>(sink, r, region, beam.integrator, beam.steps);
      });
  });
}

}  // namespace
}  // namespace XREG_ISA
}  // namespace xreg

extern "C" {

void xreg_project_scalar(const XregVolume* vol, const XregBeam* beam, void* image, void* moments, XregFor run) {
  using namespace xreg;
  with_grid(*vol, [&](auto grid, auto real) {
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
  with_grid(*vol, [&](auto grid, auto real) {
    auto* out = static_cast<decltype(real)*>(image);
    if (labels->soft) project_labels_grid<kSoft>(grid, labels->data, *vol, *beam, labels->channels, out, run);
    else project_labels_grid<kHard>(grid, labels->data, *vol, *beam, labels->channels, out, run);
  });
}

void xreg_label_moments(const XregVolume* vol, const XregBeam* beam, const XregLabels* labels, const void* cotangent,
                        void* moments, XregFor run) {
  using namespace xreg;
  with_grid(*vol, [&](auto grid, auto real) {
    const auto* g = static_cast<const decltype(real)*>(cotangent);
    auto* out = static_cast<decltype(real)*>(moments);
    if (labels->soft) label_moments_grid<kSoft>(grid, labels->data, *vol, *beam, labels->channels, g, out, run);
    else label_moments_grid<kHard>(grid, labels->data, *vol, *beam, labels->channels, g, out, run);
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
    if (!labels) backproject_grid<kUnlabelled>(grid, nullptr, *beam, 0, g, out, vol->scale, run);
    else if (labels->soft) backproject_grid<kSoft>(grid, labels->data, *beam, labels->channels, g, out, vol->scale, run);
    else backproject_grid<kHard>(grid, labels->data, *beam, labels->channels, g, out, vol->scale, run);
  };
  if (vol->dtype == XREG_FLOAT64) call(double{});
  else call(float{});
}

}  // extern "C"

// The bodies that only a card runs, run on the host: Joseph's rule over a texture atlas with the gather written
// out, and the adjoint with whole numbers.  Compiled by test_device_bodies.py.
#define XREG_SCALAR
#define XREG_ISA scalar
#include "api.h"
#include "atlas.cuh"

#include <vector>

using namespace xreg;

namespace {

Beam beam_of(const XregBeam& b) {
  return Beam{{b.metric[0], b.metric[1], b.metric[2], b.metric[3], b.metric[4], b.metric[5]},
              b.height, b.width, static_cast<Integrator>(b.integrator), b.steps};
}

// A texture that reads zero outside and picks the four texels about a point as a card does: with eight bits of
// a texel's fraction, moved by `nudge`.
struct Texture {
  Atlas atlas;
  std::vector<int16_t> texels;
  double nudge;
  float at(int x, int y) const {
    if (x < 0 || y < 0 || x >= atlas.width || y >= atlas.height) return 0.0f;
    const float v = texels[static_cast<size_t>(y) * atlas.width + x] / 32767.0f;
    return v < -1.0f ? -1.0f : v;
  }
  Quad gather(float x, float y) const {
    const int i = static_cast<int>(std::floor(std::round((x - 0.5 + nudge) * 256.0) / 256.0));
    const int j = static_cast<int>(std::floor(std::round((y - 0.5 + nudge) * 256.0) / 256.0));
    return {at(i, j + 1), at(i + 1, j + 1), at(i + 1, j), at(i, j)};
  }
};

struct Textures {
  const Texture* of;
  template <int Axis>
  Quad gather(float x, float y) const { return of[Axis].gather(x, y); }
};

Texture texture_of(const XregVolume& v, int axis, int widest, int highest, double nudge) {
  Texture t{atlas_of(axis, v.nx, v.ny, v.nz, widest, highest), {}, nudge};
  const auto* voxels = static_cast<const int16_t*>(v.voxels);
  for (int y = 0; y < t.atlas.height; ++y)
    for (int x = 0; x < t.atlas.width; ++x) {
      Texel e;
      int16_t value = 0;
      if (texel_of(t.atlas, x, y, e)) {
        const int i = axis == 0 ? e.plane : e.u, j = axis == 0 ? e.u : axis == 1 ? e.plane : e.v;
        const int k = axis == 2 ? e.plane : e.v;
        value = voxels[(static_cast<int64_t>(k) * v.ny + j) * v.nx + i];
      }
      t.texels.push_back(value);
    }
  return t;
}

template <class F>
void each_pixel(const XregBeam& b, bool backwards, const F& f) {
  const int64_t plane = static_cast<int64_t>(b.height) * b.width, count = b.views * plane;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t at = backwards ? count - 1 - n : n;
    f(at / plane, static_cast<int>(at % plane % b.width), static_cast<int>(at % plane / b.width));
  }
}

template <class Real>
void backproject(const XregVolume& v, const XregBeam& b, bool backwards, bool whole, const Real* g, Real* out) {
  const Beam beam = beam_of(b);
  const Voxels<Real, int64_t> grid{nullptr, v.nx, v.ny, v.nz};
  const int64_t voxels = static_cast<int64_t>(v.nx) * v.ny * v.nz, plane = static_cast<int64_t>(b.height) * b.width;
  double largest = 0.0, longest = 0.0;
  each_pixel(b, false, [&](int64_t view, int x, int y) {
    const double one = magnitude(static_cast<double>(g[view * plane + int64_t(y) * b.width + x]));
    largest = one <= largest || largest != largest ? largest : one;
    if ((x == 0 || x == b.width - 1) && (y == 0 || y == b.height - 1))
      longest = upper(longest, ray_length(rays_of(View{b.rays + 18 * view}, Pixels<1>{{x}, {y}}), beam));
  });
  const double grains = grains_in_one(magnitude(v.scale) * longest * largest, static_cast<double>(b.views * plane));
  std::vector<Whole> sums(voxels, Whole{0});
  each_pixel(b, backwards, [&](int64_t view, int x, int y) {
    const View rays{b.rays + 18 * view};
    const Pixel p = pixel_of(beam, x, y);
    if (!whole) spread_pixel<kUnlabelled>(grid, nullptr, 1, rays, beam, p, v.scale, g + view * plane, out, 0, v.nz);
    else if (grains > 0.0)
      spread_pixel<kUnlabelled>(grid, nullptr, 1, rays, beam, p, v.scale * grains, g + view * plane, sums.data(), 0, v.nz);
  });
  if (whole)
    for (int64_t i = 0; i < voxels; ++i) out[i] = static_cast<Real>(worth(sums[i], grains));
}

}  // namespace

extern "C" {

void layout(int axis, int nx, int ny, int nz, int widest, int highest, int* out) {
  const Atlas a = atlas_of(axis, nx, ny, nz, widest, highest);
  const int found[] = {a.nu, a.nv, a.planes, a.columns, a.rows, a.tile_u, a.tile_v, a.width, a.height};
  for (int i = 0; i < 9; ++i) out[i] = found[i];
}

// Planes whose tile begins elsewhere than at their column and row.
int misplaced(int axis, int nx, int ny, int nz, int widest, int highest) {
  const Atlas a = atlas_of(axis, nx, ny, nz, widest, highest);
  int wrong = 0;
  for (int p = 0; p < a.planes; ++p) {
    float x, y;
    tiles_of(a).begin(p, x, y);
    Texel t;
    const bool inside = texel_of(a, static_cast<int>(x) + kBefore, static_cast<int>(y) + kBefore, t);
    wrong += !inside || t.plane != p || t.u != 0 || t.v != 0 || x != std::floor(x) || y != std::floor(y);
  }
  return wrong;
}

void atlas_joseph(const XregVolume* v, const XregBeam* b, int widest, int highest, double nudge, float* image,
                  float* moments) {
  Texture textures[3];
  Tiles tiles[3];
  for (int a = 0; a < 3; ++a) {
    textures[a] = texture_of(*v, a, widest, highest, nudge);
    tiles[a] = tiles_of(textures[a].atlas);
  }
  const Beam beam = beam_of(*b);
  const int64_t plane = static_cast<int64_t>(b->height) * b->width;
  each_pixel(*b, false, [&](int64_t view, int x, int y) {
    atlas_pixel<true>(Textures{textures}, Shape{v->nx, v->ny, v->nz}, tiles, View{b->rays + 18 * view}, beam,
                      pixel_of(beam, x, y), v->scale, image + view * plane, moments + 6 * view * plane);
  });
}

void adjoint(const XregVolume* v, const XregBeam* b, int backwards, int whole, const void* g, void* out) {
  if (v->dtype == XREG_FLOAT64)
    backproject(*v, *b, backwards, whole, static_cast<const double*>(g), static_cast<double*>(out));
  else
    backproject(*v, *b, backwards, whole, static_cast<const float*>(g), static_cast<float*>(out));
}
}

// A volume as planes side by side in 2D textures, for Joseph's rule: the four voxels about a sample come from
// one gather, and the weights stay float32 (a texture's own filter has 8 bits).
//
// There is one atlas an axis, of the planes across it.  A plane is a tile with two texels of zeros before its
// first column and row and one after its last; beyond that begins the next tile, with zeros too, or the outside,
// which reads as zero.  So a position clamped to [-2, n] needs no check, and no voxel of another plane is met.
#pragma once
#include "project.cuh"

namespace xreg {
inline namespace XREG_ISA {

constexpr int kBefore = 2, kAfter = 1;  // texels of zeros about a plane

struct Atlas {
  int nu, nv, planes;  // voxels of a plane, and how many there are
  int columns, rows;   // of tiles
  int tile_u, tile_v;
  int width, height;  // of the texture
};

// The atlas of planes across an axis; rows is 0 where it does not fit a texture of this size.
HD Atlas atlas_of(int axis, int nx, int ny, int nz, int widest, int highest) {
  Atlas a{};
  a.nu = axis == 0 ? ny : nx;
  a.nv = axis == 2 ? ny : nz;
  a.planes = axis == 0 ? nx : axis == 1 ? ny : nz;
  a.tile_u = a.nu + kBefore + kAfter;
  a.tile_v = a.nv + kBefore + kAfter;
  if (a.tile_u > widest) return a;
  a.columns = lower(a.planes, widest / a.tile_u);
  const int rows = (a.planes + a.columns - 1) / a.columns;
  a.width = a.columns * a.tile_u;
  if (static_cast<int64_t>(rows) * a.tile_v > highest) return a;
  a.height = rows * a.tile_v;
  a.rows = rows;
  return a;
}

// The voxel (u, v) of a plane that a texel holds; false where it is one of the zeros.
struct Texel {
  int plane, u, v;
};
HD bool texel_of(const Atlas& a, int x, int y, Texel& t) {
  t.plane = y / a.tile_v * a.columns + x / a.tile_u;
  t.u = x % a.tile_u - kBefore;
  t.v = y % a.tile_v - kBefore;
  return t.plane < a.planes && t.u >= 0 && t.u < a.nu && t.v >= 0 && t.v < a.nv;
}

// What a gather returns.  Its order is that of all graphics interfaces, against the clock from the lower left
// with v downwards: x (0, 1), y (1, 1), z (1, 0), w (0, 0), as (u, v) from the texel of the smallest numbers.
struct Quad {
  float x, y, z, w;
  HD float v00() const { return w; }
  HD float v10() const { return z; }
  HD float v01() const { return x; }
  HD float v11() const { return y; }
};

// Largest whole number not above x, |x| < 2^22, in two additions.
HD float whole_below(float x) {
#if defined(__CUDA_ARCH__)
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is worth 1
  return __fadd_rd(x, kShift) - kShift;
#else
  return std::floor(x);
#endif
}

// What a march needs of an atlas, ready for float32 arithmetic.
struct Tiles {
  float columns, per_column, half;  // per_column = 1 / columns, half = 0.5 / columns
  float tile_u, tile_v;
  float most_u, most_v;  // where a plane's field has fallen to zero

  // The texel at which a plane's tile begins.  (plane + 1/2) / columns is no nearer to a whole number than half a
  // column, which float32 can tell for as many planes as textures have room for.
  HD void begin(int plane, float& x, float& y) const {
    const float p = static_cast<float>(plane), row = whole_below(p * per_column + half);
    x = (p - row * columns) * tile_u;
    y = row * tile_v;
  }
};
HD Tiles tiles_of(const Atlas& a) {
  const float columns = static_cast<float>(a.columns);
  return {columns, 1.0f / columns, 0.5f / columns, float(a.tile_u), float(a.tile_v), float(a.nu), float(a.nv)};
}

struct Shape {
  int nx, ny, nz;
};

// Joseph's integral over atlases; Fetch has `Quad gather<Axis>(x, y)`: the four texels about the point (x, y),
// texel centres lying at halves.  Voxels count as parts of the largest 16-bit number.
template <class Fetch, bool Moments>
struct AtlasIntegral : Integral<Voxels<int16_t, int32_t>, float, 1, Moments> {
  using Base = Integral<Voxels<int16_t, int32_t>, float, 1, Moments>;
  Fetch fetch;
  Tiles tiles[3];

  template <int Axis, bool Bounded>
  HD void plane(int l, int p, float y, float z, float w, float n, float cut_lo, float cut_hi) {
    constexpr int kY = Axis == 0 ? 1 : 0, kZ = Axis == 2 ? 1 : 2;
    const Tiles& t = tiles[Axis];
    if (Bounded) {
      y = clamp(y, -2.0f, t.most_u);
      z = clamp(z, -2.0f, t.most_v);
    }
    const float iy = whole_below(y), iz = whole_below(z), fy = y - iy, fz = z - iz;
    float x0, y0;
    t.begin(p, x0, y0);
    // the point where the four texels meet, half a texel from where rounding could pick others
    const Quad q = fetch.template gather<Axis>(x0 + (iy + float(kBefore + 1)), y0 + (iz + float(kBefore + 1)));
    const float d0 = q.v10() - q.v00(), d1 = q.v11() - q.v01();
    const float v0 = q.v00() + fy * d0, v1 = q.v01() + fy * d1;
    const float dz = v1 - v0, value = v0 + fz * dz;
    this->sum[l] += w * value;
    if (Moments) {
      const float gy = w * (d0 + fz * (d1 - d0)), gz = w * dz;
      this->a[kY][l] += gy;
      this->a[kZ][l] += gz;
      this->b[kY][l] += n * gy;
      this->b[kZ][l] += n * gz;
      if (Bounded) {
        this->end_lo[l] += cut_lo * value;
        this->end_hi[l] += cut_hi * value;
      }
    }
  }
  template <int Axis, int Lanes, class Planes>
  HD void look_ahead_plane(const Planes&, int, int, int) const {}
};

// One pixel's image and moments; scale is that of whole 16-bit numbers.
template <bool Moments, class Fetch>
HD void atlas_pixel(const Fetch& fetch, const Shape& shape, const Tiles (&tiles)[3], const View& view,
                    const Beam& beam, const Pixel& p, double scale, float* image, float* moments) {
  AtlasIntegral<Fetch, Moments> sink;
  sink.grid = {nullptr, shape.nx, shape.ny, shape.nz};
  sink.fetch = fetch;
  for (int a = 0; a < 3; ++a) sink.tiles[a] = tiles[a];
  const Rays<1> r = rays_of(view, p.at);
  sink.clear();
  march_joseph<1>(sink, r, region_of(sink.grid, 0, shape.nz));
  const bool own[1] = {true};
  write_packet<1>(sink, r, beam, p.at, own, scale * 32767.0, image, moments);
}

}  // namespace XREG_ISA
}  // namespace xreg

// Where the texture atlas of cuda/atlas.cuh puts planes, asked by test_texture_layout.py.
#define XREG_SCALAR
#define XREG_ISA scalar
#include "atlas.cuh"

using namespace xreg;

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
}

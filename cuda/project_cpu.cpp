// The fast host build of the projector: 16 rays a packet, compiled once for each instruction set
// (XREG_ISA); select_cpu.cpp picks one at run time.
#include "launch_cpu.h"

namespace xreg {
inline namespace XREG_ISA {
namespace {

template <class Voxel>
void project_as(const XregVolume& vol, const XregBeam& beam, float* image, float* moments, XregFor run) {
  const Voxels<Voxel, int32_t> grid{static_cast<const Voxel*>(vol.voxels), vol.nx, vol.ny, vol.nz};
  if (moments) project_grid<4, true>(grid, vol, beam, image, moments, run);
  else project_grid<4, false>(grid, vol, beam, image, moments, run);
}

}  // namespace

extern "C" void XREG_NAMED(xreg_project_)(const XregVolume* vol, const XregBeam* beam, void* image, void* moments,
                                          XregFor run) {
  float* out = static_cast<float*>(image);
  float* jac = static_cast<float*>(moments);
  if (vol->dtype == XREG_INT16) project_as<int16_t>(*vol, *beam, out, jac, run);
  else project_as<float>(*vol, *beam, out, jac, run);
}

}  // namespace XREG_ISA
}  // namespace xreg

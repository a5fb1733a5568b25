// The fast host build of the splatter and the voxeliser: a register of pixels or voxels a step, compiled once for each
// instruction set (XREG_ISA), float32 only.  splat_oracle.cpp has the same one number at a time.
#include "voxelize_cpu.h"

namespace xreg {
inline namespace XREG_ISA {

extern "C" void XREG_NAMED(xreg_splat_)(const XregGaussians* g, const XregSplatView* view, void* image, void* moments,
                                        XregFor run) {
  splat_as<FloatLanes>(*g, *view, image, moments, run);
}

extern "C" void XREG_NAMED(xreg_splat_backward_)(const XregGaussians* g, const XregSplatView* view,
                                                 const void* cotangent, const XregGaussianGrads* out, XregFor run) {
  splat_backward_as<FloatLanes>(*g, *view, cotangent, *out, run);
}

extern "C" void XREG_NAMED(xreg_voxelize_)(const XregGaussians* g, const XregGrid* grid, void* volume, XregFor run) {
  voxelize_as<FloatLanes>(*g, *grid, volume, run);
}

extern "C" void XREG_NAMED(xreg_voxelize_backward_)(const XregGaussians* g, const XregGrid* grid,
                                                    const void* cotangent, const XregGaussianGrads* out, XregFor run) {
  voxelize_backward_as<FloatLanes>(*g, *grid, cotangent, *out, run);
}

}  // namespace XREG_ISA
}  // namespace xreg

// The splatter and the voxeliser one number at a time, in float32 or float64: the oracle.
#define XREG_SCALAR
#define XREG_ISA scalar
#include "voxelize_cpu.h"

using namespace xreg;

extern "C" {

void xreg_splat_scalar(const XregGaussians* g, const XregSplatView* view, void* image, void* moments, XregFor run) {
  if (g->dtype == XREG_FLOAT64) splat_as<double>(*g, *view, image, moments, run);
  else splat_as<float>(*g, *view, image, moments, run);
}

void xreg_splat_backward_scalar(const XregGaussians* g, const XregSplatView* view, const void* cotangent,
                                const XregGaussianGrads* out, XregFor run) {
  if (g->dtype == XREG_FLOAT64) splat_backward_as<double>(*g, *view, cotangent, *out, run);
  else splat_backward_as<float>(*g, *view, cotangent, *out, run);
}

void xreg_voxelize_scalar(const XregGaussians* g, const XregGrid* grid, void* volume, XregFor run) {
  if (g->dtype == XREG_FLOAT64) voxelize_as<double>(*g, *grid, volume, run);
  else voxelize_as<float>(*g, *grid, volume, run);
}

void xreg_voxelize_backward_scalar(const XregGaussians* g, const XregGrid* grid, const void* cotangent,
                                   const XregGaussianGrads* out, XregFor run) {
  if (g->dtype == XREG_FLOAT64) voxelize_backward_as<double>(*g, *grid, cotangent, *out, run);
  else voxelize_backward_as<float>(*g, *grid, cotangent, *out, run);
}

}  // extern "C"

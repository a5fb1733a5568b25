#pragma once
#include "api.h"

#ifdef _WIN32
#define XREG_EXPORT extern "C" __declspec(dllexport)
#else
#define XREG_EXPORT extern "C" __attribute__((visibility("default")))
#endif

/* The name of the build in use; the environment variable XREG_ISA chooses another at start. */
XREG_EXPORT const char* xreg_isa(void);
/* Use the named build from now on: 1, or 0 where this machine cannot run it. */
XREG_EXPORT int xreg_set_isa(const char* name);

/* The launchers of one build. */
struct XregKernels {
  XregProject* project;
  XregSplat* splat;
  XregSplatBackward* splat_backward;
  XregVoxelize* voxelize;
  XregVoxelizeBackward* voxelize_backward;
};

const XregKernels& xreg_best();
const XregKernels& xreg_scalar();  // float64, and more than 2^31 voxels

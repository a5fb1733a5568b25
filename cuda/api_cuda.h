/* The kernels on a CUDA stream.  As api.h, with pointers to device memory and nothing synchronised. */
#pragma once
#include "api.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t xreg_cuda_project(const XregVolume*, const XregBeam*, void* image, void* moments, cudaStream_t);
cudaError_t xreg_cuda_project_labels(const XregVolume*, const XregBeam*, const XregLabels*, void* image, cudaStream_t);
cudaError_t xreg_cuda_label_moments(const XregVolume*, const XregBeam*, const XregLabels*, const void* cotangent,
                                    void* moments, cudaStream_t);
cudaError_t xreg_cuda_backproject(const XregVolume*, const XregBeam*, const XregLabels*, const void* cotangent,
                                  void* volume, cudaStream_t);

#ifdef __cplusplus
}
#endif

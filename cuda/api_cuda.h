/* The kernels on a CUDA stream.  As api.h, with pointers to device memory and nothing synchronised. */
#pragma once
#include "api.h"

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t xreg_cuda_project(const XregVolume*, const XregBeam*, void* image, void* moments, cudaStream_t);
cudaError_t xreg_cuda_project_labels(const XregVolume*, const XregBeam*, const XregLabels*, void* image, cudaStream_t);
cudaError_t xreg_cuda_label_moments(const XregVolume*, const XregBeam*, const XregLabels*, const void* cotangent,
                                    void* moments, cudaStream_t);
/* sums: XREG_CUDA_SUMS more than voxels 64-bit integers, zero before, for a result of the same bits each time;
 * null (without labels only) adds floating-point numbers, in no fixed order. */
#define XREG_CUDA_SUMS 2
cudaError_t xreg_cuda_backproject(const XregVolume*, const XregBeam*, const XregLabels*, const void* cotangent,
                                  void* volume, void* sums, cudaStream_t);

/* 16-bit voxels as three textures, one for planes across each axis (atlas.cuh), in which Joseph's rule reads a
 * sample by one fetch.  Making one fills them in order on the stream and needs `staging`, as many bytes as
 * xreg_cuda_atlas_staging says (0: the volume is too large for this card's textures); freeing one waits for the
 * device. */
typedef struct XregAtlas XregAtlas;
cudaError_t xreg_cuda_atlas_staging(const XregVolume*, size_t* bytes);
cudaError_t xreg_cuda_atlas_new(const XregVolume*, void* staging, XregAtlas**, cudaStream_t);
cudaError_t xreg_cuda_atlas_free(XregAtlas*);
cudaError_t xreg_cuda_atlas_project(const XregAtlas*, double scale, const XregBeam*, void* image, void* moments,
                                    cudaStream_t);

/* Room on the card for as long as a call's work takes: take(bytes, context), aligned as cudaMalloc's (256 bytes). */
typedef struct {
  void* (*take)(size_t bytes, void* context);
  void* context;
} XregScratch;

/* How many pairs of a Gaussian and a tile (or brick) there are is read back, which waits for the stream. */
cudaError_t xreg_cuda_splat(const XregGaussians*, const XregSplatView*, void* image, void* moments, const XregScratch*,
                            cudaStream_t);
cudaError_t xreg_cuda_splat_backward(const XregGaussians*, const XregSplatView*, const void* cotangent,
                                     const XregGaussianGrads*, const XregScratch*, cudaStream_t);
cudaError_t xreg_cuda_voxelize(const XregGaussians*, const XregGrid*, void* volume, const XregScratch*, cudaStream_t);
cudaError_t xreg_cuda_voxelize_backward(const XregGaussians*, const XregGrid*, const void* cotangent,
                                        const XregGaussianGrads*, cudaStream_t);

#ifdef __cplusplus
}
#endif

/* The plain interface of the kernels: pointers, sizes, a way to run jobs.  No torch in it.
 *
 * Voxels are [nz][ny][nx] without gaps, rays are float64 [views][6][3] in voxel coordinates
 * (s0, su, sv, d0, du, dv; see ray.cuh), images are [views][height][width].  Results are float32,
 * or float64 when the voxels are. */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { XREG_INT16 = 0, XREG_FLOAT32 = 1, XREG_FLOAT64 = 2 };

typedef struct {
  const void* voxels; /* not read by a backprojection, which only needs the shape */
  int32_t dtype;
  int32_t nx, ny, nz;
  double scale; /* attenuation = scale * voxel */
} XregVolume;

/* From this many voxels on an index takes 64 bits; a few short of 2^31, as a cell reaches ahead. */
#define XREG_WIDE_VOXELS ((INT64_C(1) << 31) - 8)

typedef struct {
  const double* rays;
  int64_t views;
  int32_t height, width;
  double metric[6];   /* xx, xy, xz, yy, yz, zz of M^T M, M the 3x3 of the affine (mm from index) */
  int32_t integrator; /* 0 trilinear, 1 joseph, 2 siddon, 3 exact */
  int32_t steps;      /* trilinear: samples from source to detector */
} XregBeam;

typedef struct {
  const int16_t* data; /* [nz][ny][nx]; a label outside [0, channels) is left out */
  int32_t channels;
  int32_t soft; /* 0: label of the voxel nearest to the sample; 1: each voxel's share to its own label */
} XregLabels;

/* Runs body(i, context) for i in [0, n), on as many threads as the caller likes. */
typedef void (*XregBody)(int64_t i, void* context);
typedef void (*XregFor)(int64_t n, XregBody body, void* context);

/* image [views][h][w]; moments null or [views][6][h][w]: dI/ds (3) and dI/dd (3) of each ray.
 * base, avx2 and avx512 take int16 and float32 volumes below 2^31 voxels; scalar takes all. */
typedef void XregProject(const XregVolume*, const XregBeam*, void* image, void* moments, XregFor run);
XregProject xreg_project_base, xreg_project_avx2, xreg_project_avx512, xreg_project_scalar;

/* image [views][channels][h][w]. */
void xreg_project_labels(const XregVolume*, const XregBeam*, const XregLabels*, void* image, XregFor run);
/* moments [views][6][h][w] of sum_c cotangent[c] I_c; cotangent [views][channels][h][w]. */
void xreg_label_moments(const XregVolume*, const XregBeam*, const XregLabels*, const void* cotangent, void* moments,
                        XregFor run);
/* volume [nz][ny][nx] += the transpose applied to cotangent [views][h][w] ([views][channels][h][w] with
 * labels, which may be null). */
void xreg_backproject(const XregVolume*, const XregBeam*, const XregLabels*, const void* cotangent, void* volume,
                      XregFor run);

/* Gaussians density * exp(-|diag(1/scale) R^T (x - mean)|^2 / 2) in the coordinates of the rays or of the world,
 * R from the quaternion (x, y, z, w), whose norm does not matter.  float32 or float64, as are the results. */
typedef struct {
  const void *mean, *scale, *rotation, *density; /* [count][3], [count][3], [count][4], [count] */
  int32_t dtype;
  int64_t count; /* below 2^31 */
} XregGaussians;

/* What is added to; rays is float64 [views][6][3], or null, and not used by the voxeliser. */
typedef struct {
  void *mean, *scale, *rotation, *density;
  double* rays;
} XregGaussianGrads;

typedef struct {
  const double* rays; /* as of XregBeam; a pinhole's su and sv, and a parallel beam's du and dv, are taken as zero */
  int64_t views;
  int32_t height, width;
  int32_t kind;  /* 0 pinhole, exact; 1 pinhole, affine about each mean; 2 parallel */
  double cutoff; /* a Gaussian is zero beyond so many sigmas */
} XregSplatView;

typedef struct {
  double affine[12]; /* rows of the 3x4 matrix, world from index */
  int32_t nx, ny, nz;
  double cutoff;
} XregGrid;

/* image [views][h][w]; moments null or [views][6][h][w], as of XregProject, and null for the affine kind. */
typedef void XregSplat(const XregGaussians*, const XregSplatView*, void* image, void* moments, XregFor run);
/* The gradient of sum(cotangent * image), but for what a ray's length |d| as a factor of the image has of it. */
typedef void XregSplatBackward(const XregGaussians*, const XregSplatView*, const void* cotangent,
                               const XregGaussianGrads*, XregFor run);
/* volume [nz][ny][nx], zero before. */
typedef void XregVoxelize(const XregGaussians*, const XregGrid*, void* volume, XregFor run);
typedef void XregVoxelizeBackward(const XregGaussians*, const XregGrid*, const void* cotangent,
                                  const XregGaussianGrads*, XregFor run);
/* base, avx2 and avx512 take float32; scalar takes all. */
XregSplat xreg_splat_base, xreg_splat_avx2, xreg_splat_avx512, xreg_splat_scalar;
XregSplatBackward xreg_splat_backward_base, xreg_splat_backward_avx2, xreg_splat_backward_avx512,
    xreg_splat_backward_scalar;
XregVoxelize xreg_voxelize_base, xreg_voxelize_avx2, xreg_voxelize_avx512, xreg_voxelize_scalar;
XregVoxelizeBackward xreg_voxelize_backward_base, xreg_voxelize_backward_avx2, xreg_voxelize_backward_avx512,
    xreg_voxelize_backward_scalar;

#ifdef __cplusplus
}
#endif

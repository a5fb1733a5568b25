// Tensors to the plain structures of api.h, with every shape and dtype checked; shared by the host
// and the CUDA bindings.
#pragma once
#include "api.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace xreg_bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int32_t dtype_code(const Tensor& t) {
  const ScalarType s = t.scalar_type();
  STD_TORCH_CHECK(s == ScalarType::Short || s == ScalarType::Float || s == ScalarType::Double,
                  "xreg: voxels must be int16, float32 or float64");
  return s == ScalarType::Short ? XREG_INT16 : s == ScalarType::Float ? XREG_FLOAT32 : XREG_FLOAT64;
}

inline ScalarType result_type(int32_t code) { return code == XREG_FLOAT64 ? ScalarType::Double : ScalarType::Float; }

inline XregVolume volume_of(const Tensor& mu, double scale) {
  STD_TORCH_CHECK(mu.dim() == 3 && mu.is_contiguous(), "xreg: voxels must be a contiguous [D, H, W] tensor");
  return {mu.data_ptr(), dtype_code(mu), int32_t(mu.size(2)), int32_t(mu.size(1)), int32_t(mu.size(0)), scale};
}

inline XregBeam beam_of(const Tensor& rays, const Tensor& metric, int64_t height, int64_t width, int64_t integrator,
                 int64_t steps) {
  STD_TORCH_CHECK(rays.dim() == 3 && rays.size(1) == 6 && rays.size(2) == 3 && rays.is_contiguous() &&
                      rays.scalar_type() == ScalarType::Double,
                  "xreg: rays must be a contiguous float64 [V, 6, 3] tensor");
  STD_TORCH_CHECK(metric.numel() == 6 && metric.is_contiguous() && metric.scalar_type() == ScalarType::Double,
                  "xreg: metric must be six float64 numbers");
  XregBeam b{static_cast<const double*>(rays.data_ptr()), rays.size(0), int32_t(height), int32_t(width), {},
             int32_t(integrator), int32_t(steps)};
  const double* m = static_cast<const double*>(metric.data_ptr());
  for (int i = 0; i < 6; ++i) b.metric[i] = m[i];
  return b;
}

inline XregLabels labels_of(const Tensor& labels, const XregVolume& vol, int64_t channels, bool soft) {
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Short && labels.is_contiguous() && labels.dim() == 3 &&
                      labels.size(0) == vol.nz && labels.size(1) == vol.ny && labels.size(2) == vol.nx,
                  "xreg: labels must be a contiguous int16 tensor of the volume's shape");
  return {static_cast<const int16_t*>(labels.data_ptr()), int32_t(channels), int32_t(soft)};
}

inline void check_cotangent(const Tensor& g, const XregBeam& beam, int32_t dtype) {
  STD_TORCH_CHECK(g.is_contiguous() && g.scalar_type() == result_type(dtype) && g.size(-1) == beam.width &&
                      g.size(-2) == beam.height && g.size(0) == beam.views,
                  "xreg: the cotangent must be contiguous and have the image's shape and dtype");
}

}  // namespace xreg_bind

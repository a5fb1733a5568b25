// The kernels as torch operators, written once for host and CUDA: tensors become the plain structures
// of api.h, with every shape, dtype and device checked, and results are allocated.
//
// A device's binding hands in a class that is made for a tensor (and makes its device the current one)
// and has the four launchers of api.h as members, without the last argument that says how to run.
#pragma once
#include "api.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

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

// A dispatcher goes by the tensors it finds, so one that lies elsewhere would be read through a foreign pointer.
inline void check_together(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index(),
                  "xreg: voxels, labels, rays and cotangents must be on one device");
}

inline XregBeam beam_of(const Tensor& rays, const Tensor& metric, int64_t height, int64_t width, int64_t integrator,
                        int64_t steps) {
  STD_TORCH_CHECK(rays.dim() == 3 && rays.size(1) == 6 && rays.size(2) == 3 && rays.is_contiguous() &&
                      rays.scalar_type() == ScalarType::Double,
                  "xreg: rays must be a contiguous float64 [V, 6, 3] tensor");
  STD_TORCH_CHECK(metric.numel() == 6 && metric.is_contiguous() && metric.scalar_type() == ScalarType::Double &&
                      metric.is_cpu(),
                  "xreg: metric must be six float64 numbers on the host");
  STD_TORCH_CHECK(height > 0 && width > 0, "xreg: an image needs at least one pixel");
  STD_TORCH_CHECK(0 <= integrator && integrator <= 3, "xreg: there is no such integrator");
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

// [V, H, W], or [V, channels, H, W] with labels.
inline void check_cotangent(const Tensor& g, const XregBeam& beam, int32_t dtype, bool labelled) {
  STD_TORCH_CHECK(g.dim() == (labelled ? 4 : 3) && g.is_contiguous() && g.scalar_type() == result_type(dtype) &&
                      g.size(-1) == beam.width && g.size(-2) == beam.height && g.size(0) == beam.views,
                  "xreg: the cotangent must be contiguous and have the image's shape and dtype");
}

template <class Device>
std::tuple<Tensor, Tensor> project(Tensor mu, double scale, Tensor rays, Tensor metric, int64_t height, int64_t width,
                                   int64_t integrator, int64_t steps, bool moments) {
  check_together(mu, rays);
  const Device device(mu);
  const XregVolume vol = volume_of(mu, scale);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const ScalarType type = result_type(vol.dtype);
  Tensor image = torch::stable::new_empty(mu, {beam.views, height, width}, type);
  Tensor jac = torch::stable::new_empty(mu, {beam.views, moments ? 6 : 0, height, width}, type);
  device.project(&vol, &beam, image.data_ptr(), moments ? jac.data_ptr() : nullptr);
  return {image, jac};
}

template <class Device>
Tensor project_labels(Tensor mu, double scale, Tensor labels, int64_t channels, bool soft, Tensor rays, Tensor metric,
                      int64_t height, int64_t width, int64_t integrator, int64_t steps) {
  check_together(mu, rays);
  check_together(mu, labels);
  const Device device(mu);
  const XregVolume vol = volume_of(mu, scale);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const XregLabels lab = labels_of(labels, vol, channels, soft);
  Tensor image = torch::stable::new_zeros(mu, {beam.views, channels, height, width}, result_type(vol.dtype));
  device.project_labels(&vol, &beam, &lab, image.data_ptr());
  return image;
}

template <class Device>
Tensor label_moments(Tensor cotangent, Tensor mu, double scale, Tensor labels, bool soft, Tensor rays, Tensor metric,
                     int64_t integrator, int64_t steps) {
  check_together(mu, rays);
  check_together(mu, labels);
  check_together(mu, cotangent);
  const Device device(mu);
  const XregVolume vol = volume_of(mu, scale);
  const int64_t height = cotangent.size(-2), width = cotangent.size(-1);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  check_cotangent(cotangent, beam, vol.dtype, true);
  const XregLabels lab = labels_of(labels, vol, cotangent.size(1), soft);
  Tensor jac = torch::stable::new_empty(cotangent, {beam.views, 6, height, width});
  device.label_moments(&vol, &beam, &lab, cotangent.data_ptr(), jac.data_ptr());
  return jac;
}

template <class Device>
Tensor backproject(Tensor cotangent, double scale, int64_t depth, int64_t rows, int64_t cols,
                   std::optional<Tensor> labels, bool soft, Tensor rays, Tensor metric, int64_t integrator,
                   int64_t steps) {
  check_together(cotangent, rays);
  if (labels) check_together(cotangent, *labels);
  const Device device(cotangent);
  const bool wide = cotangent.scalar_type() == ScalarType::Double;
  const XregVolume vol{nullptr, wide ? XREG_FLOAT64 : XREG_FLOAT32, int32_t(cols), int32_t(rows), int32_t(depth), scale};
  const XregBeam beam = beam_of(rays, metric, cotangent.size(-2), cotangent.size(-1), integrator, steps);
  check_cotangent(cotangent, beam, vol.dtype, labels.has_value());
  XregLabels lab{};
  if (labels) lab = labels_of(*labels, vol, cotangent.size(1), soft);
  Tensor volume = torch::stable::new_zeros(cotangent, {depth, rows, cols});
  device.backproject(&vol, &beam, labels ? &lab : nullptr, cotangent.data_ptr(), volume.data_ptr());
  return volume;
}

template <class Device>
void register_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("project", TORCH_BOX(&project<Device>));
  library.impl("project_labels", TORCH_BOX(&project_labels<Device>));
  library.impl("label_moments", TORCH_BOX(&label_moments<Device>));
  library.impl("backproject", TORCH_BOX(&backproject<Device>));
}

}  // namespace xreg_bind

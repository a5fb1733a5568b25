// The host kernels as torch operators, through LibTorch's stable ABI: one build loads in every
// torch from 2.10 on.  Schemas, fake kernels and autograd are registered in xreg/ops/registry.py.
#include "bind.h"
#include "select_cpu.h"

#include <atomic>

namespace {

using namespace xreg_bind;

// Jobs are handed out one at a time, because rays that miss the volume cost nothing.
void run_jobs(int64_t n, XregBody body, void* context) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(n, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w)
      for (int64_t i = next++; i < n; i = next++) body(i, context);
  });
}

std::tuple<Tensor, Tensor> project(Tensor mu, double scale, Tensor rays, Tensor metric, int64_t height, int64_t width,
                                   int64_t integrator, int64_t steps, bool moments) {
  const XregVolume vol = volume_of(mu, scale);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const bool wide = mu.numel() >= (int64_t{1} << 31) - 8;
  XregProject* kernel = vol.dtype == XREG_FLOAT64 || wide ? xreg_project_scalar : xreg_project_best();
  const ScalarType type = result_type(vol.dtype);
  Tensor image = torch::stable::new_empty(mu, {beam.views, height, width}, type);
  Tensor jac = torch::stable::new_empty(mu, {beam.views, moments ? 6 : 0, height, width}, type);
  kernel(&vol, &beam, image.data_ptr(), moments ? jac.data_ptr() : nullptr, run_jobs);
  return {image, jac};
}

Tensor project_labels(Tensor mu, double scale, Tensor labels, int64_t channels, bool soft, Tensor rays, Tensor metric,
                      int64_t height, int64_t width, int64_t integrator, int64_t steps) {
  const XregVolume vol = volume_of(mu, scale);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const XregLabels lab = labels_of(labels, vol, channels, soft);
  Tensor image = torch::stable::new_zeros(mu, {beam.views, channels, height, width}, result_type(vol.dtype));
  xreg_project_labels(&vol, &beam, &lab, image.data_ptr(), run_jobs);
  return image;
}

Tensor label_moments(Tensor cotangent, Tensor mu, double scale, Tensor labels, bool soft, Tensor rays, Tensor metric,
                     int64_t integrator, int64_t steps) {
  const XregVolume vol = volume_of(mu, scale);
  const int64_t height = cotangent.size(-2), width = cotangent.size(-1);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const XregLabels lab = labels_of(labels, vol, cotangent.size(1), soft);
  check_cotangent(cotangent, beam, vol.dtype);
  Tensor jac = torch::stable::new_empty(cotangent, {beam.views, 6, height, width});
  xreg_label_moments(&vol, &beam, &lab, cotangent.data_ptr(), jac.data_ptr(), run_jobs);
  return jac;
}

Tensor backproject(Tensor cotangent, double scale, int64_t depth, int64_t rows, int64_t cols,
                   std::optional<Tensor> labels, bool soft, Tensor rays, Tensor metric, int64_t integrator,
                   int64_t steps) {
  const bool wide = cotangent.scalar_type() == ScalarType::Double;
  const XregVolume vol{nullptr, wide ? XREG_FLOAT64 : XREG_FLOAT32, int32_t(cols), int32_t(rows), int32_t(depth), scale};
  const XregBeam beam = beam_of(rays, metric, cotangent.size(-2), cotangent.size(-1), integrator, steps);
  check_cotangent(cotangent, beam, vol.dtype);
  XregLabels lab{};
  if (labels) lab = labels_of(*labels, vol, cotangent.size(1), soft);
  Tensor volume = torch::stable::new_zeros(cotangent, {depth, rows, cols});
  xreg_backproject(&vol, &beam, labels ? &lab : nullptr, cotangent.data_ptr(), volume.data_ptr(), run_jobs);
  return volume;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xreg, CPU, m) {
  m.impl("project", TORCH_BOX(&project));
  m.impl("project_labels", TORCH_BOX(&project_labels));
  m.impl("label_moments", TORCH_BOX(&label_moments));
  m.impl("backproject", TORCH_BOX(&backproject));
}

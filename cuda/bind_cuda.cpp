// The CUDA kernels as torch operators, through LibTorch's stable ABI.  Work goes to torch's current
// stream of the tensor's device; nothing is synchronised.
#include "api_cuda.h"
#include "bind.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace {

using namespace xreg_bind;

// Makes the tensor's device the current one and finds its stream.
struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "xreg: CUDA launch failed: ", cudaGetErrorString(error)); }

std::tuple<Tensor, Tensor> project(Tensor mu, double scale, Tensor rays, Tensor metric, int64_t height, int64_t width,
                                   int64_t integrator, int64_t steps, bool moments) {
  const XregVolume vol = volume_of(mu, scale);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const OnDevice here(mu);
  const ScalarType type = result_type(vol.dtype);
  Tensor image = torch::stable::new_empty(mu, {beam.views, height, width}, type);
  Tensor jac = torch::stable::new_empty(mu, {beam.views, moments ? 6 : 0, height, width}, type);
  check(xreg_cuda_project(&vol, &beam, image.data_ptr(), moments ? jac.data_ptr() : nullptr, here.stream));
  return {image, jac};
}

Tensor project_labels(Tensor mu, double scale, Tensor labels, int64_t channels, bool soft, Tensor rays, Tensor metric,
                      int64_t height, int64_t width, int64_t integrator, int64_t steps) {
  const XregVolume vol = volume_of(mu, scale);
  const XregBeam beam = beam_of(rays, metric, height, width, integrator, steps);
  const XregLabels lab = labels_of(labels, vol, channels, soft);
  Tensor image = torch::stable::new_zeros(mu, {beam.views, channels, height, width}, result_type(vol.dtype));
  const OnDevice here(mu);
  check(xreg_cuda_project_labels(&vol, &beam, &lab, image.data_ptr(), here.stream));
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
  const OnDevice here(mu);
  check(xreg_cuda_label_moments(&vol, &beam, &lab, cotangent.data_ptr(), jac.data_ptr(), here.stream));
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
  const OnDevice here(cotangent);
  check(xreg_cuda_backproject(&vol, &beam, labels ? &lab : nullptr, cotangent.data_ptr(), volume.data_ptr(), here.stream));
  return volume;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xreg, CUDA, m) {
  m.impl("project", TORCH_BOX(&project));
  m.impl("project_labels", TORCH_BOX(&project_labels));
  m.impl("label_moments", TORCH_BOX(&label_moments));
  m.impl("backproject", TORCH_BOX(&backproject));
}

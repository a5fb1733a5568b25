// The CUDA kernels as torch operators, through LibTorch's stable ABI.  Work goes to torch's current
// stream of the tensor's device; nothing is synchronised.
#include "api_cuda.h"
#include "bind.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace {

using namespace xreg_bind;

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "xreg: CUDA launch failed: ", cudaGetErrorString(error));
}

// Makes the tensor's device the current one while it lives, and launches on torch's stream there.
struct Card {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
  explicit Card(const Tensor& t) : guard(t.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
  void project(const XregVolume* v, const XregBeam* b, void* image, void* moments) const {
    check(xreg_cuda_project(v, b, image, moments, stream));
  }
  void project_labels(const XregVolume* v, const XregBeam* b, const XregLabels* l, void* image) const {
    check(xreg_cuda_project_labels(v, b, l, image, stream));
  }
  void label_moments(const XregVolume* v, const XregBeam* b, const XregLabels* l, const void* cotangent,
                     void* moments) const {
    check(xreg_cuda_label_moments(v, b, l, cotangent, moments, stream));
  }
  void backproject(const XregVolume* v, const XregBeam* b, const XregLabels* l, const void* cotangent,
                   void* volume) const {
    check(xreg_cuda_backproject(v, b, l, cotangent, volume, stream));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xreg, CUDA, m) { register_operators<Card>(m); }

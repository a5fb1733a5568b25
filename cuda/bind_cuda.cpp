// The CUDA kernels as torch operators, through LibTorch's stable ABI.  Work goes to torch's current
// stream of the tensor's device; nothing is synchronised.
#include "api_cuda.h"
#include "bind.h"
#include "bind_splat.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <vector>

namespace {

using namespace xreg_bind;

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "xreg: CUDA failed: ", cudaGetErrorString(error));
}

// Whether the adjoint may add in no fixed order: less memory, and other last bits each time.
bool any_order() {
  static const bool asked = std::getenv("XREG_CUDA_ATOMICS") != nullptr;
  return asked;
}

// Memory from torch's allocator, given back when the work is on its way: the stream's later tensors follow it.
struct Scratch {
  const Tensor& like;
  std::vector<Tensor> held;
  XregScratch ready() { return {take, this}; }
  static void* take(size_t bytes, void* self) {
    auto* mine = static_cast<Scratch*>(self);
    const int64_t words = static_cast<int64_t>((bytes + 7) / 8);
    mine->held.push_back(torch::stable::new_empty(mine->like, {words}, ScalarType::Long));
    return mine->held.back().data_ptr();
  }
};

// Makes the tensor's device the current one while it lives, and launches on torch's stream there.
struct Card {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
  Tensor like;
  explicit Card(const Tensor& t) : guard(t.get_device_index()), like(t) {
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
    if (!l && any_order()) return check(xreg_cuda_backproject(v, b, l, cotangent, volume, nullptr, stream));
    const int64_t voxels = int64_t(v->nx) * v->ny * v->nz;
    Tensor sums = torch::stable::new_zeros(like, {voxels + XREG_CUDA_SUMS}, ScalarType::Long);
    check(xreg_cuda_backproject(v, b, l, cotangent, volume, sums.data_ptr(), stream));
  }
  void splat(const XregGaussians* g, const XregSplatView* v, void* image, void* moments) const {
    Scratch scratch{like, {}};
    const XregScratch room = scratch.ready();
    check(xreg_cuda_splat(g, v, image, moments, &room, stream));
  }
  void splat_backward(const XregGaussians* g, const XregSplatView* v, const void* cotangent,
                      const XregGaussianGrads* out) const {
    Scratch scratch{like, {}};
    const XregScratch room = scratch.ready();
    check(xreg_cuda_splat_backward(g, v, cotangent, out, &room, stream));
  }
  void voxelize(const XregGaussians* g, const XregGrid* grid, void* volume) const {
    Scratch scratch{like, {}};
    const XregScratch room = scratch.ready();
    check(xreg_cuda_voxelize(g, grid, volume, &room, stream));
  }
  void voxelize_backward(const XregGaussians* g, const XregGrid* grid, const void* cotangent,
                         const XregGaussianGrads* out) const {
    check(xreg_cuda_voxelize_backward(g, grid, cotangent, out, stream));
  }
};

int64_t atlas_new(Tensor voxels) {
  const Card card(voxels);
  const XregVolume vol = volume_of(voxels, 1.0);
  STD_TORCH_CHECK(vol.dtype == XREG_INT16, "xreg: a texture atlas needs int16 voxels");
  size_t bytes = 0;
  check(xreg_cuda_atlas_staging(&vol, &bytes));
  STD_TORCH_CHECK(bytes > 0, "xreg: this volume is too large for the textures of this card");
  Tensor staging = torch::stable::new_empty(voxels, {int64_t(bytes / sizeof(int16_t))});
  XregAtlas* atlas = nullptr;
  check(xreg_cuda_atlas_new(&vol, staging.data_ptr(), &atlas, card.stream));
  return reinterpret_cast<int64_t>(atlas);
}

int64_t atlas_free(int64_t atlas) {
  check(xreg_cuda_atlas_free(reinterpret_cast<XregAtlas*>(atlas)));
  return 0;
}

std::tuple<Tensor, Tensor> atlas_project(int64_t atlas, double scale, Tensor rays, Tensor metric, int64_t height,
                                         int64_t width, bool moments) {
  const Card card(rays);
  const XregBeam beam = beam_of(rays, metric, height, width, 1, 1);
  Tensor image = torch::stable::new_empty(rays, {beam.views, height, width}, ScalarType::Float);
  Tensor jac = torch::stable::new_empty(rays, {beam.views, moments ? 6 : 0, height, width}, ScalarType::Float);
  check(xreg_cuda_atlas_project(reinterpret_cast<const XregAtlas*>(atlas), scale, &beam, image.data_ptr(),
                                moments ? jac.data_ptr() : nullptr, card.stream));
  return {image, jac};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xreg, CUDA, m) {
  register_operators<Card>(m);
  register_splat_operators<Card>(m);
}

// Only where there is a card; xreg/ops/atlas.py holds a handle and frees it.
STABLE_TORCH_LIBRARY(xreg_cuda, m) {
  m.def("atlas_new(Tensor voxels) -> int");
  m.def("atlas_free(int atlas) -> int");
  m.def(
      "atlas_project(int atlas, float scale, Tensor rays, Tensor metric, int height, int width, bool moments)"
      " -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(xreg_cuda, CUDA, m) {
  m.impl("atlas_new", TORCH_BOX(&atlas_new));
  m.impl("atlas_project", TORCH_BOX(&atlas_project));
}
STABLE_TORCH_LIBRARY_IMPL(xreg_cuda, CompositeExplicitAutograd, m) { m.impl("atlas_free", TORCH_BOX(&atlas_free)); }

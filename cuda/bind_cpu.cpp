// The host kernels as torch operators, through LibTorch's stable ABI: one build loads in every
// torch from 2.10 on.  Schemas, fake kernels and autograd are registered in xreg/ops/registry.py.
#include "bind.h"
#include "bind_splat.h"
#include "select_cpu.h"

#include <algorithm>
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

struct Host {
  explicit Host(const Tensor&) {}
  void project(const XregVolume* v, const XregBeam* b, void* image, void* moments) const {
    const bool wide = int64_t(v->nx) * v->ny * v->nz >= XREG_WIDE_VOXELS;
    const XregKernels& kernels = v->dtype == XREG_FLOAT64 || wide ? xreg_scalar() : xreg_best();
    kernels.project(v, b, image, moments, run_jobs);
  }
  void project_labels(const XregVolume* v, const XregBeam* b, const XregLabels* l, void* image) const {
    xreg_project_labels(v, b, l, image, run_jobs);
  }
  void label_moments(const XregVolume* v, const XregBeam* b, const XregLabels* l, const void* cotangent,
                     void* moments) const {
    xreg_label_moments(v, b, l, cotangent, moments, run_jobs);
  }
  void backproject(const XregVolume* v, const XregBeam* b, const XregLabels* l, const void* cotangent,
                   void* volume) const {
    xreg_backproject(v, b, l, cotangent, volume, run_jobs);
  }
  static const XregKernels& kernels_for(const XregGaussians* g) {
    return g->dtype == XREG_FLOAT64 ? xreg_scalar() : xreg_best();
  }
  void splat(const XregGaussians* g, const XregSplatView* v, void* image, void* moments) const {
    kernels_for(g).splat(g, v, image, moments, run_jobs);
  }
  void splat_backward(const XregGaussians* g, const XregSplatView* v, const void* cotangent,
                      const XregGaussianGrads* out) const {
    kernels_for(g).splat_backward(g, v, cotangent, out, run_jobs);
  }
  void voxelize(const XregGaussians* g, const XregGrid* grid, void* volume) const {
    kernels_for(g).voxelize(g, grid, volume, run_jobs);
  }
  void voxelize_backward(const XregGaussians* g, const XregGrid* grid, const void* cotangent,
                         const XregGaussianGrads* out) const {
    kernels_for(g).voxelize_backward(g, grid, cotangent, out, run_jobs);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xreg, CPU, m) {
  register_operators<Host>(m);
  register_splat_operators<Host>(m);
}

// The splatter and the voxeliser as torch operators, written once for host and CUDA like those of bind.h.
//
// A device's class has, beside the launchers of bind.h, the four of api.h that take Gaussians.
#pragma once
#include "bind.h"

namespace xreg_bind {

inline XregGaussians gaussians_of(const Tensor& mean, const Tensor& scale, const Tensor& rotation,
                                  const Tensor& density) {
  const ScalarType type = mean.scalar_type();
  const int64_t n = mean.dim() == 2 ? mean.size(0) : 0;
  const auto fits = [&](const Tensor& t, int64_t width) {
    return t.dim() == 2 && t.size(0) == n && t.size(1) == width && t.is_contiguous() && t.scalar_type() == type;
  };
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "xreg: Gaussians must be float32 or float64");
  STD_TORCH_CHECK(fits(mean, 3) && fits(scale, 3) && fits(rotation, 4) && density.dim() == 1 && density.size(0) == n &&
                      density.is_contiguous() && density.scalar_type() == type,
                  "xreg: Gaussians must be contiguous mean [N, 3], scale [N, 3], rotation [N, 4] and density [N] of one"
                  " dtype");
  STD_TORCH_CHECK(n < (INT64_C(1) << 31), "xreg: there may be at most 2^31 Gaussians");
  check_together(mean, scale);
  check_together(mean, rotation);
  check_together(mean, density);
  return {mean.data_ptr(), scale.data_ptr(), rotation.data_ptr(), density.data_ptr(),
          type == ScalarType::Double ? XREG_FLOAT64 : XREG_FLOAT32, n};
}

inline XregSplatView splat_view_of(const Tensor& rays, int64_t height, int64_t width, int64_t kind, double cutoff) {
  STD_TORCH_CHECK(rays.dim() == 3 && rays.size(1) == 6 && rays.size(2) == 3 && rays.is_contiguous() &&
                      rays.scalar_type() == ScalarType::Double,
                  "xreg: rays must be a contiguous float64 [V, 6, 3] tensor");
  STD_TORCH_CHECK(height > 0 && width > 0, "xreg: an image needs at least one pixel");
  STD_TORCH_CHECK(height <= (1 << 20) && width <= (1 << 20), "xreg: an image may have at most 2^20 pixels along a side");
  STD_TORCH_CHECK(0 <= kind && kind <= 2, "xreg: there is no such kind of splatting");
  STD_TORCH_CHECK(cutoff > 0 && cutoff <= 12, "xreg: the cutoff must be above 0 and at most 12 sigmas");
  return {static_cast<const double*>(rays.data_ptr()), rays.size(0), int32_t(height), int32_t(width), int32_t(kind), cutoff};
}

inline XregGrid grid_of(const Tensor& affine, int64_t depth, int64_t rows, int64_t cols, double cutoff) {
  STD_TORCH_CHECK(affine.numel() == 12 && affine.is_contiguous() && affine.scalar_type() == ScalarType::Double &&
                      affine.is_cpu(),
                  "xreg: affine must be a contiguous float64 [3, 4] tensor on the host");
  STD_TORCH_CHECK(depth > 0 && rows > 0 && cols > 0, "xreg: a grid needs at least one voxel");
  STD_TORCH_CHECK(cutoff > 0 && cutoff <= 12, "xreg: the cutoff must be above 0 and at most 12 sigmas");
  XregGrid grid{{}, int32_t(cols), int32_t(rows), int32_t(depth), cutoff};
  const double* m = static_cast<const double*>(affine.data_ptr());
  for (int i = 0; i < 12; ++i) grid.affine[i] = m[i];
  return grid;
}

template <class Device>
std::tuple<Tensor, Tensor> splat(Tensor mean, Tensor scale, Tensor rotation, Tensor density, Tensor rays,
                                 int64_t height, int64_t width, int64_t kind, double cutoff, bool moments) {
  const XregGaussians g = gaussians_of(mean, scale, rotation, density);
  check_together(mean, rays);
  const XregSplatView view = splat_view_of(rays, height, width, kind, cutoff);
  STD_TORCH_CHECK(!moments || kind != 1, "xreg: the affine splatter has no moments");
  const Device device(mean);
  Tensor image = torch::stable::new_empty(mean, {view.views, height, width});
  Tensor jac = torch::stable::new_empty(mean, {view.views, moments ? 6 : 0, height, width});
  device.splat(&g, &view, image.data_ptr(), moments ? jac.data_ptr() : nullptr);
  return {image, jac};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_backward(Tensor cotangent, Tensor mean, Tensor scale,
                                                                  Tensor rotation, Tensor density, Tensor rays,
                                                                  int64_t kind, double cutoff) {
  const XregGaussians g = gaussians_of(mean, scale, rotation, density);
  check_together(mean, rays);
  check_together(mean, cotangent);
  STD_TORCH_CHECK(cotangent.dim() == 3 && cotangent.is_contiguous() && cotangent.scalar_type() == mean.scalar_type(),
                  "xreg: the cotangent must be contiguous and have the image's shape and dtype");
  const XregSplatView view = splat_view_of(rays, cotangent.size(1), cotangent.size(2), kind, cutoff);
  STD_TORCH_CHECK(cotangent.size(0) == view.views, "xreg: the cotangent must have as many views as the rays");
  const Device device(mean);
  Tensor to_mean = torch::stable::new_zeros(mean, {g.count, 3}), to_scale = torch::stable::new_zeros(mean, {g.count, 3});
  Tensor to_rotation = torch::stable::new_zeros(mean, {g.count, 4});
  Tensor to_density = torch::stable::new_zeros(mean, {g.count});
  Tensor to_rays = torch::stable::new_zeros(rays, {view.views, 6, 3});
  const XregGaussianGrads out{to_mean.data_ptr(), to_scale.data_ptr(), to_rotation.data_ptr(), to_density.data_ptr(),
                              static_cast<double*>(to_rays.data_ptr())};
  device.splat_backward(&g, &view, cotangent.data_ptr(), &out);
  return {to_mean, to_scale, to_rotation, to_density, to_rays};
}

template <class Device>
Tensor voxelize(Tensor mean, Tensor scale, Tensor rotation, Tensor density, Tensor affine, int64_t depth, int64_t rows,
                int64_t cols, double cutoff) {
  const XregGaussians g = gaussians_of(mean, scale, rotation, density);
  const XregGrid grid = grid_of(affine, depth, rows, cols, cutoff);
  const Device device(mean);
  Tensor volume = torch::stable::new_zeros(mean, {depth, rows, cols});
  device.voxelize(&g, &grid, volume.data_ptr());
  return volume;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> voxelize_backward(Tensor cotangent, Tensor mean, Tensor scale,
                                                             Tensor rotation, Tensor density, Tensor affine,
                                                             double cutoff) {
  const XregGaussians g = gaussians_of(mean, scale, rotation, density);
  check_together(mean, cotangent);
  STD_TORCH_CHECK(cotangent.dim() == 3 && cotangent.is_contiguous() && cotangent.scalar_type() == mean.scalar_type(),
                  "xreg: the cotangent must be contiguous and have the volume's shape and dtype");
  const XregGrid grid = grid_of(affine, cotangent.size(0), cotangent.size(1), cotangent.size(2), cutoff);
  const Device device(mean);
  Tensor to_mean = torch::stable::new_zeros(mean, {g.count, 3}), to_scale = torch::stable::new_zeros(mean, {g.count, 3});
  Tensor to_rotation = torch::stable::new_zeros(mean, {g.count, 4});
  Tensor to_density = torch::stable::new_zeros(mean, {g.count});
  const XregGaussianGrads out{to_mean.data_ptr(), to_scale.data_ptr(), to_rotation.data_ptr(), to_density.data_ptr(),
                              nullptr};
  device.voxelize_backward(&g, &grid, cotangent.data_ptr(), &out);
  return {to_mean, to_scale, to_rotation, to_density};
}

template <class Device>
void register_splat_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("splat", TORCH_BOX(&splat<Device>));
  library.impl("splat_backward", TORCH_BOX(&splat_backward<Device>));
  library.impl("voxelize", TORCH_BOX(&voxelize<Device>));
  library.impl("voxelize_backward", TORCH_BOX(&voxelize_backward<Device>));
}

}  // namespace xreg_bind

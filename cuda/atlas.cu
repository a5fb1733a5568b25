// Joseph's rule over texture atlases on CUDA, and how an atlas is filled.
#include "atlas.cuh"
#include "launch_cuda.cuh"

#include <new>

struct XregAtlas {
  xreg::Shape shape;
  xreg::Atlas atlas[3];
  cudaArray_t array[3];
  cudaTextureObject_t texture[3];
};

namespace xreg {
namespace {

struct Textures {
  cudaTextureObject_t of[3];
  template <int Axis>
  __device__ Quad gather(float x, float y) const {
    const float4 q = tex2Dgather<float4>(of[Axis], x, y, 0);
    return {q.x, q.y, q.z, q.w};
  }
};

struct AllTiles {
  Tiles of[3];
};

template <class I, class Grid, bool Moments>
__global__ void __launch_bounds__(kThreads)
    atlas_kernel(Textures textures, Shape shape, AllTiles tiles, const double* rays, Beam beam, double scale,
                 float* image, float* moments, int64_t view0) {
  Pixel p;
  int64_t number;
  if (!own_pixel(beam, view0, p, number)) return;
  atlas_pixel<Moments>(textures, shape, tiles.of, View{rays + 18 * number}, beam, p, scale, image + number * p.stride,
                       Moments ? moments + 6 * number * p.stride : nullptr);
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(Atlas atlas, int axis, const int16_t* voxels, Shape shape, int16_t* texels) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= atlas.width) return;
  for (int y = blockIdx.y; y < atlas.height; y += gridDim.y) {
    Texel t;
    int16_t value = 0;
    if (texel_of(atlas, x, y, t)) {
      const int i = axis == 0 ? t.plane : t.u, j = axis == 0 ? t.u : axis == 1 ? t.plane : t.v;
      const int k = axis == 2 ? t.plane : t.v;
      value = voxels[(static_cast<int64_t>(k) * shape.ny + j) * shape.nx + i];
    }
    texels[static_cast<int64_t>(y) * atlas.width + x] = value;
  }
}

// The three atlases on the current card; false where one does not fit a texture that can be gathered from.
cudaError_t layout(const XregVolume& v, Atlas (&atlas)[3], bool& fits) {
  int card = 0, widest = 0, highest = 0;
  cudaError_t error = cudaGetDevice(&card);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&widest, cudaDevAttrMaxTexture2DGatherWidth, card);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&highest, cudaDevAttrMaxTexture2DGatherHeight, card);
  fits = error == cudaSuccess;
  for (int axis = 0; axis < 3; ++axis) {
    atlas[axis] = atlas_of(axis, v.nx, v.ny, v.nz, widest, highest);
    fits = fits && atlas[axis].rows > 0;
  }
  return error;
}

cudaError_t make_texture(const Atlas& atlas, cudaArray_t& array, cudaTextureObject_t& texture) {
  const cudaChannelFormatDesc format = cudaCreateChannelDesc(16, 0, 0, 0, cudaChannelFormatKindSigned);
  const cudaError_t error = cudaMallocArray(&array, &format, atlas.width, atlas.height, cudaArrayTextureGather);
  if (error != cudaSuccess) return error;
  cudaResourceDesc from{};
  from.resType = cudaResourceTypeArray;
  from.res.array.array = array;
  cudaTextureDesc how{};
  how.addressMode[0] = how.addressMode[1] = cudaAddressModeBorder;  // zero outside
  how.filterMode = cudaFilterModePoint;
  how.readMode = cudaReadModeNormalizedFloat;
  return cudaCreateTextureObject(&texture, &from, &how, nullptr);
}

cudaError_t fill(XregAtlas& a, const int16_t* voxels, int16_t* staging, cudaStream_t stream) {
  for (int axis = 0; axis < 3; ++axis) {
    const Atlas& atlas = a.atlas[axis];
    cudaError_t error = make_texture(atlas, a.array[axis], a.texture[axis]);
    if (error != cudaSuccess) return error;
    const dim3 blocks((atlas.width + kThreads - 1) / kThreads, lower(atlas.height, 65535));
    fill_kernel<<<blocks, kThreads, 0, stream>>>(atlas, axis, voxels, a.shape, staging);
    const size_t row = sizeof(int16_t) * atlas.width;
    error = cudaMemcpy2DToArrayAsync(a.array[axis], 0, 0, staging, row, row, atlas.height, cudaMemcpyDeviceToDevice,
                                     stream);
    if (error != cudaSuccess) return error;
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace xreg

using namespace xreg;

extern "C" cudaError_t xreg_cuda_atlas_staging(const XregVolume* vol, size_t* bytes) {
  Atlas atlas[3];
  bool fits = false;
  const cudaError_t error = layout(*vol, atlas, fits);
  *bytes = 0;
  for (const Atlas& a : atlas)
    if (fits) *bytes = upper(*bytes, sizeof(int16_t) * a.width * a.height);
  return error;
}

extern "C" cudaError_t xreg_cuda_atlas_new(const XregVolume* vol, void* staging, XregAtlas** made,
                                           cudaStream_t stream) {
  *made = nullptr;
  XregAtlas* a = new (std::nothrow) XregAtlas{};
  if (!a) return cudaErrorMemoryAllocation;
  a->shape = {vol->nx, vol->ny, vol->nz};
  bool fits = false;
  cudaError_t error = layout(*vol, a->atlas, fits);
  if (error == cudaSuccess && (!fits || vol->dtype != XREG_INT16)) error = cudaErrorInvalidValue;
  if (error == cudaSuccess)
    error = fill(*a, static_cast<const int16_t*>(vol->voxels), static_cast<int16_t*>(staging), stream);
  if (error == cudaSuccess) *made = a;
  else xreg_cuda_atlas_free(a);
  return error;
}

extern "C" cudaError_t xreg_cuda_atlas_free(XregAtlas* a) {
  if (!a) return cudaSuccess;
  cudaError_t worst = cudaDeviceSynchronize();  // a kernel may still read it
  for (int axis = 0; axis < 3; ++axis) {
    const cudaError_t one = a->texture[axis] ? cudaDestroyTextureObject(a->texture[axis]) : cudaSuccess;
    const cudaError_t two = a->array[axis] ? cudaFreeArray(a->array[axis]) : cudaSuccess;
    worst = one != cudaSuccess ? one : two != cudaSuccess ? two : worst;
  }
  delete a;
  return worst;
}

extern "C" cudaError_t xreg_cuda_atlas_project(const XregAtlas* a, double scale, const XregBeam* b, void* image,
                                               void* moments, cudaStream_t stream) {
  using Grid = Voxels<int16_t, int32_t>;
  using I = Fixed<kJoseph>;
  Textures textures;
  AllTiles tiles;
  for (int axis = 0; axis < 3; ++axis) {
    textures.of[axis] = a->texture[axis];
    tiles.of[axis] = tiles_of(a->atlas[axis]);
  }
  if (b->integrator != kJoseph) return cudaErrorInvalidValue;
  float* out = static_cast<float*>(image);
  float* jac = static_cast<float*>(moments);
  auto* kernel = jac ? atlas_kernel<I, Grid, true> : atlas_kernel<I, Grid, false>;
  return over_views(*b, [&](auto, const Beam& beam, dim3 blocks, dim3 threads, int64_t view0) {
    kernel<<<blocks, threads, 0, stream>>>(textures, a->shape, tiles, b->rays, beam, scale, out, jac, view0);
  });
}

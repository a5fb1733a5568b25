// A card played by the host: as much of CUDA's language and runtime as the sources in cuda/ use, so that their
// launchers and kernels run, and can be held to the host's own kernels, where there is no card.
//
// A kernel's threads are fibers of one thread, run in a shuffled order from one barrier or shuffle to the next; blocks
// are shuffled too.  What a card leaves undefined is an error here: a barrier that some threads of a block do not reach,
// a shuffle with lanes that have returned, a launch beyond the limits.  Copies to the host arrive when the stream is
// synchronised.  Meant for small problems; what it cannot show is speed, and what a card's memory order would do.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#if defined(__CUDACC__)  // a source of the device, and not the binding
#define __CUDA_ARCH__ 800
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float4 {
  float x, y, z, w;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
struct HostStream;
typedef HostStream* cudaStream_t;
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr { cudaDevAttrMaxTexture2DGatherWidth = 47, cudaDevAttrMaxTexture2DGatherHeight = 48 };

struct HostArray;
typedef HostArray* cudaArray_t;
typedef unsigned long long cudaTextureObject_t;
enum cudaChannelFormatKind { cudaChannelFormatKindSigned = 0 };
struct cudaChannelFormatDesc {
  int x, y, z, w;
  cudaChannelFormatKind f;
};
constexpr unsigned cudaArrayTextureGather = 8;
enum cudaResourceType { cudaResourceTypeArray = 0 };
struct cudaResourceDesc {
  cudaResourceType resType;
  struct {
    struct {
      cudaArray_t array;
    } array;
  } res;
};
enum cudaTextureAddressMode { cudaAddressModeWrap = 0, cudaAddressModeBorder = 3 };
enum cudaTextureFilterMode { cudaFilterModePoint = 0, cudaFilterModeLinear = 1 };
enum cudaTextureReadMode { cudaReadModeElementType = 0, cudaReadModeNormalizedFloat = 1 };
struct cudaTextureDesc {
  cudaTextureAddressMode addressMode[3];
  cudaTextureFilterMode filterMode;
  cudaTextureReadMode readMode;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetDevice(int* card);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int card);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemcpy2DToArrayAsync(cudaArray_t to, size_t x, size_t y, const void* from, size_t pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t);
cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w, cudaChannelFormatKind);
cudaError_t cudaMallocArray(cudaArray_t*, const cudaChannelFormatDesc*, size_t width, size_t height, unsigned flags);
cudaError_t cudaFreeArray(cudaArray_t);
cudaError_t cudaCreateTextureObject(cudaTextureObject_t*, const cudaResourceDesc*, const cudaTextureDesc*, const void*);
cudaError_t cudaDestroyTextureObject(cudaTextureObject_t);

namespace card {

extern dim3 thread, block, blocks, threads;  // of the thread that runs

void run(dim3 grid, dim3 block, const std::function<void()>& kernel);
void barrier(int line);
void fault(const char* what);

struct Lane {  // one lane's word of a shuffle, and who may read it
  alignas(8) char bytes[8];
};
Lane* exchange(unsigned mask, const void* bytes, size_t size);  // of the warp, once all its lanes are there

template <class... Parameters>
struct Launch {
  void (*kernel)(Parameters...);
  dim3 grid, block;
  void operator()(Parameters... arguments) const {
    run(grid, block, [&] { kernel(arguments...); });
  }
};
// kernel<<<grid, block, shared, stream>>> is written so by host_card.py.
template <class... Parameters>
Launch<Parameters...> launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t, cudaStream_t) {
  return {kernel, grid, block};
}

float4 gather(cudaTextureObject_t, float x, float y);

}  // namespace card

#define threadIdx card::thread
#define blockIdx card::block
#define blockDim card::threads
#define gridDim card::blocks
#define __syncthreads() card::barrier(__LINE__)

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  const card::Lane* warp = card::exchange(mask, &value, sizeof(T));
  std::memcpy(&value, warp[(card::thread.x % 32) ^ static_cast<unsigned>(lanes)].bytes, sizeof(T));
  return value;
}
template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
template <class T>
T atomicMax(T* to, T value) {
  const T before = *to;
  if (value > before) *to = value;
  return before;
}
template <class T>
T tex2Dgather(cudaTextureObject_t texture, float x, float y, int component) {
  if (component != 0) card::fault("a texture of one number has no other component");
  return card::gather(texture, x, y);
}

inline long long __double_as_longlong(double v) {
  long long bits;
  std::memcpy(&bits, &v, 8);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double v;
  std::memcpy(&v, &bits, 8);
  return v;
}
// Of what is no 64-bit number: the least for NaN, the nearest end for what is too large.
inline long long __double2ll_rn(double v) {
  if (!(v == v)) return INT64_MIN;
  if (v >= 9223372036854775808.0) return INT64_MAX;
  return v < -9223372036854775808.0 ? INT64_MIN : std::llrint(v);
}
inline long long __float2ll_rn(float v) { return __double2ll_rn(v); }
inline float __fadd_rd(float a, float b) {
  const double exact = static_cast<double>(a) + b;
  const float near = static_cast<float>(exact);
  return static_cast<double>(near) > exact ? std::nextafterf(near, -INFINITY) : near;
}
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }

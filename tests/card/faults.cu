// What a card does not forgive, and the host's card has to notice: see test_host_card.py.
#include <cuda_runtime_api.h>

#define SHOWN extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kThreads = 64;

__global__ void sound_kernel(int* out) {
  __shared__ int held[kThreads];
  held[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  int sum = held[kThreads - 1 - threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}
__global__ void racing_kernel(int* out) {
  __shared__ int held[kThreads];
  held[threadIdx.x] = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  out[blockIdx.x * kThreads + threadIdx.x] = held[kThreads - 1 - threadIdx.x];
}
__global__ void early_kernel(int* out) {
  if (threadIdx.x < 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void two_barriers_kernel(int* out) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void lonely_kernel(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}

template <void (*kKernel)(int*)>
int run(unsigned blocks, int* out) {
  kKernel<<<dim3(blocks), kThreads, 0, nullptr>>>(out);
  return cudaGetLastError();
}

}  // namespace

SHOWN int sound(int* out) { return run<sound_kernel>(4, out); }
SHOWN int racing(int* out) { return run<racing_kernel>(4, out); }
SHOWN int early(int* out) { return run<early_kernel>(1, out); }
SHOWN int two_barriers(int* out) { return run<two_barriers_kernel>(1, out); }
SHOWN int lonely(int* out) { return run<lonely_kernel>(1, out); }
SHOWN int launched(unsigned x, unsigned y, unsigned threads, int* out) {
  sound_kernel<<<dim3(x, y), threads, 0, nullptr>>>(out);
  return cudaGetLastError();
}
// What the host sees of a copied 7 before and after it waits.
SHOWN void copied(int* before, int* after) {
  int here = -1;
  const int there = 7;
  cudaMemcpyAsync(&here, &there, sizeof(int), cudaMemcpyDeviceToHost, nullptr);
  *before = here;
  cudaStreamSynchronize(nullptr);
  *after = here;
}

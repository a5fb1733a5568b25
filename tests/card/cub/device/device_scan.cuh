// CUB's scan, one after the other: see cuda_runtime_api.h.
#pragma once
#include <cuda_runtime_api.h>

namespace cub {
struct DeviceScan {
  template <class In, class Out, class N>
  static cudaError_t InclusiveSum(void* room, size_t& bytes, In in, Out out, N count, cudaStream_t) {
    if (!room) return bytes = 64, cudaSuccess;
    std::decay_t<decltype(*out)> sum = 0;
    for (N n = 0; n < count; ++n) out[n] = sum += in[n];
    return cudaSuccess;
  }
};
}  // namespace cub

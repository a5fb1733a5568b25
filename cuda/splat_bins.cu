// Scan and sort of splat_bins.cuh, by CUB of the toolkit.
#include "splat_bins.cuh"

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

namespace xreg {
namespace {

constexpr int kThreads = 256;

// ends[c] is the first pair of a later cell.
__global__ void cell_ends_kernel(const uint32_t* sorted, int64_t pairs, int64_t cells, int64_t* ends) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= cells) return;
  int64_t lo = 0, hi = pairs;
  while (lo < hi) {
    const int64_t middle = lo + (hi - lo) / 2;
    if (sorted[middle] <= c) lo = middle + 1;
    else hi = middle;
  }
  ends[c] = lo;
}

}  // namespace

cudaError_t count_pairs(const XregScratch& scratch, int64_t records, int64_t* counts, int64_t* total,
                        cudaStream_t stream) {
  *total = 0;
  if (records == 0) return cudaSuccess;
  size_t bytes = 0;
  cudaError_t error = cub::DeviceScan::InclusiveSum(nullptr, bytes, counts, counts, records, stream);
  if (error != cudaSuccess) return error;
  void* room = room_for<char>(scratch, bytes);
  error = cub::DeviceScan::InclusiveSum(room, bytes, counts, counts, records, stream);
  if (error != cudaSuccess) return error;
  error = cudaMemcpyAsync(total, counts + records - 1, sizeof(int64_t), cudaMemcpyDeviceToHost, stream);
  return error == cudaSuccess ? cudaStreamSynchronize(stream) : error;
}

cudaError_t sort_pairs(const XregScratch& scratch, int64_t pairs, CellPairs p, int64_t cells, CellLists* lists,
                       cudaStream_t stream) {
  uint32_t* sorted = room_for<uint32_t>(scratch, pairs);
  int32_t* ids = room_for<int32_t>(scratch, pairs);
  int64_t* ends = room_for<int64_t>(scratch, cells);
  int bits = 1;
  while (bits < 32 && (INT64_C(1) << bits) < cells) ++bits;
  size_t bytes = 0;
  cudaError_t error =
      cub::DeviceRadixSort::SortPairs(nullptr, bytes, p.cells, sorted, p.ids, ids, pairs, 0, bits, stream);
  if (error != cudaSuccess) return error;
  void* room = room_for<char>(scratch, bytes);
  if (pairs > 0)
    error = cub::DeviceRadixSort::SortPairs(room, bytes, p.cells, sorted, p.ids, ids, pairs, 0, bits, stream);
  if (error != cudaSuccess) return error;
  cell_ends_kernel<<<static_cast<unsigned>((cells + kThreads - 1) / kThreads), kThreads, 0, stream>>>(sorted, pairs,
                                                                                                      cells, ends);
  *lists = {ends, ids};
  return cudaGetLastError();
}

}  // namespace xreg

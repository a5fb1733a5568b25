// Lists of Gaussians by cell (a tile of an image, a brick of a grid) on a card.  Pairs are written Gaussian by Gaussian
// and sorted by cell; the sort is stable, so each list is in the order of the Gaussians, and a sum over it has the same
// bits each time.
#pragma once
#include "api_cuda.h"

#include <cstddef>
#include <cstdint>

namespace xreg {

struct CellLists {
  const int64_t* ends;  // of cell c: list [c ? ends[c - 1] : 0, ends[c])
  const int32_t* ids;
};

struct CellPairs {
  uint32_t* cells;
  int32_t* ids;
};

template <class T>
T* room_for(const XregScratch& scratch, int64_t n) {
  return static_cast<T*>(scratch.take(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T), scratch.context));
}

// Turns counts into where each record's pairs end, and reads back how many there are: the one word from the card.
cudaError_t count_pairs(const XregScratch&, int64_t records, int64_t* counts, int64_t* total, cudaStream_t);
cudaError_t sort_pairs(const XregScratch&, int64_t pairs, CellPairs, int64_t cells, CellLists*, cudaStream_t);

}  // namespace xreg

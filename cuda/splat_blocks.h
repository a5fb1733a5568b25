// Pixels in blocks, a vector each (4x4, 4x2 or 4x1).  An ellipse is rounder than a piece of a row, so it takes fewer blocks
// than pieces, and they are worked out in fewer and longer loops.
#pragma once
#include "splat_tiles.cuh"

#include <memory>

namespace xreg {
inline namespace XREG_ISA {

template <class V>
constexpr int blocks_across(int width) { return (width + Lanes<V>::kAcross - 1) / Lanes<V>::kAcross; }
template <class V>
constexpr int blocks_down(int height) { return (height + Lanes<V>::kDown - 1) / Lanes<V>::kDown; }

// A pixel's lane in its block.
template <class V>
HD int lane_of(int u, int v) { return v % Lanes<V>::kDown * Lanes<V>::kAcross + u % Lanes<V>::kAcross; }

// Room for blocks; each begins at a cache line, or a part of one that it fills.
template <class V>
class Blocks {
 public:
  explicit Blocks(int64_t count) : count_(count), data_(new Block[count > 0 ? count : 1]) {}
  int64_t size() const { return count_; }
  ScalarOf<V>* at(int64_t n) const { return data_[n].lane; }

 private:
  struct alignas(sizeof(V)) Block {
    ScalarOf<V> lane[Lanes<V>::kCount];
  };
  int64_t count_;
  std::unique_ptr<Block[]> data_;
};

constexpr int kMostBlocks = (1 << 11) - 1;  // told at a time

// Blocks of an ellipse: those from `first` on, of row `row` of the image's blocks.
struct BlockRow {
  int row, first, count;
};

// Whether D, where it is not 1 anyway, departs from it so little on all blocks of the ellipse that its root is a short
// polynomial.
template <SplatKind K, class V>
bool is_slight(const Footprint<ScalarOf<V>>& f, const Outline& o) {
  if (K != kSplatExact || Lanes<V>::kCount == 1) return false;
  const double x = upper(-o.box.x0, o.box.x1) + Lanes<V>::kAcross, y = upper(-o.box.y0, o.box.y1) + Lanes<V>::kDown;
  const double most = magnitude(f.du) * x + magnitude(f.dv) * y + f.duu * x * x + magnitude(f.duv) * x * y + f.dvv * y * y;
  return most < kSlight;
}

// Calls visit(BlockRow) for each row of blocks in which the ellipse may have pixels; V rows of blocks are found at a time.
template <class V, class Visit>
HD void each_row_of_blocks(const Footprint<ScalarOf<V>>& f, const Outline& o, const Visit& visit) {
  using Real = ScalarOf<V>;
  constexpr int kLanes = Lanes<V>::kCount, kAcross = Lanes<V>::kAcross, kDown = Lanes<V>::kDown;
  const auto all = [](double x) { return splat_of<V>(static_cast<Real>(x)); };
  const Conic<Real> conic = narrow<Real>(o.conic);
  const V v0 = all(o.v0 - f.v), v1 = all(o.v1 - f.v), u0 = all(o.u0), u1 = all(o.u1);
  const V x0 = all(o.box.x0), x1 = all(o.box.x1), y_of_x0 = all(o.box.y_of_x0), y_of_x1 = all(o.box.y_of_x1);
  const Real left = static_cast<Real>(f.u) + f.fu, slack = static_cast<Real>(0.02);
  for (int top = o.v0 / kDown; top <= o.v1 / kDown; top += kLanes) {
    V ya = static_cast<Real>(kDown) * ramp<V>() + static_cast<Real>(top * kDown - f.v), yb = ya + Real(kDown - 1);
    ya = upper(ya, v0) - f.fv;  // the first and the last row of pixels
    yb = lower(yb, v1) - f.fv;
    V la, ha, lb, hb;
    chord(conic, ya, la, ha);
    chord(conic, yb, lb, hb);
    V lo = lower(la, lb), hi = upper(ha, hb);
    lo = select(ya < y_of_x0, select(y_of_x0 < yb, x0, lo), lo) + left;
    hi = select(ya < y_of_x1, select(y_of_x1 < yb, x1, hi), hi) + (left + slack);
    alignas(64) int32_t from[kLanes], to[kLanes];
    store_whole(from, upper(lo, u0) + (Real(1) - slack));
    store_whole(to, lower(hi, u1));
    for (int n = 0; n < kLanes && top + n <= o.v1 / kDown; ++n)
      for (int first = from[n] / kAcross, last = to[n] / kAcross; first <= last; first += kMostBlocks)
        visit(BlockRow{top + n, first, lower(last - first + 1, kMostBlocks)});
  }
}

}  // namespace XREG_ISA
}  // namespace xreg

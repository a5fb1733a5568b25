// The host launchers of the splatter, for V pixels at a time.
#pragma once
#include "launch_cpu.h"
#include "splat_blocks.h"
#include "splat_chain.cuh"

#include <memory>
#include <utility>

namespace xreg {
inline namespace XREG_ISA {

// An array that grows.  The standard one would put functions into the library that each instruction set shares.
template <class T>
class Buffer {
 public:
  void reserve(int64_t n) {
    if (n > room_) grow(n);
  }
  void resize(int64_t n) {
    reserve(n);
    size_ = n;
  }
  void push(const T& value) {
    if (size_ == room_) grow(2 * size_ + 64);
    data_[size_++] = value;
  }
  void fill(const T& value) {
    for (int64_t i = 0; i < size_; ++i) data_[i] = value;
  }
  int64_t size() const { return size_; }
  T* data() { return data_.get(); }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  void grow(int64_t n) {
    std::unique_ptr<T[]> wider(new T[n]);
    for (int64_t i = 0; i < size_; ++i) wider[i] = data_[i];
    data_ = std::move(wider);
    room_ = n;
  }
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0, room_ = 0;
};

// Gaussians are shared out in pieces whose size does not depend on the number of threads, and neither does a sum.
constexpr int64_t kPiece = 512;
inline int64_t pieces_of(int64_t count) { return (count + kPiece - 1) / kPiece; }

// Which Gaussians touch which cells (rows of blocks of an image, slabs of a grid), and what there is to say of each: lists
// in the order of the Gaussians.
template <class Item>
class Bins {
 public:
  // find(n, put) calls put(cell, item) for each cell that Gaussian n touches.
  template <class Find>
  void build(int64_t count, int64_t cells, XregFor run, const Find& find) {
    constexpr int64_t kMost = 128;  // pieces: each counts for every cell
    const int64_t each = upper(kPiece, (count + kMost - 1) / kMost), pieces = (count + each - 1) / each;
    std::unique_ptr<Buffer<Found>[]> found(new Buffer<Found>[pieces]);
    Buffer<int64_t> at;
    at.resize(pieces * cells);
    parallel(run, pieces, [&](int64_t piece) {
      int64_t* mine = &at[piece * cells];
      for (int64_t c = 0; c < cells; ++c) mine[c] = 0;
      found[piece].reserve(16 * each);
      const int64_t end = lower(count, (piece + 1) * each);
      for (int64_t n = piece * each; n < end; ++n)
        find(n, [&](int64_t cell, const Item& item) {
          found[piece].push({static_cast<int32_t>(cell), item});
          ++mine[cell];
        });
    });
    start_.resize(cells + 1);
    int64_t total = 0;
    for (int64_t c = 0; c < cells; ++c) {
      start_[c] = total;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t n = at[piece * cells + c];
        at[piece * cells + c] = total;
        total += n;
      }
    }
    start_[cells] = total;
    items_.resize(total);
    parallel(run, pieces, [&](int64_t piece) {
      int64_t* mine = &at[piece * cells];
      for (int64_t i = 0; i < found[piece].size(); ++i) items_[mine[found[piece][i].cell]++] = found[piece][i].item;
    });
  }
  int64_t begin(int64_t cell) const { return start_[cell]; }
  int64_t end(int64_t cell) const { return start_[cell + 1]; }
  const Item& operator[](int64_t i) const { return items_[i]; }

 private:
  struct Found {
    int32_t cell;
    Item item;
  };
  Buffer<int64_t> start_;
  Buffer<Item> items_;
};

struct Screen {
  int height, width;
  double cutoff, limit;
};

// A Gaussian's blocks in one row of them.
struct Run {
  int32_t gaussian;
  uint32_t first : 20, count : 11, slight : 1;
};

// Adds one Gaussian to `count` blocks of a row, the first of which begins at the pixel (u0, v0).
template <SplatKind K, bool Moments, bool Slight, class V>
HD void add_blocks(const Footprint<ScalarOf<V>>& f, int u0, int v0, int count, ScalarOf<V> limit, ScalarOf<V>* sum) {
  using Real = ScalarOf<V>;
  constexpr int kLanes = Lanes<V>::kCount, kAcross = Lanes<V>::kAcross;
  const RowTerms<V> row = row_terms<K, Slight>(f, block_rows<V>() + static_cast<Real>(v0 - f.v) - f.fv);
  V at = block_columns<V>() + static_cast<Real>(u0 - f.u);
  if constexpr (Moments) {
    for (int n = 0; n < count; ++n, at += static_cast<Real>(kAcross), sum += 5 * kLanes) {
      PixelMoments<V> m{load<V>(sum), load<V>(sum + kLanes), load<V>(sum + 2 * kLanes), load<V>(sum + 3 * kLanes),
                        load<V>(sum + 4 * kLanes)};
      accumulate<K, Slight>(m, f, row, at - f.fu, limit);
      store(sum, m.image);
      store(sum + kLanes, m.su);
      store(sum + 2 * kLanes, m.sv);
      store(sum + 3 * kLanes, m.du);
      store(sum + 4 * kLanes, m.dv);
    }
  } else {
    const auto add = [&](const Falloff<V>& part) {
      store(sum, load<V>(sum) + f.weight * value_of<K>(part, limit));
      sum += kLanes;
    };
    // A block's operations wait for each other, and the processor looks ahead by three blocks: with half of the next
    // among those of this one it has twice as many to choose from.
    Falloff<V> part = falloff_of<K, Slight>(along_row<K>(f, row, at - f.fu));
    for (int n = 1; n < count; ++n) {
      at += static_cast<Real>(kAcross);
      const Falloff<V> next = falloff_of<K, Slight>(along_row<K>(f, row, at - f.fu));
      add(part);
      part = next;
    }
    add(part);
  }
}

// Sums the Gaussians of one row of blocks, and writes image and moments.
template <SplatKind K, bool Moments, class V>
void render_row(const Lens& lens, const Screen& screen, const Buffer<Footprint<ScalarOf<V>>>& prints,
                const Bins<Run>& bins, int64_t block_row, ScalarOf<V>* image, ScalarOf<V>* moments) {
  using Real = ScalarOf<V>;
  constexpr int kLanes = Lanes<V>::kCount, kSums = Moments ? 5 : 1, kAcross = Lanes<V>::kAcross, kDown = Lanes<V>::kDown;
  const int v0 = static_cast<int>(block_row) * kDown;
  Blocks<V> room(blocks_across<V>(screen.width) * kSums);
  for (int64_t n = 0; n < room.size(); ++n) store(room.at(n), splat_of<V>(0));
  const Real limit = static_cast<Real>(screen.limit);
  const int64_t end = bins.end(block_row);
  for (int64_t i = bins.begin(block_row); i < end; ++i) {
    if (i + kAhead < end) __builtin_prefetch(&prints[bins[i + kAhead].gaussian]);
    const Run run = bins[i];
    const int first = static_cast<int>(run.first), count = static_cast<int>(run.count);
    const Footprint<Real>& f = prints[run.gaussian];
    const int u0 = first * kAcross;
    Real* sum = room.at(first * kSums);
    if (run.slight) add_blocks<K, Moments, true, V>(f, u0, v0, count, limit, sum);
    else add_blocks<K, Moments, false, V>(f, u0, v0, count, limit, sum);
  }
  const int64_t plane = static_cast<int64_t>(screen.height) * screen.width;
  for (int v = v0; v < lower(v0 + kDown, screen.height); ++v)
    for (int u = 0; u < screen.width; ++u) {
      const int64_t at = static_cast<int64_t>(v) * screen.width + u;
      const Real* sum = room.at(u / kAcross * kSums) + lane_of<V>(u, v);
      const double length = K == kSplatAffine ? 1.0 : ray_length(lens, u, v);
      const double value = length * static_cast<double>(sum[0]);
      image[at] = static_cast<Real>(value);
      if constexpr (Moments)
        write_moments(ray_frame<K>(lens, u, v), value, sum[kLanes], sum[2 * kLanes], sum[3 * kLanes], sum[4 * kLanes],
                      moments + at, plane);
    }
}

template <SplatKind K, class V>
void splat_views(const XregGaussians& gaussians, const XregSplatView& view, void* image, void* moments, XregFor run) {
  using Real = ScalarOf<V>;
  const GaussianArrays<Real> all = arrays_of<Real>(gaussians);
  const Screen screen{view.height, view.width, view.cutoff, kHalfLog2E * view.cutoff * view.cutoff};
  const int64_t plane = static_cast<int64_t>(view.height) * view.width, rows = blocks_down<V>(view.height);
  Buffer<Footprint<Real>> prints;
  prints.resize(gaussians.count);
  Bins<Run> bins;
  for (int64_t n = 0; n < view.views; ++n) {
    const Lens lens = lens_of<K>(view.rays + 18 * n);
    bins.build(gaussians.count, rows, run, [&](int64_t i, const auto& put) {
      Sight sight;
      Outline outline;
      if (!look<K>(lens, gaussian_at(all, i), view.cutoff, view.height, view.width, sight, prints[i], outline)) return;
      const uint32_t slight = is_slight<K, V>(prints[i], outline);
      each_row_of_blocks<V>(prints[i], outline, [&](const BlockRow& b) {
        put(b.row, {static_cast<int32_t>(i), static_cast<uint32_t>(b.first), static_cast<uint32_t>(b.count), slight});
      });
    });
    Real* out = static_cast<Real*>(image) + n * plane;
    Real* jac = moments ? static_cast<Real*>(moments) + 6 * n * plane : nullptr;
    parallel(run, rows, [&](int64_t row) {
      if constexpr (K != kSplatAffine)
        if (jac) return render_row<K, true, V>(lens, screen, prints, bins, row, out, jac);
      render_row<K, false, V>(lens, screen, prints, bins, row, out, jac);
    });
  }
}

// A view's cotangent times the rays' lengths, in blocks; zero where a block leaves the image.
template <SplatKind K, class V>
class Cotangent {
  using Real = ScalarOf<V>;

 public:
  Cotangent(int height, int width)
      : height_(height), width_(width), blocks_(static_cast<int64_t>(blocks_across<V>(width)) * blocks_down<V>(height)) {
    for (int64_t n = 0; n < blocks_.size(); ++n) store(blocks_.at(n), splat_of<V>(0));
  }
  void set(const Lens& lens, const Real* g, XregFor run) {
    parallel(run, height_, [&](int64_t row) {
      const int v = static_cast<int>(row);
      for (int u = 0; u < width_; ++u) {
        const double length = K == kSplatAffine ? 1.0 : ray_length(lens, u, v);
        Real* block = blocks_.at(place(v / Lanes<V>::kDown, u / Lanes<V>::kAcross));
        block[lane_of<V>(u, v)] = static_cast<Real>(length * static_cast<double>(g[row * width_ + u]));
      }
    });
  }
  const Real* at(int row, int column) const { return blocks_.at(place(row, column)); }

 private:
  int64_t place(int row, int column) const { return static_cast<int64_t>(row) * blocks_across<V>(width_) + column; }
  int height_, width_;
  Blocks<V> blocks_;
};

// The sums of one Gaussian over its own pixels.
template <SplatKind K, bool Slight, class V>
PixelSums<double> sums_over(const Footprint<ScalarOf<V>>& f, const Outline& outline, const Screen& screen,
                            const Cotangent<K, V>& cotangent) {
  using Real = ScalarOf<V>;
  const Real limit = static_cast<Real>(screen.limit);
  PixelSums<V> s;
  s.clear();
  each_row_of_blocks<V>(f, outline, [&](const BlockRow& b) {
    const int v0 = b.row * Lanes<V>::kDown;
    const RowTerms<V> row = row_terms<K, Slight>(f, block_rows<V>() + static_cast<Real>(v0 - f.v) - f.fv);
    V at = block_columns<V>() + static_cast<Real>(b.first * Lanes<V>::kAcross - f.u);
    const Real* g = cotangent.at(b.row, b.first);
    for (int n = 0; n < b.count; ++n, at += static_cast<Real>(Lanes<V>::kAcross), g += Lanes<V>::kCount)
      gather<K, Slight>(s, f, row, at - f.fu, load<V>(g), limit);
  });
  return {sum_of(s.w),  sum_of(s.au), sum_of(s.av), sum_of(s.auu), sum_of(s.auv), sum_of(s.avv),
          sum_of(s.b), sum_of(s.bu), sum_of(s.bv), sum_of(s.buu), sum_of(s.buv), sum_of(s.bvv)};
}

// Each Gaussian gathers over its own pixels, so nothing is written by two; the view's gradient is added up piece by
// piece, in one order.
template <SplatKind K, class V>
void splat_backward_views(const XregGaussians& gaussians, const XregSplatView& view, const void* cotangents,
                          const XregGaussianGrads& out, XregFor run) {
  using Real = ScalarOf<V>;
  const GaussianArrays<Real> all = arrays_of<Real>(gaussians);
  const GaussianGrads<Real> grads = grads_of<Real>(out);
  const Screen screen{view.height, view.width, view.cutoff, kHalfLog2E * view.cutoff * view.cutoff};
  const int64_t plane = static_cast<int64_t>(view.height) * view.width, pieces = pieces_of(gaussians.count);
  Cotangent<K, V> cotangent(view.height, view.width);
  Buffer<double> parts;
  parts.resize(18 * pieces);
  for (int64_t n = 0; n < view.views; ++n) {
    const Lens lens = lens_of<K>(view.rays + 18 * n);
    cotangent.set(lens, static_cast<const Real*>(cotangents) + n * plane, run);
    parallel(run, pieces, [&](int64_t piece) {
      LensGrad to_lens{};
      const int64_t end = lower(gaussians.count, (piece + 1) * kPiece);
      for (int64_t i = piece * kPiece; i < end; ++i) {
        Sight sight;
        Outline outline;
        Footprint<Real> f;
        const Gaussian g = gaussian_at(all, i);
        if (!look<K>(lens, g, view.cutoff, view.height, view.width, sight, f, outline)) continue;
        GaussianGrad mine;
        const PixelSums<double> sums = is_slight<K, V>(f, outline)
                                           ? sums_over<K, true, V>(f, outline, screen, cotangent)
                                           : sums_over<K, false, V>(f, outline, screen, cotangent);
        chain<K, Real>(lens, g, sight, sums, mine, to_lens);
        add_gradient(g, mine.mean, mine.whiten, mine.density, i, grads);
      }
      for (int q = 0; q < 18; ++q) parts[18 * piece + q] = 0.0;
      add_to(&parts[18 * piece], to_lens);
    });
    if (!out.rays) continue;
    for (int64_t piece = 0; piece < pieces; ++piece)
      for (int q = 0; q < 18; ++q) out.rays[18 * n + q] += parts[18 * piece + q];
  }
}

// Calls f(the kind as a constant).
template <class F>
void with_kind(const XregSplatView& view, const F& f) {
  if (view.kind == kSplatParallel) f(std::integral_constant<SplatKind, kSplatParallel>{});
  else if (view.kind == kSplatAffine) f(std::integral_constant<SplatKind, kSplatAffine>{});
  else f(std::integral_constant<SplatKind, kSplatExact>{});
}

template <class V>
void splat_as(const XregGaussians& g, const XregSplatView& view, void* image, void* moments, XregFor run) {
  with_kind(view, [&](auto kind) { splat_views<kind.value, V>(g, view, image, moments, run); });
}

template <class V>
void splat_backward_as(const XregGaussians& g, const XregSplatView& view, const void* cotangent,
                       const XregGaussianGrads& out, XregFor run) {
  with_kind(view, [&](auto kind) { splat_backward_views<kind.value, V>(g, view, cotangent, out, run); });
}

}  // namespace XREG_ISA
}  // namespace xreg

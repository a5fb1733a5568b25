// The host launchers of the splatter, for V pixels at a time.
#pragma once
#include "launch_cpu.h"
#include "splat_chain.cuh"
#include "splat_tiles.cuh"

#include <memory>
#include <utility>

namespace xreg {
inline namespace XREG_ISA {

// An array that grows.  The standard one would put functions into the library that each instruction set shares.
template <class T>
class Buffer {
 public:
  void resize(int64_t n) {
    if (n > room_) grow(n);
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

// Which Gaussians touch which cells (tiles of an image, slabs of a grid): lists in the order of the Gaussians.
class Bins {
 public:
  // find(n, put) calls put(first cell, last cell) for each run of cells that Gaussian n touches.
  template <class Find>
  void build(int64_t count, int64_t cells, XregFor run, const Find& find) {
    constexpr int64_t kMost = 128;  // pieces: each counts for every cell
    const int64_t each = upper(kPiece, (count + kMost - 1) / kMost), pieces = (count + each - 1) / each;
    std::unique_ptr<Buffer<Run>[]> runs(new Buffer<Run>[pieces]);
    Buffer<int64_t> at;
    at.resize(pieces * cells);
    parallel(run, pieces, [&](int64_t piece) {
      int64_t* mine = &at[piece * cells];
      for (int64_t c = 0; c < cells; ++c) mine[c] = 0;
      const int64_t end = lower(count, (piece + 1) * each);
      for (int64_t n = piece * each; n < end; ++n)
        find(n, [&](int64_t first, int64_t last) {
          runs[piece].push({static_cast<int32_t>(n), static_cast<int32_t>(first), static_cast<int32_t>(last)});
          for (int64_t c = first; c <= last; ++c) ++mine[c];
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
    ids_.resize(total);
    parallel(run, pieces, [&](int64_t piece) {
      int64_t* mine = &at[piece * cells];
      for (int64_t i = 0; i < runs[piece].size(); ++i) {
        const Run& r = runs[piece][i];
        for (int64_t c = r.first; c <= r.last; ++c) ids_[mine[c]++] = r.gaussian;
      }
    });
  }
  int64_t begin(int64_t cell) const { return start_[cell]; }
  int64_t end(int64_t cell) const { return start_[cell + 1]; }
  int32_t operator[](int64_t i) const { return ids_[i]; }

 private:
  struct Run {
    int32_t gaussian, first, last;
  };
  Buffer<int64_t> start_;
  Buffer<int32_t> ids_;
};

struct Screen {
  int height, width;
  double cutoff, limit;
};

// Sums one tile's Gaussians, kCount pixels of a row at a time, and writes image and moments.
template <SplatKind K, bool Moments, class V>
void render_tile(const Lens& lens, const Screen& screen, const Buffer<Footprint<ScalarOf<V>>>& prints, const Bins& bins,
                 int64_t tile, int tiles_u, ScalarOf<V>* image, ScalarOf<V>* moments) {
  using Real = ScalarOf<V>;
  constexpr int kLanes = Lanes<V>::kCount, kSums = Moments ? 5 : 1;
  const int u0 = static_cast<int>(tile % tiles_u) * kTile, v0 = static_cast<int>(tile / tiles_u) * kTile;
  alignas(64) Real sums[kSums][kTile][kTile] = {};
  const Real limit = static_cast<Real>(screen.limit);
  for (int64_t i = bins.begin(tile); i < bins.end(tile); ++i) {
    if (i + kAhead < bins.end(tile)) {
      const char* later = reinterpret_cast<const char*>(&prints[bins[i + kAhead]]);
      __builtin_prefetch(later);
      __builtin_prefetch(later + sizeof(Footprint<Real>) - 1);
    }
    const Footprint<Real>& f = prints[bins[i]];
    const int first = upper(f.v0 - v0, 0), last = lower(f.v1 - v0, kTile - 1);
    for (int s = 0; s < kTile; s += kLanes) {
      const V x = offset_u<V>(f, u0 + s);
      if constexpr (Moments) {
        for (int v = first; v <= last; ++v) {
          PixelMoments<V> m{load<V>(&sums[0][v][s]), load<V>(&sums[1][v][s]), load<V>(&sums[2][v][s]),
                            load<V>(&sums[3][v][s]), load<V>(&sums[4][v][s])};
          accumulate<K>(m, f, row_terms<K>(f, v0 + v), x, limit);
          store(&sums[0][v][s], m.image);
          store(&sums[1][v][s], m.su);
          store(&sums[2][v][s], m.sv);
          store(&sums[3][v][s], m.du);
          store(&sums[4][v][s], m.dv);
        }
      } else {
        const ColumnTerms<V> column = column_terms<K>(f, x);
        for (int v = first; v <= last; ++v) {
          V e, y2;
          const V y = splat_of<V>(static_cast<Real>(v0 + v - f.v) - f.fv);
          Real* at = &sums[0][v][s];
          store(at, load<V>(at) + f.weight * falloff<K>(down_column<K>(f, column, y), limit, e, y2));
        }
      }
    }
  }
  const int64_t plane = static_cast<int64_t>(screen.height) * screen.width;
  for (int v = 0; v < kTile && v0 + v < screen.height; ++v)
    for (int u = 0; u < kTile && u0 + u < screen.width; ++u) {
      const int64_t at = static_cast<int64_t>(v0 + v) * screen.width + u0 + u;
      const double length = K == kSplatAffine ? 1.0 : ray_length(lens, u0 + u, v0 + v);
      const double value = length * static_cast<double>(sums[0][v][u]);
      image[at] = static_cast<Real>(value);
      if constexpr (Moments)
        write_moments(ray_frame<K>(lens, u0 + u, v0 + v), value, sums[1][v][u], sums[2][v][u], sums[3][v][u],
                      sums[4][v][u], moments + at, plane);
    }
}

template <SplatKind K, class V>
void splat_views(const XregGaussians& gaussians, const XregSplatView& view, void* image, void* moments, XregFor run) {
  using Real = ScalarOf<V>;
  const GaussianArrays<Real> all = arrays_of<Real>(gaussians);
  const Screen screen{view.height, view.width, view.cutoff, kHalfLog2E * view.cutoff * view.cutoff};
  const int tiles_u = (view.width + kTile - 1) / kTile, tiles_v = (view.height + kTile - 1) / kTile;
  const int64_t plane = static_cast<int64_t>(view.height) * view.width;
  Buffer<Footprint<Real>> prints;
  prints.resize(gaussians.count);
  Bins bins;
  for (int64_t n = 0; n < view.views; ++n) {
    const Lens lens = lens_of<K>(view.rays + 18 * n);
    bins.build(gaussians.count, static_cast<int64_t>(tiles_u) * tiles_v, run, [&](int64_t i, const auto& put) {
      Sight sight;
      Outline outline;
      Footprint<Real>& f = prints[i];
      if (!look<K>(lens, gaussian_at(all, i), view.cutoff, view.height, view.width, sight, f, outline)) return;
      for (int row = f.v0 / kTile; row <= f.v1 / kTile; ++row) {
        int first, last;
        tiles_of_row(sight, f, outline, row, first, last);
        const int64_t base = static_cast<int64_t>(row) * tiles_u;
        if (first <= last) put(base + first, base + last);
      }
    });
    Real* out = static_cast<Real*>(image) + n * plane;
    Real* jac = moments ? static_cast<Real*>(moments) + 6 * n * plane : nullptr;
    parallel(run, static_cast<int64_t>(tiles_u) * tiles_v, [&](int64_t tile) {
      if constexpr (K != kSplatAffine)
        if (jac) return render_tile<K, true, V>(lens, screen, prints, bins, tile, tiles_u, out, jac);
      render_tile<K, false, V>(lens, screen, prints, bins, tile, tiles_u, out, jac);
    });
  }
}

// A view's cotangent times the rays' lengths, with a border that a vector may run into.
template <SplatKind K, class Real>
class Cotangent {
 public:
  Cotangent(int height, int width) : height_(height), width_(width), stride_(width + kTile) {
    data_.resize(stride_ * height);
    data_.fill(Real(0));
  }
  void set(const Lens& lens, const Real* g, XregFor run) {
    parallel(run, height_, [&](int64_t v) {
      for (int u = 0; u < width_; ++u) {
        const double length = K == kSplatAffine ? 1.0 : ray_length(lens, u, static_cast<double>(v));
        data_[v * stride_ + u] = static_cast<Real>(length * static_cast<double>(g[v * width_ + u]));
      }
    });
  }
  const Real* at(int u, int v) const { return &data_[v * stride_ + u]; }

 private:
  int height_, width_;
  int64_t stride_;
  Buffer<Real> data_;
};

// The sums of one Gaussian over its own pixels, row by row along the chords of its ellipse.
template <SplatKind K, class V>
PixelSums<double> sums_over(const Footprint<ScalarOf<V>>& f, const Conic<ScalarOf<V>>& conic, const Screen& screen,
                            const Cotangent<K, ScalarOf<V>>& cotangent) {
  using Real = ScalarOf<V>;
  constexpr int kLanes = Lanes<V>::kCount;
  const Real limit = static_cast<Real>(screen.limit);
  PixelSums<V> s;
  s.clear();
  for (int first = f.v0; first <= f.v1; first += kLanes) {
    V lo, hi;
    chord(conic, ramp<V>() + (static_cast<Real>(first - f.v) - f.fv), lo, hi);
    alignas(64) Real from[kLanes], to[kLanes];
    store(from, lo + (f.fu - static_cast<Real>(0.02)));
    store(to, hi + (f.fu + static_cast<Real>(0.02)));
    for (int v = first; v <= f.v1 && v < first + kLanes; ++v) {
      const RowTerms<Real> row = row_terms<K>(f, v);
      const int u0 = within(from[v - first], f.u0 - f.u, f.u1 - f.u) + f.u;
      const int u1 = within(to[v - first], f.u0 - f.u, f.u1 - f.u) + f.u;
      for (int u = u0; u <= u1; u += kLanes)
        gather<K>(s, f, row, offset_u<V>(f, u), load<V>(cotangent.at(u, v)), limit);
    }
  }
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
  Cotangent<K, Real> cotangent(view.height, view.width);
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
        chain<K, Real>(lens, g, sight, sums_over<K, V>(f, narrow<Real>(outline.conic), screen, cotangent), mine, to_lens);
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

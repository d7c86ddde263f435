// conv_bn_relu_pool_value: z is written once, with the statistics of every tile; the last tile merges these. Then z is normalized and
// pooled.
#include "../host/conv_bn_relu_pool_value.cpp"  // its signatures

#include "block.h"
#include "mma_convolution.h"
#include "pool.h"

namespace hg::cuda {
namespace {

// Writes z, and of each tile and filter the mean and the sum of squared deviations from it, by two passes over
// registers, and the number of pixels: parts[tile][3][K]. The last tile merges them.
template <class T>
struct StoreStatistics {
  static constexpr bool kSums = true;
  Batch<T> z, mean, rstd;
  double* parts;
  unsigned* tickets;  // of each episode and 32 filters
  int64_t pixels;
  double eps;
  int H, W, K;

  template <class Shape>
  HG_DEVICE void finish(const Spot& spot, const Place& at, const Window (&windows)[Shape::kOwn],
                        const T (&z_)[Shape::kOwn][4][Shape::kGroup], T* sums) const {
    HG_UNROLL
    for (int i = 0; i < Shape::kOwn; ++i) store_window(z.at(0, spot.e), at, windows[i], H, W, K, spot.k, z.wide, z_[i]);
    HG_UNROLL
    for (int k = 0; k < Shape::kGroup; k += Shape::kGroup / Shape::kOwn)
      statistics<Shape, Shape::kGroup / Shape::kOwn>(spot, k, at, windows, z_, sums);
  }

  // Of n of the thread's filters, from its `first` on.
  template <class Shape, int n>
  HG_DEVICE void statistics(const Spot& spot, int first, const Place& at, const Window (&windows)[Shape::kOwn],
                            const T (&z_)[Shape::kOwn][4][Shape::kGroup], T* sums) const {
    const T count = static_cast<T>(spot.pixels);
    T near[n], rest[n], squares[n];
    HG_UNROLL
    for (int k = 0; k < n; ++k) {
      near[k] = T(0);
      HG_UNROLL
      for (int i = 0; i < Shape::kOwn; ++i) HG_UNROLL
      for (int q = 0; q < 4; ++q) near[k] += windows[i].has(at, q) ? z_[i][q][first + k] : T(0);
    }
    tile_sums<Shape>(near, sums);
    HG_UNROLL
    for (int k = 0; k < n; ++k) {
      near[k] /= count;  // the mean, rounded: differences to it are small and are corrected below
      rest[k] = squares[k] = T(0);
      HG_UNROLL
      for (int i = 0; i < Shape::kOwn; ++i) HG_UNROLL
      for (int q = 0; q < 4; ++q) {
        const T d = windows[i].has(at, q) ? z_[i][q][first + k] - near[k] : T(0);
        rest[k] += d;
        squares[k] = fused(d, d, squares[k]);
      }
    }
    tile_sums<Shape>(rest, sums);
    tile_sums<Shape>(squares, sums);
    if (Shape::window(static_cast<int>(threadIdx.x), 0) != 0) return;
    double* const part = parts + static_cast<int64_t>(spot.index) * 3 * K;
    HG_UNROLL
    for (int j = 0; j < n; ++j) {
      const int k = spot.k + first + j;
      if (k >= K) break;
      const double off = static_cast<double>(rest[j]) / static_cast<double>(count);
      part[k] = static_cast<double>(near[j]) + off;
      part[K + k] = static_cast<double>(squares[j]) - static_cast<double>(rest[j]) * off;
      part[2 * K + k] = static_cast<double>(count);
    }
  }

  // Mean and 1/sqrt(var + eps) of 32 filters of an episode, in one pass over the tiles: of the distances of their means from the first
  // one's (Chan, Golub & LeVeque 1979).
  HG_DEVICE void close(int column_tile, const Tiling& t, double* sums) const {
    const int filter_tiles = (K + kFilters - 1) / kFilters, tiles = t.count, e = column_tile / filter_tiles;
    const int k = column_tile % filter_tiles * kFilters + static_cast<int>(threadIdx.x) % 32;
    const int slice = static_cast<int>(threadIdx.x) / 32, column = lower(k, K - 1);
    const double* const part = parts + static_cast<int64_t>(e) * tiles * 3 * K + column;
    const double near = tiles > 0 ? part[0] : 0.0;
    double total = 0, squares = 0;
    HG_UNROLL_BY(8)
    for (int i = slice; i < tiles; i += kSlices) {
      const double* const row = part + static_cast<int64_t>(i) * 3 * K;
      const double d = row[0] - near, weighted = d * row[2 * K];
      total += weighted;
      squares += row[K] + d * weighted;
    }
    const double per_pixel = 1.0 / static_cast<double>(higher<int64_t>(1, pixels)), off = slice_sum(total, sums) * per_pixel;
    const double m = near + off, var = slice_sum(squares, sums) * per_pixel - off * off;
    if (slice != 0 || k >= K) return;
    mean.at(0, e)[k] = static_cast<T>(m);
    rstd.at(0, e)[k] = static_cast<T>(1.0 / sqrt((var < 0 ? 0.0 : var) + eps));  // a NaN stays
  }
};

// y and code of one window and four filters per thread.
template <class T>
__global__ void __launch_bounds__(kThreads) bn_relu_pool(Batch<const T> z, Batch<const T> mean, Batch<const T> rstd, Batch<const T> gamma,
                                                         Batch<const T> beta, Batch<T> y, Batch<unsigned char> code, Pooling pooling) {
  const Pooled at = pooling.at(blockIdx.x, threadIdx.x);
  if (!at.any) return;
  const int K = pooling.K;
  const bool wide = z.wide && y.wide && code.wide;
  const Quad<T> m = load_quad(mean.at(0, at.entry), at.k, K, false), r = load_quad(rstd.at(0, at.entry), at.k, K, false),
                g = load_quad(gamma.at(0, at.entry), at.k, K, false), b = load_quad(beta.at(0, at.entry), at.k, K, false);
  const T* const first = z.at(0, at.entry) + winner_offset(0, at.image, at.y, at.x, pooling.H, pooling.W, K);
  Quad<T> v[4];
  HG_UNROLL
  for (int q = 0; q < 4; ++q) v[q] = load_quad(first + (static_cast<int64_t>(q >> 1) * pooling.W + (q & 1)) * K, at.k, K, wide);
  Quad<T> out;
  Codes codes;
  HG_UNROLL
  for (int j = 0; j < 4; ++j) {
    const T values[4] = {v[0].v[j], v[1].v[j], v[2].v[j], v[3].v[j]};
    out.v[j] = pool(values, m.v[j], g.v[j] * r.v[j], b.v[j], codes.v[j]);
  }
  store_quad(y.at(0, at.entry) + at.offset, at.k, K, wide, out);
  store_codes(code.at(0, at.entry) + at.offset, at.k, K, wide, codes);
}

template <class T, class S>
void value(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(x, w, gamma, beta, y, mean, rstd, z, code)
  const double eps = HG_ATTRIBUTE(eps);

  Launch launch(call);
  auto conv = convolution<T, Images<T>>(precision_of<T>(HG_INTEGER(precision), b.C), b.E, b.E, b.N, b.H, b.W, b.C, b.K);
  conv.add({x, {}, b.H, b.W, b.C}, {w, b.C, b.K, false});
  double* const parts = launch.scratch<double>(b.E * conv.tiling.tiles() * 3 * b.K);
  unsigned* const tickets = launch.tickets(b.E * b.filter_tiles());
  launch_precise(launch, "conv_statistics", conv, b.E, StoreStatistics<T>{z, mean, rstd, parts, tickets, b.pixels(), eps, b.H, b.W, b.K});
  const Pooling pooling = Pooling::of(b.N, b.H, b.W, b.K);
  launch("bn_relu_pool", bn_relu_pool<T>, b.E * pooling.blocks, kThreads, 0, as_input(z), as_input(mean), as_input(rstd), gamma, beta, y,
         code, pooling);
}

HG_KERNEL(conv_bn_relu_pool_value, value)

}  // namespace
}  // namespace hg::cuda

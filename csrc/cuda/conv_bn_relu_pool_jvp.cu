// conv_bn_relu_pool_jvp: z_dot = conv(x_dot, w) + conv(x, w_dot), written once with the moments of every tile; these
// are merged to mean(z_dot) and c = mean(xhat*z_dot); then y_dot follows at the stored winners.
//   xhat_dot = s*(z_dot - mean(z_dot) - xhat*c);  y_dot = gamma_dot*xhat + gamma*xhat_dot + beta_dot, where active
#include "../host/conv_bn_relu_pool_jvp.cpp"  // its signatures

#include "block.h"
#include "mma_convolution.h"
#include "pool.h"

namespace hg::cuda {
namespace {

// Writes z_dot, and of each tile and filter: the mean of z_dot, sum (z - mean)*(z_dot - that mean), sum (z - mean), its pixels. The last
// tile merges them.
template <class T>
struct StoreMoments {
  static constexpr bool kSums = true;
  static constexpr int kAtOnce = 4;
  Batch<T> z_dot, z_dot_mean, c;
  Batch<const T> z, mean, rstd, gamma, gamma_dot;
  double* parts;      // [tile][4][K]
  T* factors;         // [entry][2][K]: of (z - mean) and (z_dot - mean(z_dot)) in y_dot
  unsigned* tickets;  // of each direction, episode and 32 filters
  int64_t pixels, E;
  int H, W, K;

  template <class Shape>
  HG_DEVICE void finish(const Spot& spot, const Place& at, const Window (&windows)[Shape::kOwn],
                        const T (&dot)[Shape::kOwn][4][Shape::kGroup], T* sums) const {
    HG_UNROLL
    for (int i = 0; i < Shape::kOwn; ++i) store_window(z_dot.at(spot.p, spot.e), at, windows[i], H, W, K, spot.k, z_dot.wide, dot[i]);
    HG_NO_UNROLL
    for (int i = 0; i < Shape::kGroup; i += kAtOnce) moments<Shape>(spot, spot.k + i, at, windows, sums);
  }

  // Of filters k .. k + kAtOnce - 1. Each thread reads back what it wrote: its registers do not hold all of z_dot, z and the sums.
  template <class Shape>
  HG_DEVICE void moments(const Spot& spot, int k, const Place& at, const Window (&windows)[Shape::kOwn], T* sums) const {
    const T count = static_cast<T>(spot.pixels);
    Quad<T> value[4], dot[4];
    const auto read = [&](const Window& window) {
      const int first = forgotten(((at.image + window.image) * H + at.y + window.y) * W + at.x + window.x);
      HG_UNROLL
      for (int q = 0; q < 4; ++q) {
        value[q] = dot[q] = Quad<T>{};
        if (k >= K || !window.has(at, q)) continue;
        const int64_t pixel = static_cast<int64_t>(first + (q >> 1) * W + (q & 1)) * K;
        value[q] = load_quad(z.at(0, spot.e) + pixel, k, K, z.wide);
        dot[q] = load_quad(z_dot.at(spot.p, spot.e) + pixel, k, K, z_dot.wide);
      }
    };
    T near[kAtOnce] = {}, rest[kAtOnce] = {}, product[kAtOnce] = {}, deviation[kAtOnce] = {};
    HG_UNROLL
    for (int i = 0; i < Shape::kOwn; ++i) {
      read(windows[i]);
      HG_UNROLL
      for (int j = 0; j < kAtOnce; ++j) near[j] += dot[0].v[j] + dot[1].v[j] + dot[2].v[j] + dot[3].v[j];
    }
    tile_sums<Shape>(near, sums);
    const Quad<T> m = k < K ? load_quad(mean.at(0, spot.e), k, K, false) : Quad<T>{};
    HG_UNROLL
    for (int j = 0; j < kAtOnce; ++j) near[j] /= count;
    HG_UNROLL
    for (int i = 0; i < Shape::kOwn; ++i) {
      if (Shape::kOwn > 1) read(windows[i]);  // the only one is still there
      HG_UNROLL
      for (int j = 0; j < kAtOnce; ++j) HG_UNROLL
      for (int q = 0; q < 4; ++q) {
        if (!windows[i].has(at, q)) continue;
        const T d = value[q].v[j] - m.v[j], d_dot = dot[q].v[j] - near[j];
        rest[j] += d_dot;
        product[j] = fused(d, d_dot, product[j]);
        deviation[j] += d;
      }
    }
    tile_sums<Shape>(rest, sums);
    tile_sums<Shape>(product, sums);
    tile_sums<Shape>(deviation, sums);
    if (Shape::window(static_cast<int>(threadIdx.x), 0) != 0) return;
    double* const part = parts + static_cast<int64_t>(spot.index) * 4 * K;
    HG_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      if (k + j >= K) break;
      const double off = static_cast<double>(rest[j]) / static_cast<double>(count);
      part[k + j] = static_cast<double>(near[j]) + off;
      part[K + k + j] = static_cast<double>(product[j]) - off * static_cast<double>(deviation[j]);
      part[2 * K + k + j] = static_cast<double>(deviation[j]);
      part[3 * K + k + j] = static_cast<double>(count);
    }
  }

  HG_DEVICE void close(int column_tile, const Tiling& t, double* sums) const {
    const int filter_tiles = (K + kFilters - 1) / kFilters, tiles = t.count;
    const int64_t entry = column_tile / filter_tiles, p = entry / E, e = entry % E;
    const int k = column_tile % filter_tiles * kFilters + static_cast<int>(threadIdx.x) % 32;
    const int slice = static_cast<int>(threadIdx.x) / 32, column = lower(k, K - 1);
    const double* const part = parts + entry * tiles * 4 * K + column;
    const double near = tiles > 0 ? part[0] : 0.0;
    double total = 0, product = 0, deviation = 0;
    HG_UNROLL_BY(8)
    for (int i = slice; i < tiles; i += kSlices) {
      const double* const row = part + static_cast<int64_t>(i) * 4 * K;
      const double d = row[0] - near;
      total += d * row[3 * K];
      product += row[K] + d * row[2 * K];
      deviation += row[2 * K];
    }
    const double M = static_cast<double>(higher<int64_t>(1, pixels)), off = slice_sum(total, sums) / M, m_dot = near + off;
    product = slice_sum(product, sums) - off * slice_sum(deviation, sums);
    if (slice != 0 || k >= K) return;
    const double r = static_cast<double>(rstd.at(0, e)[k]), correlation = r * product / M;
    const double g_dot = gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) : 0.0;
    const NormDot dot = norm_dot(static_cast<double>(gamma.at(0, e)[k]), g_dot, r, correlation);
    z_dot_mean.at(p, e)[k] = static_cast<T>(m_dot);
    c.at(p, e)[k] = static_cast<T>(correlation);
    factors[entry * 2 * K + k] = static_cast<T>(dot.by_z);
    factors[entry * 2 * K + K + k] = static_cast<T>(dot.by_z_dot);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_dot(Batch<const unsigned char> code, Batch<const T> z, Batch<const T> z_dot, Batch<const T> mean, Batch<const T> z_dot_mean,
             Batch<const T> beta_dot, const T* factors, int64_t E, Batch<T> y_dot, Pooling pooling) {
  const Pooled at = pooling.at(blockIdx.x, threadIdx.x);
  if (!at.any) return;
  const int K = pooling.K;
  const int64_t p = at.entry / E, e = at.entry % E;
  const bool wide = code.wide && y_dot.wide;
  const Codes codes = load_codes(code.at(0, e) + at.offset, at.k, K, wide);
  const T* const f = factors + at.entry * 2 * K;
  Quad<T> out{};
  HG_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int k = at.k + j;
    if (k >= K || (codes.v[j] & 4) == 0) continue;
    const int64_t i = winner_offset(codes.v[j], at.image, at.y, at.x, pooling.H, pooling.W, K) + k;
    const T shift = beta_dot ? beta_dot.at(p, e)[k] : T(0);
    const T by_z = fused(z.at(0, e)[i] - mean.at(0, e)[k], f[k], shift);
    out.v[j] = fused(z_dot.at(p, e)[i] - z_dot_mean.at(p, e)[k], f[K + k], by_z);
  }
  store_quad(y_dot.at(p, e) + at.offset, at.k, K, wide, out);
}

template <class T, class S>
void jvp(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(x, w, gamma, mean, rstd, z, code, x_dot, w_dot, gamma_dot, beta_dot, y_dot, z_dot, z_dot_mean, c)

  Launch launch(call);
  const int64_t entries = b.P * b.E;
  auto conv = convolution<T, Images<T>>(precision_of<T>(HG_INTEGER(precision), b.C), entries, b.E, b.N, b.H, b.W, b.C, b.K);
  if (x_dot) conv.add({x_dot, {}, b.H, b.W, b.C}, {w, b.C, b.K, false});
  if (w_dot) conv.add({x, {}, b.H, b.W, b.C}, {w_dot, b.C, b.K, false});
  double* const parts = launch.scratch<double>(entries * conv.tiling.tiles() * 4 * b.K);
  T* const factors = launch.scratch<T>(entries * 2 * b.K);
  const StoreMoments<T> epilogue{
      z_dot,      z_dot_mean, c,   z,   mean, rstd, gamma, gamma_dot, parts, factors, launch.tickets(entries * b.filter_tiles()),
      b.pixels(), b.E,        b.H, b.W, b.K};
  launch_precise(launch, "conv_moments", conv, entries, epilogue);
  const Pooling pooling = Pooling::of(b.N, b.H, b.W, b.K);
  launch("pool_dot", pool_dot<T>, entries * pooling.blocks, kThreads, 0, code, z, as_input(z_dot), mean, as_input(z_dot_mean), beta_dot,
         factors, b.E, y_dot, pooling);
}

HG_KERNEL(conv_bn_relu_pool_jvp, jvp)

}  // namespace
}  // namespace hg::cuda

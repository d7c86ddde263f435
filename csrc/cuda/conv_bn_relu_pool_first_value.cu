// conv_bn_relu_pool_first_value and _first_jvp: statistics from the patches, then one pass of convolution,
// normalization, ReLU and maximum; z stays in registers. y_dot is linear in z and z_dot at the winners, so that one
// convolution with the filters by_z*w + by_z_dot*w_dot makes it.
#include "../host/conv_bn_relu_pool_first_value.cpp"  // its signatures

#include "first.h"

namespace hg::cuda {
namespace {

// mean, rstd, and constants[e][3][K]: offset, scale, shift of u = (conv(x - shift, w) - offset)*scale + shift.
template <class T>
__global__ void __launch_bounds__(kThreads)
    first_statistics(const Block b, Batch<const T> w, Batch<const T> gamma, Batch<const T> beta, Batch<const T> patch_mean,
                     Batch<const T> patch_cov, double eps, Batch<T> mean, Batch<T> rstd, T* constants) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const Column v = column_of(b);
  const T *const weights = w.at(0, v.e) + v.inside, *const m = patch_mean.at(0, v.e);
  const auto weight = [&](int j) { return weights[static_cast<int64_t>(j) * b.K]; };
  const double var = tap_sum(b, v, weight, CovTimes<T>{patch_cov.at(0, v.e), weights, 9 * b.C, b.K}, sums);
  const double all = tap_sum(b, v, weight, [&](int j) { return m[j]; }, sums);
  const double offset =
      tap_sum(b, v, weight, [&](int j) { return static_cast<double>(m[j]) - static_cast<double>(m[4 * b.C + j % b.C]); }, sums);
  if (v.slice != 0 || !v.any) return;
  T* const to = constants + v.e * 3 * b.K + v.k;
  to[0] = static_cast<T>(offset);
  to[2 * b.K] = beta.at(0, v.e)[v.k];
  mean.at(0, v.e)[v.k] = static_cast<T>(all);
  const T r = static_cast<T>(1.0 / sqrt((var < 0 ? 0.0 : var) + eps));  // a NaN stays
  rstd.at(0, v.e)[v.k] = r;
  to[b.K] = gamma.at(0, v.e)[v.k] * r;
}

template <class T>
struct Pool {
  static constexpr bool kSums = false;
  Batch<T> y;
  Batch<unsigned char> code;
  const T* constants;
  int h, w, K;

  template <class Shape>
  HG_DEVICE void finish(const Spot& spot, const Place& at, const Window (&windows)[1], const T (&accumulators)[1][4][Shape::kGroup],
                        T*) const {
    const Window& window = windows[0];
    const auto& z = accumulators[0];
    if (!window.whole(at)) return;
    const T* const s = constants + static_cast<int64_t>(spot.e) * 3 * K;
    const int64_t row = ((static_cast<int64_t>(at.image + window.image) * h + (at.y + window.y) / 2) * w + (at.x + window.x) / 2) * K;
    const bool wide = y.wide && code.wide;
    HG_UNROLL
    for (int i = 0; i < Shape::kGroup; i += 4) {
      const int k = spot.k + i;
      if (k >= K) break;
      const Quad<T> offset = load_quad(s, k, K, false), scale = load_quad(s + K, k, K, false), shift = load_quad(s + 2 * K, k, K, false);
      Quad<T> out;
      Codes codes;
      HG_UNROLL
      for (int j = 0; j < 4; ++j) {
        const T values[4] = {z[0][i + j], z[1][i + j], z[2][i + j], z[3][i + j]};
        out.v[j] = pool(values, offset.v[j], scale.v[j], shift.v[j], codes.v[j]);
      }
      store_quad(y.at(0, spot.e) + row, k, K, wide, out);
      store_codes(code.at(0, spot.e) + row, k, K, wide, codes);
    }
  }
};

template <class T, class S>
void value(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(x, w, gamma, beta, patch_mean, patch_cov, y, mean, rstd, code)
  const double eps = HG_ATTRIBUTE(eps);

  Launch launch(call);
  T* const constants = launch.scratch<T>(b.E * 3 * b.K);
  launch("first_statistics", first_statistics<T>, b.E * b.filter_tiles(), kThreads, shared_size(kThreads * sizeof(double)), b, w, gamma,
         beta, patch_mean, patch_cov, eps, mean, rstd, constants);
  auto conv = spread(convolution<T, Images<T>>(b.E, b.N, b.H, b.W, b.C, b.K), b.E);
  conv.add(shifted_images(b, x, patch_mean), {w, b.C, b.K, false});
  launch_convolution(launch, "conv_pool", conv, b.windows() == 0 ? 0 : b.E, Pool<T>{y, code, constants, b.h, b.w, b.K});
}

// filters[entry][9C][K] = by_z*w + by_z_dot*w_dot and shift[entry][K], so that at the winners
//   y_dot = conv(x - shift, filters) + shift
template <class T>
__global__ void __launch_bounds__(kThreads) combine_filters(const Block b, Batch<const T> w, Batch<const T> gamma, Batch<const T> rstd,
                                                            Batch<const T> patch_mean, Batch<const T> patch_cov, Batch<const T> w_dot,
                                                            Batch<const T> gamma_dot, Batch<const T> beta_dot, T* filters, T* shifts) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const Column v = column_of(b);
  const T *const weights = w.at(0, v.e) + v.inside, *const m = patch_mean.at(0, v.e);
  const T* const weights_dot = w_dot ? w_dot.at(v.p, v.e) + v.inside : nullptr;
  const auto weight = [&](int j) { return weights[static_cast<int64_t>(j) * b.K]; };
  const auto weight_dot = [&](int j) { return weights_dot == nullptr ? T(0) : weights_dot[static_cast<int64_t>(j) * b.K]; };
  const auto border = [&](int j) { return static_cast<double>(m[j]) - static_cast<double>(m[4 * b.C + j % b.C]); };
  const double product = tap_sum(b, v, weight_dot, CovTimes<T>{patch_cov.at(0, v.e), weights, 9 * b.C, b.K}, sums);
  const double offset = tap_sum(b, v, weight, border, sums), offset_dot = tap_sum(b, v, weight_dot, border, sums);
  if (!v.any) return;
  const double r = static_cast<double>(rstd.at(0, v.e)[v.k]), g = static_cast<double>(gamma.at(0, v.e)[v.k]);
  const double g_dot = gamma_dot ? static_cast<double>(gamma_dot.at(v.p, v.e)[v.k]) : 0.0;
  const double by_z = g_dot * r - g * r * r * r * product, by_z_dot = g * r;
  T* const to = filters + v.entry * 9 * b.C * b.K + v.k;
  for (int j = v.slice; j < 9 * b.C; j += kSlices)
    to[static_cast<int64_t>(j) * b.K] =
        static_cast<T>(by_z * static_cast<double>(weight(j)) + by_z_dot * static_cast<double>(weight_dot(j)));
  if (v.slice != 0) return;
  const double shift = beta_dot ? static_cast<double>(beta_dot.at(v.p, v.e)[v.k]) : 0.0;
  shifts[v.entry * b.K + v.k] = static_cast<T>(shift - by_z * offset - by_z_dot * offset_dot);
}

template <class T>
struct PoolDot {
  static constexpr bool kSums = false;
  Batch<const unsigned char> code;
  Batch<T> y_dot;
  const T* shifts;
  int64_t E;
  int h, w, K;

  template <class Shape>
  HG_DEVICE void finish(const Spot& spot, const Place& at, const Window (&windows)[1], const T (&accumulators)[1][4][Shape::kGroup],
                        T*) const {
    const Window& window = windows[0];
    const auto& u = accumulators[0];
    if (!window.whole(at)) return;
    const T* const shift = shifts + (spot.p * E + spot.e) * K;
    const int64_t row = ((static_cast<int64_t>(at.image + window.image) * h + (at.y + window.y) / 2) * w + (at.x + window.x) / 2) * K;
    const bool wide = code.wide && y_dot.wide;
    HG_UNROLL
    for (int i = 0; i < Shape::kGroup; i += 4) {
      const int k = spot.k + i;
      if (k >= K) break;
      const Codes codes = load_codes(code.at(0, spot.e) + row, k, K, wide);
      const Quad<T> add = load_quad(shift, k, K, false);
      Quad<T> out;
      HG_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int c = codes.v[j];
        const T top = (c & 1) != 0 ? u[1][i + j] : u[0][i + j], bottom = (c & 1) != 0 ? u[3][i + j] : u[2][i + j];
        out.v[j] = (c & 4) != 0 ? ((c & 2) != 0 ? bottom : top) + add.v[j] : T(0);
      }
      store_quad(y_dot.at(spot.p, spot.e) + row, k, K, wide, out);
    }
  }
};

template <class T, class S>
void jvp(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(x, w, gamma, rstd, patch_mean, patch_cov, code, w_dot, gamma_dot, beta_dot, y_dot)

  Launch launch(call);
  const int64_t entries = b.P * b.E, size = static_cast<int64_t>(9) * b.C * b.K;
  T* const filters = launch.scratch<T>(entries * size);
  T* const shifts = launch.scratch<T>(entries * b.K);
  launch("combine_filters", combine_filters<T>, entries * b.filter_tiles(), kThreads, shared_size(kThreads * sizeof(double)), b, w, gamma,
         rstd, patch_mean, patch_cov, w_dot, gamma_dot, beta_dot, filters, shifts);
  auto conv = spread(convolution<T, Images<T>>(b.E, b.N, b.H, b.W, b.C, b.K), entries);
  conv.add(shifted_images(b, x, patch_mean), {{filters, b.E * size, size, false}, b.C, b.K, false});
  launch_convolution(launch, "conv_pool_dot", conv, b.windows() == 0 ? 0 : entries, PoolDot<T>{code, y_dot, shifts, b.E, b.h, b.w, b.K});
}

HG_KERNEL(conv_bn_relu_pool_first_value, value)
HG_KERNEL(conv_bn_relu_pool_first_jvp, jvp)

}  // namespace
}  // namespace hg::cuda

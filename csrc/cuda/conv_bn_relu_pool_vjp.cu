// The gradient of the fused block and its tangent, for conv_bn_relu_pool_vjp and _vjp_jvp.
//   q = u_bar - B/M - xhat*G/M;  z_bar = gamma*s*q;  x_bar = dgrad(z_bar, w);  w_bar = wgrad(x, z_bar)
//   s_dot = -s*s*c;  xhat_dot = s*(z_dot - mean(z_dot) - xhat*c);  B_dot = sum u_bar_dot
//   G_dot = sum (u_bar_dot*xhat + u_bar*xhat_dot)
//   z_bar_dot = (gamma_dot*s + gamma*s_dot)*q + gamma*s*(u_bar_dot - B_dot/M - xhat_dot*G/M - xhat*G_dot/M)
//   w_bar_dot = wgrad(x_dot, z_bar) + wgrad(x, z_bar_dot);  x_bar_dot = dgrad(z_bar_dot, w) + dgrad(z_bar, w_dot)
// B and G are sums over pooled-size arrays. Neither z_bar nor z_bar_dot is ever stored: both are affine in z and z_dot
// but for the winners, and are formed where they are read.
#include "../host/conv_bn_relu_pool_vjp.cpp"      // its signatures
#include "../host/conv_bn_relu_pool_vjp_jvp.cpp"  // its signatures

#include "block.h"
#include "mma_wgrad.h"

namespace hg::cuda {
namespace {

// Arguments of the vjp and of its tangent. In the plain vjp the tangents are absent, and there is one direction.
template <class T>
struct Gradient {
  Batch<const T> y_bar, y_bar_dot, mean, rstd, z, x, w, gamma, x_dot, w_dot, gamma_dot, z_dot, z_dot_mean, c;
  Batch<const unsigned char> code;
  Batch<T> x_bar, w_bar, gamma_bar, beta_bar;  // or their tangents
};

constexpr int kReduceWindows = 512;  // windows of a block at most: 64 per thread are added in T

// Rows of partial sums over active winners, m and m_dot the means:
//   y_bar, y_bar*(z - m), y_bar_dot, y_bar_dot*(z - m), y_bar*(z_dot - m_dot)
constexpr int kRows = 2, kRowsDot = 5;

// gamma_bar, beta_bar (or their tangents), and the constants of z_bar and z_bar_dot.
template <class T>
HG_DEVICE void close_reduce(const Gradient<T>& a, const Block& b, int rows, int n_parts, int64_t entry, int k, const double* parts, T* bar,
                            T* bar_dot, double* sums) {
  const int64_t p = entry / b.E, e = entry % b.E;
  const int slice = static_cast<int>(threadIdx.x) / 32;
  double total[kRowsDot];
  HG_UNROLL
  for (int row = 0; row < kRowsDot; ++row) {
    double sum = 0;
    for (int i = slice; i < n_parts && row < rows && k < b.K; i += kSlices) sum += parts[((entry * n_parts + i) * rows + row) * b.K + k];
    total[row] = slice_sum(sum, sums);
  }
  if (slice != 0 || k >= b.K) return;
  const double M = static_cast<double>(higher<int64_t>(1, static_cast<int64_t>(b.N) * b.H * b.W));
  const double s = static_cast<double>(a.rstd.at(0, e)[k]), B = total[0];
  const NormBar of = norm_bar(static_cast<double>(a.gamma.at(0, e)[k]), s, B, total[1], M);
  T* const to = bar + entry * kCotangentRows * b.K + k;
  to[kMean * b.K] = a.mean.at(0, e)[k];
  to[kByZ * b.K] = static_cast<T>(of.by_z);
  to[kShift * b.K] = static_cast<T>(of.shift);
  to[kByY * b.K] = static_cast<T>(of.scale);
  if (rows == kRows) {
    a.gamma_bar.at(p, e)[k] = static_cast<T>(of.G);
    a.beta_bar.at(p, e)[k] = static_cast<T>(B);
    return;
  }
  const double c = static_cast<double>(a.c.at(p, e)[k]);
  const double gamma_dot = a.gamma_dot ? static_cast<double>(a.gamma_dot.at(p, e)[k]) : 0.0;
  const NormBar of_dot = norm_bar_dot(of, gamma_dot * s, s, c, B, total[2], total[3] + total[4], M);
  T* const dot = bar_dot + entry * kCotangentRows * b.K + k;
  dot[kMean * b.K] = a.mean.at(0, e)[k];
  dot[kByZ * b.K] = static_cast<T>(of_dot.by_z);
  dot[kShift * b.K] = static_cast<T>(of_dot.shift);
  dot[kByY * b.K] = static_cast<T>(of_dot.scale);
  dot[kMeanDot * b.K] = a.z_dot_mean.at(p, e)[k];
  dot[kByZDot * b.K] = static_cast<T>(of.by_z);
  dot[kByYDot * b.K] = static_cast<T>(of.scale);
  a.gamma_bar.at(p, e)[k] = static_cast<T>(of_dot.G);
  a.beta_bar.at(p, e)[k] = static_cast<T>(total[2]);
}

// parts[entry][part][rows][K]; the last part of an entry and its 32 filters adds them up, by `tickets`.
template <class T>
__global__ void __launch_bounds__(kThreads)
    reduce_winners(const Gradient<T> a, const Block b, int rows, int windows, int n_parts, const Divisor by_w, const Divisor by_h,
                   double* parts, unsigned* tickets, T* bar, T* bar_dot) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  int* const flag = shared.take<int>(1);
  const int filter_tiles = (b.K + kFilters - 1) / kFilters;
  int block = static_cast<int>(blockIdx.x);
  const int part = block % n_parts;
  block /= n_parts;
  const int column = block, k0 = block % filter_tiles * kFilters, entry = block / filter_tiles;
  const int64_t p = entry / b.E, e = entry % b.E;
  const int slice = static_cast<int>(threadIdx.x) / 32, k = k0 + static_cast<int>(threadIdx.x) % 32;
  const int first = part * windows, last = lower(static_cast<int>(b.N * b.h * b.w), first + windows);
  T total[kRowsDot] = {};
  if (k < b.K) {
    const bool dot = rows == kRowsDot;
    const T m = a.mean.at(0, e)[k], m_dot = dot ? a.z_dot_mean.at(p, e)[k] : T(0);
    const unsigned char* const codes = a.code.at(0, e);
    const T *const bars = a.y_bar.at(0, e), *const bars_dot = a.y_bar_dot ? a.y_bar_dot.at(p, e) : nullptr, *const z = a.z.at(0, e),
                   *const z_dot = dot ? a.z_dot.at(p, e) : nullptr;
    // Loads of a few windows wait for memory together; what is added, and in which order, does not depend on that.
    constexpr int kAtOnce = 4;
    HG_NO_UNROLL
    for (int i0 = first + slice; i0 < last; i0 += kAtOnce * kSlices) {
      int code[kAtOnce];
      T bar_of[kAtOnce], dots[kAtOnce], value[kAtOnce], value_dot[kAtOnce];
      HG_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = i0 + j * kSlices;
        const int64_t at = static_cast<int64_t>(lower(i, last - 1)) * b.K + k;
        code[j] = i < last ? codes[at] : 0;
        bar_of[j] = bars[at];
        dots[j] = bars_dot != nullptr ? bars_dot[at] : T(0);
      }
      HG_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        int image = lower(i0 + j * kSlices, last - 1);
        const int x = by_w.split(image), y = by_h.split(image);
        const int64_t winner = winner_offset(code[j], image, y, x, b.H, b.W, b.K) + k;
        value[j] = z[winner];
        value_dot[j] = dot ? z_dot[winner] : T(0);
      }
      HG_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        if ((code[j] & 4) == 0) continue;
        const T d = value[j] - m;
        total[0] += bar_of[j];
        total[1] = fused(bar_of[j], d, total[1]);
        if (bars_dot != nullptr) {
          total[2] += dots[j];
          total[3] = fused(dots[j], d, total[3]);
        }
        if (dot) total[4] = fused(bar_of[j], value_dot[j] - m_dot, total[4]);
      }
    }
  }
  HG_UNROLL
  for (int row = 0; row < kRowsDot; ++row) {
    if (row >= rows) break;
    const double sum = slice_sum(static_cast<double>(total[row]), sums);
    if (slice == 0 && k < b.K) parts[((static_cast<int64_t>(entry) * n_parts + part) * rows + row) * b.K + k] = sum;
  }
  if (comes_last(tickets + column, static_cast<unsigned>(n_parts), flag))
    close_reduce(a, b, rows, n_parts, entry, k, parts, bar, bar_dot, sums);
}

// Writes all outputs. P is 1 for the plain vjp.
template <class T>
void launch_gradient(Launch& launch, const Block& b, int64_t P, Precision precision, const Gradient<T>& a, bool tangent) {
  const int64_t entries = P * b.E;
  const int rows = tangent ? kRowsDot : kRows;
  int64_t windows = kReduceWindows, columns = entries * b.filter_tiles();
  while (windows > 32 && columns * ceil_div(b.windows(), windows) < kFill / 2) windows /= 4;
  const int64_t n_parts = higher<int64_t>(1, ceil_div(b.windows(), windows));  // one with no windows still closes the sums
  double* const parts = launch.scratch<double>(entries * n_parts * rows * b.K);
  T* const bar = launch.scratch<T>(entries * kCotangentRows * b.K);
  T* const bar_dot = tangent ? launch.scratch<T>(entries * kCotangentRows * b.K) : nullptr;
  unsigned* const tickets = launch.tickets(columns);
  launch("reduce_winners", reduce_winners<T>, columns * n_parts, kThreads,
         shared_size(kThreads * sizeof(double)) + shared_size(sizeof(int)), a, b, rows, static_cast<int>(windows),
         static_cast<int>(n_parts), Divisor::of(higher(1, b.w)), Divisor::of(higher(1, b.h)), parts, tickets, bar, bar_dot);

  const Cotangent<T> z_bar{a.z, {}, a.y_bar, {}, a.code, bar, b.E, b.H, b.W, b.K};
  const Cotangent<T> z_bar_dot{a.z, a.z_dot, a.y_bar, a.y_bar_dot, a.code, bar_dot, b.E, b.H, b.W, b.K};
  const Cotangent<T>& first = tangent ? z_bar_dot : z_bar;

  if (a.w_bar) {
    auto weights = wgrad<T, Cotangent<T>>(precision, entries, b.E, b.N, b.H, b.W, b.C, b.K);
    weights.add({a.x, {}, b.H, b.W, b.C}, first);
    if (a.x_dot) weights.add({a.x_dot, {}, b.H, b.W, b.C}, z_bar);
    const T* const weight_parts = launch_precise(launch, weights, entries);
    launch_sum_parts(launch, weight_parts, weights.parts(), weights.size(), entries, b.E, a.w_bar);
  }
  if (!a.x_bar) return;
  auto conv = convolution<T, Cotangent<T>>(precision, entries, b.E, b.N, b.H, b.W, b.K, b.C);
  conv.add(first, {a.w, b.C, b.K, true});
  if (a.w_dot) conv.add(z_bar, {a.w_dot, b.C, b.K, true});
  launch_precise(launch, "conv_cotangent", conv, entries, Store<T>{a.x_bar, b.H, b.W, b.C});
}

template <class T, class S>
void vjp(const Call& call) {
  const Block b = block_of<S>(call);
  Gradient<T> a{};
  HG_MEMBERS(y_bar, code, mean, rstd, z, x, w, gamma, x_bar, w_bar, gamma_bar, beta_bar)
  Launch launch(call);
  launch_gradient(launch, b, 1, precision_of<T>(HG_INTEGER(precision), b.C), a, false);
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Block b = block_of<S>(call);
  Gradient<T> a{};
  HG_MEMBERS(y_bar, y_bar_dot, code, mean, rstd, z, x, w, gamma, x_dot, w_dot, gamma_dot, z_dot, z_dot_mean, c)
  a.x_bar = HG_ARG(x_bar_dot);
  a.w_bar = HG_ARG(w_bar_dot);
  a.gamma_bar = HG_ARG(gamma_bar_dot);
  a.beta_bar = HG_ARG(beta_bar_dot);
  Launch launch(call);
  launch_gradient(launch, b, b.P, precision_of<T>(HG_INTEGER(precision), b.C), a, true);
}

HG_KERNEL(conv_bn_relu_pool_vjp, vjp)
HG_KERNEL(conv_bn_relu_pool_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::cuda

// linear_cross_entropy in four rungs; the formulas stand in csrc/host/linear_cross_entropy.cpp. In the value and the jvp a block owns one
// example; in the vjp a thread owns one element of x_bar, or of w_bar or bias_bar over some examples.
#include <cmath>

#include "../host/linear_cross_entropy.cpp"  // its signatures

#include "launch.h"
#include "tile.h"

namespace hg::cuda {
namespace {

constexpr int kClasses = 8;         // whose products a thread has in registers
constexpr int64_t kPartRows = 512;  // examples of a partial sum
constexpr int kFlushRows = 64;      // examples added in T before a sum goes on in double

struct Head {
  int64_t P, E, N, D, K;
};
template <class S>
Head head_of(const Call& call) {
  return {HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(N), HG_DIM(D), HG_DIM(K)};
}

// z[k] += x . w[:, k] for every class; z is in global memory, x is one example. `sums` holds kWarps*kClasses doubles.
template <class T>
HG_DEVICE void add_products(const Head& h, const T* x, const T* w, double* z, double* sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t k0 = 0; k0 < h.K; k0 += kClasses) {
    double total[kClasses] = {};
    const int count = static_cast<int>(lower<int64_t>(kClasses, h.K - k0));
    for (int64_t d0 = threadIdx.x; d0 < h.D; d0 += kFlushRows * kThreads) {
      T acc[kClasses] = {};
      for (int64_t d = d0; d < lower(h.D, d0 + kFlushRows * kThreads); d += kThreads) {
        const T v = x[d];
        HG_UNROLL
        for (int j = 0; j < kClasses; ++j)
          if (j < count) acc[j] = fused(v, w[d * h.K + k0 + j], acc[j]);
      }
      HG_UNROLL
      for (int j = 0; j < kClasses; ++j) total[j] += static_cast<double>(acc[j]);
    }
    HG_UNROLL
    for (int j = 0; j < kClasses; ++j) total[j] = over_warp(total[j]);
    __syncthreads();
    if (lane == 0) {
      HG_UNROLL
      for (int j = 0; j < kClasses; ++j) sums[warp * kClasses + j] = total[j];
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) {
      double sum = z[k0 + threadIdx.x];
      for (int i = 0; i < kWarps; ++i) sum += sums[i * kClasses + threadIdx.x];
      z[k0 + threadIdx.x] = sum;
    }
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads) head_value(const Head h, Batch<const T> x, Batch<const T> w, Batch<const T> bias,
                                                       Batch<const int64_t> label, double* logits, Batch<T> y, Batch<T> residual) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kWarps * kClasses);
  const int64_t e = blockIdx.x / h.N, n = blockIdx.x % h.N;
  double* const z = logits + blockIdx.x * h.K;
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads) z[k] = static_cast<double>(bias.at(0, e)[k]);
  __syncthreads();
  add_products(h, x.at(0, e) + n * h.D, w.at(0, e), z, sums);
  const int64_t mine = label.at(0, e)[n];
  double top = z[0], sum = 0;
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads) top = Largest()(top, z[k]);
  top = over_block(top, sums, Largest());
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads) sum += exp(z[k] - top);
  sum = over_block(sum, sums);
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads)
    residual.at(0, e)[n * h.K + k] = static_cast<T>(exp(z[k] - top) / sum - (k == mine ? 1.0 : 0.0));
  // A label that is no class has no loss; the caller has checked them.
  if (threadIdx.x == 0) y.at(0, e)[n] = static_cast<T>(mine >= 0 && mine < h.K ? log(sum) - (z[mine] - top) : NAN);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    head_jvp(const Head h, Batch<const T> residual, Batch<const T> x, Batch<const T> w, Batch<const T> x_dot, Batch<const T> w_dot,
             Batch<const T> bias_dot, double* logits, Batch<T> y_dot, Batch<T> z_dot) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kWarps * kClasses);
  const int64_t entry = blockIdx.x / h.N, n = blockIdx.x % h.N, p = entry / h.E, e = entry % h.E;
  double* const z = logits + blockIdx.x * h.K;
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads) z[k] = bias_dot ? static_cast<double>(bias_dot.at(p, e)[k]) : 0.0;
  __syncthreads();
  if (x_dot) add_products(h, x_dot.at(p, e) + n * h.D, w.at(0, e), z, sums);
  if (w_dot) add_products(h, x.at(0, e) + n * h.D, w_dot.at(p, e), z, sums);
  double sum = 0;
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads) {
    sum += static_cast<double>(residual.at(0, e)[n * h.K + k]) * z[k];
    z_dot.at(p, e)[n * h.K + k] = static_cast<T>(z[k]);
  }
  sum = over_block(sum, sums);
  if (threadIdx.x == 0) y_dot.at(p, e)[n] = static_cast<T>(sum);
}

// z_bar_dot, (P, E, N, K); a block owns one example.
template <class T>
__global__ void __launch_bounds__(kThreads)
    head_logits_bar_dot(const Head h, Batch<const T> y_bar, Batch<const T> y_bar_dot, Batch<const T> residual, Batch<const int64_t> label,
                        Batch<const T> z_dot, T* out) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kWarps);
  const int64_t entry = blockIdx.x / h.N, n = blockIdx.x % h.N, p = entry / h.E, e = entry % h.E;
  const T *const r = residual.at(0, e) + n * h.K, *const dot = z_dot.at(p, e) + n * h.K;
  const int64_t mine = label.at(0, e)[n];
  double mean = 0;
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads)
    mean += (static_cast<double>(r[k]) + (k == mine ? 1.0 : 0.0)) * static_cast<double>(dot[k]);
  mean = over_block(mean, sums);
  const double bar = static_cast<double>(*y_bar.at(e, n));
  const double bar_dot = y_bar_dot ? static_cast<double>(y_bar_dot.at(p, e)[n]) : 0.0;
  for (int64_t k = threadIdx.x; k < h.K; k += kThreads) {
    const double softmax = static_cast<double>(r[k]) + (k == mine ? 1.0 : 0.0);
    out[blockIdx.x * h.K + k] = static_cast<T>(bar_dot * static_cast<double>(r[k]) + bar * softmax * (static_cast<double>(dot[k]) - mean));
  }
}

// A cotangent of the logits, z times scale(e, n) where there is a scale, with what it is multiplied with.
template <class T>
struct Factor {
  Batch<const T> z, scale, w, x;

  struct At {
    const T* z;
    Batch<const T> scale;
    int64_t K, e;
    HG_DEVICE T operator()(int64_t n, int64_t k) const { return scale ? *scale.at(e, n) * z[n * K + k] : z[n * K + k]; }
  };
  HG_DEVICE At at(int64_t p, int64_t e, int64_t K) const { return {z.at(p, e), scale, K, e}; }
};

// What `head_bars` forms: x_bar, D elements an example, and rows of [w_bar; bias_bar], from row `first_row` on.
struct Bars {
  int64_t x_blocks, w_items, w_blocks, first_row, n_parts;  // blocks of an entry, of an entry and part
};

// x_bar[n, d] = sum_k z[n, k] w[d, k]; w_bar[d, k] = sum_n z[n, k] x[n, d]; bias_bar[k] = sum_n z[n, k], of factor `a`,
// plus the first two of factor `b`. The sums over examples go to parts where there are several.
template <class T>
__global__ void __launch_bounds__(kThreads)
    head_bars(const Head h, const Bars s, Factor<T> a, Factor<T> b, Batch<T> x_bar, Batch<T> w_bar, Batch<T> bias_bar, double* parts) {
  const int64_t per_entry = s.x_blocks + s.w_blocks * s.n_parts, entry = blockIdx.x / per_entry;
  const int64_t p = entry / h.E, e = entry % h.E;
  int64_t block = blockIdx.x % per_entry;
  const auto z_a = a.at(p, e, h.K);
  if (block < s.x_blocks) {
    const int64_t i = block * kThreads + threadIdx.x, n = i / h.D, d = i % h.D;
    if (n >= h.N) return;
    T sum = 0;
    const T* row = a.w.at(p, e) + d * h.K;
    for (int64_t k = 0; k < h.K; ++k) sum = fused(z_a(n, k), row[k], sum);
    if (b.w) {
      const auto z_b = b.at(p, e, h.K);
      row = b.w.at(p, e) + d * h.K;
      for (int64_t k = 0; k < h.K; ++k) sum = fused(z_b(n, k), row[k], sum);
    }
    x_bar.at(p, e)[i] = sum;
    return;
  }
  block -= s.x_blocks;
  const int64_t part = block / s.w_blocks, i = block % s.w_blocks * kThreads + threadIdx.x;
  if (i >= s.w_items) return;
  const int64_t d = s.first_row + i / h.K, k = i % h.K, last = lower(h.N, (part + 1) * kPartRows);
  const bool is_bias = d == h.D;
  double total = 0;
  for (int64_t n0 = part * kPartRows; n0 < last; n0 += kFlushRows) {
    T sum = 0;
    const int64_t end = lower(last, n0 + kFlushRows);
    for (int64_t n = n0; n < end; ++n) sum = fused(z_a(n, k), is_bias ? T(1) : a.x.at(p, e)[n * h.D + d], sum);
    if (b.x && !is_bias) {
      const auto z_b = b.at(p, e, h.K);
      for (int64_t n = n0; n < end; ++n) sum = fused(z_b(n, k), b.x.at(p, e)[n * h.D + d], sum);
    }
    total += static_cast<double>(sum);
  }
  if (s.n_parts > 1)
    parts[(entry * s.n_parts + part) * s.w_items + i] = total;
  else
    (is_bias ? bias_bar.at(p, e) + k : w_bar.at(p, e) + d * h.K + k)[0] = static_cast<T>(total);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    head_bars_sum(const Head h, const Bars s, const double* parts, Batch<T> w_bar, Batch<T> bias_bar) {
  const int64_t entry = blockIdx.x / s.w_blocks, p = entry / h.E, e = entry % h.E;
  const int64_t i = blockIdx.x % s.w_blocks * kThreads + threadIdx.x;
  if (i >= s.w_items) return;
  double total = 0;
  for (int64_t part = 0; part < s.n_parts; ++part) total += parts[(entry * s.n_parts + part) * s.w_items + i];
  const int64_t d = s.first_row + i / h.K, k = i % h.K;
  (d == h.D ? bias_bar.at(p, e) + k : w_bar.at(p, e) + d * h.K + k)[0] = static_cast<T>(total);
}

template <class T>
void launch_bars(Launch& launch, const Head& h, int64_t entries, const Factor<T>& a, const Factor<T>& b, const Batch<T>& x_bar,
                 const Batch<T>& w_bar, const Batch<T>& bias_bar) {
  Bars s{};
  s.first_row = w_bar ? 0 : h.D;
  s.n_parts = higher<int64_t>(1, ceil_div(h.N, kPartRows));
  s.x_blocks = x_bar ? ceil_div(h.N * h.D, kThreads) : 0;
  s.w_items = (h.D + 1 - s.first_row) * h.K;
  s.w_blocks = ceil_div(s.w_items, kThreads);
  double* const parts = s.n_parts > 1 ? launch.scratch<double>(entries * s.n_parts * s.w_items) : nullptr;
  launch("head_bars", head_bars<T>, entries * (s.x_blocks + s.w_blocks * s.n_parts), kThreads, 0, h, s, a, b, x_bar, w_bar, bias_bar,
         parts);
  if (s.n_parts > 1)
    launch("head_bars_sum", head_bars_sum<T>, entries * s.w_blocks, kThreads, 0, h, s, static_cast<const double*>(parts), w_bar, bias_bar);
}

constexpr std::size_t kProductSums = shared_size(kWarps * kClasses * sizeof(double));

template <class T, class S>
void value(const Call& call) {
  HG_ARGS(x, w, bias, label, y, residual)
  const Head h = head_of<S>(call);
  Launch launch(call);
  double* const logits = launch.scratch<double>(h.E * h.N * h.K);
  launch("head_value", head_value<T>, h.K == 0 ? 0 : h.E * h.N, kThreads, kProductSums, h, x, w, bias, label, logits, y, residual);
}

template <class T, class S>
void jvp(const Call& call) {
  HG_ARGS(residual, x, w, x_dot, w_dot, bias_dot, y_dot, z_dot)
  const Head h = head_of<S>(call);
  Launch launch(call);
  double* const logits = launch.scratch<double>(h.P * h.E * h.N * h.K);
  launch("head_jvp", head_jvp<T>, h.P * h.E * h.N, kThreads, kProductSums, h, residual, x, w, x_dot, w_dot, bias_dot, logits, y_dot, z_dot);
}

template <class T, class S>
void vjp(const Call& call) {
  HG_ARGS(residual, y_bar, w, x, x_bar, w_bar, bias_bar)
  const Head h = head_of<S>(call);
  Launch launch(call);
  const Factor<T> a{residual, y_bar, w, x};
  launch_bars(launch, h, h.E, a, Factor<T>{}, x_bar, w_bar, bias_bar);
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  HG_ARGS(y_bar, y_bar_dot, residual, x, w, x_dot, w_dot, z_dot, label, x_bar_dot, w_bar_dot, bias_bar_dot)
  const Head h = head_of<S>(call);
  Launch launch(call);
  T* const z_bar_dot = launch.scratch<T>(h.P * h.E * h.N * h.K);
  launch("head_logits_bar_dot", head_logits_bar_dot<T>, h.P * h.E * h.N, kThreads, shared_size(kWarps * sizeof(double)), h, y_bar,
         y_bar_dot, residual, label, z_dot, z_bar_dot);
  const Batch<const T> direct{z_bar_dot, h.E * h.N * h.K, h.N * h.K, false};
  launch_bars(launch, h, h.P * h.E, Factor<T>{direct, {}, w, x}, Factor<T>{residual, y_bar, w_dot, x_dot}, x_bar_dot, w_bar_dot,
              bias_bar_dot);
}

HG_KERNEL(linear_cross_entropy_value, value)
HG_KERNEL(linear_cross_entropy_jvp, jvp)
HG_KERNEL(linear_cross_entropy_vjp, vjp)
HG_KERNEL(linear_cross_entropy_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::cuda

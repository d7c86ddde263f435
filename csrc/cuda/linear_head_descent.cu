// linear_head_descent in two kernels, all steps and all transposed steps; the formulas stand in csrc/linear_head_descent.h. A block owns an
// episode. Its warps form the products over features at the beginning; in a step a thread owns an example, then an element of examples by
// classes; at the end it owns elements of the outputs.
#include "../host/linear_head_descent.cpp"  // its signatures
#include "../linear_head_descent.h"

namespace hg::cuda {
namespace {

constexpr int kBlock = 512;          // threads; one block a multiprocessor, as there are few episodes and a thread needs many registers
constexpr int64_t kFlushTerms = 64;  // of a lane, added in T before a sum goes on in double

struct Head {
  int64_t N, D, K, steps;
  int64_t size() const { return N * K; }
};
template <class S>
Head head_of(const Call& call) {
  return {HG_DIM(N), HG_DIM(D), HG_DIM(K), HG_DIM(T)};
}

// The block's own memory for n elements: shared where there is no scratch.
template <class T>
HG_DEVICE T* own_memory(SharedMemory& shared, T* scratch, int64_t n) {
  return scratch == nullptr ? shared.take<T>(static_cast<int>(n)) : scratch + blockIdx.x * n;
}

// Sum over d of x[d]*y[d*step], by a warp; all lanes get it.
template <class T>
HG_DEVICE double dot(const T* x, const T* y, int64_t step, int64_t D) {
  double total = 0;
  HG_NO_UNROLL
  for (int64_t d0 = threadIdx.x % 32; d0 < D; d0 += kFlushTerms * 32) {
    T sum = 0;
    HG_UNROLL_BY(8)
    for (int64_t d = d0; d < lower(D, d0 + kFlushTerms * 32); d += 32) sum = fused(x[d], y[d * step], sum);
    total += static_cast<double>(sum);
  }
  return over_warp(total);
}

// sum + the terms of i < n, where term(i, sum) adds one; kRun of them are added before their sum is.
template <class T, class Term>
HG_DEVICE T plus_terms(T sum, int64_t n, const Term& term) {
  HG_NO_UNROLL
  for (int64_t first = 0; first < n; first += kRun) {
    T part = 0;
    HG_UNROLL_BY(4)
    for (int64_t i = first; i < lower(n, first + kRun); ++i) part = term(i, part);
    sum += part;
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kBlock, 1)
    descend_head(const Head h, Batch<const T> x, Batch<const T> w, Batch<const T> bias, Batch<const T> lr, Batch<const int64_t> label,
                 double* doubles, T* numbers, Batch<T> w_next, Batch<T> bias_next, Batch<T> residual, Batch<T> gram) {
  SharedMemory shared;
  const int64_t e = blockIdx.x, size = h.N * h.K;
  double *const z = own_memory(shared, doubles, 2 * size), *const total = z + size;
  T* const factor = own_memory(shared, numbers, size);
  const T *const features = x.at(0, e), *const before = w.at(0, e);
  T* const g = gram.at(0, e);
  const bool first_lane = threadIdx.x % 32 == 0;
  for (int64_t i = threadIdx.x / 32; i < h.N * (h.N + h.K); i += kBlock / 32) {
    const int64_t n = i / (h.N + h.K), m = i % (h.N + h.K), k = m - h.N;
    if (m > n && m < h.N) continue;
    const T* const row = features + n * h.D;
    if (k < 0) {
      const T product = static_cast<T>(1 + dot(row, features + m * h.D, 1, h.D));
      if (first_lane) g[n * h.N + m] = g[m * h.N + n] = product;
    } else {
      const double product = dot(row, before + k, h.K, h.D);
      if (first_lane) {
        z[n * h.K + k] = static_cast<double>(bias.at(0, e)[k]) + product;
        total[n * h.K + k] = 0;
      }
    }
  }
  __syncthreads();
  const HeadDescent<T> descent{h.N, h.K, static_cast<double>(*lr.at(0, e)), label.at(0, e), g};
  const double rate = descent.lr / static_cast<double>(higher<int64_t>(1, h.N));
  HG_NO_UNROLL
  for (int64_t t = 0; t < h.steps; ++t) {
    T* const r = residual.at(0, e) + t * size;
    for (int64_t n = threadIdx.x; n < h.N; n += kBlock) descent.residuals(n, z, r);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kBlock) {
      z[i] -= rate * descent.product(i, r);
      total[i] += static_cast<double>(r[i]);
    }
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < size; i += kBlock) factor[i] = static_cast<T>(rate * total[i]);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < (h.D + 1) * h.K; i += kBlock) {
    const int64_t d = i / h.K, k = i % h.K;
    const bool is_bias = d == h.D;
    const T sum =
        plus_terms(T(0), h.N, [&](int64_t n, T part) { return fused(is_bias ? T(1) : features[n * h.D + d], factor[n * h.K + k], part); });
    if (is_bias)
      bias_next.at(0, e)[k] = bias.at(0, e)[k] - sum;
    else
      w_next.at(0, e)[i] = before[i] - sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock, 1)
    pull_head(const Head h, Batch<const T> x, Batch<const T> w, Batch<const T> lr, Batch<const int64_t> label, Batch<const T> residual,
              Batch<const T> gram, Batch<const T> w_next_bar, Batch<const T> bias_next_bar, double* doubles, T* numbers, Batch<T> x_bar,
              Batch<T> w_bar, Batch<T> bias_bar, Batch<T> lr_bar) {
  SharedMemory shared;
  const int64_t e = blockIdx.x, size = h.N * h.K, length = 2 * h.K + h.N;
  double* const y = own_memory(shared, doubles, 3 * size + h.N + h.N * h.N);
  double *const v = y + size, *const c = v + size, *const slopes = c + size, *const pairs = slopes + h.N;
  T* const factors = own_memory(shared, numbers, h.N * length);  // of row n of x_bar: of K rows of w_bar, K of w and N of x
  const T *const features = x.at(0, e), *const bar = w_next_bar ? w_next_bar.at(0, e) : nullptr;
  for (int64_t i = threadIdx.x / 32; i < size; i += kBlock / 32) {
    double sum = bias_next_bar ? static_cast<double>(bias_next_bar.at(0, e)[i % h.K]) : 0.0;
    if (bar != nullptr) sum += dot(features + i / h.K * h.D, bar + i % h.K, h.K, h.D);
    if (threadIdx.x % 32 == 0) {
      y[i] = sum;
      v[i] = 0;
    }
  }
  for (int64_t i = threadIdx.x; i < h.N + h.N * h.N; i += kBlock) slopes[i] = 0;  // and the pairs behind them
  __syncthreads();
  const HeadDescent<T> descent{h.N, h.K, static_cast<double>(*lr.at(0, e)), label.at(0, e), gram.at(0, e)};
  const double share = 1.0 / static_cast<double>(higher<int64_t>(1, h.N));
  HG_NO_UNROLL
  for (int64_t t = h.steps - 1; t >= 0; --t) {
    const T* const r = residual.at(0, e) + t * size;
    for (int64_t i = threadIdx.x; x_bar && i < h.N * h.N; i += kBlock) pairs[i] += descent.pair(i / h.N, i % h.N, r, v);
    for (int64_t n = threadIdx.x; n < h.N; n += kBlock) slopes[n] += descent.residuals_bar(n, r, y, c);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kBlock) {
      y[i] += share * descent.product(i, c);
      v[i] += c[i];
    }
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < h.N * length; i += kBlock) {
    const int64_t n = i / length, j = i % length;
    double by = 0;
    if (j >= 2 * h.K)
      by = -descent.lr * share * share * pairs[n * h.N + j - 2 * h.K];
    else if (j >= h.K)
      by = share * v[n * h.K + j - h.K];
    else
      for (int64_t t = 0; t < h.steps; ++t) by -= descent.lr * share * static_cast<double>(residual.at(0, e)[t * size + n * h.K + j]);
    factors[i] = static_cast<T>(by);
  }
  if (threadIdx.x == 0) {
    double slope = 0;
    for (int64_t n = 0; n < h.N; ++n) slope += slopes[n];
    *lr_bar.at(0, e) = static_cast<T>(-share * slope);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; x_bar && i < h.N * h.D; i += kBlock) {
    const int64_t d = i % h.D;
    const T *const by = factors + i / h.D * length, *const own = w.at(0, e) + d * h.K;
    T sum = 0;
    if (bar != nullptr) sum = plus_terms(sum, h.K, [&](int64_t k, T part) { return fused(by[k], bar[d * h.K + k], part); });
    sum = plus_terms(sum, h.K, [&](int64_t k, T part) { return fused(by[h.K + k], own[k], part); });
    sum = plus_terms(sum, h.N, [&](int64_t m, T part) { return fused(by[2 * h.K + m], features[m * h.D + d], part); });
    x_bar.at(0, e)[i] = sum;
  }
  for (int64_t i = threadIdx.x + (w_bar ? 0 : h.D * h.K); i < (h.D + 1) * h.K; i += kBlock) {
    const int64_t d = i / h.K, k = i % h.K;
    const bool is_bias = d == h.D;
    const T own = is_bias ? (bias_next_bar ? bias_next_bar.at(0, e)[k] : T(0)) : bar != nullptr ? bar[i] : T(0);
    const T sum = plus_terms(
        own, h.N, [&](int64_t n, T part) { return fused(is_bias ? T(1) : features[n * h.D + d], factors[n * length + h.K + k], part); });
    (is_bias ? bias_bar.at(0, e) + k : w_bar.at(0, e) + i)[0] = sum;
  }
}

// Memory of each block: shared where that is enough, and then the scratch is null.
template <class T>
struct Room {
  double* doubles = nullptr;
  T* numbers = nullptr;
  std::size_t shared;

  Room(Launch& launch, int64_t blocks, int64_t n_doubles, int64_t n_numbers)
      : shared(shared_size(static_cast<std::size_t>(n_doubles) * sizeof(double)) +
               shared_size(static_cast<std::size_t>(n_numbers) * sizeof(T))) {
    if (shared <= kSharedLimit) return;
    doubles = launch.scratch<double>(blocks * n_doubles);
    numbers = launch.scratch<T>(blocks * n_numbers);
    shared = 0;
  }
};

template <class T, class S>
void value(const Call& call) {
  HG_ARGS(x, w, bias, lr, label, w_next, bias_next, residual, gram)
  const Head h = head_of<S>(call);
  Launch launch(call);
  const Room<T> room(launch, HG_DIM(E), 2 * h.size(), h.size());
  launch("descend_head", descend_head<T>, HG_DIM(E), kBlock, room.shared, h, x, w, bias, lr, label, room.doubles, room.numbers, w_next,
         bias_next, residual, gram);
}

template <class T, class S>
void vjp(const Call& call) {
  HG_ARGS(x, w, lr, label, residual, gram, w_next_bar, bias_next_bar, x_bar, w_bar, bias_bar, lr_bar)
  const Head h = head_of<S>(call);
  Launch launch(call);
  const Room<T> room(launch, HG_DIM(E), 3 * h.size() + h.N + h.N * h.N, h.N * (2 * h.K + h.N));
  launch("pull_head", pull_head<T>, HG_DIM(E), kBlock, room.shared, h, x, w, lr, label, residual, gram, w_next_bar, bias_next_bar,
         room.doubles, room.numbers, x_bar, w_bar, bias_bar, lr_bar);
}

HG_KERNEL(linear_head_descent_value, value)
HG_KERNEL(linear_head_descent_vjp, vjp)

}  // namespace
}  // namespace hg::cuda

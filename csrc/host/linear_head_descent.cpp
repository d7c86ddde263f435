// linear_head_descent: gradient descent of a softmax classifier on fixed features, all steps in one call, and all transposed steps. The
// formulas stand in csrc/linear_head_descent.h. A task owns an episode. Weights are packed as K rows of D, so that loops run along
// features.
#include "../registry.h"

// Axes: E episodes, N examples, D features, K classes, T steps.
HG_SIGNATURE(linear_head_descent_value, "x=E|ND w=E|DK bias=E|K lr=E| label:i64=E|N -> w_next=E|DK bias_next=E|K residual=E|TNK gram=E|NN")
HG_SIGNATURE(linear_head_descent_vjp,
             "x=E|ND w=E|DK lr=E| label:i64=E|N residual=E|TNK gram=E|NN w_next_bar?=E|DK bias_next_bar?=E|K"
             " -> x_bar?=E|ND w_bar?=E|DK bias_bar=E|K lr_bar=E|")

#ifdef HG_SIMD
#include "../linear_head_descent.h"

namespace hg::HG_SIMD {
namespace {

enum Slot : int { kSlotRows = 0, kSlotRowsBar, kSlotLogits };

// x . y over D features, by vectors; in double after kFlush of them.
template <class T>
double dot(const T* x, const T* y, int64_t D) {
  constexpr int64_t kStretch = kFlush * kLanes<T>;
  double lanes[kLanes<T>] = {}, sum = 0;
  for (int64_t first = 0; first < D; first += kStretch) {
    Vec<T> acc{};
    for_channels<T>(lower(kStretch, D - first), [&](int64_t d, int n, auto full) {
      acc += load<T, decltype(full)::value>(x + first + d, n) * load<T, decltype(full)::value>(y + first + d, n);
    });
    add_lanes<T>(lanes, acc);
  }
  for (const double lane : lanes) sum += lane;
  return sum;
}

template <class T>
struct Multiple {
  T factor;
  const T* x;
};

// to = sum over i < count of factor*x of multiple(i), over D features; kRun terms are added before their sum is.
template <class T, class Get>
void combine(T* to, int64_t count, const Get& multiple, int64_t D) {
  for_channels<T>(D, [&](int64_t d, int lanes, auto full) {
    Vec<T> total{};
    for (int64_t first = 0; first < count; first += kRun) {
      Vec<T> sum{};
      for (int64_t i = first; i < lower(count, first + kRun); ++i) {
        const Multiple<T> m = multiple(i);
        sum += m.factor * load<T, decltype(full)::value>(m.x + d, lanes);
      }
      total += sum;
    }
    store<T, decltype(full)::value>(to + d, total, lanes);
  });
}

// The weights, (D, K), as K rows.
template <class T>
T* packed(const T* w, int64_t D, int64_t K, int slot) {
  T* const rows = scratch_of<T>(slot, K * D + 1);
  for (int64_t d = 0; d < D; ++d)
    for (int64_t k = 0; k < K; ++k) rows[k * D + d] = w[d * K + k];
  return rows;
}

// rows[k] = sum over examples of factor*a[k, n]*x[n].
template <class T>
void weighted_sums(const T* x, const double* a, double factor, int64_t N, int64_t D, int64_t K, T* rows) {
  for (int64_t k = 0; k < K; ++k)
    combine(rows + k * D, N, [&](int64_t n) { return Multiple<T>{static_cast<T>(factor * a[k * N + n]), x + n * D}; }, D);
}

// out[k, n] = row n of G times column k of `rows`, (N, K): `HeadDescent::product` of all elements, by vectors along the examples.
template <class T, class U>
void products(const T* gram, const U* rows, int64_t N, int64_t K, double* out) {
  for (int64_t i = 0; i < K * N; ++i) out[i] = 0;
  for (int64_t k = 0; k < K; ++k)
    for (int64_t m = 0; m < N; ++m) {
      const double by = static_cast<double>(rows[m * K + k]);
      for (int64_t n = 0; n < N; ++n) out[k * N + n] += by * static_cast<double>(gram[m * N + n]);
    }
}

double row_sum(const double* a, int64_t N) {
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) sum += a[n];
  return sum;
}

template <class T, class S>
void value(const Call& call) {
  HG_ARGS(x, w, bias, lr, label, w_next, bias_next, residual, gram)
  const int64_t N = HG_DIM(N), D = HG_DIM(D), K = HG_DIM(K), steps = HG_DIM(T), size = N * K;
  parallel_for(HG_DIM(E), [&](int64_t e) {
    const T *const features = x.at(e), *const before = w.at(e);
    T* const g = gram.at(e);
    for (int64_t n = 0; n < N; ++n) {
      const int64_t own = label.at(e)[n];
      if (own < 0 || own >= K)
        fail_argument(call, "label is %lld, expected 0 to %lld", static_cast<long long>(own), static_cast<long long>(K - 1));
      for (int64_t m = 0; m <= n; ++m) g[n * N + m] = g[m * N + n] = static_cast<T>(1 + dot(features + n * D, features + m * D, D));
    }
    T* const rows = packed(before, D, K, kSlotRows);
    double *const z = scratch_of<double>(kSlotLogits, 3 * size + 1), *const total = z + size, *const moved = total + size;
    for (int64_t i = 0; i < size; ++i) {
      z[i] = static_cast<double>(bias.at(e)[i % K]) + dot(features + i / K * D, rows + i % K * D, D);
      total[i] = 0;
    }
    const HeadDescent<T> descent{N, K, static_cast<double>(*lr.at(e)), label.at(e), g};
    const double rate = descent.lr / static_cast<double>(higher(1, N));
    for (int64_t t = 0; t < steps; ++t) {
      T* const r = residual.at(e) + t * size;
      for (int64_t n = 0; n < N; ++n) descent.residuals(n, z, r);
      products(g, r, N, K, moved);
      for (int64_t i = 0; i < size; ++i) {
        z[i] -= rate * moved[i % K * N + i / K];
        total[i % K * N + i / K] += static_cast<double>(r[i]);
      }
    }
    weighted_sums(features, total, rate, N, D, K, rows);
    for (int64_t i = 0; i < D * K; ++i) w_next.at(e)[i] = before[i] - rows[i % K * D + i / K];
    for (int64_t k = 0; k < K; ++k) bias_next.at(e)[k] = bias.at(e)[k] - static_cast<T>(rate * row_sum(total + k * N, N));
  });
}

template <class T, class S>
void vjp(const Call& call) {
  HG_ARGS(x, w, lr, label, residual, gram, w_next_bar, bias_next_bar, x_bar, w_bar, bias_bar, lr_bar)
  const int64_t N = HG_DIM(N), D = HG_DIM(D), K = HG_DIM(K), steps = HG_DIM(T), size = N * K;
  parallel_for(HG_DIM(E), [&](int64_t e) {
    const T *const features = x.at(e), *const bar = w_next_bar ? w_next_bar.at(e) : nullptr;
    T* const rows_bar = bar != nullptr ? packed(bar, D, K, kSlotRowsBar) : nullptr;
    double *const y = scratch_of<double>(kSlotLogits, 5 * size + N * N + 1), *const v = y + size, *const c = v + size;
    double *const total = c + size, *const moved = total + size, *const pairs = moved + size;
    for (int64_t i = 0; i < size; ++i) {
      y[i] = bias_next_bar ? static_cast<double>(bias_next_bar.at(e)[i % K]) : 0.0;
      if (bar != nullptr) y[i] += dot(features + i / K * D, rows_bar + i % K * D, D);
      v[i] = total[i] = 0;
    }
    for (int64_t i = 0; i < N * N; ++i) pairs[i] = 0;
    const HeadDescent<T> descent{N, K, static_cast<double>(*lr.at(e)), label.at(e), gram.at(e)};
    const double share = 1.0 / static_cast<double>(higher(1, N));
    double slope = 0;
    for (int64_t t = steps - 1; t >= 0; --t) {
      const T* const r = residual.at(e) + t * size;
      for (int64_t i = 0; x_bar && i < size; ++i)  // v is (K, N) here: its columns lie side by side
        for (int64_t m = 0; m < N; ++m) pairs[i / K * N + m] += static_cast<double>(r[i]) * v[i % K * N + m];
      for (int64_t n = 0; n < N; ++n) slope += descent.residuals_bar(n, r, y, c);
      products(descent.gram, c, N, K, moved);
      for (int64_t i = 0; i < size; ++i) {
        y[i] += share * moved[i % K * N + i / K];
        v[i % K * N + i / K] += c[i];
        total[i] += static_cast<double>(r[i]);
      }
    }
    *lr_bar.at(e) = static_cast<T>(-share * slope);
    for (int64_t k = 0; k < K; ++k)
      bias_bar.at(e)[k] = (bias_next_bar ? bias_next_bar.at(e)[k] : T(0)) + static_cast<T>(share * row_sum(v + k * N, N));
    if (x_bar) {
      const T* const rows = packed(w.at(e), D, K, kSlotRows);
      for (int64_t n = 0; n < N; ++n) {
        const auto multiple = [&](int64_t i) -> Multiple<T> {
          if (i < N) return {static_cast<T>(-descent.lr * share * share * (pairs[n * N + i] + pairs[i * N + n])), features + i * D};
          const int64_t k = (i - N) % K;
          if (i < N + K) return {static_cast<T>(share * v[k * N + n]), rows + k * D};
          return {static_cast<T>(-descent.lr * share * total[n * K + k]), rows_bar + k * D};
        };
        combine(x_bar.at(e) + n * D, N + (bar != nullptr ? 2 : 1) * K, multiple, D);
      }
    }
    if (w_bar) {
      T* const rows = scratch_of<T>(kSlotRows, K * D + 1);
      weighted_sums(features, v, share, N, D, K, rows);
      for (int64_t i = 0; i < D * K; ++i) w_bar.at(e)[i] = (bar != nullptr ? bar[i] : T(0)) + rows[i % K * D + i / K];
    }
  });
}

HG_KERNEL(linear_head_descent_value, value)
HG_KERNEL(linear_head_descent_vjp, vjp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

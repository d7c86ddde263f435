// linear_cross_entropy: softmax cross-entropy of x w + bias against labels, in four rungs. Weights are packed as K rows
// of D, so that every loop runs along the features, however few the classes. With residual = softmax - one_hot(label):
//   z_bar = y_bar*residual;  x_bar = z_bar w';  w_bar = x' z_bar;  bias_bar = sum over examples of z_bar
//   z_dot = x_dot w + x w_dot + bias_dot;  y_dot = sum over classes of residual*z_dot
//   z_bar_dot = y_bar_dot*residual + y_bar*softmax*(z_dot - sum over classes of softmax*z_dot)
//   x_bar_dot = z_bar_dot w' + z_bar w_dot';  w_bar_dot = x_dot' z_bar + x' z_bar_dot
// A task of the value and of the jvp owns a few examples, one of the others a band of features.
#include "../registry.h"

// Axes: P directions, E episodes, N examples, D features, K classes.
HG_SIGNATURE(linear_cross_entropy_value, "x=E|ND w=E|DK bias=E|K label:i64=E|N -> y=E|N residual=E|NK")
HG_SIGNATURE(linear_cross_entropy_vjp, "y_bar=EN| residual=E|NK x=E|ND w=E|DK -> x_bar?=E|ND w_bar?=E|DK bias_bar=E|K")
HG_SIGNATURE(linear_cross_entropy_jvp, "residual=E|NK x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK bias_dot?=PE|K -> y_dot=PE|N z_dot=PE|NK")
HG_SIGNATURE(linear_cross_entropy_vjp_jvp,
             "y_bar=EN| y_bar_dot?=PE|N residual=E|NK label:i64=E|N x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK z_dot=PE|NK"
             " -> x_bar_dot?=PE|ND w_bar_dot?=PE|DK bias_bar_dot=PE|K")

#ifdef HG_SIMD
#include <cmath>

#include "simd.h"

namespace hg::HG_SIMD {
namespace {

constexpr int64_t kTaskProducts = int64_t(1) << 17;  // of one task; fixes nothing but the balance
enum Slot : int { kSlotLogits = 0, kSlotTotals, kSlotW = kSharedSlots, kSlotWDot, kSlotZBar, kSlotZBarDot };

// As parallel_for; calls too small to be worth waking a thread stay on this one.
template <class Body>
void spread(int64_t tasks, int64_t products, const Body& body) {
  if (products > kTaskProducts * 4)
    parallel_for(tasks, body);
  else
    for (int64_t i = 0; i < tasks; ++i) body(i);
}

struct Head {
  int64_t P, E, N, D, K;
  int64_t Dp;             // D rounded up to whole vectors: the length of a packed row
  int64_t chunk, chunks;  // examples per task, tasks per episode
  int64_t band, bands;    // features per task, tasks per episode
  int64_t products() const { return E * N * D * K; }
};

template <class T, class S>
Head head_of(const Call& call) {
  Head h{HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(N), HG_DIM(D), HG_DIM(K), 0, 0, 0, 0, 0};
  h.Dp = round_up(h.D, kLanes<T>);
  h.chunk = higher(1, lower(h.N, kTaskProducts / higher(1, h.D * h.K)));
  h.chunks = ceil_div(h.N, h.chunk);
  const int64_t widest = higher(128, kTaskProducts / higher(1, h.N * h.K));
  h.band = higher(1, round_up(ceil_div(h.D, higher(2, round_up(ceil_div(h.D, widest), 2))), kLanes<T>));  // an even number of them
  h.bands = ceil_div(h.D, h.band);
  return h;
}

// Weights as K rows of Dp, zeros after D; shared ones (stride 0) once.
template <class T>
struct Rows {
  const T* data = nullptr;
  int64_t size = 0, along_p = 1, along_e = 1;
  const T* at(int64_t p, int64_t e) const { return data + ((along_p == 1 ? 0 : p) * along_e + (along_e == 1 ? 0 : e)) * size; }
  explicit operator bool() const { return data != nullptr; }
};

template <class T>
Rows<T> pack(const Head& h, const Batch<const T>& w, int64_t P, int slot) {
  Rows<T> rows;
  if (!w) return rows;
  rows.along_p = w.stride_0 == 0 ? lower(1, P) : P;
  rows.along_e = w.stride_1 == 0 ? lower(1, h.E) : h.E;
  rows.size = h.K * h.Dp;
  const int64_t count = rows.along_p * rows.along_e;
  T* const out = scratch_of<T>(slot, count * rows.size + 1);
  spread(count, count * rows.size, [&](int64_t i) {
    const T* const from = w.at(i / rows.along_e, i % rows.along_e);
    for (int64_t k = 0; k < h.K; ++k) {
      T* const to = out + i * rows.size + k * h.Dp;
      for (int64_t d = 0; d < h.D; ++d) to[d] = from[d * h.K + k];
      for (int64_t d = h.D; d < h.Dp; ++d) to[d] = T(0);
    }
  });
  rows.data = out;
  return rows;
}

// out[i*K + k] += x_i . w_k for I examples and J classes.
template <class T, int I, int J>
HG_INLINE void dot_tile(const Head& h, const T* x, const T* w, double* out) {
  constexpr int64_t V = kLanes<T>;
  double total[I][J] = {};
  const int64_t whole = h.D / V * V;
  for (int64_t d0 = 0; d0 < h.D; d0 += kFlush * V) {
    Vec<T> acc[I][J] = {};
    for (int64_t d = d0; d < lower(whole, d0 + kFlush * V); d += V)
      for (int i = 0; i < I; ++i) {
        const Vec<T> v = load(x + i * h.D + d);
        for (int j = 0; j < J; ++j) acc[i][j] += v * load(w + j * h.Dp + d);
      }
    if (whole < h.D && d0 + kFlush * V > whole)
      for (int i = 0; i < I; ++i) {
        const Vec<T> v = load<T, false>(x + i * h.D + whole, static_cast<int>(h.D - whole));
        for (int j = 0; j < J; ++j) acc[i][j] += v * load(w + j * h.Dp + whole);
      }
    for (int i = 0; i < I; ++i)
      for (int j = 0; j < J; ++j)
        for (int v = 0; v < V; ++v) total[i][j] += static_cast<double>(acc[i][j][v]);
  }
  for (int i = 0; i < I; ++i)
    for (int j = 0; j < J; ++j) out[i * h.K + j] += total[i][j];
}

// body(k, classes): all classes in groups that fill a tile, whose width is a compile-time constant.
template <class Body>
HG_INLINE void for_classes(int64_t K, const Body& body) {
  int64_t k = 0;
  for (; k + 5 <= K && (K - k) % 4 != 0; k += 5) body(k, std::integral_constant<int, 5>{});
  for (; k + 4 <= K; k += 4) body(k, std::integral_constant<int, 4>{});
  for (; k + 2 <= K; k += 2) body(k, std::integral_constant<int, 2>{});
  if (k < K) body(k, std::integral_constant<int, 1>{});
}

// out[n, k] += x w for n examples.
template <class T>
void add_products(const Head& h, const T* x, const T* w, int64_t n, double* out) {
  int64_t i = 0;
  for (; i + 2 <= n; i += 2)
    for_classes(h.K, [&](int64_t k, auto J) { dot_tile<T, 2, decltype(J)::value>(h, x + i * h.D, w + k * h.Dp, out + i * h.K + k); });
  if (i < n)
    for_classes(h.K, [&](int64_t k, auto J) { dot_tile<T, 1, decltype(J)::value>(h, x + i * h.D, w + k * h.Dp, out + i * h.K + k); });
}

template <class T, class S>
void value(const Call& call) {
  const Head h = head_of<T, S>(call);
  HG_ARGS(x, w, bias, label, y, residual)
  for (int64_t i = 0; i < h.E * h.N; ++i) {
    const int64_t l = label.at(i / h.N)[i % h.N];
    if (l < 0 || l >= h.K)
      fail_argument(call, "label is %lld, expected 0 to %lld", static_cast<long long>(l), static_cast<long long>(h.K - 1));
  }
  const Rows<T> rows = pack(h, w, 1, kSlotW);
  spread(h.E * h.chunks, h.products(), [&](int64_t index) {
    const int64_t e = index / h.chunks, first = index % h.chunks * h.chunk, n = lower(h.chunk, h.N - first);
    double* const z = scratch_of<double>(kSlotLogits, n * h.K);
    for (int64_t i = 0; i < n * h.K; ++i) z[i] = static_cast<double>(bias.at(e)[i % h.K]);
    add_products(h, x.at(e) + first * h.D, rows.at(0, e), n, z);
    for (int64_t i = 0; i < n; ++i) {
      double* const row = z + i * h.K;
      const int64_t l = label.at(e)[first + i];
      double top = row[0], sum = 0;
      for (int64_t k = 1; k < h.K; ++k) top = row[k] > top ? row[k] : top;
      const double at_label = row[l] - top;
      for (int64_t k = 0; k < h.K; ++k) sum += row[k] = std::exp(row[k] - top);
      y.at(e)[first + i] = static_cast<T>(std::log(sum) - at_label);
      T* const to = residual.at(e) + (first + i) * h.K;
      for (int64_t k = 0; k < h.K; ++k) to[k] = static_cast<T>(row[k] / sum - (k == l ? 1.0 : 0.0));
    }
  });
}

template <class T, class S>
void jvp(const Call& call) {
  const Head h = head_of<T, S>(call);
  HG_ARGS(residual, x, w, x_dot, w_dot, bias_dot, y_dot, z_dot)
  const Rows<T> rows = x_dot ? pack(h, w, 1, kSlotW) : Rows<T>{}, rows_dot = pack(h, w_dot, h.P, kSlotWDot);
  spread(h.P * h.E * h.chunks, h.P * h.products(), [&](int64_t index) {
    const int64_t pe = index / h.chunks, p = pe / h.E, e = pe % h.E;
    const int64_t first = index % h.chunks * h.chunk, n = lower(h.chunk, h.N - first);
    double* const z = scratch_of<double>(kSlotLogits, n * h.K);
    for (int64_t i = 0; i < n * h.K; ++i) z[i] = bias_dot ? static_cast<double>(bias_dot.at(p, e)[i % h.K]) : 0.0;
    if (x_dot) add_products(h, x_dot.at(p, e) + first * h.D, rows.at(0, e), n, z);
    if (w_dot) add_products(h, x.at(e) + first * h.D, rows_dot.at(p, e), n, z);
    for (int64_t i = 0; i < n; ++i) {
      const T* const r = residual.at(e) + (first + i) * h.K;
      T* const to = z_dot.at(p, e) + (first + i) * h.K;
      double sum = 0;
      for (int64_t k = 0; k < h.K; ++k) {
        sum += static_cast<double>(r[k]) * z[i * h.K + k];
        to[k] = static_cast<T>(z[i * h.K + k]);
      }
      y_dot.at(p, e)[first + i] = static_cast<T>(sum);
    }
  });
}

// Cotangents of the logits, (N, K), times what they were multiplied with. The second pair may be null.
template <class T>
struct Factor {
  const T *z, *other;
};

// x_bar[n, band] = sum over classes of z*w (+ the second pair), I examples from n on.
template <class T, int I>
HG_INLINE void features_tile(const Head& h, const Factor<T>& a, const Factor<T>& b, int64_t n, int64_t first, int64_t last, T* x_bar) {
  constexpr int64_t V = kLanes<T>;
  const auto column = [&](int64_t d, int lanes, auto full) {
    Vec<T> sum[I] = {};
    const auto add = [&](const Factor<T>& f) {
      for (int64_t k = 0; k < h.K; ++k) {
        const Vec<T> w = load(f.other + k * h.Dp + d);
        for (int i = 0; i < I; ++i) sum[i] += f.z[(n + i) * h.K + k] * w;
      }
    };
    add(a);
    if (b.z != nullptr) add(b);
    for (int i = 0; i < I; ++i) store<T, decltype(full)::value>(x_bar + (n + i) * h.D + d, sum[i], lanes);
  };
  int64_t d = first;
  for (; d + V <= last; d += V) column(d, 0, std::true_type{});
  if (d < last) column(d, static_cast<int>(last - d), std::false_type{});
}

template <class T>
void features_bar(const Head& h, const Factor<T>& a, const Factor<T>& b, int64_t first, int64_t last, T* x_bar) {
  int64_t n = 0;
  for (; n + 4 <= h.N; n += 4) features_tile<T, 4>(h, a, b, n, first, last, x_bar);
  for (; n < h.N; ++n) features_tile<T, 1>(h, a, b, n, first, last, x_bar);
}

// total[k, d] += sum over the examples [n, end) of z*x, for J classes from k on and M vectors of features from d on.
template <class T, int J, int M, bool Full>
HG_INLINE void weights_tile(const Head& h, const Factor<T>& f, int64_t n, int64_t end, int64_t k, int64_t d, int lanes, double* total,
                            int64_t width) {
  constexpr int V = kLanes<T>;
  Vec<T> acc[J][M] = {};
  for (; n < end; ++n) {
    Vec<T> x[M];
    for (int m = 0; m < M; ++m) x[m] = load<T, Full>(f.other + n * h.D + d + m * V, lanes);
    for (int j = 0; j < J; ++j)
      for (int m = 0; m < M; ++m) acc[j][m] += f.z[n * h.K + k + j] * x[m];
  }
  for (int j = 0; j < J; ++j)
    for (int m = 0; m < M; ++m) {
      T sums[V];
      __builtin_memcpy(sums, &acc[j][m], sizeof sums);
      double* const to = total + j * width + m * V;
      for (int v = 0; v < V; ++v) to[v] += static_cast<double>(sums[v]);
    }
}

// w_bar[band, k] = sum over examples of x*z (+ the second pair). A block of examples stays in the cache for all classes.
template <class T>
void weights_bar(const Head& h, const Factor<T>& a, const Factor<T>& b, int64_t first, int64_t last, T* w_bar) {
  constexpr int64_t V = kLanes<T>;
  const int64_t width = round_up(last - first, V);
  double* const total = scratch_of<double>(kSlotTotals, h.K * width);
  for (int64_t i = 0; i < h.K * width; ++i) total[i] = 0;
  for (const Factor<T>* f : {&a, &b})
    for (int64_t n = 0; f->z != nullptr && n < h.N; n += kFlush) {
      const int64_t end = lower(h.N, n + kFlush);
      for_classes(h.K, [&](int64_t k, auto J) {
        constexpr int j = decltype(J)::value;
        double* const to = total + k * width;
        int64_t d = first;
        for (; d + 2 * V <= last; d += 2 * V) weights_tile<T, j, 2, true>(h, *f, n, end, k, d, 0, to + d - first, width);
        for (; d + V <= last; d += V) weights_tile<T, j, 1, true>(h, *f, n, end, k, d, 0, to + d - first, width);
        if (d < last) weights_tile<T, j, 1, false>(h, *f, n, end, k, d, static_cast<int>(last - d), to + d - first, width);
      });
    }
  for (int64_t d = first; d < last; ++d)
    for (int64_t k = 0; k < h.K; ++k) w_bar[d * h.K + k] = static_cast<T>(total[k * width + d - first]);
}

// bias_bar[k] = sum over examples of z[n, k].
template <class T>
void sum_examples(const Head& h, const T* z, T* out) {
  for (int64_t k = 0; k < h.K; ++k) {
    double sum = 0;
    for (int64_t n = 0; n < h.N; ++n) sum += static_cast<double>(z[n * h.K + k]);
    out[k] = static_cast<T>(sum);
  }
}

// z_bar = y_bar*residual, (E, N, K).
template <class T>
T* logits_bar(const Head& h, const Batch<const T>& y_bar, const Batch<const T>& residual) {
  T* const z_bar = scratch_of<T>(kSlotZBar, h.E * h.N * h.K + 1);
  for (int64_t en = 0; en < h.E * h.N; ++en) {
    const int64_t e = en / h.N, n = en % h.N;
    for (int64_t k = 0; k < h.K; ++k) z_bar[en * h.K + k] = *y_bar.at(e, n) * residual.at(e)[n * h.K + k];
  }
  return z_bar;
}

template <class T, class S>
void vjp(const Call& call) {
  const Head h = head_of<T, S>(call);
  HG_ARGS(y_bar, residual, x, w, x_bar, w_bar, bias_bar)
  const T* const z_bar = logits_bar(h, y_bar, residual);
  const Rows<T> rows = x_bar ? pack(h, w, 1, kSlotW) : Rows<T>{};
  for (int64_t e = 0; e < h.E; ++e) sum_examples(h, z_bar + e * h.N * h.K, bias_bar.at(e));
  if (!x_bar && !w_bar) return;
  spread(h.E * h.bands, h.products(), [&](int64_t index) {
    const int64_t e = index / h.bands, first = index % h.bands * h.band, last = lower(h.D, first + h.band);
    const T* const z = z_bar + e * h.N * h.K;
    if (x_bar) features_bar(h, {z, rows.at(0, e)}, {nullptr, nullptr}, first, last, x_bar.at(e));
    if (w_bar) weights_bar(h, {z, x.at(e)}, {nullptr, nullptr}, first, last, w_bar.at(e));
  });
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Head h = head_of<T, S>(call);
  HG_ARGS(y_bar, y_bar_dot, residual, x, w, x_dot, w_dot, z_dot, label, x_bar_dot, w_bar_dot, bias_bar_dot)
  const T* const z_bar = logits_bar(h, y_bar, residual);
  const int64_t size = h.N * h.K;
  T* const z_bar_dot = scratch_of<T>(kSlotZBarDot, h.P * h.E * size + 1);
  spread(h.P * h.E, h.P * h.E * size * 8, [&](int64_t pe) {
    const int64_t p = pe / h.E, e = pe % h.E;
    for (int64_t n = 0; n < h.N; ++n) {
      const T *const r = residual.at(e) + n * h.K, *const dot = z_dot.at(p, e) + n * h.K;
      const int64_t l = label.at(e)[n];
      const auto softmax = [&](int64_t k) { return static_cast<double>(r[k]) + (k == l ? 1.0 : 0.0); };
      double mean = 0;
      for (int64_t k = 0; k < h.K; ++k) mean += softmax(k) * static_cast<double>(dot[k]);
      const double bar = static_cast<double>(*y_bar.at(e, n));
      const double bar_dot = y_bar_dot ? static_cast<double>(y_bar_dot.at(p, e)[n]) : 0.0;
      T* const to = z_bar_dot + pe * size + n * h.K;
      for (int64_t k = 0; k < h.K; ++k)
        to[k] = static_cast<T>(bar_dot * static_cast<double>(r[k]) + bar * softmax(k) * (static_cast<double>(dot[k]) - mean));
    }
    sum_examples(h, z_bar_dot + pe * size, bias_bar_dot.at(p, e));
  });
  if (!x_bar_dot && !w_bar_dot) return;
  const Rows<T> rows = x_bar_dot ? pack(h, w, 1, kSlotW) : Rows<T>{};
  const Rows<T> rows_dot = x_bar_dot ? pack(h, w_dot, h.P, kSlotWDot) : Rows<T>{};
  spread(h.P * h.E * h.bands, h.P * h.products(), [&](int64_t index) {
    const int64_t pe = index / h.bands, p = pe / h.E, e = pe % h.E;
    const int64_t first = index % h.bands * h.band, last = lower(h.D, first + h.band);
    const T *const z = z_bar + e * size, *const dot = z_bar_dot + pe * size;
    const Factor<T> none{nullptr, nullptr};
    if (x_bar_dot)
      features_bar(h, {dot, rows.at(0, e)}, rows_dot ? Factor<T>{z, rows_dot.at(p, e)} : none, first, last, x_bar_dot.at(p, e));
    if (w_bar_dot) weights_bar(h, {dot, x.at(e)}, x_dot ? Factor<T>{z, x_dot.at(p, e)} : none, first, last, w_bar_dot.at(p, e));
  });
}

HG_KERNEL(linear_cross_entropy_value, value)
HG_KERNEL(linear_cross_entropy_jvp, jvp)
HG_KERNEL(linear_cross_entropy_vjp, vjp)
HG_KERNEL(linear_cross_entropy_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

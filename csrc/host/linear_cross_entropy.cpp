// linear_cross_entropy: softmax cross-entropy of x w + bias against labels, in four rungs. Weights are packed as K rows
// of D, so that every loop runs along the features, however few the classes. With residual = softmax - one_hot(label):
//   z_bar = y_bar*residual;  x_bar = z_bar w';  w_bar = x' z_bar;  bias_bar = sum over examples of z_bar
//   z_dot = x_dot w + x w_dot + bias_dot;  y_dot = sum over classes of residual*z_dot
//   z_bar_dot = y_bar_dot*residual + y_bar*softmax*(z_dot - sum over classes of softmax*z_dot)
//   x_bar_dot = z_bar_dot w' + z_bar w_dot';  w_bar_dot = x_dot' z_bar + x' z_bar_dot
//
// A task owns some examples of an episode and goes through them in blocks of kFlush, which stay in the cache. Sums over examples are
// those of the tasks, added in order. The last three kernels do several rungs to a block while it is there: `value_vjp` the value and the
// vjp, `jvp_vjp_jvp` the jvp and the jvp of the vjp in one direction, `value_jvp_vjp_jvp` the value before them. Their bits are those of
// the single rungs.
#include "../registry.h"

// Axes: P directions, E episodes, N examples, D features, K classes.
HG_SIGNATURE(linear_cross_entropy_value, "x=E|ND w=E|DK bias=E|K label:i64=E|N -> y=E|N residual=E|NK")
HG_SIGNATURE(linear_cross_entropy_vjp, "y_bar=EN| residual=E|NK x=E|ND w=E|DK -> x_bar?=E|ND w_bar?=E|DK bias_bar=E|K")
HG_SIGNATURE(linear_cross_entropy_jvp, "residual=E|NK x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK bias_dot?=PE|K -> y_dot=PE|N z_dot=PE|NK")
HG_SIGNATURE(linear_cross_entropy_vjp_jvp,
             "y_bar=EN| y_bar_dot?=PE|N residual=E|NK label:i64=E|N x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK z_dot=PE|NK"
             " -> x_bar_dot?=PE|ND w_bar_dot?=PE|DK bias_bar_dot=PE|K")
HG_SIGNATURE(linear_cross_entropy_value_vjp,
             "y_bar=EN| x=E|ND w=E|DK bias=E|K label:i64=E|N -> y=E|N residual=E|NK x_bar?=E|ND w_bar?=E|DK bias_bar=E|K")
HG_SIGNATURE(linear_cross_entropy_jvp_vjp_jvp,
             "y_bar=EN| y_bar_dot?=PE|N residual=E|NK label:i64=E|N x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK bias_dot?=PE|K"
             " -> y_dot=PE|N z_dot=PE|NK x_bar_dot?=PE|ND w_bar_dot?=PE|DK bias_bar_dot=PE|K")
HG_SIGNATURE(linear_cross_entropy_value_jvp_vjp_jvp,
             "y_bar=EN| y_bar_dot?=PE|N label:i64=E|N x=E|ND w=E|DK bias=E|K x_dot?=PE|ND w_dot?=PE|DK bias_dot?=PE|K"
             " -> y=E|N residual=E|NK y_dot=PE|N z_dot=PE|NK x_bar_dot?=PE|ND w_bar_dot?=PE|DK bias_bar_dot=PE|K")

#ifdef HG_SIMD
#include <cmath>

#include "exponential.h"
#include "head_products.h"
#include "simd.h"

namespace hg::HG_SIMD {
namespace {

constexpr int64_t kTaskProducts = int64_t(1) << 17;  // fewer in all are not worth a second thread
constexpr int64_t kMostChunks = 16;                  // tasks of an episode
constexpr int kVectors = kTile / 3;                  // of a register tile, beside five classes
enum Slot : int { kSlotLogits = 0, kSlotZBar, kSlotZBarDot, kSlotW = kSharedSlots, kSlotWDot, kSlotTotals };

// As parallel_for; calls too small to be worth waking a thread stay on this one.
template <class Body>
void spread(int64_t tasks, int64_t products, const Body& body) {
  if (products > kTaskProducts)
    parallel_for(tasks, body);
  else
    for (int64_t i = 0; i < tasks; ++i) body(i);
}

template <class T, class S>
Head head_of(const Call& call) {
  Head h{HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(N), HG_DIM(D), HG_DIM(K), 0, 0, 0};
  h.Dp = round_up(h.D, kLanes<T>);
  h.chunk = higher(kFlush, round_up(ceil_div(h.N, kMostChunks), kFlush));
  h.chunks = ceil_div(h.N, h.chunk);
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

// --- A block of n examples: x, z and the like point to its first one ---

// The lanes of a vector, in double.
template <class T>
struct Doubles {
  typedef double type __attribute__((vector_size(sizeof(double) * kLanes<T>)));
};
template <class T>
HG_INLINE typename Doubles<T>::type doubled(const Vec<T>& v) {
  return __builtin_convertvector(v, typename Doubles<T>::type);
}

// The losses y and residuals of n examples.
template <class T>
void losses(const Head& h, const T* x, const T* w, const T* bias, const int64_t* label, int64_t n, T* y, T* residual) {
  const int64_t whole = round_up(n, kLanes<double>);  // whole vectors; what is beyond n is not read
  double* const z = scratch_of<double>(kSlotLogits, h.K * kFlush + 1);
  for (int64_t k = 0; k < h.K; ++k)
    for (int64_t i = 0; i < whole; ++i) z[k * kFlush + i] = static_cast<double>(bias[k]);
  add_products(h, x, w, n, true, z);
  double top[kFlush], at_label[kFlush], sum[kFlush] = {};
  for (int64_t i = 0; i < whole; ++i) top[i] = z[i];
  for (int64_t k = 1; k < h.K; ++k)
    for (int64_t i = 0; i < whole; ++i) top[i] = z[k * kFlush + i] > top[i] ? z[k * kFlush + i] : top[i];
  for (int64_t k = 0; k < h.K; ++k)
    for (int64_t i = 0; i < whole; ++i) z[k * kFlush + i] -= top[i];
  for (int64_t i = 0; i < n; ++i) at_label[i] = z[label[i] * kFlush + i];
  for (int64_t k = 0; k < h.K; ++k) {
    exponentials(z + k * kFlush, whole);
    for (int64_t i = 0; i < whole; ++i) sum[i] += z[k * kFlush + i];
  }
  for (int64_t i = 0; i < n; ++i) {
    y[i] = static_cast<T>(std::log(sum[i]) - at_label[i]);
    sum[i] = 1 / sum[i];
  }
  for (int64_t k = 0; k < h.K; ++k)
    for (int64_t i = 0; i < n; ++i) z[k * kFlush + i] = z[k * kFlush + i] * sum[i] - (k == label[i] ? 1.0 : 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < h.K; ++k) residual[i * h.K + k] = static_cast<T>(z[k * kFlush + i]);
}

// Their tangents y_dot and those of the logits. Null where there are none: x_dot, and w_dot, and bias_dot. `fetch`: of the block of x
// after this one.
template <class T>
void losses_dot(const Head& h, const T* residual, const T* x, const T* w, const T* x_dot, const T* w_dot, const T* bias_dot, int64_t n,
                bool fetch, T* y_dot, T* z_dot) {
  double* const z = scratch_of<double>(kSlotLogits, h.K * kFlush + 1);
  for (int64_t k = 0; k < h.K; ++k)
    for (int64_t i = 0; i < n; ++i) z[k * kFlush + i] = bias_dot != nullptr ? static_cast<double>(bias_dot[k]) : 0.0;
  if (x_dot != nullptr) add_products(h, x_dot, w, n, true, z);
  if (w_dot != nullptr) add_products(h, x, w_dot, n, fetch, z);
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t k = 0; k < h.K; ++k) {
      sum += static_cast<double>(residual[i * h.K + k]) * z[k * kFlush + i];
      z_dot[i * h.K + k] = static_cast<T>(z[k * kFlush + i]);
    }
    y_dot[i] = static_cast<T>(sum);
  }
}

// y_bar*residual; y_bar's elements are `step` bytes apart.
template <class T>
T* logits_bar(const Head& h, const T* y_bar, int64_t step, const T* residual, int64_t n) {
  T* const z_bar = scratch_of<T>(kSlotZBar, n * h.K + 1);
  for (int64_t i = 0; i < n; ++i) {
    const T bar = *Batch<const T>{y_bar, 0, step}.at(i);
    for (int64_t k = 0; k < h.K; ++k) z_bar[i * h.K + k] = bar * residual[i * h.K + k];
  }
  return z_bar;
}

template <class T>
T* logits_bar_dot(const Head& h, const T* y_bar, int64_t step, const T* y_bar_dot, const T* residual, const int64_t* label, const T* z_dot,
                  int64_t n) {
  T* const z_bar_dot = scratch_of<T>(kSlotZBarDot, n * h.K + 1);
  for (int64_t i = 0; i < n; ++i) {
    const T *const r = residual + i * h.K, *const dot = z_dot + i * h.K;
    const auto softmax = [&](int64_t k) { return static_cast<double>(r[k]) + (k == label[i] ? 1.0 : 0.0); };
    double mean = 0;
    for (int64_t k = 0; k < h.K; ++k) mean += softmax(k) * static_cast<double>(dot[k]);
    const double bar = static_cast<double>(*Batch<const T>{y_bar, 0, step}.at(i));
    const double bar_dot = y_bar_dot != nullptr ? static_cast<double>(y_bar_dot[i]) : 0.0;
    T* const to = z_bar_dot + i * h.K;
    for (int64_t k = 0; k < h.K; ++k)
      to[k] = static_cast<T>(bar_dot * static_cast<double>(r[k]) + bar * softmax(k) * (static_cast<double>(dot[k]) - mean));
  }
  return z_bar_dot;
}

// Cotangents of the logits, (n, K), times what they were multiplied with. The second pair may be null.
template <class T>
struct Factor {
  const T *z, *other;
};

// x_bar = sum over classes of z*w (+ the second pair), I examples from n on.
template <class T, int I>
HG_INLINE void features_tile(const Head& h, const Factor<T>& a, const Factor<T>& b, int64_t n, T* x_bar) {
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
  for_channels<T>(h.D, column);
}

template <class T>
void features_bar(const Head& h, const Factor<T>& a, const Factor<T>& b, int64_t n, T* x_bar) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) features_tile<T, 4>(h, a, b, i, x_bar);
  for (; i < n; ++i) features_tile<T, 1>(h, a, b, i, x_bar);
}

// total[k, d] += sum over the n examples of z*x, for J classes from k on and M vectors of features from d on. `begins`: nothing has been
// added to the total yet, and it has no numbers. `fetch`: the features of the block after this one, meanwhile.
template <class T, int J, int M, bool Full>
HG_INLINE void weights_tile(const Head& h, const Factor<T>& f, int64_t n, int64_t k, int64_t d, int lanes, bool begins, bool fetch,
                            double* total) {
  constexpr int V = kLanes<T>;
  Vec<T> acc[J][M];
  for (int j = 0; j < J; ++j)
    for (int m = 0; m < M; ++m) acc[j][m] = Vec<T>{};
  const auto add = [&](int64_t i) {
    Vec<T> x[M];
    for (int m = 0; m < M; ++m) x[m] = load<T, Full>(f.other + i * h.D + d + m * V, lanes);
    for (int j = 0; j < J; ++j)
      for (int m = 0; m < M; ++m) acc[j][m] += f.z[i * h.K + k + j] * x[m];
  };
  for (int64_t i = 0; i < n && fetch; ++i) {
    for (int m = 0; m < M; ++m) __builtin_prefetch(f.other + (i + kFlush) * h.D + d + m * V, 0, 2);
    add(i);
  }
  for (int64_t i = 0; i < n && !fetch; ++i) add(i);
  for (int j = 0; j < J; ++j)
    for (int m = 0; m < M; ++m) {
      double* const to = total + (k + j) * h.Dp + d + m * V;
      typename Doubles<T>::type sums = doubled<T>(acc[j][m]), before;
      if (!begins) {
        __builtin_memcpy(&before, to, sizeof before);
        sums += before;
      }
      __builtin_memcpy(to, &sums, sizeof sums);
    }
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

// What a task sums over its examples: K rows of Dp for the weights, then K numbers for the bias. `begins` and
// `fetch` as weights_tile has them.
template <class T>
void add_sums(const Head& h, const Factor<T>& a, const Factor<T>& b, int64_t n, bool weights, bool begins, bool fetch, double* total) {
  for (const Factor<T>* f : {&a, &b}) {
    if (!weights || f->z == nullptr) continue;
    constexpr int64_t V = kLanes<T>;
    const auto columns = [&](int64_t d, int lanes, auto M, auto full) {
      for_classes(h.K, [&](int64_t k, auto J) {
        weights_tile<T, decltype(J)::value, decltype(M)::value, decltype(full)::value>(h, *f, n, k, d, lanes, begins && f == &a,
                                                                                       fetch && k == 0, total);
      });
    };
    int64_t d = 0;
    for (; d + kVectors * V <= h.D; d += kVectors * V) columns(d, 0, std::integral_constant<int, kVectors>{}, std::true_type{});
    for (; d + V <= h.D; d += V) columns(d, 0, std::integral_constant<int, 1>{}, std::true_type{});
    if (d < h.D) columns(d, static_cast<int>(h.D - d), std::integral_constant<int, 1>{}, std::false_type{});
  }
  double* const bias = total + h.K * h.Dp;
  for (int64_t k = 0; k < h.K && begins; ++k) bias[k] = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < h.K; ++k) bias[k] += static_cast<double>(a.z[i * h.K + k]);
}

// --- Whole calls ---

// Sums of all tasks, `count` of which belong to one cotangent; added in order.
template <class T>
struct Totals {
  const Head& h;
  int64_t size;
  double* data;
  Totals(const Head& head, int64_t cotangents) : h(head), size(head.K * head.Dp + head.K) {
    data = scratch_of<double>(kSlotTotals, cotangents * h.chunks * size + 1);
  }
  double* of(int64_t index) const { return data + index * size; }
  // Cotangent `index` of the weights (null where it is not wanted) and of the bias.
  void add_up(int64_t index, T* w_bar, T* bias_bar) const {
    const double* const first = data + index * h.chunks * size;
    for (int64_t k = 0; k < h.K; ++k) {
      double all = 0;
      for (int64_t chunk = 0; chunk < h.chunks; ++chunk) all += first[chunk * size + h.K * h.Dp + k];
      bias_bar[k] = static_cast<T>(all);
    }
    if (w_bar == nullptr) return;
    constexpr int64_t kBand = 64;  // of features
    spread(ceil_div(h.D, kBand), h.chunks * h.D * h.K * 8, [&](int64_t band) {
      const int64_t from = band * kBand, count = lower(kBand, h.D - from);
      for (int64_t k = 0; k < h.K; ++k) {
        double all[kBand] = {};
        for (int64_t chunk = 0; chunk < h.chunks; ++chunk)
          for (int64_t i = 0; i < count; ++i) all[i] += first[chunk * size + k * h.Dp + from + i];
        for (int64_t i = 0; i < count; ++i) w_bar[(from + i) * h.K + k] = static_cast<T>(all[i]);
      }
    });
  }
};

// body(first, n) for the blocks of a task.
template <class Body>
HG_INLINE void for_blocks(const Head& h, int64_t chunk, const Body& body) {
  const int64_t end = lower(h.N, (chunk + 1) * h.chunk);
  for (int64_t n = chunk * h.chunk; n < end; n += kFlush) body(n, lower(kFlush, end - n));
}

// The labels of a block, read once: another thread could write to them after a check.
inline const int64_t* read_labels(const Call& call, const Head& h, const int64_t* label, int64_t n, int64_t (&own)[kFlush]) {
  for (int64_t i = 0; i < n; ++i) {
    own[i] = label[i];
    if (own[i] < 0 || own[i] >= h.K)
      fail_argument(call, "label is %lld, expected 0 to %lld", static_cast<long long>(own[i]), static_cast<long long>(h.K - 1));
  }
  return own;
}

// The rungs that a kernel does to every block, in this order.
enum Rung : int { kValue = 1, kJvp = 2, kVjp = 4, kVjpJvp = 8 };

// All arguments that some rung has. One that a kernel does not have is null.
template <class T>
struct Given {
  Batch<const T> x, w, bias, y_bar, y_bar_dot, x_dot, w_dot, bias_dot;
  Batch<const int64_t> label;
  Batch<const T> residual_in, z_dot_in;
  Batch<T> y, residual, y_dot, z_dot, x_bar, w_bar, bias_bar, x_bar_dot, w_bar_dot, bias_bar_dot;
};

template <class T>
HG_INLINE auto* at_or_null(const Batch<T>& b, int64_t p, int64_t e, int64_t offset) {
  return b ? b.at(p, e) + offset : nullptr;
}

template <class T, int kRungs>
void run(const Call& call, const Head& h, const Given<T>& g) {
  const bool by_w = (kRungs & kValue) || g.x_dot || g.x_bar || g.x_bar_dot;
  const Rows<T> rows = by_w ? pack(h, g.w, 1, kSlotW) : Rows<T>{};
  const bool by_w_dot = (kRungs & kJvp) || g.x_bar_dot;
  const Rows<T> rows_dot = by_w_dot ? pack(h, g.w_dot, h.P, kSlotWDot) : Rows<T>{};
  const int64_t P = (kRungs & (kJvp | kVjpJvp)) ? h.P : 1;
  constexpr bool fetch = (kRungs & (kValue | kJvp)) == 0;  // else the products have fetched the next block
  const Totals<T> totals(h, (kRungs & (kVjp | kVjpJvp)) ? P * h.E : 0);
  spread(P * h.E * h.chunks, P * h.products(), [&](int64_t index) {
    const int64_t pe = index / h.chunks, p = pe / h.E, e = pe % h.E;
    double* const total = (kRungs & (kVjp | kVjpJvp)) ? totals.of(index) : nullptr;
    for_blocks(h, index % h.chunks, [&](int64_t first, int64_t n) {
      const int64_t D = first * h.D, K = first * h.K;
      const bool begins = first == index % h.chunks * h.chunk;
      const T* const x = g.x.at(e) + D;
      const T* const w = rows ? rows.at(0, e) : nullptr;
      const T* const w_dot = rows_dot ? rows_dot.at(p, e) : nullptr;
      const T* const x_dot = at_or_null(g.x_dot, p, e, D);
      int64_t own[kFlush];
      const int64_t* const label = g.label ? read_labels(call, h, g.label.at(e) + first, n, own) : nullptr;
      if constexpr ((kRungs & kValue) != 0) losses(h, x, w, g.bias.at(e), label, n, g.y.at(e) + first, g.residual.at(e) + K);
      const T* const residual = (kRungs & kValue) ? g.residual.at(e) + K : g.residual_in.at(e) + K;
      if constexpr ((kRungs & kJvp) != 0)
        losses_dot(h, residual, x, w, x_dot, w_dot, at_or_null(g.bias_dot, p, e, 0), n, (kRungs & kValue) == 0, g.y_dot.at(p, e) + first,
                   g.z_dot.at(p, e) + K);
      if constexpr ((kRungs & (kVjp | kVjpJvp)) == 0) return;
      const Factor<T> none{nullptr, nullptr};
      const int64_t step = g.y_bar.stride_1;
      const T* const y_bar = g.y_bar.at(e, first);
      const T* const z_bar = logits_bar(h, y_bar, step, residual, n);
      if constexpr ((kRungs & kVjp) != 0) {
        if (g.x_bar) features_bar(h, {z_bar, w}, none, n, g.x_bar.at(e) + D);
        add_sums(h, {z_bar, x}, none, n, bool(g.w_bar), begins, fetch, total);
      }
      if constexpr ((kRungs & kVjpJvp) != 0) {
        const T* const z_dot = (kRungs & kJvp) ? g.z_dot.at(p, e) + K : g.z_dot_in.at(p, e) + K;
        const T* const z_bar_dot = logits_bar_dot(h, y_bar, step, at_or_null(g.y_bar_dot, p, e, first), residual, label, z_dot, n);
        if (g.x_bar_dot) features_bar(h, {z_bar_dot, w}, w_dot != nullptr ? Factor<T>{z_bar, w_dot} : none, n, g.x_bar_dot.at(p, e) + D);
        add_sums(h, {z_bar_dot, x}, x_dot != nullptr ? Factor<T>{z_bar, x_dot} : none, n, bool(g.w_bar_dot), begins, fetch, total);
      }
    });
  });
  if constexpr ((kRungs & kVjp) != 0)
    for (int64_t e = 0; e < h.E; ++e) totals.add_up(e, at_or_null(g.w_bar, 0, e, 0), g.bias_bar.at(e));
  if constexpr ((kRungs & kVjpJvp) != 0)
    for (int64_t pe = 0; pe < P * h.E; ++pe)
      totals.add_up(pe, at_or_null(g.w_bar_dot, pe / h.E, pe % h.E, 0), g.bias_bar_dot.at(pe / h.E, pe % h.E));
}
template <class T, class S>
void value(const Call& call) {
  const Head h = head_of<T, S>(call);
  Given<T> a{};
  HG_MEMBERS(x, w, bias, label, y, residual)
  run<T, kValue>(call, h, a);
}

template <class T, class S>
void jvp(const Call& call) {
  Given<T> a{};
  HG_MEMBERS(x, w, x_dot, w_dot, bias_dot, y_dot, z_dot)
  a.residual_in = HG_ARG(residual);
  run<T, kJvp>(call, head_of<T, S>(call), a);
}

template <class T, class S>
void vjp(const Call& call) {
  Given<T> a{};
  HG_MEMBERS(y_bar, x, w, x_bar, w_bar, bias_bar)
  a.residual_in = HG_ARG(residual);
  run<T, kVjp>(call, head_of<T, S>(call), a);
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  Given<T> a{};
  HG_MEMBERS(y_bar, y_bar_dot, label, x, w, x_dot, w_dot, x_bar_dot, w_bar_dot, bias_bar_dot)
  a.residual_in = HG_ARG(residual);
  a.z_dot_in = HG_ARG(z_dot);
  run<T, kVjpJvp>(call, head_of<T, S>(call), a);
}

template <class T, class S>
void value_vjp(const Call& call) {
  const Head h = head_of<T, S>(call);
  Given<T> a{};
  HG_MEMBERS(y_bar, x, w, bias, label, y, residual, x_bar, w_bar, bias_bar)
  run<T, kValue | kVjp>(call, h, a);
}

template <class T, class S>
Head head_in_one_direction(const Call& call) {
  const Head h = head_of<T, S>(call);
  if (h.P != 1) fail_argument(call, "P is %lld, expected one direction", static_cast<long long>(h.P));
  return h;
}

template <class T, class S>
void jvp_vjp_jvp(const Call& call) {
  const Head h = head_in_one_direction<T, S>(call);
  Given<T> a{};
  HG_MEMBERS(y_bar, y_bar_dot, label, x, w, x_dot, w_dot, bias_dot, y_dot, z_dot, x_bar_dot, w_bar_dot, bias_bar_dot)
  a.residual_in = HG_ARG(residual);
  run<T, kJvp | kVjpJvp>(call, h, a);
}

template <class T, class S>
void value_jvp_vjp_jvp(const Call& call) {
  const Head h = head_in_one_direction<T, S>(call);
  Given<T> a{};
  HG_MEMBERS(y_bar, y_bar_dot, label, x, w, bias, x_dot, w_dot, bias_dot, y, residual, y_dot, z_dot, x_bar_dot, w_bar_dot, bias_bar_dot)
  run<T, kValue | kJvp | kVjpJvp>(call, h, a);
}

HG_KERNEL(linear_cross_entropy_value, value)
HG_KERNEL(linear_cross_entropy_jvp, jvp)
HG_KERNEL(linear_cross_entropy_vjp, vjp)
HG_KERNEL(linear_cross_entropy_vjp_jvp, vjp_jvp)
HG_KERNEL(linear_cross_entropy_value_vjp, value_vjp)
HG_KERNEL(linear_cross_entropy_jvp_vjp_jvp, jvp_vjp_jvp)
HG_KERNEL(linear_cross_entropy_value_jvp_vjp_jvp, value_jvp_vjp_jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

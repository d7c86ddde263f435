// batch_norm: y = gamma*xhat + beta with xhat = s*(x - mean), per episode and channel over M pixels, in four rungs.
//   B = sum y_bar;  G = sum y_bar*xhat;  x_bar = gamma*s*(y_bar - B/M - xhat*G/M);  gamma_bar = G;  beta_bar = B
//   c = mean(xhat*x_dot);  xhat_dot = s*(x_dot - mean(x_dot) - xhat*c);  s_dot = -s*s*c
//   y_dot = gamma_dot*xhat + gamma*xhat_dot + beta_dot
//   B_dot = sum y_bar_dot;  G_dot = sum (y_bar_dot*xhat + y_bar*xhat_dot);  x_bar_dot is x_bar's tangent.
// A task owns some pixels of one episode (of one direction); sums over them are merged in order.
#include "../registry.h"

// Axes: P directions, E episodes, M pixels, K channels.
HG_SIGNATURE(batch_norm_value, "x=E|MK gamma=E|K beta=E|K -> y=E|MK mean=E|K rstd=E|K", "eps:float>=0")
HG_SIGNATURE(batch_norm_vjp, "y_bar=E|MK mean=E|K rstd=E|K x=E|MK gamma=E|K -> x_bar?=E|MK gamma_bar=E|K beta_bar=E|K")
HG_SIGNATURE(batch_norm_jvp,
             "x=E|MK gamma=E|K mean=E|K rstd=E|K x_dot?=PE|MK gamma_dot?=PE|K beta_dot?=PE|K -> y_dot=PE|MK x_dot_mean=PE|K c=PE|K")
HG_SIGNATURE(batch_norm_vjp_jvp,
             "y_bar=E|MK y_bar_dot?=PE|MK mean=E|K rstd=E|K x=E|MK gamma=E|K x_dot?=PE|MK gamma_dot?=PE|K x_dot_mean=PE|K c=PE|K"
             " -> x_bar_dot?=PE|MK gamma_bar_dot=PE|K beta_bar_dot=PE|K")

#ifdef HG_SIMD
#include "moments.h"

namespace hg::HG_SIMD {
namespace {

// The fused block's sizes with M images of one pixel.
template <class T, class S>
Block norm_of(const Call& call) {
  Block b{HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(M), 1, 1, 0, HG_DIM(K), 0, 0, 0, 0};
  b.Kp = round_up(b.K, kLanes<T>);
  b.chunks = ceil_div(b.N, kTaskPixels);
  return b;
}

// One addend of an affine combination of arrays: by[k]*(x[i, k] - mean[k]), or by[k]*x[i, k] where mean is null.
template <class T>
struct Term {
  const T *x, *mean, *by;
};

// out[i, k] = shift[k] + sum of the terms, n pixels.
template <class T, int N>
void combine(const Block& b, const Term<T> (&terms)[N], const T* shift, int64_t n, T* out) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    Vec<T> mean[N], by[N];
    for (int j = 0; j < N; ++j) {
      mean[j] = terms[j].mean == nullptr ? Vec<T>{} : load(terms[j].mean + k);
      by[j] = terms[j].x == nullptr ? Vec<T>{} : load(terms[j].by + k);
    }
    const Vec<T> constant = load(shift + k);
    for (int64_t i = 0; i < n; ++i) {
      Vec<T> sum = constant;
      for (int j = 0; j < N; ++j)
        if (terms[j].x != nullptr) sum += (load<T, F>(terms[j].x + i * b.K + k, lanes) - mean[j]) * by[j];
      store<T, F>(out + i * b.K + k, sum, lanes);
    }
  });
}

// part[0, k] = sum a, part[1, k] = sum a*(x - mean) over n pixels. A null `a` is zero everywhere.
template <class T>
void reduce(const Block& b, const T* a, const T* x, const T* mean, int64_t n, double* part) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    constexpr int V = kLanes<T>;
    double sum[V] = {}, product[V] = {};
    const Vec<T> m = load(mean + k);
    for (int64_t i = 0; a != nullptr && i < n; i += kFlush) {
      Vec<T> s{}, p{};
      for (int64_t j = i; j < lower(i + kFlush, n); ++j) {
        const Vec<T> v = load<T, F>(a + j * b.K + k, lanes);
        s += v;
        p += v * (load<T, F>(x + j * b.K + k, lanes) - m);
      }
      add_lanes<T>(sum, s);
      add_lanes<T>(product, p);
    }
    for (int v = 0; v < V; ++v) {
      part[k + v] = sum[v];
      part[b.Kp + k + v] = product[v];
    }
  });
}

// Rows of Kp, zeros after K, one per batch entry.
template <class T>
T* padded_rows(const Block& b, const Batch<const T>& a, int64_t P, int slot) {
  T* const out = scratch_of<T>(slot, P * b.E * b.Kp + 1);
  for (int64_t i = 0; i < P * b.E; ++i) pad_channels(b, a.at(i / b.E, i % b.E), out + i * b.Kp);
  return out;
}

template <class T, class S>
void value(const Call& call) {
  const Block b = norm_of<T, S>(call);
  HG_ARGS(x, gamma, beta, y, mean, rstd)
  double* const parts = scratch_of<double>(kSlotPartSums, b.E * b.chunks * 2 * b.Kp + 1);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    double* const part = parts + index * 2 * b.Kp;
    statistics(x.at(t.batch) + t.first * b.K, t.n, b, part, part + b.Kp);
  });
  const T* const scalars = normalization(b, parts, HG_ATTRIBUTE(eps), gamma, beta, mean, rstd);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const T* const s = scalars + t.batch * 3 * b.Kp;
    const Term<T> terms[] = {{x.at(t.batch) + t.first * b.K, s, s + b.Kp}};
    combine(b, terms, s + 2 * b.Kp, t.n, y.at(t.batch) + t.first * b.K);
  });
}

template <class T, class S>
void jvp(const Call& call) {
  const Block b = norm_of<T, S>(call);
  HG_ARGS(x, gamma, mean, rstd, x_dot, gamma_dot, beta_dot, y_dot, x_dot_mean)
  const auto c_out = HG_ARG(c);
  const T* const means = padded_rows(b, mean, 1, kSlotScalars);
  const int64_t tasks = b.P * b.E * b.chunks;
  double* const parts = scratch_of<double>(kSlotPartSums, tasks * 3 * b.Kp + 1);
  if (x_dot)
    parallel_for(tasks, [&](int64_t index) {
      const BlockTask t = task_of(b, index);
      const int64_t p = t.batch / b.E, e = t.batch % b.E, at = t.first * b.K;
      moments(b, x.at(e) + at, x_dot.at(p, e) + at, t.n, means + e * b.Kp, parts + index * 3 * b.Kp);
    });
  T* const scalars = scratch_of<T>(kSlotScalars2, b.P * b.E * 4 * b.Kp + 1);  // of x_dot: mean, factor; factor of x; shift
  for (int64_t pe = 0; pe < b.P * b.E; ++pe)
    for (int64_t k = 0; k < b.Kp; ++k) {
      const int64_t p = pe / b.E, e = pe % b.E;
      T* const s = scalars + pe * 4 * b.Kp + k;
      s[0] = s[b.Kp] = s[2 * b.Kp] = s[3 * b.Kp] = T(0);
      if (k >= b.K) continue;
      const Moments of = x_dot ? merge_moments(b, parts, pe, k) : Moments{0, 0};
      const double r = static_cast<double>(rstd.at(e)[k]), c = r * of.product;
      const NormDot dot = norm_dot(static_cast<double>(gamma.at(e)[k]), gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) : 0.0, r, c);
      x_dot_mean.at(p, e)[k] = s[0] = static_cast<T>(of.mean);
      c_out.at(p, e)[k] = static_cast<T>(c);
      s[b.Kp] = static_cast<T>(dot.by_z_dot);
      s[2 * b.Kp] = static_cast<T>(dot.by_z);
      s[3 * b.Kp] = beta_dot ? beta_dot.at(p, e)[k] : T(0);
    }
  parallel_for(tasks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t p = t.batch / b.E, e = t.batch % b.E, at = t.first * b.K;
    const T* const s = scalars + t.batch * 4 * b.Kp;
    const Term<T> terms[] = {{x_dot ? x_dot.at(p, e) + at : nullptr, s, s + b.Kp}, {x.at(e) + at, means + e * b.Kp, s + 2 * b.Kp}};
    combine(b, terms, s + 3 * b.Kp, t.n, y_dot.at(p, e) + at);
  });
}

template <class T, class S>
void vjp(const Call& call) {
  const Block b = norm_of<T, S>(call);
  HG_ARGS(y_bar, mean, rstd, x, gamma, x_bar, gamma_bar, beta_bar)
  const T* const means = padded_rows(b, mean, 1, kSlotScalars);
  double* const parts = scratch_of<double>(kSlotPartSums, b.E * b.chunks * 2 * b.Kp + 1);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t e = t.batch, at = t.first * b.K;
    reduce(b, y_bar.at(e) + at, x.at(e) + at, means + e * b.Kp, t.n, parts + index * 2 * b.Kp);
  });
  const double M = static_cast<double>(higher(1, b.pixels()));
  double* const sums = scratch_of<double>(kSlotPartSums2, 2 * b.Kp + 1);
  T* const scalars = scratch_of<T>(kSlotScalars2, b.E * 3 * b.Kp + 1);  // factors of y_bar and x, shift
  for (int64_t e = 0; e < b.E; ++e) {
    merge_sums(b, parts, e, 2, sums);
    for (int64_t k = 0; k < b.Kp; ++k) {
      T* const s = scalars + e * 3 * b.Kp + k;
      s[0] = s[b.Kp] = s[2 * b.Kp] = T(0);
      if (k >= b.K) continue;
      const NormBar bar = norm_bar(static_cast<double>(gamma.at(e)[k]), static_cast<double>(rstd.at(e)[k]), sums[k], sums[b.Kp + k], M);
      gamma_bar.at(e)[k] = static_cast<T>(bar.G);
      beta_bar.at(e)[k] = static_cast<T>(sums[k]);
      s[0] = static_cast<T>(bar.scale);
      s[b.Kp] = static_cast<T>(bar.by_z);
      s[2 * b.Kp] = static_cast<T>(bar.shift);
    }
  }
  if (!x_bar) return;
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t e = t.batch, at = t.first * b.K;
    const T* const s = scalars + e * 3 * b.Kp;
    const Term<T> terms[] = {{y_bar.at(e) + at, nullptr, s}, {x.at(e) + at, means + e * b.Kp, s + b.Kp}};
    combine(b, terms, s + 2 * b.Kp, t.n, x_bar.at(e) + at);
  });
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Block b = norm_of<T, S>(call);
  HG_ARGS(y_bar, y_bar_dot, mean, rstd, x, gamma, x_dot, gamma_dot, x_dot_mean)
  const auto c_in = HG_ARG(c);
  HG_ARGS(x_bar_dot, gamma_bar_dot, beta_bar_dot)
  const int64_t Kp = b.Kp, tasks = b.P * b.E * b.chunks;
  const T *const means = padded_rows(b, mean, 1, kSlotScalars), *const dot_means = padded_rows(b, x_dot_mean, b.P, kSlotParts);
  // Sums of y_bar, y_bar*(x - mean); y_bar_dot, y_bar_dot*(x - mean); y_bar, y_bar*(x_dot - mean).
  double* const parts = scratch_of<double>(kSlotPartSums, tasks * 6 * Kp + 1);
  parallel_for(tasks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t p = t.batch / b.E, e = t.batch % b.E, at = t.first * b.K;
    double* const part = parts + index * 6 * Kp;
    const T* const bar = y_bar.at(e) + at;
    reduce(b, bar, x.at(e) + at, means + e * Kp, t.n, part);
    reduce(b, y_bar_dot ? y_bar_dot.at(p, e) + at : nullptr, x.at(e) + at, means + e * Kp, t.n, part + 2 * Kp);
    reduce(b, x_dot ? bar : nullptr, x_dot ? x_dot.at(p, e) + at : nullptr, dot_means + t.batch * Kp, t.n, part + 4 * Kp);
  });
  const double M = static_cast<double>(higher(1, b.pixels()));
  double* const sums = scratch_of<double>(kSlotPartSums2, 6 * Kp + 1);
  T* const scalars = scratch_of<T>(kSlotScalars2, b.P * b.E * 5 * Kp + 1);  // factors of y_bar, y_bar_dot, x, x_dot; shift
  for (int64_t pe = 0; pe < b.P * b.E; ++pe) {
    const int64_t p = pe / b.E, e = pe % b.E;
    merge_sums(b, parts, pe, 6, sums);
    for (int64_t k = 0; k < Kp; ++k) {
      T* const to = scalars + pe * 5 * Kp + k;
      for (int i = 0; i < 5; ++i) to[i * Kp] = T(0);
      if (k >= b.K) continue;
      const double s = static_cast<double>(rstd.at(e)[k]), c = static_cast<double>(c_in.at(p, e)[k]);
      const double B = sums[k], B_dot = sums[2 * Kp + k], gain_dot = gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) * s : 0.0;
      const NormBar bar = norm_bar(static_cast<double>(gamma.at(e)[k]), s, B, sums[Kp + k], M);
      const NormBar dot = norm_bar_dot(bar, gain_dot, s, c, B, B_dot, sums[3 * Kp + k] + sums[5 * Kp + k], M);
      gamma_bar_dot.at(p, e)[k] = static_cast<T>(dot.G);
      beta_bar_dot.at(p, e)[k] = static_cast<T>(B_dot);
      to[0] = static_cast<T>(dot.scale);
      to[Kp] = static_cast<T>(bar.scale);
      to[2 * Kp] = static_cast<T>(dot.by_z);
      to[3 * Kp] = static_cast<T>(bar.by_z);
      to[4 * Kp] = static_cast<T>(dot.shift);
    }
  }
  if (!x_bar_dot) return;
  parallel_for(tasks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t p = t.batch / b.E, e = t.batch % b.E, at = t.first * b.K;
    const T* const s = scalars + t.batch * 5 * Kp;
    const Term<T> terms[] = {{y_bar.at(e) + at, nullptr, s},
                             {y_bar_dot ? y_bar_dot.at(p, e) + at : nullptr, nullptr, s + Kp},
                             {x.at(e) + at, means + e * Kp, s + 2 * Kp},
                             {x_dot ? x_dot.at(p, e) + at : nullptr, dot_means + t.batch * Kp, s + 3 * Kp}};
    combine(b, terms, s + 4 * Kp, t.n, x_bar_dot.at(p, e) + at);
  });
}

HG_KERNEL(batch_norm_value, value)
HG_KERNEL(batch_norm_jvp, jvp)
HG_KERNEL(batch_norm_vjp, vjp)
HG_KERNEL(batch_norm_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

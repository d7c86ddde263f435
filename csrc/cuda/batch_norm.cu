// batch_norm in four rungs; the formulas stand in csrc/host/batch_norm.cpp. Sums over pixels are cut into parts; then a
// block for 32 channels adds the parts and derives a few scalars per channel, and one pass forms the result.
#include "../host/batch_norm.cpp"  // its signatures

#include "block.h"

namespace hg::cuda {
namespace {

constexpr int kPartPixels = 1024;  // of a part
constexpr int kRows = 32;          // pixels that a block works on at a time; 8 threads with four channels each share one
constexpr int kChannels = 32;      // of a block

struct Norm {
  int64_t P, E, M;
  int K;
  int64_t tiles, parts;  // blocks of 32 channels and parts of an entry
  int64_t blocks() const { return E * tiles * parts; }
};

template <class S>
Norm norm_of(const Call& call) {
  const int64_t K = HG_DIM(K), M = HG_DIM(M);
  if (K > INT32_MAX) fail_shape(call, "there are %lld channels, expected fewer than 2**31", static_cast<long long>(K));
  return {HG_DIM_IF_ANY(P), HG_DIM(E), M, static_cast<int>(K), ceil_div(K, kChannels), ceil_div(M, kPartPixels)};
}

// What a block of a pass over pixels has, and a thread of it: channels k .. k + 3 of pixels first, first + kRows, ...
struct Span {
  int64_t entry, part, first, last;
  int k, row;
};
HG_DEVICE Span span_of(const Norm& n) {
  int64_t block = blockIdx.x;
  Span s{};
  s.part = block % n.parts;
  block /= n.parts;
  s.k = static_cast<int>(block % n.tiles) * kChannels + static_cast<int>(threadIdx.x) % 8 * 4;
  s.entry = block / n.tiles;
  s.row = static_cast<int>(threadIdx.x) / 8;
  s.first = s.part * kPartPixels + s.row;
  s.last = lower(n.M, (s.part + 1) * kPartPixels);
  return s;
}

// The sum over the rows of a block of each channel, in order and in double; every thread gets those of its four
// channels. A thread itself adds at most kPartPixels/kRows terms in T. `sums` holds kRows*kChannels doubles.
struct Four {
  double v[4];
};
template <class T>
HG_DEVICE Four row_sums(const Quad<T>& mine, double* sums) {
  const int row = static_cast<int>(threadIdx.x) / 8, c = static_cast<int>(threadIdx.x) % 8 * 4;
  __syncthreads();
  HG_UNROLL
  for (int j = 0; j < 4; ++j) sums[row * kChannels + c + j] = static_cast<double>(mine.v[j]);
  __syncthreads();
  if (row == 0) {
    HG_UNROLL
    for (int j = 0; j < 4; ++j) {
      double total = 0;
      for (int i = 0; i < kRows; ++i) total += sums[i * kChannels + c + j];
      sums[c + j] = total;
    }
  }
  __syncthreads();
  Four out;
  HG_UNROLL
  for (int j = 0; j < 4; ++j) out.v[j] = sums[c + j];
  return out;
}

// Row i of a part's sums.
HG_DEVICE void store_part(const Norm& n, const Span& s, double* part, int i, const Four& sum) {
  if (s.row != 0) return;
  HG_UNROLL
  for (int j = 0; j < 4; ++j)
    if (s.k + j < n.K) part[static_cast<int64_t>(i) * n.K + s.k + j] = sum.v[j];
}

template <class T>
HG_DEVICE Quad<T> less(const Quad<T>& a, const Quad<T>& b) {
  Quad<T> out;
  HG_UNROLL
  for (int j = 0; j < 4; ++j) out.v[j] = a.v[j] - b.v[j];
  return out;
}

// Of `a` (of a direction, or of none): parts[entry][part][0] = its mean; with x [1] = sum (x - mean)*(a - that mean),
// [2] = sum (x - mean); without x [1] = sum of the squared deviations of `a`.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_moments(const Norm n, Batch<const T> a, Batch<const T> x, Batch<const T> mean, double* parts) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kRows * kChannels);
  const Span s = span_of(n);
  const int64_t e = s.entry % n.E;
  const T *const from = a.at(s.entry / n.E, e), *const other = x ? x.at(0, e) : nullptr;
  const double count = static_cast<double>(s.last - s.part * kPartPixels);
  Quad<T> total{};
  if (s.k < n.K)
    for (int64_t i = s.first; i < s.last; i += kRows) {
      const Quad<T> v = load_quad(from + i * n.K, s.k, n.K, a.wide);
      HG_UNROLL
      for (int j = 0; j < 4; ++j) total.v[j] += v.v[j];
    }
  const Four sum = row_sums(total, sums);
  Quad<T> near;  // the mean, rounded: differences to it are small and are corrected below
  HG_UNROLL
  for (int j = 0; j < 4; ++j) near.v[j] = static_cast<T>(sum.v[j] / count);
  const Quad<T> centre = other == nullptr ? Quad<T>{} : load_quad(mean.at(0, e), s.k, n.K, false);
  Quad<T> d_sum{}, product_sum{}, w_sum{};
  if (s.k < n.K)
    for (int64_t i = s.first; i < s.last; i += kRows) {
      const Quad<T> d = less(load_quad(from + i * n.K, s.k, n.K, a.wide), near);
      const Quad<T> w = other == nullptr ? d : less(load_quad(other + i * n.K, s.k, n.K, x.wide), centre);
      HG_UNROLL
      for (int j = 0; j < 4; ++j) {
        d_sum.v[j] += d.v[j];
        product_sum.v[j] = fused(d.v[j], w.v[j], product_sum.v[j]);
        w_sum.v[j] += w.v[j];
      }
    }
  const Four rest = row_sums(d_sum, sums), deviation = row_sums(w_sum, sums);
  Four product = row_sums(product_sum, sums), exact;
  HG_UNROLL
  for (int j = 0; j < 4; ++j) {
    const double off = rest.v[j] / count;
    exact.v[j] = static_cast<double>(near.v[j]) + off;
    product.v[j] -= off * deviation.v[j];
  }
  double* const part = parts + (s.entry * n.parts + s.part) * 3 * n.K;
  store_part(n, s, part, 0, exact);
  store_part(n, s, part, 1, product);
  store_part(n, s, part, 2, deviation);
}

// parts[entry][part][row] = sum a, parts[entry][part][row + 1] = sum a*(x - mean), of `rows` rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_sums(const Norm n, Batch<const T> a, Batch<const T> x, Batch<const T> mean, int row, int rows, double* parts) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kRows * kChannels);
  const Span s = span_of(n);
  const int64_t p = s.entry / n.E, e = s.entry % n.E;
  Quad<T> sum{}, product{};
  if (s.k < n.K) {
    const Quad<T> centre = load_quad(mean.at(p, e), s.k, n.K, false);
    for (int64_t i = s.first; i < s.last; i += kRows) {
      const Quad<T> v = load_quad(a.at(p, e) + i * n.K, s.k, n.K, a.wide);
      const Quad<T> d = less(load_quad(x.at(p, e) + i * n.K, s.k, n.K, x.wide), centre);
      HG_UNROLL
      for (int j = 0; j < 4; ++j) {
        sum.v[j] += v.v[j];
        product.v[j] = fused(v.v[j], d.v[j], product.v[j]);
      }
    }
  }
  double* const part = parts + (s.entry * n.parts + s.part) * rows * n.K;
  store_part(n, s, part, row, row_sums(sum, sums));
  store_part(n, s, part, row + 1, row_sums(product, sums));
}

// A block that derives scalars: one channel of one entry a lane, parts cut into slices.
struct Channel {
  int64_t entry, p, e;
  int k, slice;
  bool any, first;  // `first`: the thread that writes
};
HG_DEVICE Channel channel_of(const Norm& n) {
  Channel c{};
  c.entry = blockIdx.x / n.tiles;
  c.p = c.entry / n.E;
  c.e = c.entry % n.E;
  c.k = static_cast<int>(blockIdx.x % n.tiles) * kChannels + static_cast<int>(threadIdx.x) % 32;
  c.slice = static_cast<int>(threadIdx.x) / 32;
  c.any = c.k < n.K;
  c.first = c.any && c.slice == 0;
  return c;
}
HG_DEVICE double part_count(const Norm& n, int64_t part) {
  return static_cast<double>(lower<int64_t>(kPartPixels, n.M - part * kPartPixels));
}
// Sum over the parts of row `row` of `rows`.
HG_DEVICE double part_sum(const Norm& n, const Channel& c, const double* parts, int row, int rows, double* sums) {
  double total = 0;
  if (c.any)
    for (int64_t part = c.slice; part < n.parts; part += kSlices) total += parts[((c.entry * n.parts + part) * rows + row) * n.K + c.k];
  return slice_sum(total, sums);
}
// Mean over all pixels from the means of the parts, row 0 of 3.
HG_DEVICE double part_mean(const Norm& n, const Channel& c, const double* parts, double* sums) {
  double total = 0;
  if (c.any)
    for (int64_t part = c.slice; part < n.parts; part += kSlices)
      total += parts[(c.entry * n.parts + part) * 3 * n.K + c.k] * part_count(n, part);
  return slice_sum(total, sums) / static_cast<double>(higher<int64_t>(1, n.M));
}

// Constants of a pass that forms sum_j by_j*(x_j - mean_j) + shift: rows by_0, mean_0, by_1, mean_1, ..., shift, K long.
template <class T>
struct Constants {
  T* rows;
  int64_t K;
  int terms;
  HG_BOTH T* of(int64_t entry) const { return rows + entry * (2 * terms + 1) * K; }
  HG_DEVICE void set(const Channel& c, int term, double by, T mean) const {
    T* const to = of(c.entry) + 2 * term * K + c.k;
    to[0] = static_cast<T>(by);
    to[K] = mean;
  }
  HG_DEVICE void shift(const Channel& c, double value) const { of(c.entry)[2 * terms * K + c.k] = static_cast<T>(value); }
};

template <class T>
__global__ void __launch_bounds__(kThreads) norm_statistics(const Norm n, const double* parts, Batch<const T> gamma, Batch<const T> beta,
                                                            double eps, Batch<T> mean, Batch<T> rstd, Constants<T> constants) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const Channel c = channel_of(n);
  const double all = part_mean(n, c, parts, sums);
  double squares = 0;
  if (c.any)
    for (int64_t part = c.slice; part < n.parts; part += kSlices) {
      const double* const from = parts + (c.entry * n.parts + part) * 3 * n.K + c.k;
      squares += from[n.K] + part_count(n, part) * (from[0] - all) * (from[0] - all);
    }
  const double variance = slice_sum(squares, sums) / static_cast<double>(higher<int64_t>(1, n.M));
  if (!c.first) return;
  const T m = static_cast<T>(all), r = static_cast<T>(1.0 / sqrt(variance + eps));
  mean.at(0, c.e)[c.k] = m;
  rstd.at(0, c.e)[c.k] = r;
  constants.set(c, 0, static_cast<double>(gamma.at(0, c.e)[c.k] * r), m);
  constants.shift(c, static_cast<double>(beta.at(0, c.e)[c.k]));
}

template <class T>
HG_DEVICE double at_or_zero(const Batch<const T>& a, const Channel& c) {
  return a ? static_cast<double>(a.at(c.p, c.e)[c.k]) : 0.0;
}

// parts is null without x_dot.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_jvp_scalars(const Norm n, const double* parts, Batch<const T> gamma, Batch<const T> mean, Batch<const T> rstd,
                     Batch<const T> gamma_dot, Batch<const T> beta_dot, Batch<T> x_dot_mean, Batch<T> c_out, Constants<T> constants) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const Channel c = channel_of(n);
  double m_dot = 0, product = 0;
  if (parts != nullptr) {
    m_dot = part_mean(n, c, parts, sums);
    double total = 0;
    if (c.any)
      for (int64_t part = c.slice; part < n.parts; part += kSlices) {
        const double* const from = parts + (c.entry * n.parts + part) * 3 * n.K + c.k;
        total += from[n.K] + (from[0] - m_dot) * from[2 * static_cast<int64_t>(n.K)];
      }
    product = slice_sum(total, sums) / static_cast<double>(higher<int64_t>(1, n.M));
  }
  if (!c.first) return;
  const double r = static_cast<double>(rstd.at(0, c.e)[c.k]), scale = static_cast<double>(gamma.at(0, c.e)[c.k]) * r;
  x_dot_mean.at(c.p, c.e)[c.k] = static_cast<T>(m_dot);
  c_out.at(c.p, c.e)[c.k] = static_cast<T>(r * product);
  constants.set(c, 0, at_or_zero(gamma_dot, c) * r - scale * r * r * product, mean.at(0, c.e)[c.k]);
  constants.set(c, 1, scale, static_cast<T>(m_dot));
  constants.shift(c, at_or_zero(beta_dot, c));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_vjp_scalars(const Norm n, const double* parts, Batch<const T> gamma, Batch<const T> mean, Batch<const T> rstd, Batch<T> gamma_bar,
                     Batch<T> beta_bar, Constants<T> constants) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const Channel c = channel_of(n);
  const double B = part_sum(n, c, parts, 0, 2, sums), product = part_sum(n, c, parts, 1, 2, sums);
  if (!c.first) return;
  const double M = static_cast<double>(higher<int64_t>(1, n.M)), s = static_cast<double>(rstd.at(0, c.e)[c.k]);
  const NormBar bar = norm_bar(static_cast<double>(gamma.at(0, c.e)[c.k]), s, B, product, M);
  gamma_bar.at(0, c.e)[c.k] = static_cast<T>(bar.G);
  beta_bar.at(0, c.e)[c.k] = static_cast<T>(B);
  constants.set(c, 0, bar.by_z, mean.at(0, c.e)[c.k]);
  constants.set(c, 1, bar.scale, T(0));
  constants.shift(c, bar.shift);
}

// Rows of the parts: of y_bar with x, of y_bar_dot with x, of y_bar with x_dot; the last two only where they are.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_vjp_jvp_scalars(const Norm n, const double* parts, const double* parts_bar, bool has_bar_dot, bool has_x_dot, Batch<const T> gamma,
                         Batch<const T> mean, Batch<const T> rstd, Batch<const T> gamma_dot, Batch<const T> x_dot_mean, Batch<const T> c_in,
                         Batch<T> gamma_bar_dot, Batch<T> beta_bar_dot, Constants<T> constants) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const Channel c = channel_of(n);
  Channel own = c;  // the sums of y_bar are the same for all directions
  own.entry = c.e;
  const double B = part_sum(n, own, parts_bar, 0, 2, sums), product = part_sum(n, own, parts_bar, 1, 2, sums);
  double B_dot = 0, product_dot = 0, other = 0;
  if (has_bar_dot) {
    B_dot = part_sum(n, c, parts, 0, 4, sums);
    product_dot = part_sum(n, c, parts, 1, 4, sums);
  }
  if (has_x_dot) other = part_sum(n, c, parts, 3, 4, sums);
  if (!c.first) return;
  const double M = static_cast<double>(higher<int64_t>(1, n.M)), s = static_cast<double>(rstd.at(0, c.e)[c.k]);
  const double mean_product = static_cast<double>(c_in.at(c.p, c.e)[c.k]);
  const NormBar bar = norm_bar(static_cast<double>(gamma.at(0, c.e)[c.k]), s, B, product, M);
  const NormBar dot = norm_bar_dot(bar, at_or_zero(gamma_dot, c) * s, s, mean_product, B, B_dot, product_dot + other, M);
  gamma_bar_dot.at(c.p, c.e)[c.k] = static_cast<T>(dot.G);
  beta_bar_dot.at(c.p, c.e)[c.k] = static_cast<T>(B_dot);
  constants.set(c, 0, dot.by_z, mean.at(0, c.e)[c.k]);
  constants.set(c, 1, dot.scale, T(0));
  constants.set(c, 2, bar.scale, T(0));
  constants.set(c, 3, bar.by_z, x_dot_mean.at(c.p, c.e)[c.k]);
  constants.shift(c, dot.shift);
}

// out = sum_j by_j*(x_j - mean_j) + shift; an absent array is zero everywhere. A thread owns four channels of some pixels.
template <class T, int N>
struct Terms {
  Batch<const T> x[N];
};
template <class T, int N>
__global__ void __launch_bounds__(kThreads) norm_combine(const Norm n, Terms<T, N> terms, Constants<T> constants, Batch<T> out) {
  const Span s = span_of(n);
  if (s.k >= n.K) return;
  const int64_t p = s.entry / n.E, e = s.entry % n.E;
  const T* const rows = constants.of(s.entry);
  Quad<T> by[N], mean[N];
  HG_UNROLL
  for (int j = 0; j < N; ++j) {
    by[j] = load_quad(rows + 2 * j * static_cast<int64_t>(n.K), s.k, n.K, false);
    mean[j] = load_quad(rows + (2 * j + 1) * static_cast<int64_t>(n.K), s.k, n.K, false);
  }
  const Quad<T> shift = load_quad(rows + 2 * N * static_cast<int64_t>(n.K), s.k, n.K, false);
  for (int64_t i = s.first; i < s.last; i += kRows) {
    Quad<T> sum = shift;
    HG_UNROLL
    for (int j = 0; j < N; ++j)
      if (terms.x[j]) {
        const Quad<T> v = load_quad(terms.x[j].at(p, e) + i * n.K, s.k, n.K, terms.x[j].wide);
        HG_UNROLL
        for (int i4 = 0; i4 < 4; ++i4) sum.v[i4] = fused(v.v[i4] - mean[j].v[i4], by[j].v[i4], sum.v[i4]);
      }
    store_quad(out.at(p, e) + i * n.K, s.k, n.K, out.wide, sum);
  }
}

constexpr std::size_t kRowSums = shared_size(kRows * kChannels * sizeof(double));
constexpr std::size_t kSliceSums = shared_size(kThreads * sizeof(double));

template <class T>
Constants<T> constants_of(Launch& launch, const Norm& n, int64_t entries, int terms) {
  return {launch.scratch<T>(entries * (2 * terms + 1) * n.K), n.K, terms};
}

template <class T, class S>
void value(const Call& call) {
  const Norm n = norm_of<S>(call);
  HG_ARGS(x, gamma, beta, y, mean, rstd)
  const double eps = HG_ATTRIBUTE(eps);
  Launch launch(call);
  double* const parts = launch.scratch<double>(n.E * n.parts * 3 * n.K);
  const Constants<T> constants = constants_of<T>(launch, n, n.E, 1);
  launch("norm_moments", norm_moments<T>, n.blocks(), kThreads, kRowSums, n, x, Batch<const T>{}, Batch<const T>{}, parts);
  launch("norm_statistics", norm_statistics<T>, n.E * n.tiles, kThreads, kSliceSums, n, parts, gamma, beta, eps, mean, rstd, constants);
  launch("norm_combine", norm_combine<T, 1>, n.blocks(), kThreads, 0, n, Terms<T, 1>{{x}}, constants, y);
}

template <class T, class S>
void jvp(const Call& call) {
  const Norm n = norm_of<S>(call);
  HG_ARGS(x, gamma, mean, rstd, x_dot, gamma_dot, beta_dot, y_dot, x_dot_mean, c)
  Launch launch(call);
  double* const parts = launch.scratch<double>(n.P * n.E * n.parts * 3 * n.K);
  const Constants<T> constants = constants_of<T>(launch, n, n.P * n.E, 2);
  if (x_dot) launch("norm_moments", norm_moments<T>, n.P * n.blocks(), kThreads, kRowSums, n, x_dot, x, mean, parts);
  const double* const given = x_dot ? parts : nullptr;
  launch("norm_jvp_scalars", norm_jvp_scalars<T>, n.P * n.E * n.tiles, kThreads, kSliceSums, n, given, gamma, mean, rstd, gamma_dot,
         beta_dot, x_dot_mean, c, constants);
  launch("norm_combine", norm_combine<T, 2>, n.P * n.blocks(), kThreads, 0, n, Terms<T, 2>{{x, x_dot}}, constants, y_dot);
}

template <class T, class S>
void vjp(const Call& call) {
  const Norm n = norm_of<S>(call);
  HG_ARGS(y_bar, mean, rstd, x, gamma, x_bar, gamma_bar, beta_bar)
  Launch launch(call);
  double* const parts = launch.scratch<double>(n.E * n.parts * 2 * n.K);
  const Constants<T> constants = constants_of<T>(launch, n, n.E, 2);
  launch("norm_sums", norm_sums<T>, n.blocks(), kThreads, kRowSums, n, y_bar, x, mean, 0, 2, parts);
  launch("norm_vjp_scalars", norm_vjp_scalars<T>, n.E * n.tiles, kThreads, kSliceSums, n, parts, gamma, mean, rstd, gamma_bar, beta_bar,
         constants);
  if (x_bar) launch("norm_combine", norm_combine<T, 2>, n.blocks(), kThreads, 0, n, Terms<T, 2>{{x, y_bar}}, constants, x_bar);
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Norm n = norm_of<S>(call);
  HG_ARGS(y_bar, y_bar_dot, mean, rstd, x, gamma, x_dot, gamma_dot, x_dot_mean, c, x_bar_dot, gamma_bar_dot, beta_bar_dot)
  Launch launch(call);
  double* const parts_bar = launch.scratch<double>(n.E * n.parts * 2 * n.K);
  double* const parts = launch.scratch<double>(n.P * n.E * n.parts * 4 * n.K);
  const Constants<T> constants = constants_of<T>(launch, n, n.P * n.E, 4);
  launch("norm_sums", norm_sums<T>, n.P == 0 ? 0 : n.blocks(), kThreads, kRowSums, n, y_bar, x, mean, 0, 2, parts_bar);
  if (y_bar_dot) launch("norm_sums", norm_sums<T>, n.P * n.blocks(), kThreads, kRowSums, n, y_bar_dot, x, mean, 0, 4, parts);
  if (x_dot) launch("norm_sums", norm_sums<T>, n.P * n.blocks(), kThreads, kRowSums, n, y_bar, x_dot, x_dot_mean, 2, 4, parts);
  launch("norm_vjp_jvp_scalars", norm_vjp_jvp_scalars<T>, n.P * n.E * n.tiles, kThreads, kSliceSums, n, parts, parts_bar,
         static_cast<bool>(y_bar_dot), static_cast<bool>(x_dot), gamma, mean, rstd, gamma_dot, x_dot_mean, c, gamma_bar_dot, beta_bar_dot,
         constants);
  if (x_bar_dot)
    launch("norm_combine", norm_combine<T, 4>, n.P * n.blocks(), kThreads, 0, n, Terms<T, 4>{{x, y_bar, y_bar_dot, x_dot}}, constants,
           x_bar_dot);
}

HG_KERNEL(batch_norm_value, value)
HG_KERNEL(batch_norm_jvp, jvp)
HG_KERNEL(batch_norm_vjp, vjp)
HG_KERNEL(batch_norm_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::cuda

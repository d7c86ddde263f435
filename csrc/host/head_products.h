// The products of features and weights in linear_cross_entropy. Weights are packed as K rows of Dp, so that vectors run along the
// features. The products of a block are K rows of kFlush, so that vectors of what follows run along the examples.
#pragma once
#include "simd.h"

namespace hg::HG_SIMD {
namespace {

constexpr int kExamples = kTile / 3;  // of a register tile, beside four classes

struct Head {
  int64_t P, E, N, D, K;
  int64_t Dp;             // D rounded up to whole vectors: the length of a packed row
  int64_t chunk, chunks;  // examples per task, whole blocks; tasks per episode
  int64_t products() const { return E * N * D * K; }
};

// out[k*kFlush + i] += x_i . w_k over the features [first, last), for I examples and J classes. Meanwhile lines of the `count` rows `next`
// are fetched.
template <class T, int I, int J>
HG_INLINE void dot_tile(const Head& h, const T* x, const T* w, int64_t first, int64_t last, const T* const* next, int count, double* out) {
  constexpr int64_t V = kLanes<T>;
  constexpr int A = (I * J + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  Vec<T> acc[A];
  for (int a = 0; a < A; ++a) acc[a] = Vec<T>{};
  int64_t d = first;
  for (; d + V <= last; d += V) {
    Vec<T> v[I];
    for (int r = 0; r < count; ++r) __builtin_prefetch(next[r] + d, 0, 2);
    for (int i = 0; i < I; ++i) {
      v[i] = load(x + i * h.D + d);
      if (J > 1) keep_in_register(v[i]);
    }
    for (int j = 0; j < J; ++j) {
      const Vec<T> u = load(w + j * h.Dp + d);
      for (int i = 0; i < I; ++i) acc[i * J + j] += v[i] * u;
    }
  }
  for (int i = 0; i < I && d < last; ++i) {
    const Vec<T> v = load<T, false>(x + i * h.D + d, static_cast<int>(last - d));
    for (int j = 0; j < J; ++j) acc[i * J + j] += v * load(w + j * h.Dp + d);
  }
  T sums[A];
  sum_lanes<T, A>(acc, sums);
  for (int i = 0; i < I; ++i)
    for (int j = 0; j < J; ++j) out[j * kFlush + i] += static_cast<double>(sums[i * J + j]);
}

// The same for the examples [i, n) and J classes; I examples a tile, while there are so many. Of the block after this one every `groups`-th
// row is fetched, those of number `group`; none where there are no groups.
template <class T, int I, int J>
HG_INLINE void dot_rows(const Head& h, const T* x, const T* w, int64_t first, int64_t last, int64_t i, int64_t n, int64_t group,
                        int64_t groups, double* out) {
  for (; i + I <= n; i += I) {
    const T* next[I];
    int count = 0;
    for (int r = 0; r < I && groups > 0; ++r)
      if ((i + r) % groups == group) next[count++] = x + (i + r + kFlush) * h.D;
    dot_tile<T, I, J>(h, x + i * h.D, w, first, last, next, count, out + i);
  }
  if constexpr (I > 1)
    if (i < n) dot_rows<T, I / 2, J>(h, x, w, first, last, i, n, group, groups, out);
}

// out[n, k] += x w, by bands of features and groups of classes, whose weights stay in the first-level cache. `fetch`: whether the block
// after this one is fetched meanwhile.
template <class T>
void add_products(const Head& h, const T* x, const T* w, int64_t n, bool fetch, double* out) {
  const int64_t bands = higher(1, ceil_div(h.D, kFlush * kLanes<T>)), band = round_up(ceil_div(h.D, bands), kLanes<T>);
  const int64_t groups = fetch ? h.K / 4 + h.K % 4 / 2 + h.K % 2 : 0;
  for (int64_t first = 0; first < h.D; first += band) {
    const int64_t last = lower(h.D, first + band);
    int64_t k = 0, group = 0;
    const auto classes = [&](auto I, auto J) {
      dot_rows<T, decltype(I)::value, decltype(J)::value>(h, x, w + k * h.Dp, first, last, 0, n, group++, groups, out + k * kFlush);
      k += decltype(J)::value;
    };
    while (k + 4 <= h.K) classes(std::integral_constant<int, kExamples>{}, std::integral_constant<int, 4>{});
    if (k + 2 <= h.K) classes(std::integral_constant<int, 2 * kExamples>{}, std::integral_constant<int, 2>{});
    if (k < h.K) classes(std::integral_constant<int, 4 * kExamples>{}, std::integral_constant<int, 1>{});
  }
}

}  // namespace
}  // namespace hg::HG_SIMD

#include "winograd.h"

namespace hg::HG_SIMD {
namespace {

constexpr int V = kLanes<float>;
typedef float HalfVec __attribute__((vector_size(HG_VECTOR_BYTES / 2)));
constexpr int D = kLanes<double>;

HG_INLINE Vec<double> widen(const float* p) {
  HalfVec v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vec<double>);
}
HG_INLINE void narrow(float* p, const Vec<double>& v) {
  const HalfVec h = __builtin_convertvector(v, HalfVec);
  __builtin_memcpy(p, &h, sizeof h);
}

// Filters that a product reads together. With one vector each number of v is used once, and the instructions of AVX-512 take it from
// memory; others load it, and use it twice.
constexpr int64_t kPanel = HG_VECTOR_BYTES == 64 ? V : 2 * V;

// u[position][K/width][C][width], width kPanel, or V in a last panel: the order in which the product reads them.
template <int M, int N>
void transform_filters(const float* w, int64_t C, int64_t K, float* u) {
  for (int64_t panel = 0; panel < K; panel += kPanel) {
    const int64_t width = lower(kPanel, K - panel);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t k = 0; k < width; k += D) {
        Vec<double> t[3][N + 2];
        for (int r = 0; r < 3; ++r) {
          Vec<double> g[3];
          for (int s = 0; s < 3; ++s) g[s] = widen(w + ((r * 3 + s) * C + c) * K + panel + k);
          Axis<N>::filter(g, t[r]);
        }
        for (int j = 0; j < N + 2; ++j) {
          const Vec<double> col[3] = {t[0][j], t[1][j], t[2][j]};
          Vec<double> res[M + 2];
          Axis<M>::filter(col, res);
          for (int i = 0; i < M + 2; ++i) narrow(u + (i * (N + 2) + j) * matrix_size(C, K) + panel * C + c * width + k, res[i]);
        }
      }
  }
}

// out (3, 3, K, C) = w (3, 3, C, K) turned by 180 degrees with its channels exchanged.
void turn_filters(const float* w, int64_t C, int64_t K, float* out) {
  for (int64_t tap = 0; tap < 9; ++tap)
    for (int64_t c = 0; c < C; c += V)
      for (int64_t k = 0; k < K; k += V) {
        Vec<float> rows[V];
        for (int i = 0; i < V; ++i) rows[i] = load(w + ((8 - tap) * C + c + i) * K + k);
        transpose<float>(rows);
        for (int i = 0; i < V; ++i) store(out + (tap * K + k + i) * C + c, rows[i]);
      }
}

// m[r, :] (+)= sum_c v[r, c] * u[c, :] for kRows rows and NV vectors of channels, in parts that are added at the end: the shorter, the
// smaller the error. There are registers for the sum of the parts where a panel is one vector.
template <int kRows, int NV, int kC, bool kAdd>
HG_INLINE void product_tile(const float* v, int64_t c_run, const float* u, float* m, int64_t ldm) {
  const int64_t C = kC > 0 ? kC : c_run;
  constexpr int kPart = 8;
  constexpr bool kKept = kPanel == V;
  Vec<float> sum[kRows][NV];
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < NV; ++n) sum[r][n] = Vec<float>{};
  for (int64_t part = 0; part < C; part += kPart) {
    Vec<float> acc[kRows][NV];
    for (int r = 0; r < kRows; ++r)
      for (int n = 0; n < NV; ++n) acc[r][n] = Vec<float>{};
    HG_UNROLL(8)
    for (int c = 0; c < kPart; ++c) {
      Vec<float> weight[NV];
      for (int n = 0; n < NV; ++n) weight[n] = load(u + (part + c) * NV * V + n * V);
      for (int r = 0; r < kRows; ++r) {
        const float x = v[r * C + part + c];
        for (int n = 0; n < NV; ++n) acc[r][n] += weight[n] * x;
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int n = 0; n < NV; ++n) {
        float* const to = m + r * ldm + n * V;
        if (kKept)
          sum[r][n] += acc[r][n];
        else
          store(to, kAdd || part > 0 ? load(to) + acc[r][n] : acc[r][n]);
      }
  }
  for (int r = 0; kKept && r < kRows; ++r)
    for (int n = 0; n < NV; ++n) {
      float* const to = m + r * ldm + n * V;
      store(to, kAdd ? load(to) + sum[r][n] : sum[r][n]);
    }
}

template <int NV, int kC, bool kAdd>
HG_INLINE void product_panel(const float* v, const float* u, float* m, int64_t tiles, int64_t C, int64_t K) {
  constexpr int kLess = kTile == 12 ? 4 : 3;
  for (int64_t t = 0; t < tiles;) {  // rows beyond the last tile are computed and never read
    const float* const from = v + t * C;
    float* const to = m + t * K;
    if (tiles - t > (kTile == 12 ? 8 : kLess)) {
      product_tile<kTile, NV, kC, kAdd>(from, C, u, to, K);
      t += kTile;
    } else if (kTile == 12 && tiles - t > kLess) {
      product_tile<8, NV, kC, kAdd>(from, C, u, to, K);
      t += 8;
    } else {
      product_tile<kLess, NV, kC, kAdd>(from, C, u, to, K);
      t += kLess;
    }
  }
}

template <int kC, bool kAdd>
void product(const float* v, const float* u, float* m, int64_t tiles, int64_t C, int64_t K) {
  for (int64_t k = 0; k < K; k += kPanel)
    if (K - k >= kPanel)
      product_panel<kPanel / V, kC, kAdd>(v, u + k * C, m + k, tiles, C, K);
    else
      product_panel<1, kC, kAdd>(v, u + k * C, m + k, tiles, C, K);
}

template <std::size_t... kLane, int kSize>
HG_INLINE void larger_of_pairs(Mask<float>& v, std::index_sequence<kLane...>, std::integral_constant<int, kSize>) {
#if defined(__clang__)
  const Mask<float> other = __builtin_shufflevector(v, v, (int(kLane) ^ kSize)...);
#else
  const Mask<float> other = __builtin_shuffle(v, Mask<float>{(int(kLane) ^ kSize)...});
#endif
  v = other > v ? other : v;
}
// The largest of the lanes.
template <int kSize = V / 2>
HG_INLINE float largest(Mask<float> v) {
  larger_of_pairs(v, std::make_index_sequence<V>{}, std::integral_constant<int, kSize>{});
  if constexpr (kSize > 1)
    return largest<kSize / 2>(v);
  else
    return ((Vec<float>)v)[0];
}

template <class S, bool kScale, class Channels>
HG_INLINE void load_tiles(const Source& from, Channels C, const Tile* tiles, int64_t n, float* v, float* scale) {
  constexpr int R = S::M + 2, Q = S::N + 2;
  const int64_t stride = matrix_size(kBlock, C);
  const float* const zeros = zero_pixel(C);
  for (int64_t q = 0; q < n; ++q)
    with_patch<R, Q>(from, C, tiles[q], -1, zeros, [&](const auto& pixel) {
      Mask<float> most{};  // sizes of numbers: they are in the order of their bits
      for (int64_t c = 0; c < C; c += V) {
        Vec<float> t[R][Q];
        HG_UNROLL(6)
        for (int j = 0; j < Q; ++j) {
          Vec<float> d[R], e[R];
          for (int i = 0; i < R; ++i) d[i] = load(pixel(i, j) + c);
          if (kScale)
            for (int i = 0; i < R; ++i) {
              const Mask<float> size = (Mask<float>)d[i] & 0x7fffffff;
              most = size > most ? size : most;
            }
          Axis<S::M>::in(d, e);
          for (int i = 0; i < R; ++i) t[i][j] = e[i];
        }
        HG_UNROLL(6)
        for (int i = 0; i < R; ++i) {
          Vec<float> e[Q];
          Axis<S::N>::in(t[i], e);
          for (int j = 0; j < Q; ++j) store(v + (i * Q + j) * stride + q * C + c, e[j]);
        }
      }
      if (kScale) scale[q] = largest(most);
    });
}

// The pass over the columns of a tile's cotangents, M x N pixels by columns, and that over rows: z[position, tile, K].
template <class S>
HG_INLINE void spread(const Vec<float> (&y)[S::N][S::M], float* z, int64_t stride) {
  constexpr int R = S::M + 2, Q = S::N + 2;
  Vec<float> t[R][S::N];
  HG_UNROLL(4)
  for (int j = 0; j < S::N; ++j) {
    Vec<float> e[R];
    Axis<S::M>::out_t(y[j], e);
    for (int i = 0; i < R; ++i) t[i][j] = e[i];
  }
  HG_UNROLL(6)
  for (int i = 0; i < R; ++i) {
    Vec<float> e[Q];
    Axis<S::N>::out_t(t[i], e);
    for (int j = 0; j < Q; ++j) store(z + (i * Q + j) * stride, e[j]);
  }
}

template <class S, class Channels>
HG_INLINE void load_cotangents(const Source& from, Channels K, const Tile* tiles, int64_t n, float* z) {
  const int64_t stride = matrix_size(kBlock, K);
  const float* const zeros = zero_pixel(K);
  for (int64_t q = 0; q < n; ++q)
    with_patch<S::M, S::N>(from, K, tiles[q], 0, zeros, [&](const auto& pixel) {
      for (int64_t k = 0; k < K; k += V) {
        Vec<float> y[S::N][S::M];
        for (int j = 0; j < S::N; ++j)
          for (int i = 0; i < S::M; ++i) y[j][i] = load(pixel(i, j) + k);
        spread<S>(y, z + q * K + k, stride);
      }
    });
}

// acc (C, K) += sum over tiles of v (tiles, C)' z (tiles, K); a block's terms are summed on their own first.
template <int kRows, int NV>
HG_INLINE void outer_tile(const float* v, int64_t C, const float* z, int64_t K, float* acc, int64_t tiles) {
  Vec<float> sum[kRows][NV];
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < NV; ++n) sum[r][n] = Vec<float>{};
  HG_UNROLL(2)
  for (int64_t t = 0; t < tiles; ++t) {
    Vec<float> b[NV];
    for (int n = 0; n < NV; ++n) b[n] = load(z + t * K + n * V);
    for (int r = 0; r < kRows; ++r) {
      const float x = v[t * C + r];
      for (int n = 0; n < NV; ++n) sum[r][n] += b[n] * x;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < NV; ++n) store(acc + r * K + n * V, load(acc + r * K + n * V) + sum[r][n]);
}

template <int kRows, int NV>
HG_INLINE void outer_rows(const float* v, int64_t C, const float* z, int64_t K, float* acc, int64_t tiles) {
  for (int64_t c = 0; c < C; c += kRows) outer_tile<kRows, NV>(v + c, C, z, K, acc + c * K, tiles);
}

void outer(const float* v, int64_t C, const float* z, int64_t K, float* acc, int64_t tiles) {
  constexpr bool kFew = kTile == 6;  // 16 registers: 2 x 4 vectors load less for each product than 4 x 2
  constexpr bool kMany = kPanel == V;
  for (int64_t k = 0; k < K;) {
    const int64_t left = (K - k) / V;
    if (kFew && left >= 4) {
      outer_rows<2, 4>(v, C, z + k, K, acc + k, tiles);
      k += 4 * V;
    } else if (!kMany && left >= 2) {
      outer_rows<kFew ? 4 : 8, 2>(v, C, z + k, K, acc + k, tiles);
      k += 2 * V;
    } else {
      outer_rows<8, 1>(v, C, z + k, K, acc + k, tiles);
      k += V;
    }
  }
}

// part (9, C*K) = or += the filters of the accumulated products.
template <int M, int N>
void transform_back(const float* acc, int64_t size, bool add, float* part) {
  for (int64_t i = 0; i < size; i += D) {
    Vec<double> t[3][N + 2];
    for (int j = 0; j < N + 2; ++j) {
      Vec<double> col[M + 2], res[3];
      for (int r = 0; r < M + 2; ++r) col[r] = widen(acc + (r * (N + 2) + j) * matrix_size(1, size) + i);
      Axis<M>::filter_t(col, res);
      for (int r = 0; r < 3; ++r) t[r][j] = res[r];
    }
    for (int r = 0; r < 3; ++r) {
      Vec<double> res[3];
      Axis<N>::filter_t(t[r], res);
      for (int s = 0; s < 3; ++s) {
        float* const to = part + (r * 3 + s) * size + i;
        narrow(to, add ? widen(to) + res[s] : res[s]);
      }
    }
  }
}

#if HG_VECTOR_BYTES != 64
// With few rows, the more vectors the better.
void outer_few(const float* v, const float* z, int64_t K, float* acc, int64_t tiles) {
  constexpr int R = kFewChannels;
  int64_t k = 0;
  for (; k + 4 * V <= K; k += 4 * V) outer_tile<R, 4>(v, R, z + k, K, acc + k, tiles);
  for (; k < K; k += V) outer_tile<R, 1>(v, R, z + k, K, acc + k, tiles);
}

// Transforms the patches of tiles of kFewChannels channels. A pixel's channels are a part of a vector: what is stored after them
// belongs to the next tile, which comes next, or to the room after the last.
template <class S>
void load_few(const Images<const float>& from, const Tile* tiles, int64_t n, float* v) {
  constexpr int R = S::M + 2, Q = S::N + 2;
  constexpr int64_t C = kFewChannels, stride = matrix_size(kBlock, C), width = round_up(Q * C, V);
  static_assert(V <= 16, "matrix_size leaves room for a vector");
  for (int64_t q = 0; q < n; ++q) {
    const float* const patch = from.data + tiles[q].image * from.image + tiles[q].y * from.pitch + tiles[q].x * C;
    float rows[R][width + V];
    for (int64_t c = 0; c < width; c += V) {
      Vec<float> d[R], e[R];
      for (int i = 0; i < R; ++i) d[i] = load(patch + i * from.pitch + c);
      Axis<S::M>::in(d, e);
      for (int i = 0; i < R; ++i) store(rows[i] + c, e[i]);
    }
    for (int i = 0; i < R; ++i) {
      Vec<float> d[Q], e[Q];
      for (int j = 0; j < Q; ++j) d[j] = load(rows[i] + j * C);
      Axis<S::N>::in(d, e);
      for (int j = 0; j < Q; ++j) store(v + (i * Q + j) * stride + q * C, e[j]);
    }
  }
}

// Of y_bar at the winners, as load_cotangents; adds its sums to B.
template <class S, class Channels>
HG_INLINE void load_winners(const float* y_bar, const unsigned char* code, int64_t h, int64_t w, Channels K, const Tile* tiles, int64_t n,
                            float* z, double* B) {
  const int64_t stride = matrix_size(kBlock, K);
  for (int64_t k = 0; k < K; k += V) {
    Vec<float> sum{};
    for (int64_t q = 0; q < n; ++q) {
      const int64_t at = ((tiles[q].image * h + tiles[q].y / 2) * w + tiles[q].x / 2) * K + k;
      Vec<float> y[S::N][S::M];
      for (int i = 0; i < S::M / 2; ++i)
        for (int j = 0; j < S::N / 2; ++j) {
          const int64_t window = at + (i * w + j) * K;
          const Mask<float> c = load_code<float>(code + window);
          const Vec<float> bar = load(y_bar + window), zero{};
          sum += c >= 4 ? bar : zero;
          for (int side = 0; side < 2; ++side) {
            y[2 * j + side][2 * i] = c == 4 + side ? bar : zero;
            y[2 * j + side][2 * i + 1] = c == 6 + side ? bar : zero;
          }
        }
      spread<S>(y, z + q * K + k, stride);
    }
    add_lanes<float>(B + k, sum);
  }
}
#endif

}  // namespace

void winograd_filters(const float* w, int64_t C, int64_t K, bool turned, int64_t rows, int64_t cols, float* out) {
  if (turned) {
    float* const copy = scratch_of<float>(kSlotProducts, 9 * C * K);
    turn_filters(w, C, K, copy);
    w = copy;
    std::swap(C, K);
  }
  for_sizes(Cut{1, rows, cols, winograd_columns(C, K, turned)}, [&](auto size) {
    using S = decltype(size);
    transform_filters<S::M, S::N>(w, C, K, out + winograd_skipped<S>(C, K, turned));
  });
}

template <class S>
void winograd_product(const float* v, const float* u, float* out, int64_t tiles, int64_t C, int64_t K, bool add) {
  const auto run = C == 32   ? (add ? product<32, true> : product<32, false>)
                   : C == 64 ? (add ? product<64, true> : product<64, false>)
                             : (add ? product<0, true> : product<0, false>);
  for (int i = 0; i < kPositions<S::M, S::N>; ++i)
    run(v + i * matrix_size(kBlock, C), u + i * matrix_size(C, K), out + i * matrix_size(kBlock, K), tiles, C, K);
}

template <class S>
void winograd_load(const Source& from, const Tile* tiles, int64_t n, float* v, float* scale) {
  with_channels(from.images.step, [&](auto C) {
    scale != nullptr ? load_tiles<S, true>(from, C, tiles, n, v, scale) : load_tiles<S, false>(from, C, tiles, n, v, scale);
  });
}

#define HG_OF_SIZE(M, N)                                                                                           \
  template void winograd_product<Size<M, N>>(const float*, const float*, float*, int64_t, int64_t, int64_t, bool); \
  template void winograd_load<Size<M, N>>(const Source&, const Tile*, int64_t, float*, float*);
HG_OF_SIZE(4, 4)
HG_OF_SIZE(4, 2)
HG_OF_SIZE(2, 2)
#undef HG_OF_SIZE

void winograd_images(const WinogradTerm* terms, int n_terms, bool turned, const Images<float>& out) {
  winograd_convolve(terms, n_terms, out.step, turned, [out](auto size, auto K, const Tile& tile, const float* m, float) {
    constexpr int M = size.M, N = size.N;
    const int64_t rows = lower(M, out.rows - tile.y), cols = lower(N, out.cols - tile.x);
    float* const to = out.data + tile.image * out.image + tile.y * out.pitch + tile.x * out.step;
    for (int64_t k = 0; k < K; k += V) {
      Vec<float> y[M][N];
      winograd_output<M, N>(m + k, K, y);
      const bool whole = rows == M && cols == N;
      for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j)
          if (whole || (i < rows && j < cols)) store(to + i * out.pitch + j * K + k, y[i][j]);
    }
  });
}

void winograd_wgrad(const WinogradPair* pairs, int n_pairs, float* part) {
  const int64_t C = pairs[0].x.images.step, K = pairs[0].z_bar.images.step;
  float* const v = scratch_of<float>(kSlotV, blocks_size(C));
  float* const z = scratch_of<float>(kSlotM, blocks_size(K));
  float* const acc = scratch_of<float>(kSlotProducts, kPositions<4, 4> * matrix_size(C, K));
  bool add = false;
  const Cut cut = cut_of(pairs[0].x.images, C, K, false);
  for_sizes(cut, [&](auto size) {
    using S = decltype(size);
    constexpr int positions = kPositions<S::M, S::N>;
    __builtin_memset(acc, 0, static_cast<std::size_t>(positions * matrix_size(C, K)) * sizeof(float));
    for (int pair = 0; pair < n_pairs; ++pair)
      for_blocks<S::M>(cut, [&](const Tile* tiles, int64_t count) {
        winograd_load<S>(pairs[pair].x, tiles, count, v);
        with_channels(K, [&](auto channels) { load_cotangents<S>(pairs[pair].z_bar, channels, tiles, count, z); });
        for (int i = 0; i < positions; ++i)
          outer(v + i * matrix_size(kBlock, C), C, z + i * matrix_size(kBlock, K), K, acc + i * matrix_size(C, K), count);
      });
    transform_back<S::M, S::N>(acc, C * K, add, part);
    add = true;
  });
}

#if HG_VECTOR_BYTES != 64
void winograd_wgrad_winners(const Images<const float>& bordered, const float* y_bar, const unsigned char* code, int64_t K, float* part,
                            double* B) {
  constexpr int64_t C = kFewChannels;
  const int64_t h = (bordered.rows - 2) / 2, w = (bordered.cols - 2) / 2;
  float* const v = scratch_of<float>(kSlotV, blocks_size(C));
  float* const z = scratch_of<float>(kSlotM, blocks_size(K));
  float* const acc = scratch_of<float>(kSlotProducts, kPositions<4, 4> * matrix_size(C, K));
  bool add = false;
  const Cut cut{bordered.n, 2 * h, 2 * w, winograd_columns(C, K, false)};
  for_sizes(cut, [&](auto size) {
    using S = decltype(size);
    constexpr int positions = kPositions<S::M, S::N>;
    __builtin_memset(acc, 0, static_cast<std::size_t>(positions * matrix_size(C, K)) * sizeof(float));
    for_blocks<S::M>(cut, [&](const Tile* tiles, int64_t count) {
      load_few<S>(bordered, tiles, count, v);
      with_channels(K, [&](auto channels) { load_winners<S>(y_bar, code, h, w, channels, tiles, count, z, B); });
      for (int i = 0; i < positions; ++i)
        outer_few(v + i * matrix_size(kBlock, C), z + i * matrix_size(kBlock, K), K, acc + i * matrix_size(C, K), count);
    });
    transform_back<S::M, S::N>(acc, C * K, add, part);
    add = true;
  });
}
#endif

}  // namespace hg::HG_SIMD

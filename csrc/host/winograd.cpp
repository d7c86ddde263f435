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

// u[position][K/width][C][width], width 2V, or V in a last block: the order in which the product reads them.
template <int M>
void transform_filters(const float* w, int64_t C, int64_t K, bool turned, float* u) {
  const int64_t inputs = turned ? K : C, outputs = turned ? C : K;
  for (int64_t k = 0; k < outputs; k += D) {
    const int64_t block = k / (2 * V) * (2 * V), width = lower(2 * V, outputs - block);
    for (int64_t c = 0; c < inputs; ++c) {
      Vec<double> t[3][4];
      for (int r = 0; r < 3; ++r) {
        Vec<double> g[3];
        for (int s = 0; s < 3; ++s) {
          const float* from = turned ? w + ((2 - r) * 3 + 2 - s) * C * K + k * K + c : w + (r * 3 + s) * C * K + c * K + k;
          if (!turned) g[s] = widen(from);
          for (int64_t i = 0; i < (turned ? D : 0); ++i) g[s][i] = static_cast<double>(from[i * K]);
        }
        Axis<2>::filter(g, t[r]);
      }
      for (int j = 0; j < 4; ++j) {
        const Vec<double> col[3] = {t[0][j], t[1][j], t[2][j]};
        Vec<double> res[M + 2];
        Axis<M>::filter(col, res);
        for (int i = 0; i < M + 2; ++i)
          narrow(u + (i * 4 + j) * matrix_size(inputs, outputs) + block * inputs + c * width + (k - block), res[i]);
      }
    }
  }
}

// m[r, :] (+)= sum_c v[r, c] * u[c, :] for kRows rows and NV vectors of channels, in parts that are added at the end.
template <int kRows, int NV, int kC, bool kAdd>
HG_INLINE void product_tile(const float* v, int64_t c_run, const float* u, float* m, int64_t ldm) {
  const int64_t C = kC > 0 ? kC : c_run;
  constexpr int kPart = kC > 0 && kC % 16 == 0 ? 16 : 8;
  for (int64_t part = 0; part < C; part += kPart) {
    Vec<float> acc[kRows][NV];
    for (int r = 0; r < kRows; ++r)
      for (int n = 0; n < NV; ++n) acc[r][n] = Vec<float>{};
    HG_UNROLL(16)
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
        store(to, kAdd || part > 0 ? load(to) + acc[r][n] : acc[r][n]);
      }
  }
}

template <int kC, bool kAdd>
void product(const float* v, const float* u, float* m, int64_t tiles, int64_t C, int64_t K) {
  for (int64_t k = 0; k < K; k += 2 * V)
    for (int64_t t = 0; t < tiles; t += kTile) {  // rows beyond the last tile are computed and never read
      if (K - k >= 2 * V)
        product_tile<kTile, 2, kC, kAdd>(v + t * C, C, u + k * C, m + t * K + k, K);
      else
        product_tile<kTile, 1, kC, kAdd>(v + t * C, C, u + k * C, m + t * K + k, K);
    }
}

// rows x cols pixels, the first `off` pixels down and right of the tile's; copied, with zeros, where not all of them are there.
struct Patch {
  const float* data;
  int64_t pitch;
};
HG_INLINE Patch patch_of(const Source& from, const Tile& tile, int64_t off, int64_t rows, int64_t cols, float* copy) {
  const float* const image = from.images.data + tile.image * from.images.image;
  const int64_t y = tile.y + off, x = tile.x + off;
  const int64_t C = from.images.step, margin = from.margin;
  if (y >= -margin && x >= -margin && y + rows <= from.images.rows + margin && x + cols <= from.images.cols + margin)
    return {image + y * from.images.pitch + x * C, from.images.pitch};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const bool inside = y + i >= 0 && y + i < from.images.rows && x + j >= 0 && x + j < from.images.cols;
      const float* const pixel = image + (y + i) * from.images.pitch + (x + j) * C;
      for (int64_t c = 0; c < C; c += V) store(copy + (i * cols + j) * C + c, inside ? load(pixel + c) : Vec<float>{});
    }
  return {copy, cols * C};
}

template <int M, bool kScale, class Channels>
HG_INLINE void load_tiles(const Source& from, Channels C, const Tile* tiles, int64_t n, float* v, float* scale) {
  const int64_t stride = matrix_size(kBlock<M>, C);
  float* const copy = scratch_of<float>(kSlotPatch, (M + 2) * 4 * C);
  for (int64_t q = 0; q < n; ++q) {
    const Patch patch = patch_of(from, tiles[q], -1, M + 2, 4, copy);
    Vec<float> most{};
    for (int64_t c = 0; c < C; c += V) {
      Vec<float> t[M + 2][4];
      for (int j = 0; j < 4; ++j) {
        Vec<float> d[M + 2], e[M + 2];
        for (int i = 0; i < M + 2; ++i) d[i] = load(patch.data + i * patch.pitch + j * C + c);
        if (kScale)
          for (int i = 0; i < M + 2; ++i) {
            const Vec<float> size = (Vec<float>)((Mask<float>)d[i] & 0x7fffffff);
            most = size > most ? size : most;
          }
        Axis<M>::in(d, e);
        for (int i = 0; i < M + 2; ++i) t[i][j] = e[i];
      }
      for (int i = 0; i < M + 2; ++i) {
        Vec<float> e[4];
        Axis<2>::in(t[i], e);
        for (int j = 0; j < 4; ++j) store(v + (i * 4 + j) * stride + q * C + c, e[j]);
      }
    }
    if (kScale) {
      scale[q] = 0;
      for (int i = 0; i < V; ++i) scale[q] = most[i] > scale[q] ? most[i] : scale[q];
    }
  }
}

// z[position, tile, K] of the cotangents of M x 2 pixels.
template <int M, class Channels>
HG_INLINE void load_cotangents(const Source& from, Channels K, const Tile* tiles, int64_t n, float* z) {
  const int64_t stride = matrix_size(kBlock<M>, K);
  float* const copy = scratch_of<float>(kSlotPatch, (M + 2) * 4 * K);
  for (int64_t q = 0; q < n; ++q) {
    const Patch patch = patch_of(from, tiles[q], 0, M, 2, copy);
    for (int64_t k = 0; k < K; k += V) {
      Vec<float> t[M + 2][2];
      for (int j = 0; j < 2; ++j) {
        Vec<float> d[M], e[M + 2];
        for (int i = 0; i < M; ++i) d[i] = load(patch.data + i * patch.pitch + j * K + k);
        Axis<M>::out_t(d, e);
        for (int i = 0; i < M + 2; ++i) t[i][j] = e[i];
      }
      for (int i = 0; i < M + 2; ++i) {
        Vec<float> e[4];
        Axis<2>::out_t(t[i], e);
        for (int j = 0; j < 4; ++j) store(z + (i * 4 + j) * stride + q * K + k, e[j]);
      }
    }
  }
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

// With few rows, the more vectors the better.
void outer_few(const float* v, const float* z, int64_t K, float* acc, int64_t tiles) {
  constexpr int R = kFewChannels;
  int64_t k = 0;
  for (; k + 4 * V <= K; k += 4 * V) outer_tile<R, 4>(v, R, z + k, K, acc + k, tiles);
  for (; k < K; k += V) outer_tile<R, 1>(v, R, z + k, K, acc + k, tiles);
}

template <int kRows, int NV>
HG_INLINE void outer_rows(const float* v, int64_t C, const float* z, int64_t K, float* acc, int64_t tiles) {
  for (int64_t c = 0; c < C; c += kRows) outer_tile<kRows, NV>(v + c, C, z, K, acc + c * K, tiles);
}

void outer(const float* v, int64_t C, const float* z, int64_t K, float* acc, int64_t tiles) {
  constexpr bool kFew = kTile == 6;  // 16 registers: 2 x 4 vectors load less for each product than 4 x 2
  for (int64_t k = 0; k < K;) {
    const int64_t left = (K - k) / V;
    if (kFew && left >= 4) {
      outer_rows<2, 4>(v, C, z + k, K, acc + k, tiles);
      k += 4 * V;
    } else if (left >= 2) {
      outer_rows<kFew ? 4 : 8, 2>(v, C, z + k, K, acc + k, tiles);
      k += 2 * V;
    } else {
      outer_rows<8, 1>(v, C, z + k, K, acc + k, tiles);
      k += V;
    }
  }
}

// part (9, C*K) = or += the filters of the accumulated products.
template <int M>
void transform_back(const float* acc, int64_t size, bool add, float* part) {
  for (int64_t i = 0; i < size; i += D) {
    Vec<double> t[3][4];
    for (int j = 0; j < 4; ++j) {
      Vec<double> col[M + 2], res[3];
      for (int r = 0; r < M + 2; ++r) col[r] = widen(acc + (r * 4 + j) * matrix_size(1, size) + i);
      Axis<M>::filter_t(col, res);
      for (int r = 0; r < 3; ++r) t[r][j] = res[r];
    }
    for (int r = 0; r < 3; ++r) {
      Vec<double> res[3];
      Axis<2>::filter_t(t[r], res);
      for (int s = 0; s < 3; ++s) {
        float* const to = part + (r * 3 + s) * size + i;
        narrow(to, add ? widen(to) + res[s] : res[s]);
      }
    }
  }
}

// Transforms the patches of tiles of kFewChannels channels. A pixel's channels are a part of a vector: what is stored after them
// belongs to the next tile, which comes next, or to the room after the last.
template <int M>
void load_few(const Images<const float>& from, const Tile* tiles, int64_t n, float* v) {
  constexpr int64_t C = kFewChannels, stride = matrix_size(kBlock<M>, C), width = 4 * C;
  static_assert(V <= 16, "matrix_size leaves room for a vector");
  for (int64_t q = 0; q < n; ++q) {
    const float* const patch = from.data + tiles[q].image * from.image + tiles[q].y * from.pitch + tiles[q].x * C;
    float rows[M + 2][2 * width + V];
    for (int64_t c = 0; c < width; c += V) {
      Vec<float> d[M + 2], e[M + 2];
      for (int i = 0; i < M + 2; ++i) d[i] = load(patch + i * from.pitch + c);
      Axis<M>::in(d, e);
      for (int i = 0; i < M + 2; ++i) store(rows[i] + c, e[i]);
    }
    for (int i = 0; i < M + 2; ++i) {
      Vec<float> d[4], e[4];
      for (int j = 0; j < 4; ++j) d[j] = load(rows[i] + j * C);
      Axis<2>::in(d, e);
      for (int j = 0; j < 4; ++j) store(v + (i * 4 + j) * stride + q * C, e[j]);
    }
  }
}

// Of y_bar at the winners, as load_cotangents; adds its sums to B.
template <int M, class Channels>
HG_INLINE void load_winners(const float* y_bar, const unsigned char* code, int64_t h, int64_t w, Channels K, const Tile* tiles, int64_t n,
                            float* z, double* B) {
  const int64_t stride = matrix_size(kBlock<M>, K);
  for (int64_t k = 0; k < K; k += V) {
    Vec<float> sum{};
    for (int64_t q = 0; q < n; ++q) {
      const int64_t at = ((tiles[q].image * h + tiles[q].y / 2) * w + tiles[q].x / 2) * K + k;
      Vec<float> t[M + 2][2], y[2][M];
      for (int i = 0; i < M / 2; ++i) {
        const Mask<float> c = load_code<float>(code + at + i * w * K);
        const Vec<float> bar = load(y_bar + at + i * w * K), zero{};
        sum += c >= 4 ? bar : zero;
        for (int j = 0; j < 2; ++j) {
          y[j][2 * i] = c == 4 + j ? bar : zero;
          y[j][2 * i + 1] = c == 6 + j ? bar : zero;
        }
      }
      for (int j = 0; j < 2; ++j) {
        Vec<float> e[M + 2];
        Axis<M>::out_t(y[j], e);
        for (int i = 0; i < M + 2; ++i) t[i][j] = e[i];
      }
      for (int i = 0; i < M + 2; ++i) {
        Vec<float> e[4];
        Axis<2>::out_t(t[i], e);
        for (int j = 0; j < 4; ++j) store(z + (i * 4 + j) * stride + q * K + k, e[j]);
      }
    }
    add_lanes<float>(B + k, sum);
  }
}

}  // namespace

void winograd_filters(const float* w, int64_t C, int64_t K, bool turned, float* out) {
  transform_filters<4>(w, C, K, turned, out);
  transform_filters<2>(w, C, K, turned, out + kPositions<4> * matrix_size(C, K));
}

template <int M>
void winograd_product(const float* v, const float* u, float* out, int64_t tiles, int64_t C, int64_t K, bool add) {
  const auto run = C == 32   ? (add ? product<32, true> : product<32, false>)
                   : C == 64 ? (add ? product<64, true> : product<64, false>)
                             : (add ? product<0, true> : product<0, false>);
  for (int i = 0; i < kPositions<M>; ++i)
    run(v + i * matrix_size(kBlock<M>, C), u + i * matrix_size(C, K), out + i * matrix_size(kBlock<M>, K), tiles, C, K);
}

template <int M>
void winograd_load(const Source& from, const Tile* tiles, int64_t n, float* v, float* scale) {
  with_channels(from.images.step, [&](auto C) {
    scale != nullptr ? load_tiles<M, true>(from, C, tiles, n, v, scale) : load_tiles<M, false>(from, C, tiles, n, v, scale);
  });
}

template void winograd_product<4>(const float*, const float*, float*, int64_t, int64_t, int64_t, bool);
template void winograd_product<2>(const float*, const float*, float*, int64_t, int64_t, int64_t, bool);
template void winograd_load<4>(const Source&, const Tile*, int64_t, float*, float*);
template void winograd_load<2>(const Source&, const Tile*, int64_t, float*, float*);

void winograd_images(const WinogradTerm* terms, int n_terms, const Images<float>& out) {
  winograd_convolve(terms, n_terms, out.step, [out](auto size, auto K, const Tile& tile, const float* m, float) {
    constexpr int M = decltype(size)::value;
    const int64_t rows = lower(M, out.rows - tile.y), cols = lower(2, out.cols - tile.x);
    float* const to = out.data + tile.image * out.image + tile.y * out.pitch + tile.x * out.step;
    for (int64_t k = 0; k < K; k += V) {
      Vec<float> y[M][2];
      winograd_output<M>(m + k, K, y);
      const bool whole = rows == M && cols == 2;
      for (int i = 0; i < M; ++i)
        for (int j = 0; j < 2; ++j)
          if (whole || (i < rows && j < cols)) store(to + i * out.pitch + j * K + k, y[i][j]);
    }
  });
}

void winograd_wgrad(const WinogradPair* pairs, int n_pairs, float* part) {
  const int64_t C = pairs[0].x.images.step, K = pairs[0].z_bar.images.step;
  float* const v = scratch_of<float>(kSlotV, blocks_size(C));
  float* const z = scratch_of<float>(kSlotM, blocks_size(K));
  float* const acc = scratch_of<float>(kSlotProducts, kPositions<4> * matrix_size(C, K));
  bool add = false;
  for_tiles(pairs[0].x.images, [&](auto size, int64_t top, int64_t down, int64_t across) {
    constexpr int M = decltype(size)::value;
    __builtin_memset(acc, 0, static_cast<std::size_t>(kPositions<M> * matrix_size(C, K)) * sizeof(float));
    for (int pair = 0; pair < n_pairs; ++pair)
      for_blocks<M>(pairs[0].x.images.n, top, down, across, [&](const Tile* tiles, int64_t count) {
        winograd_load<M>(pairs[pair].x, tiles, count, v);
        with_channels(K, [&](auto channels) { load_cotangents<M>(pairs[pair].z_bar, channels, tiles, count, z); });
        for (int i = 0; i < kPositions<M>; ++i)
          outer(v + i * matrix_size(kBlock<M>, C), C, z + i * matrix_size(kBlock<M>, K), K, acc + i * matrix_size(C, K), count);
      });
    transform_back<M>(acc, C * K, add, part);
    add = true;
  });
}

void winograd_wgrad_winners(const Images<const float>& bordered, const float* y_bar, const unsigned char* code, int64_t K, float* part,
                            double* B) {
  constexpr int64_t C = kFewChannels;
  const int64_t h = (bordered.rows - 2) / 2, w = (bordered.cols - 2) / 2;
  float* const v = scratch_of<float>(kSlotV, blocks_size(C));
  float* const z = scratch_of<float>(kSlotM, blocks_size(K));
  float* const acc = scratch_of<float>(kSlotProducts, kPositions<4> * matrix_size(C, K));
  bool add = false;
  for_tiles({nullptr, bordered.n, 2 * h, 2 * w, C, 0, 0}, [&](auto size, int64_t top, int64_t down, int64_t across) {
    constexpr int M = decltype(size)::value;
    __builtin_memset(acc, 0, static_cast<std::size_t>(kPositions<M> * matrix_size(C, K)) * sizeof(float));
    for_blocks<M>(bordered.n, top, down, across, [&](const Tile* tiles, int64_t count) {
      load_few<M>(bordered, tiles, count, v);
      with_channels(K, [&](auto channels) { load_winners<M>(y_bar, code, h, w, channels, tiles, count, z, B); });
      for (int i = 0; i < kPositions<M>; ++i)
        outer_few(v + i * matrix_size(kBlock<M>, C), z + i * matrix_size(kBlock<M>, K), K, acc + i * matrix_size(C, K), count);
    });
    transform_back<M>(acc, C * K, add, part);
    add = true;
  });
}

}  // namespace hg::HG_SIMD

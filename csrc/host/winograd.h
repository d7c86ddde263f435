// 3x3 convolutions of stride 1 with a border of 1 by Winograd's algorithm (Lavin & Gray 2016, arXiv:1509.09308), in float32:
// F(4x2, 3x3), and F(2x2, 3x3) for the rows that do not fill a tile of four. A tile's pixels and filters are transformed so that
// its convolution becomes one product of channels for each of 24 (16) positions, a third (four ninths) of the multiplications.
//
// The points of F(4) are 0, +-5/8, +-3/2 and infinity. They make the rounding error half of that with 0, +-1, +-2, and all
// constants of the input's transform are exact. Filters are transformed in double; products are sums of parts of 16 terms.
// The result of an image depends on no other image. An infinity or NaN reaches the whole of each tile that reads it.
#pragma once
#include "images.h"

namespace hg::HG_SIMD {

constexpr int64_t kWinogradLeast = 1000;  // pixels; the filters' transforms cost more than a smaller call saves
constexpr int64_t kWinogradTask = 2048;   // pixels of one task; fixes the order of partial sums

constexpr int64_t kWinogradUnit = kLanes<float> > 8 ? kLanes<float> : 8;  // channels and filters are multiples of it

// Whether a convolution of so many pixels with the same filters is done here. By shapes alone, as bits depend on it.
template <class T>
constexpr bool by_winograd(int64_t pixels, int64_t C, int64_t K) {
  return std::is_same_v<T, float> && pixels >= kWinogradLeast && C > 0 && K > 0 && C % kWinogradUnit == 0 && K % kWinogradUnit == 0;
}

// --- Transforms along one axis: `in` of M + 2 pixels, `out` to M pixels, `out_t` its transpose, `filter` of 3 taps, `filter_t` ---

template <int M>
struct Axis;

template <>
struct Axis<2> {  // points 0, 1, -1, infinity
  template <class V>
  static HG_INLINE void in(const V* d, V* v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  template <class V>
  static HG_INLINE void out(const V* m, V* y) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) + m[3];
  }
  template <class V>
  static HG_INLINE void out_t(const V* y, V* m) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = y[1];
  }
  template <class V>
  static HG_INLINE void filter(const V* w, V* u) {
    u[0] = w[0];
    u[1] = 0.5 * (w[0] + w[1] + w[2]);
    u[2] = 0.5 * (w[0] - w[1] + w[2]);
    u[3] = w[2];
  }
  template <class V>
  static HG_INLINE void filter_t(const V* u, V* w) {
    w[0] = u[0] + 0.5 * (u[1] + u[2]);
    w[1] = 0.5 * (u[1] - u[2]);
    w[2] = 0.5 * (u[1] + u[2]) + u[3];
  }
};

template <>
struct Axis<4> {  // points 0, +-a, +-b, infinity; the rows of +-a and +-b are scaled by 1/a and 1/b
  static constexpr float a = 0.625F, b = 1.5F, a2 = a * a, b2 = b * b;
  static constexpr double f0 = 1.0 / (double(a2) * double(b2)), fa = 1.0 / (2.0 * double(a) * (double(a2) - double(b2))),
                          fb = 1.0 / (2.0 * double(b) * (double(b2) - double(a2)));
  template <class V>
  static HG_INLINE void in(const V* d, V* v) {
    v[0] = a2 * b2 * d[0] - (a2 + b2) * d[2] + d[4];
    const V s = d[4] - b2 * d[2], p = d[3] - b2 * d[1];
    v[1] = s + a * p;
    v[2] = s - a * p;
    const V t = d[4] - a2 * d[2], q = d[3] - a2 * d[1];
    v[3] = t + b * q;
    v[4] = t - b * q;
    v[5] = a2 * b2 * d[1] - (a2 + b2) * d[3] + d[5];
  }
  template <class V>
  static HG_INLINE void out(const V* m, V* y) {
    const V s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + (1 / a) * s + (1 / b) * t;
    y[1] = d + e;
    y[2] = a * s + b * t;
    y[3] = m[5] + a2 * d + b2 * e;
  }
  template <class V>
  static HG_INLINE void out_t(const V* y, V* m) {
    m[0] = y[0];
    m[5] = y[3];
    const V s = (1 / a) * y[0] + a * y[2], d = y[1] + a2 * y[3];
    m[1] = s + d;
    m[2] = s - d;
    const V t = (1 / b) * y[0] + b * y[2], e = y[1] + b2 * y[3];
    m[3] = t + e;
    m[4] = t - e;
  }
  template <class V>
  static HG_INLINE void filter(const V* w, V* u) {
    const V sa = w[0] + double(a2) * w[2], sb = w[0] + double(b2) * w[2];
    u[0] = f0 * w[0];
    u[1] = fa * (sa + double(a) * w[1]);
    u[2] = fa * (sa - double(a) * w[1]);
    u[3] = fb * (sb + double(b) * w[1]);
    u[4] = fb * (sb - double(b) * w[1]);
    u[5] = w[2];
  }
  template <class V>
  static HG_INLINE void filter_t(const V* u, V* w) {
    const V s = fa * (u[1] + u[2]), d = fa * (u[1] - u[2]), t = fb * (u[3] + u[4]), e = fb * (u[3] - u[4]);
    w[0] = f0 * u[0] + s + t;
    w[1] = double(a) * d + double(b) * e;
    w[2] = double(a2) * s + double(b2) * t + u[5];
  }
};

// --- Tiles of M x 2 pixels ---

template <int M>
constexpr int kPositions = (M + 2) * 4;
template <int M>
constexpr int64_t kBlock = M == 4 ? 12 : 24;  // tiles whose transforms stay in the first-level cache; whole register tiles

struct Tile {
  int64_t image, y, x;
};

// Elements between the matrices of two positions. Not 1024 floats, a page: lines a page apart share a set of the cache.
constexpr int64_t matrix_size(int64_t rows, int64_t cols) { return rows * cols + 16; }
template <int M>
constexpr int64_t block_size(int64_t channels) {
  return kPositions<M> * matrix_size(kBlock<M>, channels);
}
constexpr int64_t blocks_size(int64_t channels) { return higher(block_size<4>(channels), block_size<2>(channels)); }

// Images of (rows, cols, step) that are zero outside; `margin` pixels around them are there and zero.
struct Source {
  Images<const float> images;
  int64_t margin;
};

// Transformed filters of a 3x3 convolution from C to K channels: those of the tall tiles, then those of the low ones.
constexpr int64_t winograd_filters_size(int64_t C, int64_t K) { return (kPositions<4> + kPositions<2>)*matrix_size(C, K); }
// Of w (3, 3, C, K), or, `turned`, for the gradient of the input, from K to C channels.
void winograd_filters(const float* w, int64_t C, int64_t K, bool turned, float* out);

// Products of a block of tiles: out (positions, tiles, K) = sum over C, or added to what `out` holds.
template <int M>
void winograd_product(const float* v, const float* u, float* out, int64_t tiles, int64_t C, int64_t K, bool add);
// Transforms the patches of tiles. Where `scale` is there, it gets the largest size of a number in each tile's patch.
template <int M>
void winograd_load(const Source& from, const Tile* tiles, int64_t n, float* v, float* scale = nullptr);

// The M x 2 pixels of one vector of channels, from the products of a block of tiles of K channels.
template <int M, class Channels>
HG_INLINE void winograd_output(const float* m, Channels K, Vec<float> y[M][2]) {
  const int64_t stride = matrix_size(kBlock<M>, K);
  Vec<float> t[M][4];
  for (int j = 0; j < 4; ++j) {
    Vec<float> d[M + 2], e[M];
    for (int i = 0; i < M + 2; ++i) d[i] = load(m + (i * 4 + j) * stride);
    Axis<M>::out(d, e);
    for (int i = 0; i < M; ++i) t[i][j] = e[i];
  }
  for (int i = 0; i < M; ++i) Axis<2>::out(t[i], y[i]);
}

// Tiles in rows of M pixels from row `first` on, as many as `down`, of n images: f(tiles, count) for each block of them.
template <int M, class F>
HG_INLINE void for_blocks(int64_t n, int64_t first, int64_t down, int64_t across, const F& f) {
  Tile tiles[kBlock<M>];
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t y = 0; y < down; ++y)
      for (int64_t x = 0; x < across; ++x) {
        tiles[count++] = {i, first + M * y, 2 * x};
        if (count == kBlock<M>) {
          f(tiles, count);
          count = 0;
        }
      }
  if (count > 0) f(tiles, count);
}

// Cuts images into tall tiles and, for the rows that are left, low ones; the last may hang over the edge by one pixel.
template <class F>
HG_INLINE void for_tiles(const Images<const float>& a, const F& f) {
  const int64_t tall = a.rows / 4, low = (a.rows % 4 + 1) / 2, across = (a.cols + 1) / 2;
  if (tall > 0) f(std::integral_constant<int, 4>{}, int64_t(0), tall, across);
  if (low > 0) f(std::integral_constant<int, 2>{}, 4 * tall, low, across);
}

// One convolution of a sum: images and their transformed filters.
struct WinogradTerm {
  Source source;
  const float* filters;
};

// body(channels), as a compile-time constant for the usual numbers of them: strides that the compiler knows take no registers.
template <class Body>
HG_INLINE void with_channels(int64_t channels, const Body& body) {
  if (channels == 32)
    body(std::integral_constant<int64_t, 32>{});
  else if (channels == 64)
    body(std::integral_constant<int64_t, 64>{});
  else
    body(channels);
}

// finish(size, K, tile, products, scale) for every tile of the sum of one or two terms; `size` is M as a compile-time constant,
// and so is K where it is usual. Products of a position lie matrix_size(kBlock<M>, K) after those of the one before.
// kScale: with the largest size of a number in the tile's patch of the first.
template <bool kScale = false, class Finish>
static void winograd_convolve(const WinogradTerm* terms, int n_terms, int64_t K, const Finish& finish) {
  const Images<const float>& first = terms[0].source.images;
  const int64_t C = first.step;
  float* const v = scratch_of<float>(kSlotV, blocks_size(C));
  float* const m = scratch_of<float>(kSlotM, blocks_size(K));
  for_tiles(first, [&](auto size, int64_t top, int64_t down, int64_t across) {
    constexpr int M = decltype(size)::value;
    const int64_t low = M == 2 ? kPositions<4> * matrix_size(C, K) : 0;
    for_blocks<M>(first.n, top, down, across, [&](const Tile* tiles, int64_t count) {
      float scale[kBlock<M>];
      for (int i = 0; i < n_terms; ++i) {
        winograd_load<M>(terms[i].source, tiles, count, v, kScale && i == 0 ? scale : nullptr);
        winograd_product<M>(v, terms[i].filters + low, m, count, C, K, i > 0);
      }
      with_channels(K, [&](auto channels) {
        for (int64_t t = 0; t < count; ++t) finish(size, channels, tiles[t], m + t * channels, kScale ? scale[t] : 0.0F);
      });
    });
  });
}

// The sum of one or two terms, whole images.
void winograd_images(const WinogradTerm* terms, int n_terms, const Images<float>& out);

// part (9, C, K) = the filters' gradient, the sum over one or two pairs.
struct WinogradPair {
  Source x, z_bar;
};
void winograd_wgrad(const WinogradPair* pairs, int n_pairs, float* part);

// The same for images of 3 channels with a border, any numbers, and cotangents that are zero off the winners of 2x2 windows:
// y_bar and code (n, h, w, K) as block.h says. A vector may be read from where any pixel begins. B[k] += sum y_bar where active.
constexpr int64_t kFewChannels = 3;
void winograd_wgrad_winners(const Images<const float>& bordered, const float* y_bar, const unsigned char* code, int64_t K, float* part,
                            double* B);

}  // namespace hg::HG_SIMD

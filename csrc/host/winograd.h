// 3x3 convolutions of stride 1 with a border of 1 by Winograd's algorithm (Lavin & Gray 2016, arXiv:1509.09308), in float32:
// F(4x4, 3x3), and F(2x2, 3x3) for the rows and columns that do not fill a tile of four. A tile's pixels and filters are transformed so
// that its convolution becomes one product of channels for each of 36 (16) positions, a quarter (four ninths) of the multiplications.
// F(4x2, 3x3) takes the place of F(4x4, 3x3) where errors would be too large beside the direct sums': with few channels, whose sums are
// short, and in the gradient of the input.
//
// The points of F(4) are 0, +-5/8, +-3/2 and infinity. They make the rounding error half of that with 0, +-1, +-2, and all
// constants of the input's transform are exact. Filters are transformed in double; products are sums of parts of 8 terms.
// The result of an image depends on no other image. An infinity or NaN reaches the whole of each tile that reads it.
#pragma once
#include "images.h"

namespace hg::HG_SIMD {

// Pixels. The filters' transforms cost more than a smaller call saves; and the direct sums of a few channels over a few pixels are short,
// and their errors small beside those of the transforms.
constexpr int64_t winograd_least(int64_t C, int64_t K) { return lower(C, K) >= 64 ? 240 : lower(C, K) >= 32 ? 480 : 1000; }
constexpr int64_t kWinogradTask = 2048;  // pixels of one task; fixes the order of partial sums

constexpr int64_t kWinogradUnit = kLanes<float> > 8 ? kLanes<float> : 8;  // channels and filters are multiples of it

// Whether a convolution of so many pixels with the same filters is done here. By shapes alone, as bits depend on it.
template <class T>
constexpr bool by_winograd(int64_t pixels, int64_t C, int64_t K) {
  return std::is_same_v<T, float> && pixels >= winograd_least(C, K) && C > 0 && K > 0 && C % kWinogradUnit == 0 && K % kWinogradUnit == 0;
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

// --- Tiles of M x N pixels ---

template <int M, int N>
constexpr int kPositions = (M + 2) * (N + 2);
constexpr int64_t kBlock = HG_VECTOR_BYTES == 64 ? 24 : 12;  // tiles that are transformed together; whole register tiles
// Columns of the large tiles of a convolution between C and K channels. The gradient of the input, `turned`, has the largest errors, and
// without fused multiply-adds all are larger.
constexpr int64_t winograd_columns(int64_t C, int64_t K, bool turned) {
  return HG_VECTOR_BYTES >= 32 && !turned && lower(C, K) >= 32 ? 4 : 2;
}

struct Tile {
  int64_t image, y, x;
};

// Elements between the matrices of two positions. Not 1024 floats, a page: lines a page apart share a set of the cache.
constexpr int64_t matrix_size(int64_t rows, int64_t cols) { return rows * cols + 16; }
constexpr int64_t blocks_size(int64_t channels) { return kPositions<4, 4> * matrix_size(kBlock, channels); }

// Images of (rows, cols, step) that are zero outside; `margin` pixels around them are there and zero.
struct Source {
  Images<const float> images;
  int64_t margin;
};

// body(pixel) with pixel(i, j) the channels of a pixel of the patch of kRows x kCols, the first `off` pixels down and right of the
// tile's: those at `zeros` where it is not there.
template <int kRows, int kCols, class Channels, class Body>
HG_INLINE void with_patch(const Source& from, Channels C, const Tile& tile, int64_t off, const float* zeros, const Body& body) {
  const float* const image = from.images.data + tile.image * from.images.image;
  const int64_t y = tile.y + off, x = tile.x + off, pitch = from.images.pitch;
  const int64_t top = -from.margin, bottom = from.images.rows + from.margin, right = from.images.cols + from.margin;
  if (y >= top && x >= top && y + kRows <= bottom && x + kCols <= right) {
    const float* const first = image + y * pitch + x * C;
    return body([=](int i, int j) { return first + i * pitch + j * C; });
  }
  const float* at[kRows][kCols];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) {
      const bool inside = y + i >= top && y + i < bottom && x + j >= top && x + j < right;
      at[i][j] = inside ? image + (y + i) * pitch + (x + j) * C : zeros;
    }
  body([&](int i, int j) { return at[i][j]; });
}
HG_INLINE const float* zero_pixel(int64_t channels) {
  float* const zeros = scratch_of<float>(kSlotPatch, channels);
  __builtin_memset(zeros, 0, static_cast<std::size_t>(channels) * sizeof(float));
  return zeros;
}

// The cut of images into tiles of 4 x `across` pixels, and of 2 x 2 for what is left on the right and below. A tile may hang over an edge
// by one pixel.
struct Cut {
  int64_t n, rows, cols, across;
  int64_t tall() const { return (rows + 1) / 4; }
  int64_t wide() const { return (cols + across / 2 - 1) / across; }
  // f(y, x) for the tiles of an image that are M pixels high.
  template <int M, class F>
  HG_INLINE void each(const F& f) const {
    if (M == 4) {
      for (int64_t y = 0; y < tall(); ++y)
        for (int64_t x = 0; x < wide(); ++x) f(4 * y, across * x);
    } else {
      for (int64_t y = 0; y < rows; y += 2)
        for (int64_t x = y < 4 * tall() ? across * wide() : 0; x < cols; x += 2) f(y, x);
    }
  }
};
template <class T>
static Cut cut_of(const Images<T>& a, int64_t C, int64_t K, bool turned) {
  return {a.n, a.rows, a.cols, winograd_columns(C, K, turned)};
}

template <int kRows, int kCols>
struct Size {
  static constexpr int M = kRows, N = kCols;
};
// f(Size) for each size of tile that there is.
template <class F>
HG_INLINE void for_sizes(const Cut& cut, const F& f) {
  const int64_t rows = 4 * cut.tall(), cols = cut.across * cut.wide();
  if (rows > 0 && cols > 0) cut.across == 4 ? f(Size<4, 4>{}) : f(Size<4, 2>{});
  if (rows < cut.rows || cols < cut.cols) f(Size<2, 2>{});
}

// Transformed filters of a 3x3 convolution between C and K channels: those of the large tiles, then those of the small ones.
constexpr int64_t winograd_large_filters(int64_t C, int64_t K, bool turned) {
  return (winograd_columns(C, K, turned) == 4 ? kPositions<4, 4> : kPositions<4, 2>)*matrix_size(C, K);
}
constexpr int64_t winograd_filters_size(int64_t C, int64_t K, bool turned) {
  return winograd_large_filters(C, K, turned) + kPositions<2, 2> * matrix_size(C, K);
}
// What lies before the filters of a size.
template <class S>
constexpr int64_t winograd_skipped(int64_t C, int64_t K, bool turned) {
  return S::M == 2 ? winograd_large_filters(C, K, turned) : 0;
}
// Of w (3, 3, C, K), or, `turned`, for the gradient of the input, from K to C channels; those of the sizes that images of `rows` x `cols`
// pixels need.
void winograd_filters(const float* w, int64_t C, int64_t K, bool turned, int64_t rows, int64_t cols, float* out);

// Products of a block of tiles: out (positions, tiles, K) = sum over C, or added to what `out` holds.
template <class S>
void winograd_product(const float* v, const float* u, float* out, int64_t tiles, int64_t C, int64_t K, bool add);
// Transforms the patches of tiles. Where `scale` is there, it gets the largest size of a number in each tile's patch.
template <class S>
void winograd_load(const Source& from, const Tile* tiles, int64_t n, float* v, float* scale = nullptr);

// The M x N pixels of one vector of channels, from the products of a block of tiles of K channels.
template <int M, int N, class Channels>
HG_INLINE void winograd_output(const float* m, Channels K, Vec<float> y[M][N]) {
  const int64_t stride = matrix_size(kBlock, K);
  Vec<float> t[M][N + 2];
  HG_UNROLL(6)
  for (int j = 0; j < N + 2; ++j) {
    Vec<float> d[M + 2], e[M];
    for (int i = 0; i < M + 2; ++i) d[i] = load(m + (i * (N + 2) + j) * stride);
    Axis<M>::out(d, e);
    for (int i = 0; i < M; ++i) t[i][j] = e[i];
  }
  HG_UNROLL(4)
  for (int i = 0; i < M; ++i) Axis<N>::out(t[i], y[i]);
}

// f(tiles, count) for each block of tiles.
template <int M, class F>
HG_INLINE void for_blocks(const Cut& cut, const F& f) {
  Tile tiles[kBlock];
  int64_t count = 0;
  for (int64_t i = 0; i < cut.n; ++i)
    cut.each<M>([&](int64_t y, int64_t x) {
      tiles[count++] = {i, y, x};
      if (count == kBlock) {
        f(tiles, count);
        count = 0;
      }
    });
  if (count > 0) f(tiles, count);
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

// finish(size, K, tile, products, scale) for every tile of the sum of one or two terms; `size` is a Size,
// and so is K where it is usual. Products of a position lie matrix_size(kBlock, K) after those of the one before.
// kScale: with the largest size of a number in the tile's patch of the first.
template <bool kScale = false, class Finish>
static void winograd_convolve(const WinogradTerm* terms, int n_terms, int64_t K, bool turned, const Finish& finish) {
  const int64_t C = terms[0].source.images.step;
  float* const v = scratch_of<float>(kSlotV, blocks_size(C));
  float* const m = scratch_of<float>(kSlotM, blocks_size(K));
  const Cut cut = cut_of(terms[0].source.images, C, K, turned);
  for_sizes(cut, [&](auto size) {
    using S = decltype(size);
    const int64_t skip = winograd_skipped<S>(C, K, turned);
    for_blocks<S::M>(cut, [&](const Tile* tiles, int64_t count) {
      float scale[kBlock];
      for (int i = 0; i < n_terms; ++i) {
        winograd_load<S>(terms[i].source, tiles, count, v, kScale && i == 0 ? scale : nullptr);
        winograd_product<S>(v, terms[i].filters + skip, m, count, C, K, i > 0);
      }
      with_channels(K, [&](auto channels) {
        for (int64_t t = 0; t < count; ++t) finish(size, channels, tiles[t], m + t * channels, kScale ? scale[t] : 0.0F);
      });
    });
  });
}

// The sum of one or two terms, whole images.
void winograd_images(const WinogradTerm* terms, int n_terms, bool turned, const Images<float>& out);

// part (9, C, K) = the filters' gradient, the sum over one or two pairs.
struct WinogradPair {
  Source x, z_bar;
};
void winograd_wgrad(const WinogradPair* pairs, int n_pairs, float* part);

constexpr int64_t kFewChannels = 3;

// The same for images of 3 channels with a border, any numbers, and cotangents that are zero off the winners of 2x2 windows:
// y_bar and code (n, h, w, K) as block.h says. A vector may be read from where any pixel begins. B[k] += sum y_bar where active.
// AVX-512 has a faster way, see first.h.
void winograd_wgrad_winners(const Images<const float>& bordered, const float* y_bar, const unsigned char* code, int64_t K, float* part,
                            double* B);

}  // namespace hg::HG_SIMD

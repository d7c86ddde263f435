// The 3x3 convolution tile that all fused kernels share: a block of 256 threads makes the outputs of a rectangle of
// 2x2 windows for 32 filters, with pad 1 and stride 1.
//
// Thread t owns window t % kWindows for a group of kGroup neighbouring filters: 4 x kGroup accumulators, so that
// pooling is its own business. Per input channel it reads a 4x4 patch and 9 rows of weights from shared memory for
// 36 * kGroup multiply-adds; all lanes of a warp read the same weights. Input channels come in chunks.
#pragma once
#include "launch.h"

namespace hg::cuda {

constexpr int kFilters = 32;        // filters of a tile
constexpr int64_t kFill = 2 * 132;  // blocks that fill a large GPU; one number for all of them, so that bits do not depend on the GPU

// How a tile is dealt to the threads: a thread has the windows window(thread, i), i < kOwn, of the tile and the kGroup
// neighbouring filters from filter(thread) on; kColumns lanes of a warp differ in their filters. A small tile has few windows, so that few
// images make many blocks; each element has the same bits in both.
template <class T, bool kSmall = false>
struct TileShape {
  using Element = T;
  static constexpr int kGroup = kSmall ? 4 : sizeof(T) == 4 ? 16 : 8;  // filters of a thread
  static constexpr int kWindows = kThreads * kGroup / kFilters;        // windows of a tile
  static constexpr int kOwn = 1, kColumns = 1;
  static constexpr bool kStacked = false;                // the images of its tiling
  static constexpr int kChunk = sizeof(T) == 4 ? 8 : 4;  // input channels in shared memory at a time
  static constexpr int kWeights = kChunk * 9 * kFilters;
  static constexpr int kSums = kWarps * kGroup;  // elements that tile_sums needs
  HG_DEVICE static int window(int thread, int) { return thread % kWindows; }
  HG_DEVICE static int filter(int thread) { return thread / kWindows * kGroup; }
};

// Cuts N images of H x W pixels into tiles of images x rows x cols windows; more than one image only where a tile holds whole ones. Where
// images are stacked, the rows of windows of all images follow each other, and so do a tile's, whatever image they are of.
struct Tiling {
  int N, H, W;
  int images, rows, cols;    // windows of a tile
  int across, down, groups;  // tiles of an image's row, column, and of all images
  int width, height, plane;  // pixels in shared memory of one image's rectangle with its border, and of all images
  int count;                 // tiles
  Divisor by_cols, by_rows, by_width, by_height, by_across, by_down;  // stacked: by_rows of all of an image, by_height with their border

  int64_t tiles() const { return count; }
};

// The tiling with the fewest tiles, and of those the fewest pixels in shared memory, with at most `windows` windows and `pixels` pixels.
Tiling choose_tiling(int64_t N, int64_t H, int64_t W, int windows, int pixels);
// The same with stacked images, and the least work for tiles and pixels.
Tiling choose_stacked_tiling(int64_t N, int64_t H, int64_t W, int windows, int pixels);

// Where a block's tile lies.
struct Place {
  int image, images;  // first image, and how many
  int y, x;           // first pixel
  int rows, cols;     // output pixels per image; stacked: those of the first image, from y on
};
template <bool kStacked = false>
HG_DEVICE Place place_of(const Tiling& t, int tile) {
  Place at;
  const int across = t.by_across.split(tile);
  at.x = 2 * across * t.cols;
  at.cols = lower(2 * t.cols, t.W - at.x);
  if constexpr (kStacked) {
    at.image = tile * t.rows;
    at.y = 2 * t.by_rows.split(at.image);
    at.images = lower(t.rows, t.N - at.image);
    at.rows = t.H - at.y;
  } else {
    const int down = t.by_down.split(tile);
    at.image = tile * t.images;
    at.images = lower(t.images, t.N - at.image);
    at.y = 2 * down * t.rows;
    at.rows = lower(2 * t.rows, t.H - at.y);
  }
  return at;
}
// Rows of pixels in the first `rows` rows of windows of stacked images.
HG_DEVICE int stacked_rows(const Tiling& t, int rows) {
  int image = rows;
  const int row = t.by_rows.split(image);
  return image < t.N ? image * t.H + lower(2 * row, t.H) : t.N * t.H;
}
// Output pixels of a tile.
template <bool kStacked>
HG_DEVICE int pixels_of(const Tiling& t, int tile) {
  const Place at = place_of<kStacked>(t, tile);
  if (!kStacked) return at.images * at.rows * at.cols;
  const int first = t.by_across.quotient(tile) * t.rows;
  return (stacked_rows(t, first + t.rows) - stacked_rows(t, first)) * at.cols;
}

// A window of the tile: image of the tile, first pixel in the tile, or none. Stacked: y is less than 0 in images after the first.
struct Window {
  int image, y, x;
  bool any;
  HG_DEVICE bool has(const Place& at, int q) const { return any && y + (q >> 1) < at.rows && x + (q & 1) < at.cols; }
  // Whether the whole window lies in the image: only those are pooled.
  HG_DEVICE bool whole(const Place& at) const { return has(at, 3); }
};
template <bool kStacked = false>
HG_DEVICE Window window_of(const Tiling& t, const Place& at, int index) {
  const bool inside = index < t.images * t.rows * t.cols;
  if (!inside) index = 0;
  Window v;
  v.x = 2 * t.by_cols.split(index);
  if (kStacked) index += at.y / 2;
  v.y = 2 * t.by_rows.split(index) - (kStacked ? at.y : 0);
  v.image = index;
  v.any = inside && v.image < at.images && v.y < at.rows && v.x < at.cols;
  return v;
}

// Filters as the tile reads them: weight(tap, in, out). Forward: in = C, out = K. Turned (for gradients of the input):
// in = K, out = C and the taps in reverse.
template <class T>
struct Filter {
  Batch<const T> w;
  int C, K;
  bool turned;
  HG_DEVICE int inputs() const { return turned ? K : C; }
  HG_DEVICE int outputs() const { return turned ? C : K; }
};

// weights[(c*9 + tap)*kFilters + k] for `channels` inputs from c0 on and kFilters outputs from k0 on, 0 beyond the last.
template <class T>
HG_DEVICE void load_filter(const Filter<T>& filter, const T* w, int c0, int channels, int k0, T* weights) {
  const int inputs = filter.inputs(), outputs = filter.outputs();
  HG_NO_UNROLL
  for (int i = threadIdx.x; i < channels * 9 * kFilters; i += kThreads) {
    int c, tap, k;
    if (filter.turned) {  // neighbouring threads read neighbouring inputs
      c = i % channels;
      k = i / channels % kFilters;
      tap = i / channels / kFilters;
    } else {
      k = i % kFilters;
      tap = i / kFilters % 9;
      c = i / kFilters / 9;
    }
    T value = T(0);
    if (c0 + c < inputs && k0 + k < outputs)
      value = filter.turned ? w[(static_cast<int64_t>(8 - tap) * filter.C + k0 + k) * filter.K + c0 + c]
                            : w[(static_cast<int64_t>(tap) * filter.C + c0 + c) * filter.K + k0 + k];
    weights[(c * 9 + tap) * kFilters + k] = value;
  }
}

// put(c, i, pixel i of channel c0 + c) for i = (image*height + y)*width + x of the tile with its border and 4*quads channels; `quads` is a
// power of two. A source has channel(c, quads of constants) and load(channel, image, y, x), which is defined outside the image, too.
template <class T, bool kStacked = false, class Source, class Put>
HG_DEVICE void load_pixels(const Source& source, const Tiling& t, const Place& at, int c0, int quads, const Put& put) {
  const int quad = static_cast<int>(threadIdx.x) & (quads - 1), step = kThreads / quads;
  const auto channel = source.channel(c0 + 4 * quad);
  const int top = kStacked ? at.y : 0, rows = at.images * (kStacked ? static_cast<int>(t.by_height.d) : t.height) - top;
  const int total = (kStacked ? lower(rows, t.height) : rows) * t.width;
  HG_NO_UNROLL
  for (int i = static_cast<int>(threadIdx.x) / quads; i < total; i += step) {
    int rest = i;
    const int x = t.by_width.split(rest);
    rest += top;
    const int y = t.by_height.split(rest), image = at.image + rest;
    const Quad<T> value = source.load(channel, image, at.y - top + y - 1, at.x + x - 1);
    HG_UNROLL
    for (int j = 0; j < 4; ++j) put(4 * quad + j, i, value.v[j]);
  }
}

// accumulators[2*dy + dx][k] += the convolution at the thread's window, `corner` pixels into the tile, for its group of
// filters from k0 on. Begins and ends with no thread inside the shared arrays.
//
// What loading needs is computed anew for every chunk: registers are for the accumulators.
template <class Shape, class T, class Term>
HG_DEVICE void convolve(const Term* terms, int term, int p, int e, int k0, const Tiling& t, int tile, int corner, T* pixels, T* weights,
                        T (&accumulators)[4][Shape::kGroup]) {
  constexpr int kGroup = Shape::kGroup, kChunk = Shape::kChunk;
  const int inputs = terms[term].filter.inputs();
  const T* const patch = pixels + corner;
  const T* const group = weights + Shape::filter(static_cast<int>(threadIdx.x));
  HG_NO_UNROLL
  for (int c0 = 0; c0 < inputs; c0 += kChunk) {
    const int channels = lower(kChunk, inputs - c0);
    {
      const Term& now = terms[forgotten(term)];
      load_pixels<T>(now.source.at(p, e), t, place_of(t, forgotten(tile)), c0, channels > 4 ? 2 : 1,
                     [pixels, plane = t.plane](int c, int i, T v) { pixels[c * plane + i] = v; });
      load_filter(now.filter, now.filter.w.at(p, e), c0, channels, k0, weights);
    }
    __syncthreads();
    HG_NO_UNROLL
    for (int c = 0; c < channels; ++c) {
      T v[4][4];
      HG_UNROLL
      for (int r = 0; r < 4; ++r) {
        struct alignas(2 * sizeof(T)) Pair {
          T v[2];
        };
        const Pair* const row = reinterpret_cast<const Pair*>(patch + c * t.plane + r * t.width);
        const Pair a = row[0], b = row[1];
        v[r][0] = a.v[0];
        v[r][1] = a.v[1];
        v[r][2] = b.v[0];
        v[r][3] = b.v[1];
      }
      HG_UNROLL
      for (int tap = 0; tap < 9; ++tap) HG_UNROLL
      for (int k = 0; k < kGroup; k += 4) {
        const Quad<T> f = *reinterpret_cast<const Quad<T>*>(group + (c * 9 + tap) * kFilters + k);
        HG_UNROLL
        for (int q = 0; q < 4; ++q) HG_UNROLL
        for (int j = 0; j < 4; ++j)
          accumulators[q][k + j] = fused(v[(q >> 1) + tap / 3][(q & 1) + tap % 3], f.v[j], accumulators[q][k + j]);
      }
    }
    __syncthreads();
  }
}

// v[0] becomes the sum of the lane's own element lane/(32/n) over the lanes that differ from it in that quotient only. Lanes exchange
// halves of their elements, so that n sums take n - 1 shuffles.
template <int n, class T>
HG_DEVICE void halve_sums(T (&v)[n]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  HG_UNROLL
  for (int half = n / 2, bit = 16; half > 0; half /= 2, bit /= 2) {
    const bool upper = (lane & bit) != 0;
    HG_UNROLL
    for (int i = 0; i < n / 2; ++i)
      if (i < half) {
        const T keep = upper ? v[i + half] : v[i], give = upper ? v[i] : v[i + half];
        v[i] = keep + __shfl_xor_sync(kAllLanes, give, bit);
      }
  }
}

// v holds a thread's sums over its own windows, one for each of n filters of its group; every thread gets the sums over the tile
// in their place. Lanes with the same filters exchange halves of them, so that n filters take n - 1 shuffles and
// log2(32 / (kColumns*n)) more; warps are added in order through `sums`.
template <class Shape, int n, class T = typename Shape::Element>
HG_DEVICE void tile_sums(T (&v)[n], T* sums) {
  constexpr int kColumns = Shape::kColumns, kWarpsOfGroup = kWarps * kColumns * Shape::kGroup / kFilters;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  halve_sums(v);
  HG_UNROLL
  for (int bit = 16 / n; bit >= kColumns; bit /= 2) v[0] += __shfl_xor_sync(kAllLanes, v[0], bit);
  __syncthreads();  // everyone has read the sums before
  const int column = lane % kColumns;
  if (lane % (32 / n) < kColumns) sums[(warp * kColumns + column) * n + lane / (32 / n)] = v[0];
  __syncthreads();
  HG_UNROLL
  for (int k = 0; k < n; ++k) {
    T total = T(0);
    HG_UNROLL
    for (int i = 0; i < kWarpsOfGroup; ++i) total += sums[((warp / kWarpsOfGroup * kWarpsOfGroup + i) * kColumns + column) * n + k];
    v[k] = total;
  }
}

}  // namespace hg::cuda

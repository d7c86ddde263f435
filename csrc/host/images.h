// Convolutions of whole images: border padding, packed weights, and the loops around the register tiles.
#pragma once
#include "tile.h"

namespace hg::HG_SIMD {

constexpr int64_t kTaskPixels = 1024;  // images of one task; fixes the order of partial sums
constexpr int64_t kBandPixels = 256;   // pixels whose x and z stay in the first-level cache during wgrad

// Scratch slots, so that no two live uses meet.
enum Slot : int {
  kSlotX = 0,
  kSlotXDot,
  kSlotZ,
  kSlotZDot,
  kSlotBand,
  kSlotBandDot,
  kSlotSums,
  kSlotV,
  kSlotM,
  kSlotPatch,
  kSlotProducts,
  kSlotWeights = kSharedSlots,
  kSlotWeights2,
  kSlotWeights3,
  kSlotWeights4,
  kSlotParts,
  kSlotPartSums,
  kSlotPartSums2,
  kSlotScalars,
  kSlotScalars2,
  kSlotParts2,
};

constexpr int64_t kFewTasks = 4;       // of a kernel, or a multiple, so that threads get as many each
constexpr int64_t kLeastPixels = 256;  // of a task, where there are more than it needs

// Tasks of n images in each of so many batches: of at most `most` pixels, or one image. The i-th has images first_image(i) and on.
static inline int64_t tasks_of(int64_t batches, int64_t n, int64_t pixels, int64_t most) {
  const int64_t needed = ceil_div(n, higher(1, most / higher(1, pixels)));
  const int64_t wanted = lower(round_up(needed, ceil_div(kFewTasks, higher(1, batches))), n * pixels / kLeastPixels);
  return lower(n, higher(needed, wanted));
}
static inline int64_t first_image(int64_t task, int64_t n, int64_t tasks) { return task * n / tasks; }

// A batch of n images of rows x cols pixels, `step` elements apart.
template <class T>
struct Images {
  T* data;
  int64_t n, rows, cols, step;
  int64_t pitch, image;  // elements between rows and between images
};

template <class T>
static Images<T> dense(T* data, int64_t n, int64_t rows, int64_t cols, int64_t channels) {
  return {data, n, rows, cols, channels, cols * channels, rows * cols * channels};
}

template <class T>
static Images<const T> as_const(const Images<T>& a) {
  return {a.data, a.n, a.rows, a.cols, a.step, a.pitch, a.image};
}

// dst[i, y, x, c] = src[i, y - top, x - left, c] - shift[c], and 0 - shift[c] outside src; channels from `channels` up
// to dst.step become 0. `shift` may be null.
template <class T>
static void pad_images(const Images<const T>& src, int64_t channels, int64_t top, int64_t left, const Images<T>& dst,
                       const T* shift = nullptr) {
  const int64_t first = lower(higher(left, 0), dst.cols), last = higher(lower(left + src.cols, dst.cols), first);
  const int64_t row = dst.cols * dst.step;
  T* const shifts = shift != nullptr ? scratch_of<T>(kSlotPatch, row + 1) : nullptr;  // of a whole row
  for (int64_t x = 0; x < dst.cols && shift != nullptr; ++x)
    for (int64_t c = 0; c < dst.step; ++c) shifts[x * dst.step + c] = c < channels ? shift[c] : T(0);
  for (int64_t i = 0; i < dst.n; ++i)
    for (int64_t y = 0; y < dst.rows; ++y) {
      T* to = dst.data + i * dst.image + y * dst.pitch;
      const bool inside = y >= top && y - top < src.rows;
      const T* from = inside ? src.data + i * src.image + (y - top) * src.pitch + (first - left) * src.step : nullptr;
      for (int64_t part = 0; part < 3; ++part) {
        const int64_t begin = part == 0 ? 0 : part == 1 ? first : last;
        const int64_t end = part == 0 ? first : part == 1 ? last : dst.cols;
        if (end <= begin) continue;
        if (part != 1 || !inside) {
          __builtin_memset(to + begin * dst.step, 0, static_cast<std::size_t>((end - begin) * dst.step) * sizeof(T));
        } else if (channels == dst.step) {
          __builtin_memcpy(to + begin * dst.step, from, static_cast<std::size_t>((end - begin) * dst.step) * sizeof(T));
        } else {
          for (int64_t x = begin; x < end; ++x) {
            for (int64_t c = 0; c < channels; ++c) to[x * dst.step + c] = from[(x - begin) * src.step + c];
            for (int64_t c = channels; c < dst.step; ++c) to[x * dst.step + c] = T(0);
          }
        }
      }
      for (int64_t k = 0; shift != nullptr && k < row; ++k) to[k] -= shifts[k];
    }
}

// Filters as the tiles read them: blocks of two vectors of output channels (a last one of one vector where that is
// enough), each (rows, run, width), missing channels 0.
template <class T>
struct Packed {
  const T* data;
  int64_t rows, run;  // run = columns * input channels
  int64_t outputs;    // channels written
};
template <class T>
static int64_t packed_size(int64_t rows, int64_t run, int64_t outputs) {
  return rows * run * round_up(outputs, kLanes<T>);
}

// Element (r, s, c, k) is weights[r*r_step + s*s_step + c*c_step + k*k_step]; inputs beyond `inputs` up to `stored` are
// 0.
template <class T>
static Packed<T> pack_filters(const T* weights, int64_t rows, int64_t cols, int64_t inputs, int64_t stored, int64_t outputs, int64_t r_step,
                              int64_t s_step, int64_t c_step, int64_t k_step, T* out) {
  constexpr int64_t V = kLanes<T>;
  T* to = out;
  for (int64_t k0 = 0; k0 < outputs; k0 += 2 * V) {
    const int64_t width = outputs - k0 > V ? 2 * V : V, lanes = lower(width, outputs - k0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t s = 0; s < cols; ++s)
        for (int64_t c = 0; c < stored; ++c, to += width) {
          const T* from = weights + r * r_step + s * s_step + c * c_step + k0 * k_step;
          const int64_t present = c < inputs ? lanes : 0;
          for (int64_t k = 0; k < present; ++k) to[k] = from[k * k_step];
          for (int64_t k = present; k < width; ++k) to[k] = T(0);
        }
  }
  return {out, rows, cols * stored, outputs};
}

// w (R, S, C, K) for a forward convolution over x.
template <class T>
static Packed<T> pack_forward(const T* w, int64_t R, int64_t S, int64_t C, int64_t K, T* out) {
  return pack_filters(w, R, S, C, C, K, S * C * K, C * K, K, int64_t(1), out);
}

// The same w turned by 180 degrees with its channels exchanged, for images of K channels stored `stored` apart.
template <class T>
static Packed<T> pack_backward(const T* w, int64_t R, int64_t S, int64_t C, int64_t K, int64_t stored, T* out) {
  return pack_filters(w + (R * S - 1) * C * K, R, S, K, stored, C, -S * C * K, -C * K, int64_t(1), K, out);
}

// out[i, p, q, :] (+)= sum over the window of src at (p*stride, q*stride).
template <class T>
static void conv_images(const Images<const T>& src, const Packed<T>& w, int64_t stride, const Images<T>& out, bool accumulate) {
  constexpr int64_t V = kLanes<T>;
  for (int64_t i = 0; i < out.n; ++i)
    for (int64_t p = 0; p < out.rows; ++p)
      for (int64_t k0 = 0; k0 < w.outputs; k0 += 2 * V) {
        const int64_t width = w.outputs - k0 > V ? 2 * V : V;
        const ConvRow<T> row{src.data + i * src.image + p * stride * src.pitch,
                             stride * src.step,
                             src.pitch,
                             w.rows,
                             w.run,
                             w.data + w.rows * w.run * k0,
                             static_cast<int>(width),
                             static_cast<int>(lower(width, w.outputs - k0)),
                             out.data + i * out.image + p * out.pitch + k0,
                             out.step,
                             accumulate};
        conv_row(row, out.cols);
      }
}

// acc[r, j, k] += sum_{i, p, q} x[i, p*stride + r, q*stride, j] * z[i, p, q, k], j over `run` elements from a pixel on
// (columns times channels of the window), k over z.step, which is a multiple of the vector.
template <class T>
static void wgrad_images(const Images<const T>& x, const Images<const T>& z, int64_t rows, int64_t run, int64_t stride, T* acc) {
  constexpr int64_t V = kLanes<T>;
  const int64_t K = z.step, pixels = z.rows * z.cols;
  if (pixels == 0) return;
  const int64_t images = higher(1, kBandPixels / pixels);
  const int64_t band = lower(z.rows, higher(1, kBandPixels / z.cols));
  for (int64_t i = 0; i < z.n; i += images)
    for (int64_t p = 0; p < z.rows; p += band)
      for (int64_t k0 = 0; k0 < K; k0 += 2 * V)
        for (int64_t r = 0; r < rows; ++r) {
          const WgradBlock<T> block{x.data + i * x.image + (p * stride + r) * x.pitch,
                                    stride * x.step,
                                    stride * x.pitch,
                                    x.image,
                                    z.data + i * z.image + p * z.pitch + k0,
                                    z.step,
                                    z.pitch,
                                    z.image,
                                    lower(images, z.n - i),
                                    lower(band, z.rows - p),
                                    z.cols,
                                    acc + r * run * K + k0,
                                    K,
                                    static_cast<int>(lower(2 * V, K - k0))};
          wgrad_block(block, run);
        }
}

// out[r, k] = sum over parts of part[r, k], in order, in double: rows of K read from rows of `stored`.
template <class T, class Out>
static void merge_parts(const T* parts, int64_t n_parts, int64_t part_size, int64_t stored, int64_t rows, int64_t K, Out* out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k0 = 0; k0 < K; k0 += 64) {
      double sum[64] = {};
      const int64_t lanes = lower(64, K - k0);
      for (int64_t part = 0; part < n_parts; ++part) {
        const T* from = parts + part * part_size + r * stored + k0;
        for (int64_t k = 0; k < lanes; ++k) sum[k] += static_cast<double>(from[k]);
      }
      for (int64_t k = 0; k < lanes; ++k) out[r * K + k0 + k] = static_cast<Out>(sum[k]);
    }
}

}  // namespace hg::HG_SIMD

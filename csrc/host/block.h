// The fused block (3x3 same convolution, batch normalization, ReLU, 2x2 maximum): sizes, sums and pooled passes.
//
// Notation, per episode and filter: s = rstd, xhat = s*(z - mean), u = gamma*xhat + beta; u_bar is y_bar scattered to
// the pixel that won its window, where that was positive; B = sum u_bar, G = sum u_bar*xhat; M = N*H*W pixels.
// A code holds the winner (bits 0-1: 2*dy + dx) and whether it was positive (bit 2); it is never decided again.
#pragma once
#include "images.h"

#include "../batch_norm.h"

namespace hg::HG_SIMD {

struct Block {
  int64_t P, E, N, H, W, C, K;
  int64_t h, w;           // pooled
  int64_t Kp;             // K rounded up to whole vectors
  int64_t chunk, chunks;  // images per task, tasks per episode
  int64_t pixels() const { return N * H * W; }
  int64_t taps() const { return 9 * C; }
};

template <class T, class S>
static Block block_of(const Call& call) {
  Block b{HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(N), HG_DIM(H), HG_DIM(W), HG_DIM(C), HG_DIM_IF_ANY(K), 0, 0, 0, 0, 0};
  b.h = b.H / 2;
  b.w = b.W / 2;
  b.Kp = round_up(b.K, kLanes<T>);
  b.chunk = higher(1, lower(b.N, kTaskPixels / higher(1, b.H * b.W)));
  b.chunks = ceil_div(b.N, b.chunk);
  return b;
}

struct BlockTask {
  int64_t batch, first, n;  // batch entry (an episode, or direction times episodes), images [first, first + n)
};
HG_INLINE BlockTask task_of(const Block& b, int64_t index) {
  const int64_t first = index % b.chunks * b.chunk;
  return {index / b.chunks, first, lower(b.chunk, b.N - first)};
}

// Images [first, first + n) of one batch entry.
template <class T>
HG_INLINE T* images_at(T* entry, int64_t first, int64_t rows, int64_t cols, int64_t channels) {
  return entry + first * rows * cols * channels;
}

// x of a task with a border of one pixel, minus shift[c] where given.
template <class T>
static Images<T> padded_input(const Block& b, const T* x, const BlockTask& t, int slot, const T* shift = nullptr) {
  const Images<T> out = dense(scratch_of<T>(slot, t.n * (b.H + 2) * (b.W + 2) * b.C), t.n, b.H + 2, b.W + 2, b.C);
  pad_images(dense(images_at(x, t.first, b.H, b.W, b.C), t.n, b.H, b.W, b.C), b.C, int64_t(1), int64_t(1), out, shift);
  return out;
}

// Packs one filter per batch entry; shared filters (stride 0 along both axes) are packed once.
template <class T>
struct FilterBank {
  const T* data = nullptr;
  int64_t size = 0, along_p = 1, along_e = 1, rows = 3, run = 0, outputs = 0;
  Packed<T> at(int64_t p, int64_t e) const {
    return {data + ((along_p == 1 ? 0 : p) * along_e + (along_e == 1 ? 0 : e)) * size, rows, run, outputs};
  }
  Packed<T> at(int64_t e) const { return at(0, e); }
  explicit operator bool() const { return data != nullptr; }
};
template <class T>
static FilterBank<T> pack_bank(const Block& b, const Batch<const T>& w, int64_t P, bool backward, int slot) {
  FilterBank<T> bank;
  if (!w) return bank;
  bank.along_p = w.stride_0 == 0 ? lower(1, P) : P;
  bank.along_e = w.stride_1 == 0 ? lower(1, b.E) : b.E;
  bank.run = 3 * (backward ? b.Kp : b.C);
  bank.outputs = backward ? b.C : b.K;
  bank.size = packed_size<T>(3, bank.run, bank.outputs);
  const int64_t count = bank.along_p * bank.along_e;
  T* const out = scratch_of<T>(slot, count * bank.size + 1);
  parallel_for(count, [&](int64_t i) {
    const T* from = w.at(i / bank.along_e, i % bank.along_e);
    if (backward)
      pack_backward(from, int64_t(3), int64_t(3), b.C, b.K, b.Kp, out + i * bank.size);
    else
      pack_forward(from, int64_t(3), int64_t(3), b.C, b.K, out + i * bank.size);
  });
  bank.data = out;
  return bank;
}

// sum[i] += v[i], in double.
template <class T>
HG_INLINE void add_lanes(double* sum, const Vec<T>& v) {
  for (int i = 0; i < kLanes<T>; ++i) sum[i] += static_cast<double>(v[i]);
}

// The value at the window's winner.
template <class T>
HG_INLINE Vec<T> select(const Mask<T>& code, const Vec<T>& v0, const Vec<T>& v1, const Vec<T>& v2, const Vec<T>& v3) {
  const Mask<T> low = (code & 1) != 0, high = (code & 2) != 0;
  return high ? (low ? v3 : v2) : (low ? v1 : v0);
}
template <class T>
HG_INLINE Vec<T> if_active(const Mask<T>& code, const Vec<T>& v) {
  return (code & 4) != 0 ? v : Vec<T>{};
}

// The four pixels of window q of a row pair, from channel k on.
template <class T, bool F>
struct Window {
  Vec<T> v[4];
  HG_INLINE Window(const T* rows, int64_t pitch, int64_t step, int64_t q, int64_t k, int lanes) {
    const T* top = rows + 2 * q * step + k;
    v[0] = load<T, F>(top, lanes);
    v[1] = load<T, F>(top + step, lanes);
    v[2] = load<T, F>(top + pitch, lanes);
    v[3] = load<T, F>(top + pitch + step, lanes);
  }
  HG_INLINE Vec<T> at(const Mask<T>& code) const { return select<T>(code, v[0], v[1], v[2], v[3]); }
};

// One pooled row of the value: u = (z - mean)*scale + shift, its maximum over 2x2 windows (ties: first), ReLU and code.
// A NaN stays a NaN and counts as positive, as in the composed ops.
template <class T>
static void pool_row(const T* rows, int64_t pitch, int64_t step, int64_t w, int64_t K, const T* mean, const T* scale, const T* shift, T* y,
                     unsigned char* code) {
  for_channels<T>(K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    const Vec<T> m = load(mean + k), a = load(scale + k), b = load(shift + k);
    for (int64_t q = 0; q < w; ++q) {
      const Window<T, F> z(rows, pitch, step, q, k, lanes);
      Vec<T> best = (z.v[0] - m) * a + b;
      Mask<T> winner = Mask<T>{};
      for (int i = 1; i < 4; ++i) {
        const Vec<T> u = (z.v[i] - m) * a + b;
        const Mask<T> better = u > best;
        best = better ? u : best;
        winner = better ? Mask<T>{} + i : winner;
      }
      const Mask<T> off = best <= Vec<T>{};
      store<T, F>(y + q * K + k, off ? Vec<T>{} : best, lanes);
      store_code<T, F>(code + q * K + k, winner | (~off & 4), lanes);
    }
  });
}

// part[0, k] += sum u_bar, part[1, k] += sum u_bar*(z - mean) over one pooled row; part rows are Kp long.
template <class T>
static void reduce_row(const Block& b, const T* y_bar, const unsigned char* code, const T* z, const T* mean, double* part) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    const Vec<T> m = load(mean + k);
    Vec<T> sum{}, product{};
    for (int64_t q = 0; q < b.w; ++q) {
      const Mask<T> c = load_code<T, F>(code + q * b.K + k, lanes);
      const Vec<T> u_bar = if_active<T>(c, load<T, F>(y_bar + q * b.K + k, lanes));
      const Window<T, F> window(z, b.W * b.K, b.K, q, k, lanes);
      sum += u_bar;
      product += u_bar * (window.at(c) - m);
    }
    add_lanes<T>(part + k, sum);
    add_lanes<T>(part + b.Kp + k, product);
  });
}

// part[0, k] += sum u_bar_dot, part[1, k] += sum u_bar_dot*(z - mean), part[2, k] += sum u_bar*(z_dot - z_dot_mean).
template <class T>
static void reduce_row_dot(const Block& b, const T* y_bar, const T* y_bar_dot, const unsigned char* code, const T* z, const T* mean,
                           const T* z_dot, const T* z_dot_mean, double* part) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    const Vec<T> m = load(mean + k), m_dot = load(z_dot_mean + k);
    Vec<T> sum{}, product{}, product_dot{};
    for (int64_t q = 0; q < b.w; ++q) {
      const Mask<T> c = load_code<T, F>(code + q * b.K + k, lanes);
      const Vec<T> u_bar = if_active<T>(c, load<T, F>(y_bar + q * b.K + k, lanes));
      const Window<T, F> window_dot(z_dot, b.W * b.K, b.K, q, k, lanes);
      product_dot += u_bar * (window_dot.at(c) - m_dot);
      if (y_bar_dot != nullptr) {
        const Vec<T> u_bar_dot = if_active<T>(c, load<T, F>(y_bar_dot + q * b.K + k, lanes));
        const Window<T, F> window(z, b.W * b.K, b.K, q, k, lanes);
        sum += u_bar_dot;
        product += u_bar_dot * (window.at(c) - m);
      }
    }
    add_lanes<T>(part + k, sum);
    add_lanes<T>(part + b.Kp + k, product);
    add_lanes<T>(part + 2 * b.Kp + k, product_dot);
  });
}

// Per-channel constants of z_bar = a*u_bar + b*(z - mean) + d and of its tangent z_bar_dot = a_dot*u_bar + a*u_bar_dot + b_dot*(z - mean) +
// c_dot*(z_dot - z_dot_mean) + d_dot. Rows are Kp long, the channels beyond K are 0, so that z_bar is 0 there.
template <class T>
struct ZBar {
  const T *mean, *a, *b, *d;
};
template <class T>
struct ZBarDot {
  const T *mean, *z_dot_mean, *a, *a_dot, *b, *c, *d;
};

// Rows of zeros and columns of zeros around n images of (H + 2, W + 2) pixels.
template <class T>
static void clear_border(const Images<T>& a) {
  const std::size_t row = static_cast<std::size_t>(a.cols * a.step) * sizeof(T);
  const std::size_t pixel = static_cast<std::size_t>(a.step) * sizeof(T);
  for (int64_t i = 0; i < a.n; ++i) {
    T* image = a.data + i * a.image;
    __builtin_memset(image, 0, row);
    __builtin_memset(image + (a.rows - 1) * a.pitch, 0, row);
    for (int64_t y = 1; y + 1 < a.rows; ++y) {
      __builtin_memset(image + y * a.pitch, 0, pixel);
      __builtin_memset(image + y * a.pitch + (a.cols - 1) * a.step, 0, pixel);
    }
  }
}

// The pixels of a bordered image.
template <class T>
static Images<T> interior(const Images<T>& a) {
  return {a.data + a.pitch + a.step, a.n, a.rows - 2, a.cols - 2, a.step, a.pitch, a.image};
}

// Writes (rows, cols) pixels of one image into `out`: affine(k, pixel, lanes, full) gives a pixel's value from its
// offset in z, scatter(k, q offset, code, lanes, full) what its window adds at the winner.
template <class T, class Affine, class Scatter>
HG_INLINE void form_image(const Block& b, const unsigned char* code, T* out, int64_t pitch, int64_t step, const Affine& affine,
                          const Scatter& scatter) {
  for (int64_t y = 0; y < b.H; y += 2) {
    const bool pair = y + 1 < b.H;
    const unsigned char* codes = code + y / 2 * b.w * b.K;
    for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      const auto pixel = [&](int64_t row, int64_t x) { return affine(k, (row * b.W + x) * b.K + k, lanes, full); };
      T* to = out + y * pitch + k;
      int64_t x = 0;
      if (pair)
        for (; x + 1 < b.W; x += 2) {
          const int64_t q = (x / 2) * b.K + k;
          const Mask<T> c = load_code<T, F>(codes + q, lanes);
          const Vec<T> add = scatter(k, y / 2 * b.w * b.K + q, c, lanes, full);
          const Mask<T> winner = c & 3;
          const Vec<T> zero{};
          store(to + x * step, pixel(y, x) + (winner == 0 ? add : zero));
          store(to + (x + 1) * step, pixel(y, x + 1) + (winner == 1 ? add : zero));
          store(to + pitch + x * step, pixel(y + 1, x) + (winner == 2 ? add : zero));
          store(to + pitch + (x + 1) * step, pixel(y + 1, x + 1) + (winner == 3 ? add : zero));
        }
      for (; x < b.W; ++x) {
        store(to + x * step, pixel(y, x));
        if (pair) store(to + pitch + x * step, pixel(y + 1, x));
      }
    });
  }
}

template <class T>
static void form_z_bar(const Block& b, const ZBar<T>& s, const T* y_bar, const unsigned char* code, const T* z, const Images<T>& out,
                       int64_t image) {
  form_image<T>(
      b, code, out.data + image * out.image, out.pitch, out.step,
      [&](int64_t k, int64_t at, int lanes, auto full) {
        constexpr bool F = decltype(full)::value;
        return (load<T, F>(z + at, lanes) - load(s.mean + k)) * load(s.b + k) + load(s.d + k);
      },
      [&](int64_t k, int64_t at, const Mask<T>& c, int lanes, auto full) {
        constexpr bool F = decltype(full)::value;
        return if_active<T>(c, load<T, F>(y_bar + at, lanes) * load(s.a + k));
      });
}

// y_bar_dot may be null.
template <class T>
static void form_z_bar_dot(const Block& b, const ZBarDot<T>& s, const T* y_bar, const T* y_bar_dot, const unsigned char* code, const T* z,
                           const T* z_dot, const Images<T>& out, int64_t image) {
  form_image<T>(
      b, code, out.data + image * out.image, out.pitch, out.step,
      [&](int64_t k, int64_t at, int lanes, auto full) {
        constexpr bool F = decltype(full)::value;
        return (load<T, F>(z + at, lanes) - load(s.mean + k)) * load(s.b + k) +
               (load<T, F>(z_dot + at, lanes) - load(s.z_dot_mean + k)) * load(s.c + k) + load(s.d + k);
      },
      [&](int64_t k, int64_t at, const Mask<T>& c, int lanes, auto full) {
        constexpr bool F = decltype(full)::value;
        Vec<T> add = load<T, F>(y_bar + at, lanes) * load(s.a_dot + k);
        if (y_bar_dot != nullptr) add += load<T, F>(y_bar_dot + at, lanes) * load(s.a + k);
        return if_active<T>(c, add);
      });
}

// sums[i, k] = sum over an entry's parts of part[i, k], in order; parts and sums have `rows` rows of Kp.
static inline void merge_sums(const Block& b, const double* parts, int64_t entry, int64_t rows, double* sums) {
  const int64_t size = rows * b.Kp;
  __builtin_memset(sums, 0, static_cast<std::size_t>(size) * sizeof(double));
  for (int64_t chunk = 0; chunk < b.chunks; ++chunk)
    for (int64_t i = 0; i < size; ++i) sums[i] += parts[(entry * b.chunks + chunk) * size + i];
}

// Copies K values to a row of Kp, zeros after them.
template <class T>
static void pad_channels(const Block& b, const T* from, T* to) {
  for (int64_t k = 0; k < b.Kp; ++k) to[k] = k < b.K ? from[k] : T(0);
}

HG_INLINE double inverse_root(double v) { return 1.0 / __builtin_sqrt(v); }

}  // namespace hg::HG_SIMD

// The fused block (3x3 same convolution, batch normalization, ReLU, 2x2 maximum): sizes, sums and pooled passes.
//
// Notation, per episode and filter: s = rstd, xhat = s*(z - mean), u = gamma*xhat + beta; u_bar is y_bar scattered to
// the pixel that won its window, where that was positive; B = sum u_bar, G = sum u_bar*xhat; M = N*H*W pixels.
// A code holds the winner (bits 0-1: 2*dy + dx) and whether it was positive (bit 2); it is never decided again.
#pragma once
#include "winograd.h"

#include "../batch_norm.h"

namespace hg::HG_SIMD {

struct Block {
  int64_t P, E, N, H, W, C, K;
  int64_t h, w;           // pooled
  int64_t Kp;             // K rounded up to whole vectors
  int64_t chunks;         // tasks per episode
  bool winograd = false;  // whether by Winograd
  int64_t pixels() const { return N * H * W; }
  int64_t first(int64_t task) const { return first_image(task, N, chunks); }
  int64_t images(int64_t task) const { return first(task + 1) - first(task); }
  int64_t taps() const { return 9 * C; }
};

// What a kernel leaves to Winograd's algorithm, where its sizes are right for that: nothing, its convolutions, or the sums of the
// block on data.
enum class ByWinograd { nothing, convolutions, first_sums };
template <class T, class S, ByWinograd kWhat = ByWinograd::nothing>
static Block block_of(const Call& call) {
  Block b{HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(N), HG_DIM(H), HG_DIM(W), HG_DIM(C), HG_DIM_IF_ANY(K), 0, 0, 0, 0};
  if (kWhat == ByWinograd::convolutions) b.winograd = by_winograd<T>(b.pixels(), b.C, b.K);
  if (kWhat == ByWinograd::first_sums)
    b.winograd = HG_VECTOR_BYTES != 64 && b.C == kFewChannels && by_winograd<T>(b.pixels(), kWinogradUnit, b.K);
  b.h = b.H / 2;
  b.w = b.W / 2;
  b.Kp = round_up(b.K, kLanes<T>);
  b.chunks = tasks_of(b.E, b.N, b.H * b.W, b.winograd ? kWinogradTask : kTaskPixels);
  return b;
}

struct BlockTask {
  int64_t batch, first, n;  // batch entry (an episode, or direction times episodes), images [first, first + n)
};
HG_INLINE BlockTask task_of(const Block& b, int64_t index) {
  const int64_t own = index % b.chunks;
  return {index / b.chunks, b.first(own), b.images(own)};
}

// Images [first, first + n) of one batch entry.
template <class T>
HG_INLINE T* images_at(T* entry, int64_t first, int64_t rows, int64_t cols, int64_t channels) {
  return entry + first * rows * cols * channels;
}

// x of a task with a border of one pixel, minus shift[c] where given. A vector may be read from where any pixel begins.
template <class T>
static Images<T> padded_input(const Block& b, const T* x, const BlockTask& t, int slot, const T* shift = nullptr) {
  const Images<T> out = dense(scratch_of<T>(slot, t.n * (b.H + 2) * (b.W + 2) * b.C + kLanes<T>), t.n, b.H + 2, b.W + 2, b.C);
  pad_images(dense(images_at(x, t.first, b.H, b.W, b.C), t.n, b.H, b.W, b.C), b.C, int64_t(1), int64_t(1), out, shift);
  return out;
}

// Filters as the convolutions read them, of some episodes from `first` on; shared ones (stride 0 along both axes) are there once.
template <class T>
struct FilterBank {
  const T* data = nullptr;
  int64_t size = 0, along_p = 1, along_e = 1, first = 0;
  const T* at(int64_t p, int64_t e) const { return data + ((along_p == 1 ? 0 : p) * along_e + (along_e == 1 ? 0 : e - first)) * size; }
  const T* at(int64_t e) const { return at(0, e); }
  explicit operator bool() const { return data != nullptr; }
};
template <class T>
static int64_t bank_size(const Block& b, bool backward) {
  return b.winograd ? winograd_filters_size(b.C, b.K, backward) : packed_size<T>(3, 3 * (backward ? b.Kp : b.C), backward ? b.C : b.K);
}
// Those of `count` episodes, in each of P directions.
template <class T>
static FilterBank<T> pack_bank(const Block& b, const Batch<const T>& w, int64_t P, int64_t first, int64_t count, bool backward, int slot) {
  FilterBank<T> bank;
  if (!w) return bank;
  bank.along_p = w.stride_0 == 0 ? lower(1, P) : P;
  bank.along_e = w.stride_1 == 0 ? lower(1, count) : count;
  bank.first = first;
  bank.size = bank_size<T>(b, backward);
  const int64_t entries = bank.along_p * bank.along_e;
  T* const out = scratch_of<T>(slot, entries * bank.size + 1);
  parallel_for(entries, [&](int64_t i) {
    const T* const from = w.at(i / bank.along_e, first + i % bank.along_e);
    T* const to = out + i * bank.size;
    if constexpr (std::is_same_v<T, float>) {
      if (b.winograd) return winograd_filters(from, b.C, b.K, backward, b.H, b.W, to);
    }
    if (backward)
      pack_backward(from, int64_t(3), int64_t(3), b.C, b.K, b.Kp, to);
    else
      pack_forward(from, int64_t(3), int64_t(3), b.C, b.K, to);
  });
  bank.data = out;
  return bank;
}

constexpr int64_t kBankBytes = 2 << 20;  // of filters that are ready at once, where that leaves enough tasks
// The banks that each episode adds: none where all share their filters.
template <class T>
static int64_t banks_of(const Batch<const T>& w, int64_t P) {
  return w && w.stride_1 != 0 ? P : 0;
}
// f(first, count) for groups of episodes, each of which adds so many banks.
template <class T, class F>
static void for_banks(const Block& b, int64_t banks, bool backward, const F& f) {
  const int64_t bytes = banks * bank_size<T>(b, backward) * static_cast<int64_t>(sizeof(T));
  const int64_t group = higher(ceil_div(thread_count(), higher(1, b.chunks)), kBankBytes / higher(1, bytes));
  for (int64_t first = 0; first < b.E; first += group) f(first, lower(group, b.E - first));
}
// body(index) for the tasks of some episodes, in each of P directions.
template <class Body>
static void for_tasks(const Block& b, int64_t P, int64_t first, int64_t count, const Body& body) {
  const int64_t of_each = count * b.chunks;
  parallel_for(P * of_each, [&](int64_t i) { body((i / of_each * b.E + first) * b.chunks + i % of_each); });
}

// The pixels of bordered images.
template <class T>
static Images<T> interior(const Images<T>& a) {
  return {a.data + a.pitch + a.step, a.n, a.rows - 2, a.cols - 2, a.step, a.pitch, a.image};
}

// Images of a task as its convolutions read them: with `margin` pixels of zeros around them, one where they are done directly.
template <class T>
struct Input {
  Images<const T> images;
  int64_t margin;
  explicit Input(const Images<T>& bordered) : images(interior(as_const(bordered))), margin(1) {}
  Input(const Block& b, const T* x, const BlockTask& t, int slot)
      : images(dense(images_at(x, t.first, b.H, b.W, b.C), t.n, b.H, b.W, b.C)), margin(b.winograd ? 0 : 1) {
    if (!b.winograd) images = interior(as_const(padded_input(b, x, t, slot)));
  }
  Images<const T> bordered() const {
    return {images.data - images.pitch - images.step, images.n, images.rows + 2, images.cols + 2, images.step, images.pitch, images.image};
  }
};

// One term of a convolution: images and their filters, from a bank.
template <class T>
struct Term {
  Input<T> input;
  const T* filters;
};
// out = the sum of one or two terms; `backward`: their gradients by the input.
template <class T>
static void convolve(const Block& b, const Term<T>& first, const Term<T>* second, bool backward, const Images<T>& out) {
  if constexpr (std::is_same_v<T, float>) {
    if (b.winograd) {
      const Term<T>& other = second != nullptr ? *second : first;
      const WinogradTerm terms[2] = {{{first.input.images, first.input.margin}, first.filters},
                                     {{other.input.images, other.input.margin}, other.filters}};
      return winograd_images(terms, second != nullptr ? 2 : 1, backward, out);
    }
  }
  const auto direct = [&](const Term<T>& term, bool add) {
    const Packed<T> filters{term.filters, 3, 3 * term.input.images.step, backward ? b.C : b.K};
    conv_images(term.input.bordered(), filters, int64_t(1), out, add);
  };
  direct(first, false);
  if (second != nullptr) direct(*second, true);
}

// part (taps, Kp) = the gradient by the filters: the sum over one or two pairs of images and cotangents.
template <class T>
struct Pair {
  Input<T> x, z_bar;
};
template <class T>
static void convolve_filters(const Block& b, const Pair<T>& first, const Pair<T>* second, T* part) {
  if constexpr (std::is_same_v<T, float>) {
    if (b.winograd) {
      const Pair<T>& other = second != nullptr ? *second : first;
      const WinogradPair pairs[2] = {{{first.x.images, first.x.margin}, {first.z_bar.images, first.z_bar.margin}},
                                     {{other.x.images, other.x.margin}, {other.z_bar.images, other.z_bar.margin}}};
      return winograd_wgrad(pairs, second != nullptr ? 2 : 1, part);
    }
  }
  __builtin_memset(part, 0, static_cast<std::size_t>(b.taps() * b.Kp) * sizeof(T));
  for (const Pair<T>* pair : {&first, second})
    if (pair != nullptr) wgrad_images(pair->x.bordered(), pair->z_bar.images, int64_t(3), 3 * b.C, int64_t(1), part);
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

// The maximum of a window's four u (ties: first), ReLU and code. A NaN stays a NaN and counts as positive, as in the composed ops.
template <class T>
struct Pooled {
  Vec<T> y;
  Mask<T> code;
};
template <class T>
HG_INLINE Pooled<T> pool(const Vec<T>* u) {
  Vec<T> best = u[0];
  Mask<T> winner{};
  for (int i = 1; i < 4; ++i) {
    const Mask<T> better = u[i] > best;
    best = better ? u[i] : best;
    winner = better ? Mask<T>{} + i : winner;
  }
  const Mask<T> off = best <= Vec<T>{};
  return {off ? Vec<T>{} : best, winner | (~off & 4)};
}

// One pooled row of the value: u = (z - mean)*scale + shift, pooled.
template <class T>
static void pool_row(const T* rows, int64_t pitch, int64_t step, int64_t w, int64_t K, const T* mean, const T* scale, const T* shift, T* y,
                     unsigned char* code) {
  for_channels<T>(K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    const Vec<T> m = load(mean + k), a = load(scale + k), b = load(shift + k);
    for (int64_t q = 0; q < w; ++q) {
      const Window<T, F> z(rows, pitch, step, q, k, lanes);
      Vec<T> u[4];
      for (int i = 0; i < 4; ++i) u[i] = (z.v[i] - m) * a + b;
      const Pooled<T> pooled = pool<T>(u);
      store<T, F>(y + q * K + k, pooled.y, lanes);
      store_code<T, F>(code + q * K + k, pooled.code, lanes);
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

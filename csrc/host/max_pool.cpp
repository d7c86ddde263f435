// max_pool: the maximum of size x size windows, its place in the window as a code; and, at stored codes, the gather
// (jvp) and the scatter (vjp), which are linear. A task owns one row of windows and, in the scatter, the pixel rows
// under it, the last task of an image those that no window covers too.
#include "../registry.h"

// Axes: P directions, E images, H x W pixels, Q x R windows, K channels. A code is the winner's place in its window, row by row.
HG_SIGNATURE(max_pool_value, "x=E|HWK -> y=E|QRK code:u8=E|QRK", "size:1..16", "Q=H/size R=W/size")
HG_SIGNATURE(max_pool_jvp, "x_dot=PE|HWK code:u8=E|QRK -> y_dot=PE|QRK", "size:1..16", "Q=H/size R=W/size")
HG_SIGNATURE(max_pool_vjp, "y_bar=PE|QRK code:u8=E|QRK -> x_bar=PE|HWK", "size:1..16", "Q=H/size R=W/size")

#ifdef HG_SIMD
#include "simd.h"

namespace hg::HG_SIMD {
namespace {

struct Pool {
  int64_t P, E, H, W, K, Q, R, size;
};

template <class S>
Pool pool_of(const Call& call) {
  return {HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(H), HG_DIM(W), HG_DIM(K), HG_DIM(Q), HG_DIM(R), HG_INTEGER(size)};
}

// body(lanes, full, pixel, window): every vector of channels of every window of a row; `pixel` and `window` are
// the offsets of the window's first pixel and of its result.
template <class T, class Body>
HG_INLINE void each_window(const Pool& p, int64_t q, const Body& body) {
  for_channels<T>(p.K, [&](int64_t k, int lanes, auto full) {
    for (int64_t r = 0; r < p.R; ++r) body(lanes, full, (q * p.size * p.W + r * p.size) * p.K + k, (q * p.R + r) * p.K + k);
  });
}

template <class T>
void value_row(const Pool& p, int64_t q, const T* x, T* y, unsigned char* code) {
  each_window<T>(p, q, [&](int lanes, auto full, int64_t pixel, int64_t window) {
    constexpr bool F = decltype(full)::value;
    Vec<T> best = load<T, F>(x + pixel, lanes);
    Mask<T> winner{};
    for (int64_t i = 1; i < p.size * p.size; ++i) {
      const Vec<T> v = load<T, F>(x + pixel + (i / p.size * p.W + i % p.size) * p.K, lanes);
      const Mask<T> better = (v > best) | ((v != v) & (best == best));  // the first NaN wins, as in NumPy
      best = better ? v : best;
      winner = better ? Mask<T>{} + static_cast<typename Lane<T>::integer>(i) : winner;
    }
    store<T, F>(y + window, best, lanes);
    store_code<T, F>(code + window, winner, lanes);
  });
}

template <class T, class S>
void value(const Call& call) {
  const Pool p = pool_of<S>(call);
  HG_ARGS(x, y, code)
  parallel_for(p.E * p.Q, [&](int64_t index) {
    const int64_t e = index / p.Q;
    value_row(p, index % p.Q, x.at(e), y.at(e), code.at(e));
  });
}

template <class T, class S>
void jvp(const Call& call) {
  const Pool p = pool_of<S>(call);
  HG_ARGS(x_dot, code, y_dot)
  parallel_for(p.P * p.E * p.Q, [&](int64_t index) {
    const int64_t pe = index / p.Q, e = pe % p.E;
    const T* const from = x_dot.at(pe / p.E, e);
    T* const to = y_dot.at(pe / p.E, e);
    each_window<T>(p, index % p.Q, [&](int lanes, auto full, int64_t pixel, int64_t window) {
      constexpr bool F = decltype(full)::value;
      const Mask<T> winner = load_code<T, F>(code.at(e) + window, lanes);
      Vec<T> sum{};
      for (int64_t i = 0; i < p.size * p.size; ++i) {
        const Vec<T> v = load<T, F>(from + pixel + (i / p.size * p.W + i % p.size) * p.K, lanes);
        sum = winner == static_cast<typename Lane<T>::integer>(i) ? v : sum;
      }
      store<T, F>(to + window, sum, lanes);
    });
  });
}

template <class T, class S>
void vjp(const Call& call) {
  const Pool p = pool_of<S>(call);
  HG_ARGS(y_bar, code, x_bar)
  const int64_t rows = higher(1, p.Q);
  parallel_for(p.P * p.E * rows, [&](int64_t index) {
    const int64_t pe = index / rows, e = pe % p.E, q = index % rows;
    const T* const from = y_bar.at(pe / p.E, e);
    T* const to = x_bar.at(pe / p.E, e);
    const int64_t row = p.W * p.K, covered = p.R * p.size * p.K;
    const int64_t first = q * p.size, last = q + 1 == rows ? p.H : first + p.size;
    for (int64_t y = first; y < last; ++y) {
      const int64_t skip = y < p.Q * p.size ? covered : 0;
      __builtin_memset(to + y * row + skip, 0, static_cast<std::size_t>(row - skip) * sizeof(T));
    }
    if (p.Q == 0) return;
    each_window<T>(p, q, [&](int lanes, auto full, int64_t pixel, int64_t window) {
      constexpr bool F = decltype(full)::value;
      const Mask<T> winner = load_code<T, F>(code.at(e) + window, lanes);
      const Vec<T> v = load<T, F>(from + window, lanes);
      for (int64_t i = 0; i < p.size * p.size; ++i)
        store<T, F>(to + pixel + (i / p.size * p.W + i % p.size) * p.K, winner == static_cast<typename Lane<T>::integer>(i) ? v : Vec<T>{},
                    lanes);
    });
  });
}

HG_KERNEL(max_pool_value, value)
HG_KERNEL(max_pool_jvp, jvp)
HG_KERNEL(max_pool_vjp, vjp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

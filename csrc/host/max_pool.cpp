// max_pool: the maximum of size x size windows, its place in the window as a code; and, at stored codes, the gather
// (jvp) and the scatter (vjp), which are linear. A task owns one row of windows and, in the scatter, the pixel rows
// under it, the last task of an image those that no window covers too.
#include "simd.h"

namespace hg {
namespace HG_SIMD {
namespace {

struct Pool {
  int64_t P, E, H, W, K, Q, R, size;
};

Pool pool_of(const Call& call) {
  const auto dim = [&](char axis) { return higher(0, call.dims[static_cast<int>(axis)]); };
  const Pool p{dim('P'), dim('E'), dim('H'), dim('W'), dim('K'), dim('Q'), dim('R'), integer_attribute(call, 0, 1, 16)};
  if (p.Q != p.H / p.size || p.R != p.W / p.size)
    fail_shape(call, "there are %lld x %lld windows, expected H//size = %lld by W//size = %lld", static_cast<long long>(p.Q),
               static_cast<long long>(p.R), static_cast<long long>(p.H / p.size), static_cast<long long>(p.W / p.size));
  return p;
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

template <class T>
void value(const Call& call) {
  const Pool p = pool_of(call);
  const auto x = batch<const T>(call, 0, 1);
  const auto y = batch<T>(call, 1, 1);
  const auto code = batch<unsigned char>(call, 2, 1);
  parallel_for(p.E * p.Q, [&](int64_t index) {
    const int64_t e = index / p.Q;
    value_row(p, index % p.Q, x.at(e), y.at(e), code.at(e));
  });
}

template <class T>
void jvp(const Call& call) {
  const Pool p = pool_of(call);
  const auto x_dot = batch<const T>(call, 0, 2);
  const auto code = batch<const unsigned char>(call, 1, 1);
  const auto y_dot = batch<T>(call, 2, 2);
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

template <class T>
void vjp(const Call& call) {
  const Pool p = pool_of(call);
  const auto y_bar = batch<const T>(call, 0, 2);
  const auto code = batch<const unsigned char>(call, 1, 1);
  const auto x_bar = batch<T>(call, 2, 2);
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

void max_pool_value(const Call& call) { call.dtype == DType::f32 ? value<float>(call) : value<double>(call); }
void max_pool_jvp(const Call& call) { call.dtype == DType::f32 ? jvp<float>(call) : jvp<double>(call); }
void max_pool_vjp(const Call& call) { call.dtype == DType::f32 ? vjp<float>(call) : vjp<double>(call); }

HG_KERNEL(max_pool_value, max_pool_value);
HG_KERNEL(max_pool_jvp, max_pool_jvp);
HG_KERNEL(max_pool_vjp, max_pool_vjp);

}  // namespace
}  // namespace HG_SIMD
}  // namespace hg

// max_pool: the maximum of size x size windows with its place as a code; the gather (jvp) and the scatter (vjp) at
// stored codes. A thread owns four neighbouring channels of one window, in the scatter of one pixel.
#include "../host/max_pool.cpp"  // its signatures

#include "launch.h"
#include "tile.h"

namespace hg::cuda {
namespace {

struct Pool {
  int64_t P, E, H, W, K, Q, R;
  int size;
  int64_t items, blocks;  // threads and blocks of an entry
  Divisor by_quads, by_cols;

  // Threads for `rows` x `cols` windows or pixels.
  Pool over(int64_t rows, int64_t cols) const {
    Pool out = *this;
    const int64_t quads = ceil_div(K, 4);
    out.items = rows * cols * quads;
    out.blocks = ceil_div(out.items, kThreads);
    out.by_quads = Divisor::of(higher<int64_t>(1, quads));
    out.by_cols = Divisor::of(higher<int64_t>(1, cols));
    return out;
  }
};

template <class S>
Pool pool_of(const Call& call) {
  Pool p{
      HG_DIM_IF_ANY(P), HG_DIM(E), HG_DIM(H), HG_DIM(W), HG_DIM(K), HG_DIM(Q), HG_DIM(R), static_cast<int>(HG_INTEGER(size)), 0, 0, {}, {}};
  if (p.K > 0 && p.W > 0 && p.H > INT32_MAX / p.K / p.W)
    fail_shape(call, "an image has %lld x %lld pixels of %lld channels, expected fewer than 2**31 elements; split it",
               static_cast<long long>(p.H), static_cast<long long>(p.W), static_cast<long long>(p.K));
  return p;
}

struct Item {
  int64_t p, e;
  int y, x, k;
  bool any;
};
HG_DEVICE Item item_of(const Pool& p) {
  const int64_t entry = blockIdx.x / p.blocks, item = blockIdx.x % p.blocks * kThreads + threadIdx.x;
  Item out{entry / p.E, entry % p.E, 0, 0, 0, item < p.items};
  int rest = static_cast<int>(out.any ? item : 0);
  out.k = 4 * p.by_quads.split(rest);
  out.x = p.by_cols.split(rest);
  out.y = rest;
  return out;
}

// The first element of pixel i of a window, and of a window's result.
HG_DEVICE int64_t pixel_offset(const Pool& p, const Item& at, int i) {
  return ((static_cast<int64_t>(at.y) * p.size + i / p.size) * p.W + static_cast<int64_t>(at.x) * p.size + i % p.size) * p.K;
}
HG_DEVICE int64_t window_offset(const Pool& p, int y, int x) { return (static_cast<int64_t>(y) * p.R + x) * p.K; }

template <class T>
__global__ void __launch_bounds__(kThreads) pool_value(const Pool p, Batch<const T> x, Batch<T> y, Batch<unsigned char> code) {
  const Item at = item_of(p);
  if (!at.any) return;
  const int K = static_cast<int>(p.K);
  const T* const from = x.at(0, at.e);
  Quad<T> best = load_quad(from + pixel_offset(p, at, 0), at.k, K, x.wide);
  Codes winner{};
  HG_NO_UNROLL
  for (int i = 1; i < p.size * p.size; ++i) {
    const Quad<T> v = load_quad(from + pixel_offset(p, at, i), at.k, K, x.wide);
    HG_UNROLL
    for (int j = 0; j < 4; ++j)
      if (v.v[j] > best.v[j] || (v.v[j] != v.v[j] && best.v[j] == best.v[j])) {  // the first NaN wins, as in NumPy
        best.v[j] = v.v[j];
        winner.v[j] = static_cast<unsigned char>(i);
      }
  }
  const int64_t to = window_offset(p, at.y, at.x);
  store_quad(y.at(0, at.e) + to, at.k, K, y.wide, best);
  store_codes(code.at(0, at.e) + to, at.k, K, code.wide, winner);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_gather(const Pool p, Batch<const T> x_dot, Batch<const unsigned char> code, Batch<T> y_dot) {
  const Item at = item_of(p);
  if (!at.any) return;
  const int K = static_cast<int>(p.K);
  const int64_t window = window_offset(p, at.y, at.x);
  const Codes winner = load_codes(code.at(0, at.e) + window, at.k, K, code.wide);
  Quad<T> out{};
  HG_UNROLL
  for (int j = 0; j < 4; ++j)
    if (at.k + j < K) out.v[j] = x_dot.at(at.p, at.e)[pixel_offset(p, at, winner.v[j]) + at.k + j];
  store_quad(y_dot.at(at.p, at.e) + window, at.k, K, y_dot.wide, out);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_scatter(const Pool p, Batch<const T> y_bar, Batch<const unsigned char> code, Batch<T> x_bar) {
  const Item at = item_of(p);
  if (!at.any) return;
  const int K = static_cast<int>(p.K), y = at.y / p.size, x = at.x / p.size;
  Quad<T> out{};
  if (y < p.Q && x < p.R) {
    const int mine = at.y % p.size * p.size + at.x % p.size;
    const int64_t window = window_offset(p, y, x);
    const Codes winner = load_codes(code.at(0, at.e) + window, at.k, K, code.wide);
    const Quad<T> bar = load_quad(y_bar.at(at.p, at.e) + window, at.k, K, y_bar.wide);
    HG_UNROLL
    for (int j = 0; j < 4; ++j) out.v[j] = winner.v[j] == mine ? bar.v[j] : T(0);
  }
  store_quad(x_bar.at(at.p, at.e) + (at.y * p.W + at.x) * p.K, at.k, K, x_bar.wide, out);
}

template <class T, class S>
void value(const Call& call) {
  HG_ARGS(x, y, code)
  const Pool shape = pool_of<S>(call), p = shape.over(shape.Q, shape.R);
  const Launch launch(call);
  launch("pool_value", pool_value<T>, p.E * p.blocks, kThreads, 0, p, x, y, code);
}

template <class T, class S>
void jvp(const Call& call) {
  HG_ARGS(x_dot, code, y_dot)
  const Pool shape = pool_of<S>(call), p = shape.over(shape.Q, shape.R);
  const Launch launch(call);
  launch("pool_gather", pool_gather<T>, p.P * p.E * p.blocks, kThreads, 0, p, x_dot, code, y_dot);
}

template <class T, class S>
void vjp(const Call& call) {
  HG_ARGS(y_bar, code, x_bar)
  const Pool shape = pool_of<S>(call), p = shape.over(shape.H, shape.W);
  const Launch launch(call);
  launch("pool_scatter", pool_scatter<T>, p.P * p.E * p.blocks, kThreads, 0, p, y_bar, code, x_bar);
}

HG_KERNEL(max_pool_value, value)
HG_KERNEL(max_pool_jvp, jvp)
HG_KERNEL(max_pool_vjp, vjp)

}  // namespace
}  // namespace hg::cuda

// conv2d_fprop, conv2d_dgrad, conv2d_wgrad: 3x3 filters with stride 1 and pad 1 take the tiles of the fused block,
// every other geometry a plain kernel in which each thread owns one output element (wgrad: of one partial sum).
#include "../host/conv2d.cpp"  // its signatures

#include "block.h"
#include "mma_wgrad.h"

namespace hg::cuda {
namespace {

struct Geometry {
  int64_t A, B;
  int N, H, W, C, R, S, K, P, Q, stride, pad_h, pad_w;
  bool tiled() const { return R == 3 && S == 3 && stride == 1 && pad_h == 1 && pad_w == 1; }
};

template <class S>
Geometry geometry(const Call& call) {
  const int64_t N = HG_DIM(N), H = HG_DIM(H), W = HG_DIM(W), C = HG_DIM(C), R = HG_DIM(R), S_ = HG_DIM(S), K = HG_DIM(K), P = HG_DIM(P),
                Q = HG_DIM(Q), stride = HG_INTEGER(stride), pad_h = HG_INTEGER(pad_h), pad_w = HG_INTEGER(pad_w);
  check_filter(call, H + 2 * pad_h, W + 2 * pad_w);
  const double most = INT32_MAX, images = static_cast<double>(higher<int64_t>(1, N));
  if (images * static_cast<double>(H * W) > most || images * static_cast<double>(P * Q) > most ||
      static_cast<double>(R * S_) * static_cast<double>(C) > most || static_cast<double>(higher(C, K)) > most)
    fail_shape(call, "images or filters hold more pixels than kernels count in 32 bits; split the call");
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  return {HG_DIM(A), HG_DIM(B), i(N), i(H), i(W), i(C), i(R), i(S_), i(K), i(P), i(Q), i(stride), i(pad_h), i(pad_w)};
}

// Which element of which entry a thread of a plain kernel owns: entries * size elements, kThreads a block.
struct Owner {
  int64_t entry, index;
  bool any;
};
HG_DEVICE Owner owner_of(int64_t size) {
  const int64_t blocks = (size + kThreads - 1) / kThreads, index = blockIdx.x % blocks * kThreads + threadIdx.x;
  return {static_cast<int64_t>(blockIdx.x) / blocks, index, index < size};
}

template <class T>
__global__ void __launch_bounds__(kThreads) plain_fprop(const Geometry g, Batch<const T> x, Batch<const T> w, Batch<T> y) {
  const Owner own = owner_of(static_cast<int64_t>(g.N) * g.P * g.Q * g.K);
  if (!own.any) return;
  const int64_t a = own.entry / g.B, b = own.entry % g.B;
  const int k = static_cast<int>(own.index % g.K);
  const int pixel = static_cast<int>(own.index / g.K), q = pixel % g.Q, p = pixel / g.Q % g.P, n = pixel / g.Q / g.P;
  const T* const images = x.at(a, b) + static_cast<int64_t>(n) * g.H * g.W * g.C;
  const T* const filter = w.at(a, b) + k;
  T sum = T(0);
  for (int r = 0; r < g.R; ++r) {
    const int h = p * g.stride + r - g.pad_h;
    if (h < 0 || h >= g.H) continue;
    for (int s = 0; s < g.S; ++s) {
      const int v = q * g.stride + s - g.pad_w;
      if (v < 0 || v >= g.W) continue;
      const T* const from = images + (static_cast<int64_t>(h) * g.W + v) * g.C;
      const T* const weights = filter + static_cast<int64_t>(r * g.S + s) * g.C * g.K;
      for (int c = 0; c < g.C; ++c) sum = fused(from[c], weights[static_cast<int64_t>(c) * g.K], sum);
    }
  }
  y.at(a, b)[own.index] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) plain_dgrad(const Geometry g, Batch<const T> y_bar, Batch<const T> w, Batch<T> x_bar) {
  const Owner own = owner_of(static_cast<int64_t>(g.N) * g.H * g.W * g.C);
  if (!own.any) return;
  const int64_t a = own.entry / g.B, b = own.entry % g.B;
  const int c = static_cast<int>(own.index % g.C);
  const int pixel = static_cast<int>(own.index / g.C), v = pixel % g.W, h = pixel / g.W % g.H, n = pixel / g.W / g.H;
  const T* const images = y_bar.at(a, b) + static_cast<int64_t>(n) * g.P * g.Q * g.K;
  T sum = T(0);
  for (int r = 0; r < g.R; ++r) {
    const int down = h + g.pad_h - r, p = down / g.stride;
    if (down < 0 || down % g.stride != 0 || p >= g.P) continue;
    for (int s = 0; s < g.S; ++s) {
      const int across = v + g.pad_w - s, q = across / g.stride;
      if (across < 0 || across % g.stride != 0 || q >= g.Q) continue;
      const T* const from = images + (static_cast<int64_t>(p) * g.Q + q) * g.K;
      const T* const weights = w.at(a, b) + (static_cast<int64_t>(r * g.S + s) * g.C + c) * g.K;
      for (int k = 0; k < g.K; ++k) sum = fused(from[k], weights[k], sum);
    }
  }
  x_bar.at(a, b)[own.index] = sum;
}

// parts[entry][part][R][S][C][K]: a part is a run of output pixels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    plain_wgrad(const Geometry g, Batch<const T> x, Batch<const T> y_bar, int n_parts, int per_part, T* parts) {
  const int64_t size = static_cast<int64_t>(g.R) * g.S * g.C * g.K;
  const Owner own = owner_of(size);
  if (!own.any) return;
  const int part = static_cast<int>(own.entry % n_parts);
  const int64_t entry = own.entry / n_parts, a = entry / g.B, b = entry % g.B;
  const int k = static_cast<int>(own.index % g.K);
  const int row = static_cast<int>(own.index / g.K), c = row % g.C, s = row / g.C % g.S, r = row / g.C / g.S;
  const T* const images = x.at(a, b);
  const T* const bars = y_bar.at(a, b);
  T sum = T(0);
  for (int i = part * per_part; i < lower(g.N * g.P * g.Q, (part + 1) * per_part); ++i) {
    const int q = i % g.Q, p = i / g.Q % g.P, n = i / g.Q / g.P;
    const int h = p * g.stride + r - g.pad_h, v = q * g.stride + s - g.pad_w;
    if (h < 0 || h >= g.H || v < 0 || v >= g.W) continue;
    sum = fused(images[((static_cast<int64_t>(n) * g.H + h) * g.W + v) * g.C + c], bars[static_cast<int64_t>(i) * g.K + k], sum);
  }
  parts[own.entry * size + own.index] = sum;
}

template <class T, class S>
void fprop(const Call& call) {
  const Geometry g = geometry<S>(call);
  HG_ARGS(x, w, y)
  Launch launch(call);
  if (!g.tiled()) {
    const int64_t size = static_cast<int64_t>(g.N) * g.P * g.Q * g.K;
    launch("plain_fprop", plain_fprop<T>, g.A * g.B * ceil_div(size, kThreads), kThreads, 0, g, x, w, y);
    return;
  }
  auto conv = convolution<T, Images<T>>(precision_of<T>(HG_INTEGER(precision), g.C), g.A * g.B, g.B, g.N, g.H, g.W, g.C, g.K);
  conv.add({x, {}, g.H, g.W, g.C}, {w, g.C, g.K, false});
  launch_precise(launch, "conv_store", conv, g.A * g.B, Store<T>{y, g.H, g.W, g.K});
}

template <class T, class S>
void dgrad(const Call& call) {
  const Geometry g = geometry<S>(call);
  HG_ARGS(y_bar, w, x_bar)
  Launch launch(call);
  if (!g.tiled()) {
    const int64_t size = static_cast<int64_t>(g.N) * g.H * g.W * g.C;
    launch("plain_dgrad", plain_dgrad<T>, g.A * g.B * ceil_div(size, kThreads), kThreads, 0, g, y_bar, w, x_bar);
    return;
  }
  auto conv = convolution<T, Images<T>>(precision_of<T>(HG_INTEGER(precision), g.C), g.A * g.B, g.B, g.N, g.H, g.W, g.K, g.C);
  conv.add({y_bar, {}, g.H, g.W, g.K}, {w, g.C, g.K, true});
  launch_precise(launch, "conv_store", conv, g.A * g.B, Store<T>{x_bar, g.H, g.W, g.C});
}

template <class T, class S>
void wgrad_of(const Call& call) {
  constexpr int kPart = 512;  // pixels added in T
  const Geometry g = geometry<S>(call);
  HG_ARGS(x, y_bar, w_bar)
  Launch launch(call);
  const int64_t entries = g.A * g.B;
  if (!g.tiled()) {
    const int64_t size = static_cast<int64_t>(g.R) * g.S * g.C * g.K;
    const int64_t n_parts = ceil_div(static_cast<int64_t>(g.N) * g.P * g.Q, kPart);
    T* const parts = launch.scratch<T>(entries * n_parts * size);
    launch("plain_wgrad", plain_wgrad<T>, entries * n_parts * ceil_div(size, kThreads), kThreads, 0, g, x, y_bar, static_cast<int>(n_parts),
           kPart, parts);
    launch_sum_parts(launch, parts, n_parts, size, entries, g.B, w_bar);
    return;
  }
  auto weights = wgrad<T, Images<T>>(precision_of<T>(HG_INTEGER(precision), g.C), entries, g.B, g.N, g.H, g.W, g.C, g.K);
  weights.add({x, {}, g.H, g.W, g.C}, {y_bar, {}, g.H, g.W, g.K});
  const T* const parts = launch_precise(launch, weights, entries);
  launch_sum_parts(launch, parts, weights.parts(), weights.size(), entries, g.B, w_bar);
}

HG_KERNEL(conv2d_fprop, fprop)
HG_KERNEL(conv2d_dgrad, dgrad)
HG_KERNEL(conv2d_wgrad, wgrad_of)

}  // namespace
}  // namespace hg::cuda

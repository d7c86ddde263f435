// conv_bn_relu_pool_first_vjp and _first_vjp_jvp: sums over the winners only, closed with Cov.
//   U = sum u_bar*(patch - m);  G = s*w.U;  w_bar = gamma*s*(U - G*s*Cov w)
//   U_dot = sum u_bar_dot*(patch - m);  G_dot = s*(w.U_dot + w_dot.U - c*G);  c = s*w_dot'Cov w;  s_dot = -s*s*c
//   w_bar_dot = (gamma_dot*s + gamma*s_dot)*(U - G*s*Cov w)
//               + gamma*s*(U_dot - G_dot*s*Cov w - G*(s_dot*Cov w + s*Cov w_dot))
#include "../host/conv_bn_relu_pool_first_vjp.cpp"  // its signatures

#include "first.h"

namespace hg::cuda {
namespace {

constexpr int kGatherThreads = 128, kGatherWarps = kGatherThreads / 32;
constexpr int kGatherWindows = 256;  // 64 per warp are added in T

// parts[entry][part][9C + 1][K]: U, then B, of y_bar's E entries, then of those of y_bar_dot. A lane owns a filter, a warp every
// kGatherWarps-th window, and CC channels of the patch at its winner. Pixels are less the mean of their channel; the rest of m follows in
// double.
template <class T, int CC>
__global__ void __launch_bounds__(kGatherThreads)
    gather_winners(const Block b, const Tiling t, Batch<const T> y_bar, Batch<const T> y_bar_dot, Batch<const unsigned char> code,
                   Batch<const T> x, Batch<const T> patch_mean, T* parts) {
  SharedMemory shared;
  T* const pixels = shared.take<T>(t.plane * CC);
  T* const sums = shared.take<T>(kGatherWarps * (9 * CC + 1) * 32);
  const int tiles = t.count, chunks = higher(1, b.C / CC), filter_tiles = (b.K + kFilters - 1) / kFilters;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int block = static_cast<int>(blockIdx.x);
  const int part = block % tiles;
  block /= tiles;
  const int c0 = block % chunks * CC, k = block / chunks % filter_tiles * kFilters + lane;
  const int entry = block / chunks / filter_tiles;
  const int64_t p = entry / b.E, e = entry % b.E;
  const T* const bars = p == 0 ? y_bar.at(0, e) : y_bar_dot.at(p - 1, e);
  const Place at = place_of(t, part);
  for (int i = thread; i < at.images * t.height * t.width; i += kGatherThreads) {
    int rest = i;
    const int col = at.x + t.by_width.split(rest) - 1, row = at.y + t.by_height.split(rest) - 1;
    const bool inside = row >= 0 && row < b.H && col >= 0 && col < b.W;
    const T* const from = x.at(0, e) + ((static_cast<int64_t>(at.image + rest) * b.H + row) * b.W + col) * b.C + c0;
    HG_UNROLL
    for (int c = 0; c < CC && c0 + c < b.C; ++c) pixels[i * CC + c] = (inside ? from[c] : T(0)) - patch_mean.at(0, e)[4 * b.C + c0 + c];
  }
  __syncthreads();
  T total[9 * CC + 1] = {};
  const int count = k < b.K ? at.images * t.rows * t.cols : 0;
  // Loads of a few windows wait for memory together; what is added, and in which order, does not depend on that.
  constexpr int kAtOnce = 4;
  HG_NO_UNROLL
  for (int i0 = warp; i0 < count; i0 += kAtOnce * kGatherWarps) {
    int winner[kAtOnce], corner[kAtOnce];
    T bar[kAtOnce];
    HG_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      const Window own = window_of(t, at, i0 + j * kGatherWarps);
      const bool whole = i0 + j * kGatherWarps < count && own.whole(at);
      const int64_t pooled = ((static_cast<int64_t>(at.image + own.image) * b.h + (at.y + own.y) / 2) * b.w + (at.x + own.x) / 2) * b.K + k;
      const int64_t window = whole ? pooled : 0;
      winner[j] = whole ? code.at(0, e)[window] : 0;
      bar[j] = bars[window];
      corner[j] = (own.image * t.height + own.y) * t.width + own.x;
    }
    HG_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      if ((winner[j] & 4) == 0) continue;
      const T* const patch = pixels + (corner[j] + (winner[j] >> 1 & 1) * t.width + (winner[j] & 1)) * CC;
      HG_UNROLL
      for (int r = 0; r < 3; ++r) HG_UNROLL
      for (int n = 0; n < 3 * CC; ++n) total[r * 3 * CC + n] = fused(bar[j], patch[r * t.width * CC + n], total[r * 3 * CC + n]);
      total[9 * CC] += bar[j];
    }
  }
  HG_UNROLL
  for (int j = 0; j < 9 * CC + 1; ++j) sums[(warp * (9 * CC + 1) + j) * 32 + lane] = total[j];
  __syncthreads();
  if (k >= b.K) return;
  T* const out = parts + (static_cast<int64_t>(entry) * tiles + part) * (9 * b.C + 1) * b.K + k;
  for (int j = warp; j < 9 * CC + 1; j += kGatherWarps) {
    if (j == 9 * CC ? c0 != 0 : c0 + j % CC >= b.C) continue;
    T sum = T(0);
    HG_UNROLL
    for (int i = 0; i < kGatherWarps; ++i) sum += sums[(i * (9 * CC + 1) + j) * 32 + lane];
    const int tap = j / CC;
    out[static_cast<int64_t>(j == 9 * CC ? 9 * b.C : tap * b.C + c0 + j % CC) * b.K] = sum;
  }
}

// What `gather` leaves: parts, or their sums in double.
template <class T>
struct Gathered {
  const T* parts;
  const double* merged;  // null where there are few parts
  int n_parts;
  HG_DEVICE double at(int64_t i) const { return merged != nullptr ? merged[i] : static_cast<double>(parts[i]); }
};

constexpr int64_t kMostParts = 64;  // that one block closes

// merged[entry][9C + 1][K]: a block owns a row and 32 filters, a slice every kSlices-th part.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_parts(const Block b, const T* parts, int n_parts, double* merged) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kThreads);
  const int filter_tiles = (b.K + kFilters - 1) / kFilters, rows = 9 * b.C + 1, block = static_cast<int>(blockIdx.x) / filter_tiles;
  const int64_t size = static_cast<int64_t>(rows) * b.K, entry = block / rows, row = block % rows;
  const int k = static_cast<int>(blockIdx.x) % filter_tiles * kFilters + static_cast<int>(threadIdx.x) % 32;
  const T* const from = parts + entry * n_parts * size + row * b.K + lower(k, b.K - 1);
  double own = 0;
  HG_UNROLL_BY(8)
  for (int part = static_cast<int>(threadIdx.x) / 32; part < n_parts; part += kSlices) own += static_cast<double>(from[part * size]);
  const double total = slice_sum(own, sums);
  if (threadIdx.x < 32 && k < b.K) merged[entry * size + row * b.K + k] = total;
}

// Launches the partial sums of y_bar and, where there is one, of y_bar_dot for P directions.
template <class T>
Gathered<T> gather(Launch& launch, const Block& b, int64_t P, const Batch<const T>& y_bar, const Batch<const T>& y_bar_dot,
                   const Batch<const unsigned char>& code, const Batch<const T>& x, const Batch<const T>& patch_mean) {
  const int chunk = b.C > 0 && b.C % 3 == 0 ? 3 : 1;
  const std::size_t sums_bytes = shared_size(static_cast<std::size_t>(kGatherWarps * (9 * chunk + 1) * 32) * sizeof(T));
  const int most = static_cast<int>((kSharedLimit - sums_bytes) / (static_cast<std::size_t>(chunk) * sizeof(T)));
  const Tiling t = choose_tiling(b.windows() == 0 ? 0 : b.N, b.H, b.W, kGatherWindows, most);
  const int64_t entries = (y_bar_dot ? P + 1 : 1) * b.E, chunks = higher(1, b.C / chunk), size = (9 * static_cast<int64_t>(b.C) + 1) * b.K;
  T* const parts = launch.scratch<T>(entries * t.tiles() * size);
  const std::size_t shared = shared_size(static_cast<std::size_t>(t.plane * chunk) * sizeof(T)) + sums_bytes;
  launch("gather_winners", chunk == 3 ? gather_winners<T, 3> : gather_winners<T, 1>, entries * b.filter_tiles() * chunks * t.tiles(),
         kGatherThreads, shared, b, t, y_bar, y_bar_dot, code, x, patch_mean, parts);
  if (t.tiles() <= kMostParts) return {parts, nullptr, static_cast<int>(t.tiles())};
  double* const merged = launch.scratch<double>(entries * size);
  launch("merge_parts", merge_parts<T>, entries * (9 * static_cast<int64_t>(b.C) + 1) * b.filter_tiles(), kThreads,
         shared_size(kThreads * sizeof(double)), b, static_cast<const T*>(parts), static_cast<int>(t.tiles()), merged);
  return {nullptr, merged, 1};
}

// out[j*K] = U of the column's filter for the thread's own taps j, parts added in double, in order. Returns B.
template <class T>
HG_DEVICE double close_gather(const Block& b, const Column& v, const Gathered<T>& from, int64_t entry, const T* patch_mean, double* out,
                              double* memory) {
  const int64_t g = 9 * static_cast<int64_t>(b.C), size = (g + 1) * b.K;
  const int64_t first = entry * from.n_parts * size + v.inside;
  double own = 0;
  for (int part = v.slice; part < from.n_parts; part += kSlices) own += from.at(first + part * size + g * b.K);
  const double B = slice_sum(own, memory);
  if (!v.any) return B;
  constexpr int kAtOnce = 4;  // taps whose loads wait for memory together
  HG_NO_UNROLL
  for (int64_t j0 = v.slice; j0 < g; j0 += kAtOnce * kSlices) {
    double total[kAtOnce] = {};
    HG_UNROLL_BY(4)
    for (int part = 0; part < from.n_parts; ++part) HG_UNROLL
    for (int n = 0; n < kAtOnce; ++n) total[n] += from.at(first + part * size + lower(j0 + n * kSlices, g - 1) * b.K);
    HG_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const int64_t j = j0 + n * kSlices;
      if (j < g) out[j * b.K] = total[n] - B * (static_cast<double>(patch_mean[j]) - static_cast<double>(patch_mean[4 * b.C + j % b.C]));
    }
  }
  return B;
}

template <class T>
struct First {
  Batch<const T> rstd, w, gamma, w_dot, gamma_dot, patch_mean, patch_cov;
  Batch<T> w_bar, gamma_bar, beta_bar;  // or their tangents
  Gathered<T> gathered;
  bool curved;   // whether y_bar has a tangent
  double* sums;  // room for [entry][2][9C][K]
};

template <class T>
__global__ void __launch_bounds__(kThreads) close_first(const Block b, const First<T> a, bool tangent) {
  SharedMemory shared;
  double* const memory = shared.take<double>(kThreads);
  const Column v = column_of(b);
  const int64_t g = 9 * static_cast<int64_t>(b.C), K = b.K;
  const T* const m = a.patch_mean.at(0, v.e);
  double* const room = a.sums + v.entry * 2 * g * K + v.inside;
  const double B = close_gather(b, v, a.gathered, v.e, m, room, memory);
  const double B_dot = tangent && a.curved ? close_gather(b, v, a.gathered, b.E + v.entry, m, room + g * K, memory) : 0.0;
  const double* const U = v.any ? room : nullptr;  // the thread's own taps
  const double* const U_dot = v.any && tangent && a.curved ? room + g * K : nullptr;
  const T* const w = a.w.at(0, v.e) + v.inside;
  const T* const w_dot = a.w_dot ? a.w_dot.at(v.p, v.e) + v.inside : nullptr;
  const CovTimes<T> cov_w{a.patch_cov.at(0, v.e), w, g, K}, cov_w_dot{a.patch_cov.at(0, v.e), w_dot, g, K};
  const auto row = [&](auto pointer) { return [=](int j) { return pointer == nullptr ? 0.0 : static_cast<double>(pointer[j * K]); }; };
  const double w_u = tap_sum(b, v, row(w), row(U), memory);
  double w_u_dot = 0, w_dot_u = 0, product = 0;
  if (tangent) {
    w_u_dot = tap_sum(b, v, row(w), row(U_dot), memory);
    w_dot_u = tap_sum(b, v, row(w_dot), row(U), memory);
    product = tap_sum(b, v, row(w_dot), cov_w, memory);
  }
  if (!v.any) return;
  const double s = static_cast<double>(a.rstd.at(0, v.e)[v.k]);
  const double gain_dot = tangent && a.gamma_dot ? static_cast<double>(a.gamma_dot.at(v.p, v.e)[v.k]) * s : 0.0;
  const FirstBar bar = first_bar(static_cast<double>(a.gamma.at(0, v.e)[v.k]), gain_dot, s, w_u, w_u_dot + w_dot_u, product);
  T* const out = a.w_bar.at(v.p, v.e) + v.k;
  for (int j = v.slice; j < g; j += kSlices) {
    const double cov = cov_w(j), u = U[j * K], rest = u - bar.G * s * cov;
    double value = bar.scale * rest;
    if (tangent)
      value = bar.scale_dot * rest +
              bar.scale * ((U_dot == nullptr ? 0.0 : U_dot[j * K]) - bar.G_dot * s * cov - bar.G * (bar.s_dot * cov + s * cov_w_dot(j)));
    out[j * K] = static_cast<T>(value);
  }
  if (v.slice != 0) return;
  a.gamma_bar.at(v.p, v.e)[v.k] = static_cast<T>(tangent ? bar.G_dot : bar.G);
  a.beta_bar.at(v.p, v.e)[v.k] = static_cast<T>(tangent ? B_dot : B);
}

template <class T>
void launch_close(Launch& launch, const Block& b, int64_t P, First<T> a, bool tangent) {
  a.sums = launch.scratch<double>(P * b.E * 2 * 9 * b.C * b.K);
  launch("close_first", close_first<T>, P * b.E * b.filter_tiles(), kThreads, shared_size(kThreads * sizeof(double)), b, a, tangent);
}

template <class T, class S>
void vjp(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(y_bar, x, code)
  First<T> a{};
  HG_MEMBERS(rstd, w, gamma, patch_mean, patch_cov, w_bar, gamma_bar, beta_bar)
  Launch launch(call);
  a.gathered = gather(launch, b, 1, y_bar, {}, code, x, a.patch_mean);
  launch_close(launch, b, 1, a, false);
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(y_bar, y_bar_dot, x, code)
  First<T> a{};
  HG_MEMBERS(rstd, w, gamma, patch_mean, patch_cov, w_dot, gamma_dot)
  a.w_bar = HG_ARG(w_bar_dot);
  a.gamma_bar = HG_ARG(gamma_bar_dot);
  a.beta_bar = HG_ARG(beta_bar_dot);
  a.curved = static_cast<bool>(y_bar_dot);
  Launch launch(call);
  a.gathered = gather(launch, b, b.P, y_bar, y_bar_dot, code, x, a.patch_mean);
  launch_close(launch, b, b.P, a, true);
}

HG_KERNEL(conv_bn_relu_pool_first_vjp, vjp)
HG_KERNEL(conv_bn_relu_pool_first_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::cuda

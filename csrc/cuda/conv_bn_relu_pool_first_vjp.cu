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

// parts[entry][part][9C + 1][K]: U, then B. A lane owns a filter, a warp every kGatherWarps-th window, and CC channels
// of the patch at its winner. Pixels are less the mean of their channel; the rest of m follows in double.
template <class T, int CC>
__global__ void __launch_bounds__(kGatherThreads)
    gather_winners(const Block b, const Tiling t, Batch<const T> y_bar, Batch<const unsigned char> code, Batch<const T> x,
                   Batch<const T> patch_mean, T* parts) {
  SharedMemory shared;
  T* const pixels = shared.take<T>(t.plane * CC);
  T* const sums = shared.take<T>(kGatherWarps * (9 * CC + 1) * 32);
  const int tiles = t.across * t.down * t.groups, chunks = higher(1, b.C / CC), filter_tiles = (b.K + kFilters - 1) / kFilters;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int block = static_cast<int>(blockIdx.x);
  const int part = block % tiles;
  block /= tiles;
  const int c0 = block % chunks * CC, k = block / chunks % filter_tiles * kFilters + lane;
  const int entry = block / chunks / filter_tiles;
  const int64_t p = entry / b.E, e = entry % b.E;
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
  const int cols = at.cols / 2, rows = at.rows / 2;  // whole windows of this tile
  for (int i = warp; i < at.images * rows * cols && k < b.K; i += kGatherWarps) {
    const int col = i % cols, row = i / cols % rows, image = i / cols / rows;
    const int64_t window = ((static_cast<int64_t>(at.image + image) * b.h + at.y / 2 + row) * b.w + at.x / 2 + col) * b.K + k;
    const int winner = code.at(0, e)[window];
    if ((winner & 4) == 0) continue;
    const T bar = y_bar.at(p, e)[window];
    const T* const patch = pixels + ((image * t.height + 2 * row + (winner >> 1 & 1)) * t.width + 2 * col + (winner & 1)) * CC;
    HG_UNROLL
    for (int r = 0; r < 3; ++r) HG_UNROLL
    for (int j = 0; j < 3 * CC; ++j) total[r * 3 * CC + j] = fused(bar, patch[r * t.width * CC + j], total[r * 3 * CC + j]);
    total[9 * CC] += bar;
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

// sums[entry][9C + 1][K]: U and B, parts added in double, in order. Thread i owns element i.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_gather(const Block b, int n_parts, const T* parts, Batch<const T> patch_mean, double* sums) {
  const int64_t g = 9 * static_cast<int64_t>(b.C), size = (g + 1) * b.K, blocks = (size + kThreads - 1) / kThreads;
  const int64_t entry = blockIdx.x / blocks, i = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (i >= size) return;
  const T* const from = parts + entry * n_parts * size;
  const int64_t j = i / b.K, k = i % b.K;
  double total = 0, beta = 0;
  for (int part = 0; part < n_parts; ++part) {
    total += static_cast<double>(from[part * size + i]);
    beta += static_cast<double>(from[part * size + g * b.K + k]);
  }
  const T* const m = patch_mean.at(0, entry % b.E);
  if (j < g) total -= beta * (static_cast<double>(m[j]) - static_cast<double>(m[4 * b.C + j % b.C]));
  sums[entry * size + i] = total;
}

// U and B of the cotangents of P times E entries; entry i belongs to episode i % E.
template <class T>
double* gather(Launch& launch, const Block& b, int64_t P, const Batch<const T>& y_bar, const Batch<const unsigned char>& code,
               const Batch<const T>& x, const Batch<const T>& patch_mean) {
  const int chunk = b.C > 0 && b.C % 3 == 0 ? 3 : 1;
  const std::size_t sums_bytes = shared_size(static_cast<std::size_t>(kGatherWarps * (9 * chunk + 1) * 32) * sizeof(T));
  const int most = static_cast<int>((kSharedLimit - sums_bytes) / (static_cast<std::size_t>(chunk) * sizeof(T)));
  const Tiling t = choose_tiling(b.windows() == 0 ? 0 : b.N, b.H, b.W, kGatherWindows, most);
  const int64_t entries = P * b.E, chunks = higher(1, b.C / chunk), size = (9 * static_cast<int64_t>(b.C) + 1) * b.K;
  T* const parts = launch.scratch<T>(entries * t.tiles() * size);
  double* const sums = launch.scratch<double>(entries * size);
  const std::size_t shared = shared_size(static_cast<std::size_t>(t.plane * chunk) * sizeof(T)) + sums_bytes;
  launch("gather_winners", chunk == 3 ? gather_winners<T, 3> : gather_winners<T, 1>, entries * b.filter_tiles() * chunks * t.tiles(),
         kGatherThreads, shared, b, t, y_bar, code, x, patch_mean, parts);
  launch("finish_gather", finish_gather<T>, entries * ceil_div(size, kThreads), kThreads, 0, b, static_cast<int>(t.tiles()), parts,
         patch_mean, sums);
  return sums;
}

template <class T>
struct First {
  Batch<const T> rstd, w, gamma, w_dot, gamma_dot;
  Batch<T> w_bar, gamma_bar, beta_bar;  // or their tangents
  const double *sums, *sums_dot;        // of y_bar per episode, and of y_bar_dot per direction and episode or null
  const double *cov_w, *cov_w_dot;      // likewise
};

template <class T>
__global__ void __launch_bounds__(kThreads) close_first(const Block b, const First<T> a, bool tangent) {
  SharedMemory shared;
  double* const memory = shared.take<double>(kThreads);
  const Column v = column_of(b);
  const int64_t g = 9 * static_cast<int64_t>(b.C), K = b.K;
  const double* const U = a.sums + v.e * (g + 1) * K + v.inside;
  const double* const U_dot = a.sums_dot == nullptr ? nullptr : a.sums_dot + v.entry * (g + 1) * K + v.inside;
  const double* const cov_w = a.cov_w + v.e * g * K + v.inside;
  const double* const cov_w_dot = a.cov_w_dot == nullptr ? nullptr : a.cov_w_dot + v.entry * g * K + v.inside;
  const T* const w = a.w.at(0, v.e) + v.inside;
  const T* const w_dot = a.w_dot ? a.w_dot.at(v.p, v.e) + v.inside : nullptr;
  const auto row = [&](auto pointer) { return [=](int j) { return pointer == nullptr ? 0.0 : static_cast<double>(pointer[j * K]); }; };
  const double w_u = tap_sum(b, v, row(w), row(U), memory);
  double w_u_dot = 0, w_dot_u = 0, product = 0;
  if (tangent) {
    w_u_dot = tap_sum(b, v, row(w), row(U_dot), memory);
    w_dot_u = tap_sum(b, v, row(w_dot), row(U), memory);
    product = tap_sum(b, v, row(w_dot), row(cov_w), memory);
  }
  if (!v.any) return;
  const double s = static_cast<double>(a.rstd.at(0, v.e)[v.k]);
  const double gain_dot = tangent && a.gamma_dot ? static_cast<double>(a.gamma_dot.at(v.p, v.e)[v.k]) * s : 0.0;
  const FirstBar bar = first_bar(static_cast<double>(a.gamma.at(0, v.e)[v.k]), gain_dot, s, w_u, w_u_dot + w_dot_u, product);
  T* const out = a.w_bar.at(v.p, v.e) + v.k;
  for (int j = v.slice; j < g; j += kSlices) {
    const double cov = cov_w[j * K], u = U[j * K], rest = u - bar.G * s * cov;
    double value = bar.scale * rest;
    if (tangent)
      value = bar.scale_dot * rest + bar.scale * ((U_dot == nullptr ? 0.0 : U_dot[j * K]) - bar.G_dot * s * cov -
                                                  bar.G * (bar.s_dot * cov + (cov_w_dot == nullptr ? 0.0 : s * cov_w_dot[j * K])));
    out[j * K] = static_cast<T>(value);
  }
  if (v.slice != 0) return;
  a.gamma_bar.at(v.p, v.e)[v.k] = static_cast<T>(tangent ? bar.G_dot : bar.G);
  a.beta_bar.at(v.p, v.e)[v.k] = static_cast<T>(!tangent ? U[g * K] : U_dot == nullptr ? 0.0 : U_dot[g * K]);
}

template <class T>
void launch_close(const Launch& launch, const Block& b, int64_t P, const First<T>& a, bool tangent) {
  launch("close_first", close_first<T>, P * b.E * b.filter_tiles(), kThreads, shared_size(kThreads * sizeof(double)), b, a, tangent);
}

template <class T, class S>
void vjp(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(y_bar, patch_mean, patch_cov, x, code)
  First<T> a{};
  HG_MEMBERS(rstd, w, gamma, w_bar, gamma_bar, beta_bar)
  Launch launch(call);
  double* const cov_w = launch.scratch<double>(b.E * 9 * b.C * b.K);
  launch_cov_times(launch, b, 1, patch_cov, a.w, cov_w);
  a.cov_w = cov_w;
  a.sums = gather(launch, b, 1, y_bar, code, x, patch_mean);
  launch_close(launch, b, 1, a, false);
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(y_bar, y_bar_dot, patch_mean, patch_cov, x, code)
  First<T> a{};
  HG_MEMBERS(rstd, w, gamma, w_dot, gamma_dot)
  a.w_bar = HG_ARG(w_bar_dot);
  a.gamma_bar = HG_ARG(gamma_bar_dot);
  a.beta_bar = HG_ARG(beta_bar_dot);
  Launch launch(call);
  const int64_t size = 9 * static_cast<int64_t>(b.C) * b.K;
  double* const cov_w = launch.scratch<double>(b.E * size);
  launch_cov_times(launch, b, 1, patch_cov, a.w, cov_w);
  a.cov_w = cov_w;
  if (a.w_dot) {
    double* const cov_w_dot = launch.scratch<double>(b.P * b.E * size);
    launch_cov_times(launch, b, b.P, patch_cov, a.w_dot, cov_w_dot);
    a.cov_w_dot = cov_w_dot;
  }
  a.sums = gather(launch, b, 1, y_bar, code, x, patch_mean);
  if (y_bar_dot) a.sums_dot = gather(launch, b, b.P, y_bar_dot, code, x, patch_mean);
  launch_close(launch, b, b.P, a, true);
}

HG_KERNEL(conv_bn_relu_pool_first_vjp, vjp)
HG_KERNEL(conv_bn_relu_pool_first_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::cuda

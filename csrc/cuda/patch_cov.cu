// patch_cov: mean and covariance of the zero-padded 3x3 patches of an episode's images. The mean is exact (double). The
// covariance sums products of pixels less the mean of their channel, in T over a few hundred pixels, then in double;
// what is left of the taps' own means, which differ at the border, is subtracted at the end.
#include "../host/patch_cov.cpp"  // its signatures

#include "block.h"

namespace hg::cuda {
namespace {

constexpr int kSumPixels = 4096;  // pixels of a block of tap_sums at most
constexpr int kPatchWindows = 128;
constexpr int64_t kPatchParts = 64;

// parts[e][part][9][C]: each tap sums the pixels it sees, that is all but a row and a column. The last part of an episode makes the mean.
template <class T>
__global__ void __launch_bounds__(kThreads) tap_sums(const Block b, Batch<const T> x, int sum_pixels, int n_parts, const Divisor by_W,
                                                     const Divisor by_H, double* parts, unsigned* tickets, double* exact, Batch<T> mean) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kWarps);
  int* const flag = shared.take<int>(1);
  const int e = static_cast<int>(blockIdx.x) / n_parts, part = static_cast<int>(blockIdx.x) % n_parts;
  const T* const images = x.at(0, e);
  const int last = lower(b.N * b.H * b.W, (part + 1) * sum_pixels);
  HG_NO_UNROLL
  for (int c = 0; c < b.C; ++c) {
    double tap[9] = {};
    for (int i = part * sum_pixels + static_cast<int>(threadIdx.x); i < last; i += kThreads) {
      int rest = i;
      const int col = by_W.split(rest), row = by_H.split(rest);
      const double v = static_cast<double>(images[static_cast<int64_t>(i) * b.C + c]);
      HG_UNROLL
      for (int t = 0; t < 9; ++t) {  // pixel (row, col) is tap (r, s) of the patch at (row - r + 1, col - s + 1)
        const int y = row - t / 3 + 1, x_ = col - t % 3 + 1;
        if (y >= 0 && y < b.H && x_ >= 0 && x_ < b.W) tap[t] += v;
      }
    }
    HG_UNROLL
    for (int t = 0; t < 9; ++t) {
      const double total = over_block(tap[t], sums);
      if (threadIdx.x == 0) parts[(static_cast<int64_t>(blockIdx.x) * 9 + t) * b.C + c] = total;
    }
  }
  if (!comes_last(tickets + e, static_cast<unsigned>(n_parts), flag)) return;
  const int64_t g = 9 * b.C;
  for (int64_t j = threadIdx.x; j < g; j += kThreads) {
    double total = 0;
    HG_UNROLL_BY(8)
    for (int i = 0; i < n_parts; ++i) total += parts[(static_cast<int64_t>(e) * n_parts + i) * g + j];
    total /= static_cast<double>(higher<int64_t>(1, static_cast<int64_t>(b.N) * b.H * b.W));
    exact[e * g + j] = total;
    mean.at(0, e)[j] = static_cast<T>(total);
  }
}

// The pairs of taps whose products are summed for channel chunks a <= b: 45 with t <= u where a = b, else all 81.
HG_DEVICE int pairs_of(bool same) { return same ? 45 : 81; }
HG_DEVICE void taps_of(int pair, bool same, int& t, int& u) {
  t = pair / 9;
  u = pair % 9;
  if (!same) return;
  t = 0;
  while (pair >= 9 - t) pair -= 9 - t++;
  u = t + pair;
}

// The covariance of an episode, by one block.
template <class T>
HG_DEVICE void close_covariance(const Block& b, int chunk, int n_parts, int64_t e, const double* parts, const double* exact,
                                const Batch<const T>& mean, const Batch<T>& cov) {
  const int64_t g = 9 * b.C, pixels = static_cast<int64_t>(b.N) * b.H * b.W;
  HG_NO_UNROLL
  for (int64_t index = threadIdx.x; index < g * g; index += kThreads) {
    const int64_t j = index / g, k = index % g, cj = j % b.C, ck = k % b.C, chunk_j = cj / chunk, chunk_k = ck / chunk;
    const bool mirrored = chunk_j > chunk_k || (chunk_j == chunk_k && j / b.C > k / b.C);
    const int64_t row = mirrored ? k : j, col = mirrored ? j : k;
    double total = 0;
    HG_UNROLL_BY(8)
    for (int part = 0; part < n_parts; ++part) total += parts[((e * n_parts + part) * g + row) * g + col];
    const double dj = exact[e * g + j] - static_cast<double>(mean.at(0, e)[4 * b.C + cj]);
    const double dk = exact[e * g + k] - static_cast<double>(mean.at(0, e)[4 * b.C + ck]);
    cov.at(0, e)[j * g + k] = static_cast<T>(pixels == 0 ? 0.0 : total / static_cast<double>(pixels) - dj * dk);
  }
}

// parts[e][part][9C][9C]; only the pairs above are written. CC channels make a chunk. A thread owns a pair of taps, for all
// CC x CC pairs of channels, at every kGroups-th pixel.
template <class T, int CC>
__global__ void __launch_bounds__(kThreads)
    patch_products(const Block b, const Tiling t, Batch<const T> x, Batch<const T> mean, int n_parts, double* parts, unsigned* tickets,
                   const double* exact, Batch<T> cov) {
  constexpr int kMostGroups = kThreads / 45;
  SharedMemory shared;
  T* const pixels_a = shared.take<T>(t.plane * CC);
  T* pixels_b = shared.take<T>(t.plane * CC);
  double* const sums = shared.take<double>(kMostGroups * 81);
  int* const flag = shared.take<int>(1);
  const int chunks = b.C / CC;
  int block = static_cast<int>(blockIdx.x);
  const int part = block % n_parts;
  block /= n_parts;
  const int a0 = block % chunks * CC, b0 = block / chunks % chunks * CC, e = block / chunks / chunks;
  if (a0 > b0) return;
  const bool same = a0 == b0;
  if (same) pixels_b = pixels_a;
  const int pairs = pairs_of(same), groups = kThreads / pairs, thread = static_cast<int>(threadIdx.x);
  const int pair = thread % pairs, group = thread / pairs, tiles = t.across * t.down * t.groups;
  int tap_a, tap_b;
  taps_of(pair, same, tap_a, tap_b);
  double total[CC][CC] = {};
  HG_NO_UNROLL
  for (int tile = part; tile < tiles; tile += n_parts) {
    const Place at = place_of(t, tile);
    __syncthreads();
    for (int i = thread; i < at.images * t.height * t.width; i += kThreads) {
      int rest = i;
      const int col = at.x + t.by_width.split(rest) - 1, row = at.y + t.by_height.split(rest) - 1;
      const bool inside = row >= 0 && row < b.H && col >= 0 && col < b.W;
      const T* const from = x.at(0, e) + ((static_cast<int64_t>(at.image + rest) * b.H + row) * b.W + col) * b.C;
      HG_UNROLL
      for (int c = 0; c < CC; ++c) {
        pixels_a[i * CC + c] = (inside ? from[a0 + c] : T(0)) - mean.at(0, e)[4 * b.C + a0 + c];
        if (!same) pixels_b[i * CC + c] = (inside ? from[b0 + c] : T(0)) - mean.at(0, e)[4 * b.C + b0 + c];
      }
    }
    __syncthreads();
    T near[CC][CC] = {};
    if (group < groups)
      for (int i = group; i < pixels_of(at); i += groups) {
        const int col = i % at.cols, row = i / at.cols % at.rows, image = i / at.cols / at.rows;
        const int first = (image * t.height + row) * t.width + col;
        const T* const left = pixels_a + (first + tap_a / 3 * t.width + tap_a % 3) * CC;
        const T* const right = pixels_b + (first + tap_b / 3 * t.width + tap_b % 3) * CC;
        HG_UNROLL
        for (int c = 0; c < CC; ++c) HG_UNROLL
        for (int d = 0; d < CC; ++d) near[c][d] = fused(left[c], right[d], near[c][d]);
      }
    HG_UNROLL
    for (int c = 0; c < CC; ++c) HG_UNROLL
    for (int d = 0; d < CC; ++d) total[c][d] += static_cast<double>(near[c][d]);
  }
  const int64_t g = 9 * b.C;
  double* const out = parts + (static_cast<int64_t>(e) * n_parts + part) * g * g;
  HG_UNROLL
  for (int c = 0; c < CC; ++c) HG_UNROLL
  for (int d = 0; d < CC; ++d) {
    __syncthreads();
    if (group < groups) sums[group * pairs + pair] = total[c][d];
    __syncthreads();
    if (group != 0) continue;
    double sum = 0;
    for (int i = 0; i < groups; ++i) sum += sums[i * pairs + pair];
    out[(tap_a * b.C + a0 + c) * g + tap_b * b.C + b0 + d] = sum;
  }
  if (comes_last(tickets + e, static_cast<unsigned>(n_parts * (chunks * (chunks + 1) / 2)), flag))
    close_covariance(b, CC, n_parts, e, parts, exact, mean, cov);
}

template <class T, int CC>
void products(const Launch& launch, const Block& b, const Tiling& t, int64_t n_parts, const Batch<const T>& x, const Batch<const T>& mean,
              double* parts, unsigned* tickets, const double* exact, const Batch<T>& cov) {
  const int64_t chunks = b.C / CC;
  const std::size_t plane = shared_size(static_cast<std::size_t>(t.plane) * CC * sizeof(T));
  launch("patch_products", patch_products<T, CC>, b.E * chunks * chunks * n_parts, kThreads,
         2 * plane + shared_size(kThreads / 45 * 81 * sizeof(double)) + shared_size(sizeof(int)), b, t, x, mean, static_cast<int>(n_parts),
         parts, tickets, exact, cov);
}

template <class T, class S>
void covariance(const Call& call) {
  const Block b = block_of<S>(call);
  HG_ARGS(x)
  const auto mean = HG_ARG(patch_mean);
  const auto cov = HG_ARG(patch_cov);
  Launch launch(call);
  int64_t sum_pixels = kSumPixels;
  while (sum_pixels > 1024 && b.E * ceil_div(b.pixels(), sum_pixels) < kFill / 2) sum_pixels /= 2;
  const int64_t g = 9 * static_cast<int64_t>(b.C), sum_parts_ = higher<int64_t>(1, ceil_div(b.pixels(), sum_pixels));
  double* const mean_parts = launch.scratch<double>(b.E * sum_parts_ * g);
  double* const exact = launch.scratch<double>(b.E * g);
  unsigned* const tickets = launch.tickets(b.E);
  launch("tap_sums", tap_sums<T>, b.C == 0 ? 0 : b.E * sum_parts_, kThreads,
         shared_size(kWarps * sizeof(double)) + shared_size(sizeof(int)), b, x, static_cast<int>(sum_pixels), static_cast<int>(sum_parts_),
         Divisor::of(higher(1, b.W)), Divisor::of(higher(1, b.H)), mean_parts, tickets, exact, mean);

  const int chunk = b.C % 3 == 0 ? 3 : 1;
  const Tiling t = choose_tiling(b.N, b.H, b.W, kPatchWindows, chunk == 3 ? 900 : 2000);
  const int64_t n_parts = higher<int64_t>(1, lower(kPatchParts, t.tiles()));
  double* const parts = launch.scratch<double>(b.E * n_parts * g * g);
  if (chunk == 3)
    products<T, 3>(launch, b, t, n_parts, x, as_input(mean), parts, tickets, exact, cov);
  else
    products<T, 1>(launch, b, t, n_parts, x, as_input(mean), parts, tickets, exact, cov);
}

HG_KERNEL(patch_cov, covariance)

}  // namespace
}  // namespace hg::cuda

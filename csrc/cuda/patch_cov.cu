// patch_cov: mean and covariance of the zero-padded 3x3 patches of an episode's images. The mean is exact (double). The
// covariance sums products of pixels less the mean of their channel, in T over a few hundred pixels, then in double;
// what is left of the taps' own means, which differ at the border, is subtracted at the end.
#include "../host/patch_cov.cpp"  // its signatures

#include "block.h"

namespace hg::cuda {
namespace {

constexpr int kSumPixels = 4096;  // pixels of a block of tap_sums at most

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

// How the products of tap rows are cut. A row of an image with its border above and below is a row of pixels: H + 2 for each image. A part
// has kProductRows of them and every `segments`-th tile of `width` columns.
constexpr int kProductRows = 128, kProductThreads = 3 * kProductRows, kProductWarps = kProductThreads / 32;
constexpr int kProductColumns = 1024;  // that are added in T

struct Cut {
  int width, pitch;     // columns of a tile, and elements between its rows in shared memory
  int segments, parts;  // of an episode
  int chunks;
  Divisor by_width, by_height;  // both with the border
};

// The covariance of an episode, by one block.
template <class T>
HG_DEVICE void close_covariance(const Block& b, int n_parts, int64_t e, const double* parts, const double* exact,
                                const Batch<const T>& mean, const Batch<T>& cov) {
  const int64_t g = 9 * b.C, pixels = static_cast<int64_t>(b.N) * b.H * b.W;
  HG_NO_UNROLL
  for (int64_t index = threadIdx.x; index < g * g; index += kProductThreads) {
    const int64_t j = index / g, k = index % g;
    const bool mirrored = j / (3 * b.C) > k / (3 * b.C);
    const double* const from = parts + e * n_parts * g * g + (mirrored ? k * g + j : index);
    double total = 0;
    HG_UNROLL_BY(16)
    for (int part = 0; part < n_parts; ++part) total += from[part * g * g];
    const double dj = exact[e * g + j] - static_cast<double>(mean.at(0, e)[4 * b.C + j % b.C]);
    const double dk = exact[e * g + k] - static_cast<double>(mean.at(0, e)[4 * b.C + k % b.C]);
    cov.at(0, e)[index] = static_cast<T>(pixels == 0 ? 0.0 : total / static_cast<double>(pixels) - dj * dk);
  }
}

// parts[e][part][9C][9C], of which the pairs of tap rows r <= u are written. CC channels make a chunk; a block has a pair of chunks. The
// products of tap rows r and r + dy at row y of an image are those of rows y + r and y + r + dy of its pixels, whatever r. So thread (dy,
// row) multiplies the taps of two rows of pixels once, along its columns, and the sums for all r differ in the first and last rows only.
template <class T, int CC>
__global__ void __launch_bounds__(kProductThreads, 1) patch_products(const Block b, const Cut cut, Batch<const T> x, Batch<const T> mean,
                                                                     double* parts, unsigned* tickets, const double* exact, Batch<T> cov) {
  constexpr int kTaps = 3 * CC, kPairs = kTaps * kTaps, kGroups = (kPairs + 31) / 32, kRoom = 32 * kGroups;
  const int rows = kProductRows + 2, thread = static_cast<int>(threadIdx.x), chunks = cut.chunks;
  SharedMemory shared;
  T* const memory = shared.take<T>(higher((chunks > 1 ? 2 : 1) * rows * cut.pitch, kProductWarps * 3 * kRoom));
  int* const flag = shared.take<int>(1);
  int block = static_cast<int>(blockIdx.x);
  const int part = block % cut.parts;
  block /= cut.parts;
  const int a0 = block % chunks * CC, b0 = block / chunks % chunks * CC, e = block / chunks / chunks;
  T* const left = memory;
  T* const right = a0 == b0 ? left : memory + rows * cut.pitch;
  const int64_t first = static_cast<int64_t>(part / cut.segments) * kProductRows;
  const int first_image = static_cast<int>(first / (b.H + 2)), first_row = static_cast<int>(first % (b.H + 2));
  const T *const images = x.at(0, e), *const shift = mean.at(0, e) + 4 * b.C;
  const int dy = thread / kProductRows, row = thread % kProductRows;
  T sums[kTaps][kTaps] = {};
  HG_NO_UNROLL
  for (int x0 = part % cut.segments * cut.width; x0 < b.W; x0 += cut.segments * cut.width) {
    __syncthreads();  // all threads are done with the tile before
    for (int i = thread; i < rows * (cut.width + 2); i += kProductThreads) {
      int at = i;
      const int column = cut.by_width.split(at), to = at * cut.pitch + column * CC;
      int image = first_row + at;
      const int y = cut.by_height.split(image) - 1, col = x0 + column - 1;
      image += first_image;
      const bool inside = image < b.N && y >= 0 && y < b.H && col >= 0 && col < b.W;
      const T* const from = images + ((static_cast<int64_t>(image) * b.H + y) * b.W + col) * b.C;
      HG_UNROLL
      for (int c = 0; c < CC; ++c) left[to + c] = (inside ? from[a0 + c] : T(0)) - shift[a0 + c];
      if (a0 == b0) continue;
      HG_UNROLL
      for (int c = 0; c < CC; ++c) right[to + c] = (inside ? from[b0 + c] : T(0)) - shift[b0 + c];
    }
    __syncthreads();
    const int count = lower(cut.width, b.W - x0);
    const T *const left_row = left + row * cut.pitch, *const right_row = right + (row + dy) * cut.pitch;
    T l[3][CC], r[3][CC];  // the three columns of taps
    HG_UNROLL
    for (int i = 0; i < 2 * CC; ++i) {
      l[i / CC][i % CC] = left_row[i];
      r[i / CC][i % CC] = right_row[i];
    }
    HG_UNROLL_BY(3)  // after three steps the columns are back in their registers
    for (int i = 0; i < count; ++i) {
      HG_UNROLL
      for (int c = 0; c < CC; ++c) {
        l[2][c] = left_row[(i + 2) * CC + c];
        r[2][c] = right_row[(i + 2) * CC + c];
      }
      HG_UNROLL
      for (int j = 0; j < kTaps; ++j) HG_UNROLL
      for (int k = 0; k < kTaps; ++k) sums[j][k] = fused(l[j / CC][j % CC], r[k / CC][k % CC], sums[j][k]);
      HG_UNROLL
      for (int c = 0; c < 2 * CC; ++c) {
        l[c / CC][c % CC] = l[c / CC + 1][c % CC];
        r[c / CC][c % CC] = r[c / CC + 1][c % CC];
      }
    }
  }
  // memory[warp][r][pair]: the sums over a warp's rows of pixels that are tap row r of a patch.
  __syncthreads();
  int image = first_row + row;
  const int y = cut.by_height.split(image), lane = thread % 32;
  const bool any = first_image + image < b.N;
  T own[kGroups];
  HG_NO_UNROLL
  for (int r = 0; r < 3 - dy; ++r) {
    const bool counts = any && r <= y && y < r + b.H;
    if (r == 0 || over_warp(counts == (any && y < b.H) ? 0.0 : 1.0) > 0) {
      HG_UNROLL
      for (int i = 0; i < kGroups; ++i) {
        T v[32];
        HG_UNROLL
        for (int j = 0; j < 32; ++j) {
          const int pair = 32 * i + j;
          v[j] = pair < kPairs && counts ? sums[lower(pair, kPairs - 1) / kTaps][lower(pair, kPairs - 1) % kTaps] : T(0);
        }
        halve_sums(v);
        own[i] = v[0];
      }
    }
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) memory[(thread / 32 * 3 + r) * kRoom + 32 * i + lane] = own[i];
  }
  __syncthreads();
  const int64_t g = 9 * b.C;
  double* const out = parts + (static_cast<int64_t>(e) * cut.parts + part) * g * g;
  HG_NO_UNROLL
  for (int i = thread; i < 9 * kPairs; i += kProductThreads) {
    const int pair = i % kPairs, r = i / kPairs % 3, u = r + i / kPairs / 3, j = pair / kTaps, k = pair % kTaps;
    if (u > 2) continue;
    const T* const from = memory + ((u - r) * (kProductRows / 32) * 3 + r) * kRoom + pair;
    double total = 0;
    HG_UNROLL
    for (int warp = 0; warp < kProductRows / 32; ++warp) total += static_cast<double>(from[warp * 3 * kRoom]);
    out[((r * 3 + j / CC) * b.C + a0 + j % CC) * g + (u * 3 + k / CC) * b.C + b0 + k % CC] = total;
  }
  if (comes_last(tickets + e, static_cast<unsigned>(cut.parts * chunks * chunks), flag))
    close_covariance(b, cut.parts, e, parts, exact, mean, cov);
}

template <class T, int CC>
Cut cut_of(const Block& b) {
  Cut cut{};
  cut.chunks = b.C / CC;
  const int64_t groups = higher<int64_t>(1, ceil_div(static_cast<int64_t>(b.N) * (b.H + 2), kProductRows)), wide = higher(1, b.W);
  const int64_t room = static_cast<int64_t>(kSharedLimit - 16) / (cut.chunks > 1 ? 2 : 1) / (kProductRows + 2) / sizeof(T);
  int64_t width = ceil_div(wide, ceil_div(wide, (room - 1) / CC - 2));
  const int64_t entries = b.E * cut.chunks * cut.chunks * groups;
  const auto few = [&](int64_t segments) { return entries * segments < kFill / 2; };
  while (width > 8 && few(ceil_div(wide, width))) width = ceil_div(width, 2);
  cut.width = static_cast<int>(width);
  cut.pitch = static_cast<int>((width + 2) * CC) | 1;  // odd: the rows of a warp's threads lie in different banks
  cut.segments = static_cast<int>(few(1) ? ceil_div(wide, width) : ceil_div(wide, kProductColumns));
  cut.parts = static_cast<int>(groups) * cut.segments;
  cut.by_width = Divisor::of(width + 2);
  cut.by_height = Divisor::of(static_cast<int64_t>(b.H) + 2);
  return cut;
}

template <class T, int CC>
void products(Launch& launch, const Block& b, const Batch<const T>& x, const Batch<const T>& mean, unsigned* tickets, const double* exact,
              const Batch<T>& cov) {
  const Cut cut = cut_of<T, CC>(b);
  const int64_t g = 9 * static_cast<int64_t>(b.C);
  double* const parts = launch.scratch<double>(b.E * cut.parts * g * g);
  const int elements =
      higher((cut.chunks > 1 ? 2 : 1) * (kProductRows + 2) * cut.pitch, kProductWarps * 3 * ((9 * CC * CC + 31) / 32) * 32);
  launch("patch_products", patch_products<T, CC>, b.E * cut.chunks * cut.chunks * cut.parts, kProductThreads,
         shared_size(static_cast<std::size_t>(elements) * sizeof(T)) + shared_size(sizeof(int)), b, cut, x, mean, parts, tickets, exact,
         cov);
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

  if constexpr (sizeof(T) == 4) {  // registers hold the sums of three channels in float32 only
    if (b.C % 3 == 0) return products<T, 3>(launch, b, x, as_input(mean), tickets, exact, cov);
  }
  products<T, 1>(launch, b, x, as_input(mean), tickets, exact, cov);
}

HG_KERNEL(patch_cov, covariance)

}  // namespace
}  // namespace hg::cuda

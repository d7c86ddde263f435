// patch_cov: mean and covariance of the zero-padded 3x3 patches of an episode's images. The mean is exact (double, from
// sums of whole images less their edges); the covariance sums products of deviations from a mean pixel, in T over a few
// hundred patches, then in double, where the exact mean is taken off. A task owns the partial sum of a few images.
//
// A patch has three rows of taps. Row r of one patch is row r - 1 of the patch a pixel further down: the products of tap rows 1
// and 1 + e are those of rows 0 and e, less those of the first row of pixels, plus those of the row after the last. So only the
// products with tap row 0 are summed over all pixels, a third of the matrix; and columns are treated likewise where images have one or
// three channels.
#include "../registry.h"

HG_SIGNATURE(patch_cov, "x=E|NHWC -> patch_mean=E|g patch_cov=E|gg", "", "g=9*C")

#ifdef HG_SIMD
#include "block.h"

namespace hg::HG_SIMD {
namespace {

// sums[9*C]: each tap sees the image without the row and column it leaves out.
template <class T>
void tap_sums(const Block& b, const T* image, double* sums) {
  const int64_t C = b.C;
  const auto at = [&](int64_t y, int64_t x, int64_t c) { return static_cast<double>(image[(y * b.W + x) * C + c]); };
  for (int64_t c = 0; c < C; ++c) {
    double all = 0, first_row = 0, last_row = 0, first_col = 0, last_col = 0;
    for (int64_t y = 0; y < b.H; ++y) {
      double lane[4] = {};  // four sums at once: one would wait for each addition
      int64_t x = 0;
      for (; x + 4 <= b.W; x += 4)
        for (int64_t i = 0; i < 4; ++i) lane[i] += at(y, x + i, c);
      for (; x < b.W; ++x) lane[0] += at(y, x, c);
      const double row = (lane[0] + lane[1]) + (lane[2] + lane[3]);
      all += row;
      first_row = y == 0 ? row : first_row;
      last_row = row;
      first_col += at(y, 0, c);
      last_col += at(y, b.W - 1, c);
    }
    for (int64_t dy = 0; dy < 3; ++dy)
      for (int64_t dx = 0; dx < 3; ++dx) {
        const double row = dy == 1 ? 0 : dy == 0 ? last_row : first_row;
        const double col = dx == 1 ? 0 : dx == 0 ? last_col : first_col;
        const double both = dy == 1 || dx == 1 ? 0 : at(dy == 0 ? b.H - 1 : 0, dx == 0 ? b.W - 1 : 0, c);
        sums[(dy * 3 + dx) * C + c] += all - row - col + both;
      }
  }
}

// Products of the taps of padded images, of 3*C taps in a row. Those of a row are contiguous in the image, and so are read there.
template <class T>
struct Products {
  const Block& b;
  int64_t run = 3 * b.C, wide = round_up(run, kLanes<T>), band = higher(1, kBandPixels / higher(1, b.W));
  T* sums = scratch_of<T>(kSlotSums, run * 3 * wide + 1);

  // out (run, rows*run) += those of tap row 0 of `count` rows of pixels from `top` on, with `rows` tap rows from `other` on.
  void add(const T* top, const T* other, int64_t count, int64_t rows, int64_t pitch, double* out) const {
    const int64_t all = rows * wide;
    __builtin_memset(sums, 0, static_cast<std::size_t>(run * all) * sizeof(T));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < wide; k += 2 * kLanes<T>) {
        const int width = static_cast<int>(lower(2 * kLanes<T>, wide - k));
        wgrad_block<T>({top, b.C, pitch, 0, other + r * pitch + k, b.C, pitch, 0, 1, count, b.W, sums + r * wide + k, all, width}, run);
      }
    for (int64_t j = 0; j < run; ++j)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < run; ++k) out[(j * rows + r) * run + k] += static_cast<double>(sums[j * all + r * wide + k]);
  }

  // out (run, 3*run) += those of tap row 0 of an image of at least two columns with all three rows. A tap's products with its
  // neighbours depend on the distance alone: the pixels that all three columns of taps see are multiplied once, with the two on either
  // side, and those that a column sees besides, two in a row, on their own.
  template <int64_t C>
  void add_image(const T* image, int64_t pitch, double* out) const {
    constexpr int V = kLanes<T>, kAcross = (5 * C + V - 1) / V, kNext = (3 * C + V - 1) / V;
    constexpr int kRows = 3 * C * kAcross <= 2 * kTile ? 3 : 1;  // whose sums are in registers together
    double by_distance[3][C][kAcross * V] = {};
    for (int64_t y = 0; y < b.H; y += band)
      for (int row = 0; row < 3; row += kRows) {
        Vec<T> sum[kRows][C][kAcross] = {};
        for (int64_t i = y; i < lower(y + band, b.H); ++i)
          for (int64_t x = 2; x < b.W; ++x) add_pixel<kRows, C, kAcross>(image + i * pitch + x * C, row * pitch - 2 * C, pitch, sum);
        for (int r = 0; r < kRows; ++r)
          for (int c = 0; c < C; ++c)
            for (int n = 0; n < kAcross; ++n) add_lanes<T>(by_distance[row + r][c] + n * V, sum[r][c][n]);
      }
    for (int column = 0; column < 3; ++column) {
      const auto at = [&](int c, int r) { return out + ((column * C + c) * 3 + r) * run; };
      for (int r = 0; r < 3; ++r)
        for (int c = 0; c < C; ++c)
          for (int k = 0; k < 3 * C; ++k) at(c, r)[k] += by_distance[r][c][(2 - column) * C + k];
      for (int side = 0; side < 2; ++side) {
        const int64_t x = column == 0 ? side : column == 1 ? 1 + side * (b.W - 1) : b.W + side;
        for (int64_t y = 0; y < b.H; y += kBandPixels) {
          Vec<T> sum[3][C][kNext] = {};
          for (int64_t i = y; i < lower(y + kBandPixels, b.H); ++i)
            add_pixel<3, C, kNext>(image + i * pitch + x * C, -column * C, pitch, sum);
          for (int r = 0; r < 3; ++r)
            for (int c = 0; c < C; ++c)
              for (int k = 0; k < 3 * C; ++k) at(c, r)[k] += static_cast<double>(sum[r][c][k / V][k % V]);
        }
      }
    }
  }

  // sum[r][c] += the pixel's channel c times the numbers from `from` on, in each of kRows rows.
  template <int kRows, int64_t C, int N>
  static HG_INLINE void add_pixel(const T* pixel, int64_t from, int64_t pitch, Vec<T> (&sum)[kRows][C][N]) {
    for (int r = 0; r < kRows; ++r)
      for (int n = 0; n < N; ++n) {
        const Vec<T> others = load(pixel + from + r * pitch + n * kLanes<T>);
        for (int c = 0; c < C; ++c) sum[r][c][n] += others * pixel[c];
      }
  }
};

template <class T, class S>
void covariance(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x)
  const auto mean = HG_ARG(patch_mean);
  const auto cov = HG_ARG(patch_cov);
  const int64_t n = b.taps(), tasks = b.E * b.chunks;
  const double M = static_cast<double>(higher(1, b.pixels()));

  double* const mean_parts = scratch_of<double>(kSlotPartSums, tasks * n + 1);
  parallel_for(tasks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    double* const part = mean_parts + index * n;
    __builtin_memset(part, 0, static_cast<std::size_t>(n) * sizeof(double));
    for (int64_t i = t.first; i < t.first + t.n && b.H > 0 && b.W > 0; ++i) tap_sums(b, x.at(t.batch) + i * b.H * b.W * b.C, part);
  });
  double* const exact = scratch_of<double>(kSlotPartSums2, b.E * n + 1);
  for (int64_t e = 0; e < b.E; ++e)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < b.chunks; ++chunk) sum += mean_parts[(e * b.chunks + chunk) * n + j];
      exact[e * n + j] = sum / M;
      mean.at(e)[j] = static_cast<T>(sum / M);
    }

  double* const parts = scratch_of<double>(kSlotParts, tasks * n * n + 1);
  parallel_for(tasks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const T* const shift = mean.at(t.batch) + 4 * b.C;  // of the centre tap, which sees every pixel
    const Images<T> padded = padded_input(b, x.at(t.batch), t, kSlotX, shift);
    const Products<T> products{b};
    const int64_t run = products.run;
    // Tap row 0 with all three: (run, n). Of single rows of pixels, (run, run): with themselves in `same`, at 0, 1, H and H + 1;
    // with the row below in `next`, at 0 and H.
    double* const all = scratch_of<double>(kSlotBand, run * n + 6 * run * run + 1);
    double *const same = all + run * n, *const next = same + 4 * run * run;
    __builtin_memset(all, 0, static_cast<std::size_t>(run * n + 6 * run * run) * sizeof(double));
    for (int64_t i = 0; i < t.n && b.H > 0 && b.W > 0; ++i) {
      const auto row = [&](int64_t y) { return padded.data + i * padded.image + y * padded.pitch; };
      if (b.C == 1 && b.W > 1)
        products.template add_image<1>(row(0), padded.pitch, all);
      else if (b.C == 3 && b.W > 1)
        products.template add_image<3>(row(0), padded.pitch, all);
      else
        for (int64_t y = 0; y < b.H; y += products.band) products.add(row(y), row(y), lower(products.band, b.H - y), 3, padded.pitch, all);
      const int64_t edges[4] = {0, 1, b.H, b.H + 1};
      for (int edge = 0; edge < 4; ++edge) products.add(row(edges[edge]), row(edges[edge]), 1, 1, padded.pitch, same + edge * run * run);
      for (int edge = 0; edge < 2; ++edge) products.add(row(edge * b.H), row(edge * b.H + 1), 1, 1, padded.pitch, next + edge * run * run);
    }
    double* const part = parts + index * n * n;
    for (int64_t j = 0; j < run; ++j)
      for (int64_t k = 0; k < run; ++k) {
        const auto at = [&](int64_t r, int64_t s) -> double& { return part[(r * run + j) * n + s * run + k]; };
        const auto edge = [&](const double* rows, int64_t which) { return rows[(which * run + j) * run + k]; };
        const double* const first = all + j * n + k;
        at(0, 0) = first[0];
        at(0, 1) = first[run];
        at(0, 2) = first[2 * run];
        at(1, 1) = at(0, 0) - edge(same, 0) + edge(same, 2);
        at(2, 2) = at(1, 1) - edge(same, 1) + edge(same, 3);
        at(1, 2) = at(0, 1) - edge(next, 0) + edge(next, 1);
      }
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < j; ++k) part[j * n + k] = part[k * n + j];
  });
  parallel_for(b.E * n, [&](int64_t index) {
    const int64_t e = index / n, j = index % n;
    const T* const shift = mean.at(e) + 4 * b.C;
    const double dj = exact[e * n + j] - static_cast<double>(shift[j % b.C]);
    for (int64_t k = 0; k < n; ++k) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < b.chunks; ++chunk) sum += parts[(e * b.chunks + chunk) * n * n + j * n + k];
      const double dk = exact[e * n + k] - static_cast<double>(shift[k % b.C]);
      cov.at(e)[j * n + k] = static_cast<T>(b.pixels() == 0 ? 0.0 : sum / M - dj * dk);
    }
  });
}

HG_KERNEL(patch_cov, covariance)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

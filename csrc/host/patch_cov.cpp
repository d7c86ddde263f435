// patch_cov: mean and covariance of the zero-padded 3x3 patches of an episode's images. The mean is exact (double, from
// sums of whole images less their edges); the covariance sums products of deviations from a mean pixel, in T over a few
// hundred patches, then in double, where the exact mean is taken off. A task owns the partial sum of a few images.
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

// Copies the patches of one row of pixels, rows of 9*C padded to `wide`. RUN is 3*C where that is known.
template <class T, int RUN>
void copy_patches(const T* from, int64_t pitch, int64_t cols, int64_t C, int64_t wide, T* to) {
  const int64_t run = RUN > 0 ? RUN : 3 * C;
  for (int64_t q = 0; q < cols; ++q, from += C, to += wide)
    for (int64_t r = 0; r < 3; ++r) __builtin_memcpy(to + r * run, from + r * pitch, static_cast<std::size_t>(run) * sizeof(T));
}

template <class T, class S>
void covariance(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x)
  const auto mean = HG_ARG(patch_mean);
  const auto cov = HG_ARG(patch_cov);
  const int64_t n = b.taps(), wide = round_up(n, kLanes<T>), tasks = b.E * b.chunks;
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
    const int64_t band = higher(1, kBandPixels / higher(1, b.W));
    T* const patches = scratch_of<T>(kSlotZ, band * b.W * wide + 1);
    T* const product = scratch_of<T>(kSlotSums, n * wide + 1);
    __builtin_memset(patches, 0, static_cast<std::size_t>(band * b.W * wide) * sizeof(T));
    double* const part = parts + index * n * n;
    __builtin_memset(part, 0, static_cast<std::size_t>(n * n) * sizeof(double));
    for (int64_t i = 0; i < t.n; ++i)
      for (int64_t y0 = 0; y0 < b.H; y0 += band) {
        const int64_t rows = lower(band, b.H - y0);
        const T* const top = padded.data + i * padded.image + y0 * padded.pitch;
        const auto copy = b.C == 1 ? copy_patches<T, 3> : b.C == 3 ? copy_patches<T, 9> : copy_patches<T, 0>;
        for (int64_t y = 0; y < rows; ++y) copy(top + y * padded.pitch, padded.pitch, b.W, b.C, wide, patches + y * b.W * wide);
        __builtin_memset(product, 0, static_cast<std::size_t>(n * wide) * sizeof(T));
        const Images<const T> windows{top, 1, rows, b.W, padded.step, padded.pitch, padded.image};
        wgrad_images(windows, dense<const T>(patches, 1, rows, b.W, wide), int64_t(3), 3 * b.C, int64_t(1), product);
        for (int64_t j = 0; j < n; ++j)
          for (int64_t k = 0; k < n; ++k) part[j * n + k] += static_cast<double>(product[j * wide + k]);
      }
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

// Register tiles of the convolutions: all the arithmetic that counts is here.
#pragma once
#include "simd.h"

namespace hg::HG_SIMD {

// out[m, k] = (accumulate ? out[m, k] : 0) + sum_{r < rows, j < run} src[m*step + r*pitch + j] * weights[r, j, k]
// for m in [0, count) and one block of `width` (one or two vectors of) channels; only `lanes` of them are written.
// The sum runs in order of (r, j), so an output does not depend on how pixels are cut into tiles.
template <class T>
struct ConvRow {
  const T* src;
  int64_t step, pitch;
  int64_t rows, run;
  const T* weights;  // (rows, run, width)
  int width, lanes;
  T* out;
  int64_t out_step;
  bool accumulate;
};
template <class T>
void conv_row(const ConvRow<T>& row, int64_t count);

// acc[j, k] += sum_{i < images, p < rows, q < cols} x[i*x_image + p*x_pitch + q*x_step + j] * z[i*z_image + p*z_pitch +
// q*z_step + k] for j in [0, run) and one block of `width` channels.
template <class T>
struct WgradBlock {
  const T* x;
  int64_t x_step, x_pitch, x_image;
  const T* z;
  int64_t z_step, z_pitch, z_image;
  int64_t images, rows, cols;
  T* acc;
  int64_t acc_step;
  int width;
};
template <class T>
void wgrad_block(const WgradBlock<T>& block, int64_t run);

}  // namespace hg::HG_SIMD

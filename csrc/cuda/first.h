// The fused block on data (x has neither tangent nor cotangent). With m and Cov the mean and covariance of its 3x3 patches, mean(z) = w.m
// and var(z) = w'Cov w, so nothing dense is stored or summed; see block.h for the notation. Convolutions read x less the mean of its
// channel, m[4*C + c], so that z - mean(z) = conv(x - shift, w) - offset with a small offset: what the border adds to the mean.
#pragma once
#include "block.h"
#include "pool.h"

namespace hg::cuda {

// x less the mean of its channel.
template <class T>
Images<T> shifted_images(const Block& b, const Batch<const T>& x, const Batch<const T>& patch_mean) {
  Batch<const T> shift = patch_mean;
  shift.data += 4 * static_cast<int64_t>(b.C);
  return {x, shift, b.H, b.W, b.C};
}

// out[entry][9C][K] = Cov w, in double. Thread i owns element i. Entries are directions times episodes.
template <class T>
__global__ void __launch_bounds__(kThreads) cov_times(const Block b, Batch<const T> cov, Batch<const T> w, double* out) {
  const int64_t g = 9 * static_cast<int64_t>(b.C), size = g * b.K, blocks = (size + kThreads - 1) / kThreads;
  const int64_t entry = blockIdx.x / blocks, i = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (i >= size) return;
  const int64_t j = i / b.K, k = i % b.K;
  const T* const row = cov.at(0, entry % b.E) + j * g;
  const T* const weights = w.at(entry / b.E, entry % b.E) + k;
  double total = 0;
  for (int64_t n = 0; n < g; ++n) total += static_cast<double>(row[n]) * static_cast<double>(weights[n * b.K]);
  out[entry * size + i] = total;
}

template <class T>
void launch_cov_times(const Launch& launch, const Block& b, int64_t P, const Batch<const T>& cov, const Batch<const T>& w, double* out) {
  launch("cov_times", cov_times<T>, P * b.E * ceil_div(9 * static_cast<int64_t>(b.C) * b.K, kThreads), kThreads, 0, b, cov, w, out);
}

// What a thread of a finishing block has: 32 filters, 8 slices of the taps.
struct Column {
  int64_t entry, p, e;
  int slice, k, inside;  // inside: k, or a filter that exists
  bool any;
};
HG_DEVICE Column column_of(const Block& b) {
  const int filter_tiles = (b.K + kFilters - 1) / kFilters;
  Column v;
  v.entry = static_cast<int>(blockIdx.x) / filter_tiles;
  v.p = v.entry / b.E;
  v.e = v.entry % b.E;
  v.slice = static_cast<int>(threadIdx.x) / 32;
  v.k = static_cast<int>(blockIdx.x) % filter_tiles * kFilters + static_cast<int>(threadIdx.x) % 32;
  v.any = v.k < b.K;
  v.inside = v.any ? v.k : b.K - 1;
  return v;
}

// sum over taps j of left(j)*right(j), in double.
template <class Left, class Right>
HG_DEVICE double tap_sum(const Block& b, const Column& column, const Left& left, const Right& right, double* sums) {
  double total = 0;
  for (int j = column.slice; j < 9 * b.C; j += kSlices) total += static_cast<double>(left(j)) * static_cast<double>(right(j));
  return slice_sum(total, sums);
}

}  // namespace hg::cuda

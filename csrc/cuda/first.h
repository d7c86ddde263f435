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
  HG_NO_UNROLL
  for (int j = column.slice; j < 9 * b.C; j += kSlices) total += static_cast<double>(left(j)) * static_cast<double>(right(j));
  return slice_sum(total, sums);
}

// Element j of Cov w for the column's filter, in double; w begins at it. Blocks that close sums compute it where they need it.
template <class T>
struct CovTimes {
  const T *cov, *w;  // null where zero
  int64_t g, K;
  HG_DEVICE double operator()(int j) const {
    if (w == nullptr) return 0;
    const T* const row = cov + j * g;
    double total = 0;
    HG_UNROLL_BY(4)
    for (int64_t n = 0; n < g; ++n) total += static_cast<double>(row[n]) * static_cast<double>(w[n * K]);
    return total;
  }
};

}  // namespace hg::cuda

// The fused block (3x3 same convolution, batch normalization, ReLU, 2x2 maximum): sizes and sums over parts.
//
// Notation, per episode and filter: s = rstd, xhat = s*(z - mean), u = gamma*xhat + beta; u_bar is y_bar scattered to
// the pixel that won its window, where that was positive; B = sum u_bar, G = sum u_bar*xhat; M = N*H*W pixels.
// A code holds the winner (bits 0-1: 2*dy + dx) and whether it was positive (bit 2); it is never decided again.
//
// Every sum is cut into parts by the shapes alone and added in a fixed order, the last step in double.
#pragma once
#include "convolution.h"

#include "../batch_norm.h"

namespace hg::cuda {

struct Block {
  int64_t P, E;
  int N, H, W, C, K;
  int h, w;  // pooled
  int64_t pixels() const { return static_cast<int64_t>(N) * H * W; }
  int64_t windows() const { return static_cast<int64_t>(N) * h * w; }
  int64_t filter_tiles() const { return ceil_div(K, kFilters); }
};

template <class S>
Block block_of(const Call& call) {
  const int64_t N = HG_DIM(N), H = HG_DIM(H), W = HG_DIM(W), C = HG_DIM(C), K = HG_DIM_IF_ANY(K);
  const int64_t most = INT32_MAX;
  const int64_t channels = higher<int64_t>(1, higher(9 * C, K));
  if (higher(N, higher(H, W)) > most || channels > most || (N > 0 && H * W > most / N) || (N > 0 && H * W > 0 && channels > most / (H * W)))
    fail_shape(call, "an episode has %lld x %lld x %lld pixels, expected fewer than 2**31 and as few elements per image; split the call",
               static_cast<long long>(N), static_cast<long long>(H), static_cast<long long>(W));
  return {HG_DIM_IF_ANY(P),    HG_DIM(E),           static_cast<int>(N),     static_cast<int>(H),    static_cast<int>(W),
          static_cast<int>(C), static_cast<int>(K), static_cast<int>(H / 2), static_cast<int>(W / 2)};
}

// Blocks that finish sums have 8 slices of 32 channels.
constexpr int kSlices = kThreads / 32;

// Sum over the slices, in order; every thread of a channel gets it. `sums` holds kThreads doubles.
HG_DEVICE double slice_sum(double value, double* sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();
  sums[threadIdx.x] = value;
  __syncthreads();
  double total = 0;
  HG_UNROLL
  for (int i = 0; i < kSlices; ++i) total += sums[i * 32 + lane];
  return total;
}

// The value of row q of a window is z[offset_of(q)] of its image's rows.
HG_DEVICE int64_t winner_offset(int code, int image, int y, int x, int H, int W, int K) {
  return ((static_cast<int64_t>(image) * H + 2 * y + (code >> 1 & 1)) * W + 2 * x + (code & 1)) * K;
}

// out[i] = sum over parts of parts[entry][part][i], in double, in order. Thread i owns output i.
template <class T>
__global__ void sum_parts(const T* parts, int64_t n_parts, int64_t size, int64_t E, Batch<T> out) {
  const int64_t per_entry = (size + kThreads - 1) / kThreads, entry = blockIdx.x / per_entry;
  const int64_t i = blockIdx.x % per_entry * kThreads + threadIdx.x;
  if (i >= size) return;
  const T* from = parts + entry * n_parts * size + i;
  double total = 0;
  HG_UNROLL_BY(8)
  for (int64_t part = 0; part < n_parts; ++part) total += static_cast<double>(from[part * size]);
  out.at(entry / E, entry % E)[i] = static_cast<T>(total);
}

template <class T>
void launch_sum_parts(const Launch& launch, const T* parts, int64_t n_parts, int64_t size, int64_t entries, int64_t E,
                      const Batch<T>& out) {
  launch("sum_parts", sum_parts<T>, entries * ceil_div(size, kThreads), kThreads, 0, parts, n_parts, size, E, out);
}

}  // namespace hg::cuda

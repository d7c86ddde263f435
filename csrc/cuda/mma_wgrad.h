// The gradient of 3x3 filters on tensor cores, for float32 rounded to tf32 or split into tf32 parts; sums are float32.
//
// As with multiply-adds, a block has 32 channels by 32 filters and goes through a few rectangles. Warp 2*r + h has the
// 3 taps of row r and every other 4 pairs of neighbouring pixels: products of 16 channels x 8 pixels by 8 pixels x 8
// filters, in which k = t and t + 4 are the pixels of pair t, so that a lane uses 4 pixels of x for 3 taps of 2. Rows g
// and g + 8 of product m are channels 4*g + 2*m and the next, column g of product 2*j + b is filter 4*g + 2*j + b. So
// lane 4*g + t owns channels 4*g .. 4*g + 3 and filters 8*t .. 8*t + 7. The two warps of a row add up at the end.
//
// Shared memory holds what a lane needs for a product in 16 bytes, of a pair of pixels: of x {left, right} x {2
// channels}, of z_bar {2 filters} x {left, right}. A pair has 16 such units and 2 more, which keeps loads without bank
// conflicts: one wavefront per product of tf32, which takes an SM two cycles.
#pragma once
#include "mma_convolution.h"
#include "winograd_wgrad.h"

namespace hg::cuda {

struct MmaWgrad {
  static constexpr int kWindows = 32, kPairs = 2 * kWindows;
  static constexpr int kPair = (kFilters / 2 + 2) * 4;  // elements of a pair of pixels
  static constexpr int kRest = static_cast<int>(kSharedLimit / sizeof(float)) - kPairs * kPair - kPairs;
  static constexpr int kMostPixels = kRest / kPair * 2 - 4;  // of x with its border
};

// Of unit quad + 8*half of a pair: channels 4*quad + 2*half and the next of its left pixel, then of the right one.
template <Precision precision>
struct PutChannels {
  float* rows;
  HG_DEVICE void operator()(int i, int quad, const Quad<float>& v) const {
    float* const to = rows + i / 2 * MmaWgrad::kPair + 4 * quad + i % 2 * 2;
    HG_UNROLL
    for (int j = 0; j < 4; ++j) to[j / 2 * 32 + j % 2] = stored<precision>(v.v[j]);
  }
};
// Of unit quad + 8*half of a pair: filter 4*quad + 2*half of its left and its right pixel, then the next filter.
template <Precision precision>
struct PutFilters {
  float* rows;
  HG_DEVICE void operator()(int i, int quad, const Quad<float>& v) const {
    float* const to = rows + i / 2 * MmaWgrad::kPair + 4 * quad + i % 2;
    HG_UNROLL
    for (int j = 0; j < 4; ++j) to[j / 2 * 32 + j % 2 * 2] = stored<precision>(v.v[j]);
  }
};

// parts[entry][part][3][3][C][K]
template <Precision precision, class Source>
__global__ void __launch_bounds__(kWgradThreads, 1) mma_wgrad3x3(const Wgrad<float, Source> a, float* parts) {
  using Fragment = Operand<precision>[4];
  const Tiling& t = a.tiling;
  SharedMemory shared;
  float* const x_rows = shared.take<float>(t.plane / 2 * MmaWgrad::kPair);
  float* const z_rows = shared.take<float>(MmaWgrad::kPairs * MmaWgrad::kPair);
  int* const starts = shared.take<int>(MmaWgrad::kPairs);  // of a pair's patch in x_rows
  const WgradSpot spot = wgrad_spot(a, static_cast<int>(blockIdx.x));
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int width = 2 * t.cols, height = 2 * t.rows;
  if (thread < MmaWgrad::kPairs) {
    int image = thread;
    const int x = 2 * t.by_cols.split(image), y = a.by_height.split(image);
    const int start = image < t.images ? (image * t.height + y) * t.width + x : 0;  // beyond, z_bar is zero
    starts[thread] = start / 2 * MmaWgrad::kPair;
  }
  float sums[3][2][4][4] = {};
  HG_NO_UNROLL
  for (int tile = spot.first; tile < spot.last; ++tile) {
    const Place at = place_of(t, tile);
    const int pairs = at.images * height * t.cols, groups = (pairs + 3) / 4;
    HG_NO_UNROLL
    for (int term = 0; term < a.n_terms; ++term) {
      __syncthreads();  // all threads are done with the rows of before
      load_rows<float>(a.terms[term].x.at(spot.p, spot.e), at, spot.c0, t.height, t.width, 1, t.by_width, t.by_height,
                       PutChannels<precision>{x_rows});
      load_rows<float>(a.terms[term].z_bar.at(spot.p, spot.e), at, spot.k0, height, width, 0, a.by_width, a.by_height,
                       PutFilters<precision>{z_rows});
      for (int i = pairs * MmaWgrad::kPair + thread; i < 4 * groups * MmaWgrad::kPair; i += kWgradThreads) z_rows[i] = 0.0f;
      __syncthreads();
      const Quad<float>* const x_from = reinterpret_cast<const Quad<float>*>(x_rows + warp / 2 * t.width / 2 * MmaWgrad::kPair) + lane / 4;
      const Quad<float>* const z_from = reinterpret_cast<const Quad<float>*>(z_rows) + lane / 4;
      HG_NO_UNROLL
      for (int group = warp % 2; group < groups; group += 2) {
        const int pair = 4 * group + lane % 4;
        const Quad<float>* const x_pair = x_from + starts[pair] / 4;
        const Quad<float>* const z_pair = z_from + pair * (MmaWgrad::kPair / 4);
        Operand<precision> b[4][2];
        HG_UNROLL
        for (int j = 0; j < 4; j += 2) {
          const Quad<float> v = z_pair[4 * j];
          HG_UNROLL
          for (int i = 0; i < 4; ++i) b[j + i / 2][i % 2] = operand<precision>(v.v[i]);
        }
        HG_UNROLL
        for (int m = 0; m < 2; ++m) {
          const Quad<float> v[2] = {x_pair[8 * m], x_pair[8 * m + MmaWgrad::kPair / 4]};
          Fragment outer[2];
          HG_UNROLL
          for (int i = 0; i < 4; ++i) {
            outer[0][i] = operand<precision>(v[0].v[i]);
            outer[1][i] = operand<precision>(v[1].v[i]);
          }
          const Fragment middle = {outer[0][2], outer[0][3], outer[1][0], outer[1][1]};
          multiply<precision>(sums[0][m], outer[0], b);
          multiply<precision>(sums[1][m], middle, b);
          multiply<precision>(sums[2][m], outer[1], b);
        }
      }
    }
  }
  static_assert(3 * 32 * 32 <= MmaWgrad::kPairs * MmaWgrad::kPair, "z_rows holds a tap of three warps");
  float* const half = z_rows + warp / 2 * 1024 + lane;
  const int c = spot.c0 + lane / 4 * 4, k = spot.k0 + lane % 4 * 8;
  HG_UNROLL
  for (int s = 0; s < 3; ++s) {
    __syncthreads();
    HG_UNROLL
    for (int i = 0; i < 32; ++i)
      if (warp % 2 == 1) half[32 * i] = sums[s][i / 16][i / 4 % 4][i % 4];
    __syncthreads();
    if (warp % 2 == 1) continue;
    HG_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (c + i >= a.C) break;
      float* const row = parts + ((spot.part * 9 + warp / 2 * 3 + s) * a.C + c + i) * a.K;
      HG_UNROLL
      for (int j = 0; j < 8; j += 4) {
        if (k + j >= a.K) break;
        const int d = i % 2 * 2 + j / 4;
        Quad<float> out;
        HG_UNROLL
        for (int n = 0; n < 4; ++n) out.v[n] = sums[s][i / 2][n][d] + half[32 * (i / 2 * 16 + n * 4 + d)];
        store_quad(row, k + j, a.K, a.K % 4 == 0, out);
      }
    }
  }
}

template <class T, class Source>
Wgrad<T, Source> wgrad(Precision precision, int64_t entries, int64_t E, int64_t N, int64_t H, int64_t W, int64_t C, int64_t K) {
  Wgrad<T, Source> a = wgrad<T, Source>(entries, E, N, H, W, C, K);
  a.precision = precision;
  if (precision == kFloat32) {
    if (by_winograd<T>(C, K) && by_winograd<T>(K, C)) cut_winograd(a, entries, N, H, W);
    return a;
  }
  cut(a, entries, N, H, W, MmaWgrad::kWindows, MmaWgrad::kMostPixels);
  return a;
}

// launch_wgrad in the precision that `a` was made for.
template <class T, class Source>
T* launch_precise(Launch& launch, const Wgrad<T, Source>& a, int64_t entries) {
  if constexpr (std::is_same<T, float>::value) {
    if (a.winograd)
      return launch_wgrad(launch, a, entries, "winograd_wgrad3x3", winograd_wgrad3x3<Source>, kThreads, winograd_wgrad_shared<Source>());
    if (a.precision != kFloat32) {
      const std::size_t shared = shared_size(static_cast<std::size_t>(a.tiling.plane) / 2 * MmaWgrad::kPair * sizeof(float)) +
                                 shared_size(MmaWgrad::kPairs * MmaWgrad::kPair * sizeof(float)) +
                                 shared_size(MmaWgrad::kPairs * sizeof(int));
      return launch_wgrad(launch, a, entries, "mma_wgrad3x3",
                          a.precision == kTf32 ? mma_wgrad3x3<kTf32, Source> : mma_wgrad3x3<kThreeTf32, Source>, kWgradThreads, shared);
    }
  }
  return launch_wgrad(launch, a, entries);
}

}  // namespace hg::cuda

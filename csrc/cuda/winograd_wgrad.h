// The gradient of 3x3 filters by the transposed transforms of Winograd's F(2x2, 3x3), in float32, for whole tiles of channels and filters:
// for each window, channel and filter 16 multiply-adds instead of 36.
//
// A block has 32 channels by 32 filters and goes through a run of windows, 8 at a time. Thread t transforms the patch of channel t % 32 and
// the cotangents of filter t % 32 at window t / 32; the products are those of the convolution with windows in the place of channels.
#pragma once
#include "wgrad.h"
#include "winograd.h"

namespace hg::cuda {

// Transforms along one axis: of the cotangents of a window, and of the sums to taps.
HG_DEVICE void transform_cotangents(const float (&y)[2], float (&m)[4]) {
  m[0] = y[0];
  m[1] = y[0] + y[1];
  m[2] = y[0] - y[1];
  m[3] = -y[1];
}
HG_DEVICE void transform_sums(const float (&u)[4], float (&w)[3]) {
  const float sum = 0.5f * (u[1] + u[2]);
  w[0] = u[0] + sum;
  w[1] = 0.5f * (u[1] - u[2]);
  w[2] = sum + u[3];
}

// What a block reads in a term, found once.
template <class Source>
struct WgradTerm {
  typename Images<float>::At x;
  typename Source::At z_bar;
};
template <class Source>
std::size_t winograd_wgrad_shared() {
  return shared_size((Winograd::kPixels + Winograd::kWeights) * sizeof(float)) + shared_size(2 * sizeof(WgradTerm<Source>));
}

// parts[entry][part][3][3][C][K]
template <class Source>
__global__ void __launch_bounds__(kThreads, 2) winograd_wgrad3x3(const Wgrad<float, Source> a, float* parts) {
  SharedMemory shared;
  float* const cotangents = shared.take<float>(Winograd::kPixels + Winograd::kWeights);  // [position][window][k]
  float* const patches = cotangents + Winograd::kPixels;                                 // [position][window][kPitch: c]
  WgradTerm<Source>* const terms = shared.take<WgradTerm<Source>>(2);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const WgradSpot spot = wgrad_spot(a, static_cast<int>(blockIdx.x));
  if (thread < a.n_terms) terms[thread] = {a.terms[thread].x.at(spot.p, spot.e), a.terms[thread].z_bar.at(spot.p, spot.e)};
  __syncthreads();
  float products[2][8][4] = {}, d[4][4], z[2][2];
  const auto load = [&](int term, int first) {
    const int tile = first + warp;
    const Place at = place_of(a.tiling, lower(tile, spot.last - 1));
    terms[term].z_bar.square(spot.k0 + lane, at.image, at.y, at.x, z);
    terms[term].x.square(spot.c0 + lane, at.image, at.y - 1, at.x - 1, d);
    HG_UNROLL
    for (int q = 0; q < 4; ++q) z[q / 2][q % 2] = tile < spot.last ? z[q / 2][q % 2] : 0.0f;
  };
  load(0, spot.first);
  HG_NO_UNROLL
  for (int term = 0, first = spot.first; first < spot.last;) {
    __syncthreads();  // all threads are done with the windows before
    float v[4][4];
    both_axes(d, v, [](const float (&in)[4], float (&out)[4]) { transform_pixels(in, out); });
    HG_UNROLL
    for (int i = 0; i < Winograd::kPositions; ++i) patches[(i * Winograd::kChunk + warp) * Winograd::kPitch + lane] = v[i / 4][i % 4];
    both_axes(z, v, [](const float (&in)[2], float (&out)[4]) { transform_cotangents(in, out); });
    HG_UNROLL
    for (int i = 0; i < Winograd::kPositions; ++i) cotangents[i * kThreads + thread] = v[i / 4][i % 4];
    if (++term == a.n_terms) {
      term = 0;
      first += Winograd::kChunk;
    }
    __syncthreads();
    if (first < spot.last) load(term, first);
    multiply_chunk(cotangents, patches, products);
  }
  __syncthreads();
  float* const out = parts + spot.part * 9 * a.C * a.K + static_cast<int64_t>(spot.c0 + warp * 4) * a.K + spot.k0 + lane;
  exchange(products, cotangents, [&](int c, const float (&m)[4][4]) {
    float w[3][3];
    both_axes(m, w, [](const float (&in)[4], float (&taps)[3]) { transform_sums(in, taps); });
    HG_UNROLL
    for (int tap = 0; tap < 9; ++tap) out[(static_cast<int64_t>(tap) * a.C + c) * a.K] = w[tap / 3][tap % 3];
  });
}

// Cuts a gradient into parts of windows: as few as fill a large GPU.
template <class T, class Source>
void cut_winograd(Wgrad<T, Source>& a, int64_t entries, int64_t N, int64_t H, int64_t W) {
  a.winograd = true;
  a.tiling = choose_tiling(N, H, W, 1, 1 << 10);
  const int64_t columns = higher<int64_t>(1, entries * ceil_div(a.C, kFilters) * ceil_div(a.K, kFilters));
  const int64_t windows = ceil_div(a.tiling.tiles(), higher<int64_t>(1, kFill / columns));
  a.per_part = static_cast<int>(lower<int64_t>(kWgradPixels / 4, ceil_div(windows, Winograd::kChunk) * Winograd::kChunk));
}

}  // namespace hg::cuda

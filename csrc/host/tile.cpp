#include "tile.h"

namespace hg::HG_SIMD {
namespace {

template <class T, int M, int NV>
void conv_tile(const ConvRow<T>& row, const T* src, T* out) {
  constexpr int V = kLanes<T>;
  const int64_t step = row.step, out_step = row.out_step, run = row.run;
  const bool whole = row.lanes == NV * V;
  Vec<T> acc[M][NV];
  if (!row.accumulate) {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) acc[m][n] = Vec<T>{};
  } else if (whole) {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) acc[m][n] = load(out + m * out_step + n * V);
  } else {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) acc[m][n] = load<T, false>(out + m * out_step + n * V, static_cast<int>(lower(V, row.lanes - n * V)));
  }
  const T* w = row.weights;
  for (int64_t r = 0; r < row.rows; ++r) {
    // One pointer for three pixels: the addresses then need few registers for any step.
    constexpr int B = (M + 2) / 3;
    const T* base[B];
    for (int b = 0; b < B; ++b) base[b] = src + r * row.pitch + 3 * b * step;
    for (int64_t j = 0; j < run; ++j, w += NV * V) {
      Vec<T> weight[NV];
      for (int n = 0; n < NV; ++n) weight[n] = load(w + n * V);
      for (int m = 0; m < M; ++m) {
        const T value = base[m / 3][(m % 3) * step + j];
        for (int n = 0; n < NV; ++n) acc[m][n] += weight[n] * value;
      }
    }
  }
  if (whole) {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) store(out + m * out_step + n * V, acc[m][n]);
  } else {
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) store<T, false>(out + m * out_step + n * V, acc[m][n], static_cast<int>(lower(V, row.lanes - n * V)));
  }
}

template <class T, int J, int NV>
void wgrad_tile(const WgradBlock<T>& b, const T* x, T* out) {
  constexpr int V = kLanes<T>;
  Vec<T> acc[J][NV];
  for (int j = 0; j < J; ++j)
    for (int n = 0; n < NV; ++n) acc[j][n] = load(out + j * b.acc_step + n * V);
  for (int64_t i = 0; i < b.images; ++i)
    for (int64_t p = 0; p < b.rows; ++p) {
      const T* xp = x + i * b.x_image + p * b.x_pitch;
      const T* zp = b.z + i * b.z_image + p * b.z_pitch;
      for (int64_t q = 0; q < b.cols; ++q, xp += b.x_step, zp += b.z_step) {
        Vec<T> z[NV];
        for (int n = 0; n < NV; ++n) z[n] = load(zp + n * V);
        for (int j = 0; j < J; ++j)
          for (int n = 0; n < NV; ++n) acc[j][n] += z[n] * xp[j];
      }
    }
  for (int j = 0; j < J; ++j)
    for (int n = 0; n < NV; ++n) store(out + j * b.acc_step + n * V, acc[j][n]);
}

template <class T, int M>
HG_INLINE void conv_tile_of(const ConvRow<T>& row, const T* src, T* out) {
  row.width == kLanes<T> ? conv_tile<T, M, 1>(row, src, out) : conv_tile<T, M, 2>(row, src, out);
}

template <class T, int J>
HG_INLINE void wgrad_tile_of(const WgradBlock<T>& block, const T* x, T* out) {
  block.width == kLanes<T> ? wgrad_tile<T, J, 1>(block, x, out) : wgrad_tile<T, J, 2>(block, x, out);
}

// Turns a size in [1, kTile] into a template argument.
template <int M>
struct Pick {
  template <class T>
  static HG_INLINE void conv(int64_t m, const ConvRow<T>& row, const T* src, T* out) {
    m == M ? conv_tile_of<T, M>(row, src, out) : Pick<M - 1>::conv(m, row, src, out);
  }
  template <class T>
  static HG_INLINE void wgrad(int64_t j, const WgradBlock<T>& block, const T* x, T* out) {
    j == M ? wgrad_tile_of<T, M>(block, x, out) : Pick<M - 1>::wgrad(j, block, x, out);
  }
};
template <>
struct Pick<0> {
  template <class T>
  static HG_INLINE void conv(int64_t, const ConvRow<T>&, const T*, T*) {}
  template <class T>
  static HG_INLINE void wgrad(int64_t, const WgradBlock<T>&, const T*, T*) {}
};

}  // namespace

// Both cut evenly: 14 pixels become 7 + 7, not 12 + 2.
template <class T>
void conv_row(const ConvRow<T>& row, int64_t count) {
  for (int64_t tiles = ceil_div(count, kTile), done = 0; tiles > 0; --tiles) {
    const int64_t m = ceil_div(count - done, tiles);
    Pick<kTile>::conv(m, row, row.src + done * row.step, row.out + done * row.out_step);
    done += m;
  }
}

template <class T>
void wgrad_block(const WgradBlock<T>& block, int64_t run) {
  for (int64_t tiles = ceil_div(run, kTile), done = 0; tiles > 0; --tiles) {
    const int64_t j = ceil_div(run - done, tiles);
    Pick<kTile>::wgrad(j, block, block.x + done, block.acc + done * block.acc_step);
    done += j;
  }
}

template void conv_row(const ConvRow<float>&, int64_t);
template void conv_row(const ConvRow<double>&, int64_t);
template void wgrad_block(const WgradBlock<float>&, int64_t);
template void wgrad_block(const WgradBlock<double>&, int64_t);

}  // namespace hg::HG_SIMD

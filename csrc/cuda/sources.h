// What a convolution reads: plain images, or the cotangent of z, formed on the fly from z and pooled-size arrays.
#pragma once
#include "launch.h"

namespace hg::cuda {

// Offsets of n x n pixels from (y, x) on in an image of H x W pixels and C channels, and which of them lie inside.
template <int n>
struct Square {
  int row[n], column[n];
  bool high[n], wide[n];
  HG_DEVICE Square(int y, int x, int H, int W, int C) {
    HG_UNROLL
    for (int i = 0; i < n; ++i) {
      high[i] = y + i >= 0 && y + i < H;
      wide[i] = x + i >= 0 && x + i < W;
      row[i] = high[i] ? (y + i) * W * C : 0;
      column[i] = wide[i] ? (x + i) * C : 0;
    }
  }
  HG_DEVICE bool inside(int i, int j) const { return high[i] && wide[j]; }
};

// Images of H x W pixels and C channels, zero outside; minus shift[c] everywhere where a shift is given.
template <class T>
struct Images {
  Batch<const T> x, shift;
  int H, W, C;

  struct Channel {
    int c;
    Quad<T> shift;
  };
  struct At {
    const T *x, *shift;
    int H, W, C;
    bool wide;
    HG_DEVICE Channel channel(int c) const { return {c, shift == nullptr ? Quad<T>{} : load_quad(shift, c, C, false)}; }
    HG_DEVICE Quad<T> load(const Channel& channel, int image, int y, int x_) const {
      Quad<T> v{};
      if (y >= 0 && y < H && x_ >= 0 && x_ < W)
        v = load_quad(x + static_cast<int64_t>((image * H + y) * W + x_) * C, channel.c, C, wide && channel.c < C);
      if (shift != nullptr) {
        HG_UNROLL
        for (int j = 0; j < 4; ++j) v.v[j] -= channel.shift.v[j];
      }
      return v;
    }
    // Channel c of n x n pixels from (y, x_) on.
    template <int n>
    HG_DEVICE void square(int c, int image, int y, int x_, T (&v)[n][n]) const {
      const T off = shift == nullptr ? T(0) : shift[c];
      const Square<n> at(y, x_, H, W, C);
      const T* const from = x + static_cast<int64_t>(image) * H * W * C + c;
      HG_UNROLL
      for (int i = 0; i < n; ++i) {
        const T* const line = from + at.row[i];
        HG_UNROLL
        for (int j = 0; j < n; ++j) v[i][j] = (at.inside(i, j) ? line[at.column[j]] : T(0)) - off;
      }
    }
  };
  HG_DEVICE At at(int64_t p, int64_t e) const { return {x.at(p, e), shift ? shift.at(p, e) : nullptr, H, W, C, x.wide}; }
};

// Rows of constants per direction and episode, K long, of
//   (z - mean)*by_z + (z_dot - mean_dot)*by_z_dot + shift + [winner and active] (y_bar*by_y + y_bar_dot*by_y_dot);
// without z_dot and y_bar_dot the last three rows are not read.
enum CotangentRow : int { kMean, kByZ, kShift, kByY, kMeanDot, kByZDot, kByYDot, kCotangentRows };

template <class T>
struct Cotangent {
  Batch<const T> z, z_dot, y_bar, y_bar_dot;
  Batch<const unsigned char> code;
  const T* constants;  // kCotangentRows rows per direction and episode
  int64_t E;
  int H, W, C;  // C: the channels of z, K elsewhere

  struct Channel {
    int c;
    Quad<T> row[kCotangentRows];
  };
  struct At {
    const T *z, *z_dot, *y_bar, *y_bar_dot, *constants;
    const unsigned char* code;
    int H, W, C;
    bool wide;
    HG_DEVICE Channel channel(int c) const {
      Channel out;
      out.c = c;
      const int rows = z_dot == nullptr ? kMeanDot : kCotangentRows;
      HG_UNROLL
      for (int i = 0; i < kCotangentRows; ++i)
        out.row[i] = i < rows ? load_quad(constants + static_cast<int64_t>(i) * C, c, C, wide && c < C) : Quad<T>{};
      return out;
    }
    HG_DEVICE Quad<T> load(const Channel& channel, int image, int y, int x) const {
      Quad<T> v{};
      if (y < 0 || y >= H || x < 0 || x >= W || channel.c >= C) return v;
      const int64_t pixel = static_cast<int64_t>((image * H + y) * W + x) * C;
      const Quad<T> value = load_quad(z + pixel, channel.c, C, wide);
      HG_UNROLL
      for (int j = 0; j < 4; ++j) v.v[j] = fused(value.v[j] - channel.row[kMean].v[j], channel.row[kByZ].v[j], channel.row[kShift].v[j]);
      if (z_dot != nullptr) {
        const Quad<T> dot = load_quad(z_dot + pixel, channel.c, C, wide);
        HG_UNROLL
        for (int j = 0; j < 4; ++j) v.v[j] = fused(dot.v[j] - channel.row[kMeanDot].v[j], channel.row[kByZDot].v[j], v.v[j]);
      }
      const int h = H / 2, w = W / 2;
      if (y / 2 >= h || x / 2 >= w) return v;
      const int64_t pooled = static_cast<int64_t>((image * h + y / 2) * w + x / 2) * C;
      const Codes codes = load_codes(code + pooled, channel.c, C, wide);
      const Quad<T> bar = load_quad(y_bar + pooled, channel.c, C, wide);
      Quad<T> bar_dot{};
      if (y_bar_dot != nullptr) bar_dot = load_quad(y_bar_dot + pooled, channel.c, C, wide);
      const int mine = 4 | (y & 1) << 1 | (x & 1);
      HG_UNROLL
      for (int j = 0; j < 4; ++j) {
        T add = bar.v[j] * channel.row[kByY].v[j];
        if (y_bar_dot != nullptr) add = fused(bar_dot.v[j], channel.row[kByYDot].v[j], add);
        if ((codes.v[j] & 7) == mine) v.v[j] += add;
      }
      return v;
    }
    // Channel c of the window whose first pixel is (y, x).
    HG_DEVICE void square(int c, int image, int y, int x, T (&v)[2][2]) const {
      const T* const row = constants + c;
      const T mean = row[kMean * C], by_z = row[kByZ * C], shift = row[kShift * C];
      const Square<2> at(y, x, H, W, C);
      const int64_t first = static_cast<int64_t>(image) * H * W * C + c;
      HG_UNROLL
      for (int q = 0; q < 4; ++q) v[q >> 1][q & 1] = fused(z[first + at.row[q >> 1] + at.column[q & 1]] - mean, by_z, shift);
      if (z_dot != nullptr) {
        const T mean_dot = row[kMeanDot * C], by_z_dot = row[kByZDot * C];
        HG_UNROLL
        for (int q = 0; q < 4; ++q)
          v[q >> 1][q & 1] = fused(z_dot[first + at.row[q >> 1] + at.column[q & 1]] - mean_dot, by_z_dot, v[q >> 1][q & 1]);
      }
      int winner = 0;
      T add = T(0);
      if (at.inside(1, 1)) {
        const int64_t pooled = (static_cast<int64_t>(image) * (H / 2) + y / 2) * (W / 2) * C + static_cast<int64_t>(x / 2) * C + c;
        winner = code[pooled] & 7;
        add = y_bar[pooled] * row[kByY * C];
        if (y_bar_dot != nullptr) add = fused(y_bar_dot[pooled], row[kByYDot * C], add);
      }
      HG_UNROLL
      for (int q = 0; q < 4; ++q) {
        T& value = v[q >> 1][q & 1];
        value = at.inside(q >> 1, q & 1) ? (winner == (4 | q) ? value + add : value) : T(0);
      }
    }
  };
  HG_DEVICE At at(int64_t p, int64_t e) const {
    return {z.at(0, e),
            z_dot ? z_dot.at(p, e) : nullptr,
            y_bar.at(0, e),
            y_bar_dot ? y_bar_dot.at(p, e) : nullptr,
            constants + (p * E + e) * kCotangentRows * C,
            code.at(0, e),
            H,
            W,
            C,
            z.wide && y_bar.wide && code.wide && (!z_dot || z_dot.wide) && (!y_bar_dot || y_bar_dot.wide)};
  }
};

}  // namespace hg::cuda

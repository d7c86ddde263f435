// Pooled-size passes: a thread has one window and four neighbouring channels.
#pragma once
#include "launch.h"
#include "tile.h"

namespace hg::cuda {

struct Pooled {
  int64_t entry;
  int image, y, x, k;
  int64_t offset;  // of the window's row of channels in a pooled array
  bool any;
};

// Cuts the windows of every entry into blocks of kThreads threads.
struct Pooling {
  int H, W, K;
  int64_t items;   // threads of an entry
  int64_t blocks;  // blocks of an entry
  Divisor by_quads, by_w, by_h;

  static Pooling of(int N, int H, int W, int K) {
    Pooling out{H, W, K, 0, 0, {}, {}, {}};
    const int64_t quads = ceil_div(K, 4), h = H / 2, w = W / 2;
    out.items = N * h * w * quads;
    out.blocks = ceil_div(out.items, kThreads);
    out.by_quads = Divisor::of(higher<int64_t>(1, quads));
    out.by_w = Divisor::of(higher<int64_t>(1, w));
    out.by_h = Divisor::of(higher<int64_t>(1, h));
    return out;
  }
  HG_DEVICE Pooled at(int64_t block, int thread) const {
    Pooled out;
    out.entry = block / blocks;
    const int64_t item = block % blocks * kThreads + thread;
    out.any = item < items;
    int rest = static_cast<int>(out.any ? item : 0);
    out.k = 4 * by_quads.split(rest);
    out.offset = static_cast<int64_t>(rest) * K;
    out.x = by_w.split(rest);
    out.y = by_h.split(rest);
    out.image = rest;
    return out;
  }
};

// max over the window of (z - mean)*scale + shift (ties: the first), ReLU, and the code. A NaN stays a NaN and counts
// as positive, as in the composed ops.
template <class T>
HG_DEVICE T pool(const T (&z)[4], T mean, T scale, T shift, unsigned char& code) {
  T best = fused(z[0] - mean, scale, shift);
  int winner = 0;
  HG_UNROLL
  for (int q = 1; q < 4; ++q) {
    const T u = fused(z[q] - mean, scale, shift);
    const bool better = u > best;
    best = better ? u : best;
    winner = better ? q : winner;
  }
  const bool off = best <= T(0);
  code = static_cast<unsigned char>(winner | (off ? 0 : 4));
  return off ? T(0) : best;
}

}  // namespace hg::cuda

// Host code: how images are cut into tiles.
#include "tile.h"

namespace hg::cuda {
namespace {

// Elements of one channel of a tile with its border, such that neighbouring quads of channels lie in different banks.
int64_t plane_of(int64_t images, int64_t rows, int64_t cols) {
  const int64_t pixels = images * (2 * rows + 2) * (2 * cols + 2);
  return (pixels + 3) / 8 * 8 + 4;
}

}  // namespace

Tiling choose_tiling(int64_t N, int64_t H, int64_t W, int windows, int pixels) {
  const int64_t high = ceil_div(H, 2), wide = ceil_div(W, 2);
  Tiling best{};
  best.N = static_cast<int>(N);
  best.H = static_cast<int>(H);
  best.W = static_cast<int>(W);
  if (N * H * W == 0) return best;  // no tiles
  int64_t best_tiles = 0, best_plane = 0;
  for (int64_t cut = 1; cut <= wide; ++cut) {
    const int64_t cols = ceil_div(wide, cut);
    if (cols > windows) continue;
    if (best_tiles > 0 && cut > 1 && cut * high * N > best_tiles * windows) break;  // narrower ones only waste more
    for (int64_t rows = lower<int64_t>(high, windows / cols); rows >= 1; --rows) {
      const bool whole = rows == high && cols == wide;
      int64_t images = whole ? lower<int64_t>(N, windows / (rows * cols)) : 1;
      while (images > 1 && plane_of(images, rows, cols) > pixels) --images;
      const int64_t plane = plane_of(images, rows, cols);
      if (plane > pixels) continue;
      const int64_t across = ceil_div(wide, cols), down = ceil_div(high, rows), groups = ceil_div(N, images);
      const int64_t tiles = across * down * groups;
      if (best_tiles > 0 && (tiles > best_tiles || (tiles == best_tiles && plane >= best_plane))) continue;
      best_tiles = tiles;
      best_plane = plane;
      best.images = static_cast<int>(images);
      best.rows = static_cast<int>(rows);
      best.cols = static_cast<int>(cols);
      best.across = static_cast<int>(across);
      best.down = static_cast<int>(down);
      best.groups = static_cast<int>(groups);
    }
  }
  best.height = 2 * best.rows + 2;
  best.width = 2 * best.cols + 2;
  best.plane = static_cast<int>(best_plane);
  best.by_cols = Divisor::of(best.cols);
  best.by_rows = Divisor::of(best.rows);
  best.by_width = Divisor::of(best.width);
  best.by_height = Divisor::of(best.height);
  best.by_across = Divisor::of(best.across);
  best.by_down = Divisor::of(best.down);
  best.count = static_cast<int>(best_tiles);
  return best;
}

constexpr int64_t kTileWork = 900;  // pixels that are loaded in the time of a tile's other work

Tiling choose_stacked_tiling(int64_t N, int64_t H, int64_t W, int windows, int pixels) {
  const int64_t high = ceil_div(H, 2), wide = ceil_div(W, 2);
  Tiling best{};
  best.N = static_cast<int>(N);
  best.H = static_cast<int>(H);
  best.W = static_cast<int>(W);
  int64_t least = 0;
  for (int64_t cols = 1; N * H * W > 0 && cols <= lower<int64_t>(wide, windows); ++cols) {
    const int64_t across = ceil_div(wide, cols);
    for (int64_t rows = lower<int64_t>(N * high, windows / cols); rows >= 1; --rows) {
      const int64_t edges = lower(N - 1, (rows + high - 2) / high);  // between images that a tile may hold
      const int64_t height = 2 * rows + 2 + 2 * edges, width = 2 * cols + 2, plane = (height * width + 3) / 8 * 8 + 4;
      const int64_t down = ceil_div(N * high, rows), tiles = across * down;
      const int64_t work = tiles * (kTileWork + plane);
      if (plane > pixels || (best.count > 0 && work >= least)) continue;
      least = work;
      best.plane = static_cast<int>(plane);
      best.count = static_cast<int>(tiles);
      best.images = 1;
      best.rows = static_cast<int>(rows);
      best.cols = static_cast<int>(cols);
      best.across = static_cast<int>(across);
      best.down = static_cast<int>(down);
      best.groups = 1;
      best.height = static_cast<int>(height);
      best.width = static_cast<int>(width);
    }
  }
  best.by_cols = Divisor::of(higher(1, best.cols));
  best.by_rows = Divisor::of(higher<int64_t>(1, high));
  best.by_width = Divisor::of(higher(1, best.width));
  best.by_height = Divisor::of(2 * high + 2);
  best.by_across = Divisor::of(higher(1, best.across));
  best.by_down = Divisor::of(higher(1, best.down));
  return best;
}

}  // namespace hg::cuda

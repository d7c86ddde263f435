// The gradient of 3x3 filters: w_bar[r, s, c, k] = sum over pixels of x[y + r - 1, x + s - 1, c] * z_bar[y, x, k].
//
// A block has a tile of 32 channels by 32 filters and goes through a few rectangles of pixels. Thread (r, c quad,
// k quad) owns the 3 taps of row r: 48 accumulators, for which it reads one quad of x and one of z_bar per pixel.
#pragma once
#include "sources.h"
#include "tile.h"

namespace hg::cuda {

constexpr int kWgradThreads = 192;
constexpr int kWgradPixels = 1024;  // pixels added in T before the sum over parts goes on in double

template <class T>
struct WgradShape {
  static constexpr int kWindows = sizeof(T) == 4 ? 32 : 16;
  static constexpr int kMostPixels =
      static_cast<int>((kSharedLimit / sizeof(T) - 4 * kWindows * kFilters) / kFilters) - 4;  // of x with its border
};

template <class T, class Source>
struct Wgrad {
  struct Term {
    Images<T> x;
    Source z_bar;
  };
  Term terms[2];
  int n_terms;
  int C, K;
  Tiling tiling;
  int64_t E;
  Divisor by_width, by_height;  // of a tile's rectangle without its border
  int per_part;                 // tiles of a part
  int precision;                // a Precision
  bool winograd;                // whether by Winograd; a tile is then a window
  int64_t parts() const { return ceil_div(tiling.tiles(), higher(1, per_part)); }
  int64_t size() const { return static_cast<int64_t>(9) * C * K; }
  void add(const Images<T>& x, const Source& z_bar) { terms[n_terms++] = {x, z_bar}; }
};

// Cuts a gradient for `entries` episodes over all directions into parts of rectangles of `windows` windows: of fewer and smaller rectangles
// where there would be too few blocks.
template <class T, class Source>
void cut(Wgrad<T, Source>& a, int64_t entries, int64_t N, int64_t H, int64_t W, int windows, int pixels) {
  a.tiling = choose_tiling(N, H, W, windows, pixels);
  a.per_part = kWgradPixels / (4 * windows);
  const auto few = [&] { return entries * ceil_div(a.C, kFilters) * ceil_div(a.K, kFilters) * a.parts() < kFill / 2; };
  while (a.per_part > 1 && few()) a.per_part /= 2;
  while (windows > 8 && few()) a.tiling = choose_tiling(N, H, W, windows /= 2, pixels);
  a.by_width = Divisor::of(higher(1, 2 * a.tiling.cols));
  a.by_height = Divisor::of(higher(1, 2 * a.tiling.rows));
}

template <class T, class Source>
Wgrad<T, Source> wgrad(int64_t entries, int64_t E, int64_t N, int64_t H, int64_t W, int64_t C, int64_t K) {
  Wgrad<T, Source> a{};
  a.E = E;
  a.C = static_cast<int>(C);
  a.K = static_cast<int>(K);
  cut(a, entries, N, H, W, WgradShape<T>::kWindows, WgradShape<T>::kMostPixels);
  return a;
}

// put(i, quad, channels c0 + 4*quad .. c0 + 4*quad + 3 of pixel i) for i = (image*height + y)*width + x and kFilters
// channels; `border` pixels are added on every side.
template <class T, class Source, class Put>
HG_DEVICE void load_rows(const Source& source, const Place& at, int c0, int height, int width, int border, const Divisor& by_width,
                         const Divisor& by_height, const Put& put) {
  constexpr int kQuads = kFilters / 4;
  const int quad = static_cast<int>(threadIdx.x) % kQuads;
  const auto channel = source.channel(c0 + 4 * quad);
  const int total = at.images * height * width;
  for (int i = static_cast<int>(threadIdx.x) / kQuads; i < total; i += kWgradThreads / kQuads) {
    int rest = i;
    const int x = by_width.split(rest), y = by_height.split(rest);
    put(i, quad, source.load(channel, at.image + rest, at.y + y - border, at.x + x - border));
  }
}

// rows[i][kFilters]
template <class T>
struct PutRows {
  T* rows;
  HG_DEVICE void operator()(int i, int quad, const Quad<T>& v) const { *reinterpret_cast<Quad<T>*>(rows + i * kFilters + 4 * quad) = v; }
};

// Which block this is: its tiles, and its first channel and filter.
struct WgradSpot {
  int64_t p, e, part;  // `part` is counted over all entries
  int c0, k0, first, last;
};
template <class T, class Source>
HG_DEVICE WgradSpot wgrad_spot(const Wgrad<T, Source>& a, int block) {
  const int c_tiles = (a.C + kFilters - 1) / kFilters, k_tiles = (a.K + kFilters - 1) / kFilters;
  const int tiles = a.tiling.count, n_parts = (tiles + a.per_part - 1) / a.per_part;
  const int part = block % n_parts;
  block /= n_parts;
  const int entry = block / k_tiles / c_tiles;
  WgradSpot spot;
  spot.p = entry / a.E;
  spot.e = entry % a.E;
  spot.part = static_cast<int64_t>(entry) * n_parts + part;
  spot.c0 = block / k_tiles % c_tiles * kFilters;
  spot.k0 = block % k_tiles * kFilters;
  spot.first = part * a.per_part;
  spot.last = lower(tiles, spot.first + a.per_part);
  return spot;
}

template <class T>
HG_DEVICE void add_products(const Quad<T>& x, const Quad<T>& z, T (&sums)[4][4]) {
  HG_UNROLL
  for (int i = 0; i < 4; ++i) HG_UNROLL
  for (int j = 0; j < 4; ++j) sums[i][j] = fused(x.v[i], z.v[j], sums[i][j]);
}

// parts[entry][part][3][3][C][K]
template <class T, class Source>
__global__ void __launch_bounds__(kWgradThreads, 1) wgrad3x3(const Wgrad<T, Source> a, T* parts) {
  const Tiling& t = a.tiling;
  SharedMemory shared;
  T* const x_rows = shared.take<T>(t.plane * kFilters);
  T* const z_rows = shared.take<T>(4 * WgradShape<T>::kWindows * kFilters);
  const WgradSpot spot = wgrad_spot(a, static_cast<int>(blockIdx.x));
  const int thread = static_cast<int>(threadIdx.x), r = thread / 64, c = 4 * (thread % 8), k = 4 * (thread / 8 % 8);
  const int width = 2 * t.cols, height = 2 * t.rows;
  T sums[3][4][4] = {};
  HG_NO_UNROLL
  for (int tile = spot.first; tile < spot.last; ++tile) {
    const Place at = place_of(t, tile);
    HG_NO_UNROLL
    for (int term = 0; term < a.n_terms; ++term) {
      __syncthreads();  // all threads are done with the rows of before
      load_rows<T>(a.terms[term].x.at(spot.p, spot.e), at, spot.c0, t.height, t.width, 1, t.by_width, t.by_height, PutRows<T>{x_rows});
      load_rows<T>(a.terms[term].z_bar.at(spot.p, spot.e), at, spot.k0, height, width, 0, a.by_width, a.by_height, PutRows<T>{z_rows});
      __syncthreads();
      HG_NO_UNROLL
      for (int row = 0; row < at.images * at.rows; ++row) {
        const int image = row / at.rows, y = row - image * at.rows;
        const T* x_row = x_rows + ((image * t.height + y + r) * t.width) * kFilters + c;
        const T* z_row = z_rows + (image * height + y) * width * kFilters + k;
        Quad<T> left = *reinterpret_cast<const Quad<T>*>(x_row);
        Quad<T> middle = *reinterpret_cast<const Quad<T>*>(x_row + kFilters);
        HG_UNROLL_BY(3)  // after three steps the quads are back in their registers
        for (int x = 0; x < at.cols; ++x) {
          const Quad<T> right = *reinterpret_cast<const Quad<T>*>(x_row + (x + 2) * kFilters);
          const Quad<T> z = *reinterpret_cast<const Quad<T>*>(z_row + x * kFilters);
          add_products(left, z, sums[0]);
          add_products(middle, z, sums[1]);
          add_products(right, z, sums[2]);
          left = middle;
          middle = right;
        }
      }
    }
  }
  T* const out = parts + spot.part * 9 * a.C * a.K;
  HG_UNROLL
  for (int s = 0; s < 3; ++s) HG_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (spot.c0 + c + i >= a.C) break;
    T* const row = out + (static_cast<int64_t>(3 * r + s) * a.C + spot.c0 + c + i) * a.K;
    HG_UNROLL
    for (int j = 0; j < 4; ++j)
      if (spot.k0 + k + j < a.K) row[spot.k0 + k + j] = sums[s][i][j];
  }
}

// Launches the partial sums and returns them: parts() of size() elements per entry.
template <class T, class Source>
T* launch_wgrad(Launch& launch, const Wgrad<T, Source>& a, int64_t entries, const char* name, void (*kernel)(Wgrad<T, Source>, T*),
                int threads, std::size_t shared) {
  T* const parts = launch.scratch<T>(entries * a.parts() * a.size());
  launch(name, kernel, entries * a.parts() * ceil_div(a.C, kFilters) * ceil_div(a.K, kFilters), threads, shared, a, parts);
  return parts;
}
template <class T, class Source>
T* launch_wgrad(Launch& launch, const Wgrad<T, Source>& a, int64_t entries) {
  const std::size_t shared = shared_size(static_cast<std::size_t>(a.tiling.plane) * kFilters * sizeof(T)) +
                             shared_size(4 * WgradShape<T>::kWindows * kFilters * sizeof(T));
  return launch_wgrad(launch, a, entries, "wgrad3x3", wgrad3x3<T, Source>, kWgradThreads, shared);
}

}  // namespace hg::cuda

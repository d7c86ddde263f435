// The 3x3 convolution kernel: one or two terms share the accumulators, an epilogue decides what becomes of them.
#pragma once
#include "sources.h"
#include "tile.h"

namespace hg::cuda {

// Which kernel makes a convolution without tensor cores.
enum Schedule : int { kLargeTiles, kSmallTiles, kWinograd };

template <class T, class Source>
struct Convolution {
  struct Term {
    Source source;
    Filter<T> filter;
  };
  Term terms[2];
  int n_terms;  // 0: the convolution is zero
  int outputs;
  Tiling tiling;
  int64_t E;
  int planes;     // channels in shared memory at a time
  int precision;  // a Precision
  Schedule schedule;

  int64_t filter_tiles() const { return ceil_div(outputs, kFilters); }
  void add(const Source& source, const Filter<T>& filter) { terms[n_terms++] = {source, filter}; }
};

// Which block this is, and its thread's first filter.
struct Spot {
  int p, e;
  int tile;    // of its entry
  int index;   // counted over all directions and episodes
  int k0, k;   // first filter of the block and of the thread
  int pixels;  // of the tile
};
template <class Shape, class T, class Source>
HG_DEVICE Spot spot_of(const Convolution<T, Source>& a, int block, int thread) {
  const int tiles = a.tiling.count, E = static_cast<int>(a.E);
  const int filter_tiles = (a.outputs + kFilters - 1) / kFilters, entry = block / tiles / filter_tiles;
  Spot spot;
  spot.p = entry / E;
  spot.e = entry % E;
  spot.tile = block % tiles;
  spot.index = entry * tiles + spot.tile;
  spot.k0 = block / tiles % filter_tiles * kFilters;
  spot.k = spot.k0 + Shape::filter(thread);
  spot.pixels = pixels_of<Shape::kStacked>(a.tiling, spot.tile);
  return spot;
}

// What follows where the epilogue sums over all tiles: the last block of an entry and its filters closes the sums.
template <class Epilogue, class T, class Source>
HG_DEVICE void close_sums(const Convolution<T, Source>& a, const Epilogue& epilogue, T* sums, T* memory) {
  if constexpr (Epilogue::kSums) {
    const int tiles = a.tiling.count, column = static_cast<int>(blockIdx.x) / tiles;
    if (comes_last(epilogue.tickets + column, static_cast<unsigned>(tiles), reinterpret_cast<int*>(sums)))
      epilogue.close(column, a.tiling, reinterpret_cast<double*>(memory));
  }
}

template <class T, bool kSmall, class Source, class Epilogue>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1) conv3x3(const Convolution<T, Source> a, const Epilogue epilogue) {
  using Shape = TileShape<T, kSmall>;
  SharedMemory shared;
  T* const pixels = shared.take<T>(a.planes * a.tiling.plane);
  T* const weights = shared.take<T>(Shape::kWeights);
  T* const sums = Epilogue::kSums ? shared.take<T>(Shape::kSums) : nullptr;
  T accumulators[1][4][Shape::kGroup] = {};
  {
    const int thread = static_cast<int>(threadIdx.x);
    const Spot spot = spot_of<Shape>(a, static_cast<int>(blockIdx.x), thread);
    const Window window = window_of(a.tiling, place_of(a.tiling, spot.tile), Shape::window(thread, 0));
    const int corner = (window.image * a.tiling.height + window.y) * a.tiling.width + window.x;
    HG_NO_UNROLL
    for (int i = 0; i < a.n_terms; ++i)
      convolve<Shape>(a.terms, i, spot.p, spot.e, spot.k0, a.tiling, spot.tile, corner, pixels, weights, accumulators[0]);
  }
  const int thread = forgotten(static_cast<int>(threadIdx.x));
  const Spot spot = spot_of<Shape>(a, forgotten(static_cast<int>(blockIdx.x)), thread);
  const Place at = place_of(a.tiling, spot.tile);
  const Window windows[1] = {window_of(a.tiling, at, Shape::window(thread, 0))};
  epilogue.template finish<Shape>(spot, at, windows, accumulators, sums);
  close_sums(a, epilogue, sums, weights);
}

// The most pixels of one channel that leave room for `planes` of them beside the weights and sums.
template <class T>
int most_pixels(int planes) {
  const std::size_t rest =
      kSharedLimit - shared_size(TileShape<T>::kWeights * sizeof(T)) - shared_size(TileShape<T>::kSums * sizeof(T)) - 16;
  return static_cast<int>(rest / (static_cast<std::size_t>(planes) * sizeof(T)));
}

template <class T, class Source>
Convolution<T, Source> convolution(int64_t E, int64_t N, int64_t H, int64_t W, int64_t inputs, int64_t outputs) {
  Convolution<T, Source> a{};
  a.E = E;
  a.outputs = static_cast<int>(outputs);
  a.planes = inputs > 4 ? TileShape<T>::kChunk : 4;
  a.tiling = choose_tiling(N, H, W, TileShape<T>::kWindows, most_pixels<T>(a.planes));
  return a;
}

// The same for `entries` of them, in small tiles where large ones are too few.
template <class T, class Source>
Convolution<T, Source> spread(Convolution<T, Source> a, int64_t entries) {
  if constexpr (sizeof(T) == 4) {
    const Tiling& t = a.tiling;
    if (entries * a.filter_tiles() * t.tiles() < kFill) {
      a.schedule = kSmallTiles;
      a.tiling = choose_tiling(t.N, t.H, t.W, TileShape<T, true>::kWindows, most_pixels<T>(a.planes));
    }
  }
  return a;
}

// Closes the sums where the convolution's own blocks do not: over no tiles, and after tensor cores, whose kernels have no registers left.
template <class Epilogue>
__global__ void __launch_bounds__(kThreads) close_tiles(const Epilogue epilogue, const Tiling tiling) {
  SharedMemory shared;
  epilogue.close(static_cast<int>(blockIdx.x), tiling, shared.take<double>(kThreads));
}

template <class T, class Source, class Epilogue>
void launch_close(const Launch& launch, const Convolution<T, Source>& a, int64_t entries, const Epilogue& epilogue) {
  launch("close_tiles", close_tiles<Epilogue>, entries * a.filter_tiles(), kThreads, shared_size(kThreads * sizeof(double)), epilogue,
         a.tiling);
}

template <class T, class Source, class Epilogue>
void launch_convolution(const Launch& launch, const char* name, const Convolution<T, Source>& a, int64_t entries,
                        const Epilogue& epilogue) {
  const std::size_t shared = shared_size(static_cast<std::size_t>(a.planes) * static_cast<std::size_t>(a.tiling.plane) * sizeof(T)) +
                             shared_size(TileShape<T>::kWeights * sizeof(T)) +
                             (Epilogue::kSums ? shared_size(TileShape<T>::kSums * sizeof(T)) : 0);
  const int64_t blocks = entries * a.filter_tiles() * a.tiling.tiles();
  if constexpr (sizeof(T) == 4)
    if (a.schedule == kSmallTiles) return launch(name, conv3x3<T, true, Source, Epilogue>, blocks, kThreads, shared, a, epilogue);
  launch(name, conv3x3<T, false, Source, Epilogue>, blocks, kThreads, shared, a, epilogue);
}

// Writes the outputs of a window, filters k .. k + n - 1.
template <class T, int n>
HG_DEVICE void store_window(T* out, const Place& at, const Window& window, int H, int W, int K, int k, bool wide,
                            const T (&accumulators)[4][n]) {
  const int pixel = ((at.image + window.image) * H + at.y + window.y) * W + at.x + window.x;
  T* const first = out + static_cast<int64_t>(pixel) * K + k;
  const int rest = K - k;
  HG_UNROLL
  for (int q = 0; q < 4; ++q) {
    if (!window.has(at, q)) continue;
    T* const to = first + static_cast<int64_t>((q >> 1) * W + (q & 1)) * K;
    if (wide && rest >= n) {
      HG_UNROLL
      for (int j = 0; j < n; j += 4)
        *reinterpret_cast<Quad<T>*>(to + j) =
            Quad<T>{{accumulators[q][j], accumulators[q][j + 1], accumulators[q][j + 2], accumulators[q][j + 3]}};
    } else {
      HG_UNROLL
      for (int j = 0; j < n; ++j)
        if (j < rest) to[j] = accumulators[q][j];
    }
  }
}

// out = the convolution.
template <class T>
struct Store {
  static constexpr bool kSums = false;
  Batch<T> out;
  int H, W, K;
  template <class Shape>
  HG_DEVICE void finish(const Spot& spot, const Place& at, const Window (&windows)[Shape::kOwn],
                        const T (&accumulators)[Shape::kOwn][4][Shape::kGroup], T*) const {
    HG_UNROLL
    for (int i = 0; i < Shape::kOwn; ++i) store_window(out.at(spot.p, spot.e), at, windows[i], H, W, K, spot.k, out.wide, accumulators[i]);
  }
};

}  // namespace hg::cuda

// The 3x3 convolution kernel by Winograd's F(2x2, 3x3) (Lavin & Gray 2016, arXiv:1509.09308), in float32, for whole chunks of channels and
// whole tiles of filters: for each window, channel and filter 16 multiply-adds instead of 36.
//
// A block makes 32 windows of 32 filters, a chunk of channels after the other. Its threads transform a channel of a window and of a filter
// each. Then warp w multiplies positions 2*w and 2*w + 1 of the transforms, a lane 8 filters by 4 windows, while other warps load the next
// chunk. At the end the products are exchanged through shared memory, so that a thread has its window for 4 filters, as in a small tile.
//
// Where the pixels of a window's rows or columns are equal, all but one position of that axis is exactly zero, so neighbours with equal
// patches have equal bits; patches that are equal along the diagonal alone may differ by rounding. An infinity or NaN reaches all outputs
// of the windows that read it.
#pragma once
#include "convolution.h"

namespace hg::cuda {

struct Winograd {
  struct Shape : TileShape<float, true> {  // what a thread has at the end
    static constexpr bool kStacked = true;
  };
  static constexpr int kChunk = Shape::kChunk, kWindows = Shape::kWindows, kPositions = 16;
  static constexpr int kPitch = kFilters + 4;  // of a row of filters: neighbouring channels lie in different banks
  static constexpr int kPixels = kPositions * kChunk * kWindows;
  static constexpr int kWeights = kPositions * kChunk * kPitch;
  static_assert(kChunk * kWindows == kThreads && kChunk * kFilters == kThreads && kPositions == 2 * kWarps, "threads share the work");
};

// Whether a convolution is done here. By shapes alone, as bits depend on it.
template <class T>
constexpr bool by_winograd(int64_t inputs, int64_t outputs) {
  return sizeof(T) == 4 && inputs >= 16 && inputs % Winograd::kChunk == 0 && outputs > 0 && outputs % kFilters == 0 &&
         inputs <= INT32_MAX / outputs;
}

// Transforms along one axis.
HG_DEVICE void transform_pixels(const float (&d)[4], float (&v)[4]) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}
HG_DEVICE void transform_taps(const float (&w)[3], float (&u)[4]) {
  const float outer = w[0] + w[2];
  u[0] = w[0];
  u[1] = 0.5f * (outer + w[1]);
  u[2] = 0.5f * (outer - w[1]);
  u[3] = w[2];
}
HG_DEVICE void transform_products(const float (&m)[4], float (&y)[2]) {
  y[0] = m[0] + (m[1] + m[2]);
  y[1] = (m[1] - m[2]) - m[3];
}

// Transforms of n x n elements along both axes: `in` by columns, then by rows.
template <int n, int m, class Transform>
HG_DEVICE void both_axes(const float (&in)[n][n], float (&out)[m][m], const Transform& transform) {
  float half[n][m];  // [column][row]
  HG_UNROLL
  for (int x = 0; x < n; ++x) {
    float column[n];
    HG_UNROLL
    for (int y = 0; y < n; ++y) column[y] = in[y][x];
    transform(column, half[x]);
  }
  HG_UNROLL
  for (int y = 0; y < m; ++y) {
    float row[n];
    HG_UNROLL
    for (int x = 0; x < n; ++x) row[x] = half[x][y];
    transform(row, out[y]);
  }
}

// The channel and the filter of a chunk that a thread transforms: neighbouring threads read neighbouring weights.
struct OwnFilter {
  int channel, k;
};
HG_DEVICE OwnFilter own_filter(bool turned) {
  const int thread = static_cast<int>(threadIdx.x);
  if (turned) return {thread % Winograd::kChunk, thread / Winograd::kChunk};
  return {thread / kFilters, thread % kFilters};
}

// Where a block reads a term, found once.
template <class Source>
struct WinogradTerm {
  typename Source::At source;
  const float* w;          // the first tap of the block's first filter
  int input, output, tap;  // elements from an input, output, tap to the next
};
template <class Source>
struct WinogradBlock {
  WinogradTerm<Source> terms[2];
  Place place;
};

template <class Source>
HG_DEVICE WinogradTerm<Source> term_of(const Convolution<float, Source>& a, const Spot& spot, int i) {
  const Filter<float>& filter = a.terms[i].filter;
  WinogradTerm<Source> term;
  term.source = a.terms[i].source.at(spot.p, spot.e);
  term.input = filter.turned ? 1 : filter.K;
  term.output = filter.turned ? filter.K : 1;
  term.tap = filter.turned ? -filter.C * filter.K : filter.C * filter.K;
  term.w = filter.w.at(spot.p, spot.e) + static_cast<int64_t>(spot.k0) * term.output;
  if (filter.turned) term.w -= 8 * static_cast<int64_t>(term.tap);
  return term;
}

// What a chunk needs of memory: its pixels in shared memory, the thread's own filter in registers.
template <class Source>
HG_DEVICE void load_chunk(const WinogradTerm<Source>& term, const Tiling& t, const Place& at, int c0, float* pixels, float (&taps)[3][3]) {
  load_pixels<float, true>(term.source, t, at, c0, Winograd::kChunk / 4,
                           [pixels, plane = t.plane](int c, int i, float v) { pixels[c * plane + i] = v; });
  const OwnFilter own = own_filter(term.output != 1);
  const float* from = term.w + (c0 + own.channel) * term.input + own.k * term.output;
  HG_UNROLL
  for (int tap = 0; tap < 9; ++tap, from += term.tap) taps[tap / 3][tap % 3] = *from;
}

// windows[position][channel][kWindows] and filters[position][channel][kPitch] of a chunk.
HG_DEVICE void transform_chunk(const float* patch, int width, const float (&taps)[3][3], const OwnFilter& own, float* windows,
                               float* filters) {
  struct alignas(8) Pair {
    float v[2];
  };
  {
    float u[4][4];
    both_axes(taps, u, [](const float (&in)[3], float (&out)[4]) { transform_taps(in, out); });
    float* const to = filters + own.channel * Winograd::kPitch + own.k;
    HG_UNROLL
    for (int i = 0; i < Winograd::kPositions; ++i) to[i * Winograd::kChunk * Winograd::kPitch] = u[i / 4][i % 4];
  }
  float d[4][4], v[4][4];
  HG_UNROLL
  for (int r = 0; r < 4; ++r) {
    const Pair* const row = reinterpret_cast<const Pair*>(patch + r * width);
    const Pair left = row[0], right = row[1];
    d[r][0] = left.v[0];
    d[r][1] = left.v[1];
    d[r][2] = right.v[0];
    d[r][3] = right.v[1];
  }
  both_axes(d, v, [](const float (&in)[4], float (&out)[4]) { transform_pixels(in, out); });
  HG_UNROLL
  for (int i = 0; i < Winograd::kPositions; ++i) windows[i * kThreads + static_cast<int>(threadIdx.x)] = v[i / 4][i % 4];
}

// A lane's 4 filters of each half of the tile, and its 4 windows. Neighbouring lanes share windows, the next neighbours filters: then two
// quarters of a warp read shared memory at once.
struct Lane {
  int filters, windows;
};
HG_DEVICE Lane lane_of(int lane) { return {4 * ((lane & 1) | (lane >> 1 & 2)), 4 * ((lane >> 1 & 1) | (lane >> 2 & 6))}; }

// products[i][filter][window] += the products of position 2*warp + i, over the channels of a chunk. Where a lane begins is not computed
// again in the loop.
HG_DEVICE void multiply_chunk(const float* windows, const float* filters, float (&products)[2][8][4]) {
  const int thread = static_cast<int>(threadIdx.x);
  const Lane lane = lane_of(thread % 32);
  windows += forgotten(thread / 32 * 2 * Winograd::kChunk * Winograd::kWindows + lane.windows);
  filters += forgotten(thread / 32 * 2 * Winograd::kChunk * Winograd::kPitch + lane.filters);
  HG_NO_UNROLL
  for (int c = 0; c < Winograd::kChunk; ++c) HG_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = i * Winograd::kChunk + c;
    const Quad<float> v = *reinterpret_cast<const Quad<float>*>(windows + row * Winograd::kWindows);
    HG_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Quad<float> u = *reinterpret_cast<const Quad<float>*>(filters + row * Winograd::kPitch + half * 16);
      HG_UNROLL
      for (int k = 0; k < 4; ++k) HG_UNROLL
      for (int j = 0; j < 4; ++j) products[i][4 * half + k][j] = fused(u.v[k], v.v[j], products[i][4 * half + k][j]);
    }
  }
}

// take(k, m): m[y][x] are the products at all positions of filter filter(thread) + k of small tiles, and of window thread % 32. `memory`
// holds 16 positions of 16 filters by 32 windows; it is entered with no thread inside.
template <class Take>
HG_DEVICE void exchange(const float (&products)[2][8][4], float* memory, const Take& take) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const Lane lane = lane_of(thread % 32);
  HG_UNROLL
  for (int half = 0; half < 2; ++half) {
    HG_UNROLL
    for (int i = 0; i < 2; ++i) HG_UNROLL
    for (int k = 0; k < 4; ++k) {
      const float (&from)[4] = products[i][4 * half + k];
      const int row = (2 * warp + i) * 16 + lane.filters + k;
      *reinterpret_cast<Quad<float>*>(memory + row * 32 + (lane.windows ^ 2 * lane.filters)) = {{from[0], from[1], from[2], from[3]}};
    }
    __syncthreads();
    if (warp / 4 == half) {
      const int first = warp % 4 * 4;
      HG_UNROLL
      for (int k = 0; k < 4; ++k) {
        float m[4][4];
        HG_UNROLL
        for (int i = 0; i < Winograd::kPositions; ++i) m[i / 4][i % 4] = memory[(i * 16 + first + k) * 32 + (thread % 32 ^ 2 * first)];
        take(k, m);
      }
    }
    __syncthreads();
  }
}

template <class Source, class Epilogue>
__global__ void __launch_bounds__(kThreads, 2) winograd3x3(const Convolution<float, Source> a, const Epilogue epilogue) {
  using Shape = Winograd::Shape;
  SharedMemory shared;
  float* const pixels = shared.take<float>(Winograd::kChunk * a.tiling.plane);
  float* const windows = shared.take<float>(Winograd::kPixels + Winograd::kWeights);
  float* const filters = windows + Winograd::kPixels;
  float* const sums = Epilogue::kSums ? shared.take<float>(Shape::kSums) : nullptr;
  WinogradBlock<Source>* const block = shared.take<WinogradBlock<Source>>(1);
  float accumulators[1][4][Shape::kGroup];
  {
    const int thread = static_cast<int>(threadIdx.x);
    const Spot spot = spot_of<Shape>(a, static_cast<int>(blockIdx.x), thread);
    const Place place = place_of<true>(a.tiling, spot.tile);
    const Window window = window_of<true>(a.tiling, place, thread % Winograd::kWindows);
    const float* const patch = pixels + thread / Winograd::kWindows * a.tiling.plane +
                               (window.image * static_cast<int>(a.tiling.by_height.d) + window.y) * a.tiling.width + window.x;
    if (thread < a.n_terms) block->terms[thread] = term_of(a, spot, thread);
    if (thread == 0) block->place = place;
    __syncthreads();
    float products[2][8][4] = {}, taps[3][3];
    const int inputs = a.terms[0].filter.inputs();  // the same of all terms
    if (a.n_terms > 0) load_chunk(block->terms[0], a.tiling, place, 0, pixels, taps);
    HG_NO_UNROLL
    for (int term = 0, c0 = 0; term < a.n_terms;) {
      const OwnFilter own = own_filter(a.terms[0].filter.turned);
      __syncthreads();  // the chunk is loaded, and all threads are done with the one before
      transform_chunk(patch, a.tiling.width, taps, own, windows, filters);
      c0 += Winograd::kChunk;
      if (c0 >= inputs) {
        c0 = 0;
        ++term;
      }
      __syncthreads();
      if (term < a.n_terms) load_chunk(block->terms[term], a.tiling, block->place, c0, pixels, taps);
      multiply_chunk(windows, filters, products);
    }
    __syncthreads();
    exchange(products, windows, [&](int k, const float (&m)[4][4]) {
      float y[2][2];
      both_axes(m, y, [](const float (&in)[4], float (&out)[2]) { transform_products(in, out); });
      HG_UNROLL
      for (int q = 0; q < 4; ++q) accumulators[0][q][k] = y[q / 2][q % 2];
    });
  }
  const int thread = forgotten(static_cast<int>(threadIdx.x));
  const Spot spot = spot_of<Shape>(a, forgotten(static_cast<int>(blockIdx.x)), thread);
  const Place at = place_of<true>(a.tiling, spot.tile);
  const Window own[1] = {window_of<true>(a.tiling, at, Shape::window(thread, 0))};
  epilogue.template finish<Shape>(spot, at, own, accumulators, sums);
  close_sums(a, epilogue, sums, windows);
}

// Bytes beside the pixels.
template <class Source>
std::size_t winograd_shared(bool with_sums) {
  return shared_size((Winograd::kPixels + Winograd::kWeights) * sizeof(float)) + shared_size(sizeof(WinogradBlock<Source>)) +
         (with_sums ? shared_size(Winograd::Shape::kSums * sizeof(float)) : 0);
}

template <class T, class Source>
void tile_winograd(Convolution<T, Source>& a) {
  if constexpr (sizeof(T) == 4) {
    a.schedule = kWinograd;
    a.planes = Winograd::kChunk;
    const std::size_t rest = kSharedLimit - winograd_shared<Source>(true) - 16;
    a.tiling = choose_stacked_tiling(a.tiling.N, a.tiling.H, a.tiling.W, Winograd::kWindows,
                                     static_cast<int>(rest / (Winograd::kChunk * sizeof(T))));
  }
}

template <class Source, class Epilogue>
void launch_winograd(const Launch& launch, const char* name, const Convolution<float, Source>& a, int64_t entries,
                     const Epilogue& epilogue) {
  const std::size_t shared = shared_size(static_cast<std::size_t>(a.planes) * static_cast<std::size_t>(a.tiling.plane) * sizeof(float)) +
                             winograd_shared<Source>(Epilogue::kSums);
  launch(name, winograd3x3<Source, Epilogue>, entries * a.filter_tiles() * a.tiling.tiles(), kThreads, shared, a, epilogue);
}

}  // namespace hg::cuda

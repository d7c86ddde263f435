// The 3x3 convolution kernel on tensor cores, for float32 rounded to tf32 or split into tf32 parts; sums are float32.
//
// The tile is that of multiply-adds, 128 windows by 32 filters. A warp has 16 windows and all filters, in products of
// 16 pixels x 8 channels by 8 channels x 8 filters: rows g and g + 8 are neighbouring pixels of window g, so that
// pooling stays a thread's own business, and column n of the j-th 8 filters is filter 8*(n/2) + 2*j + n%2. So lane 4*g
// + t owns windows g and g + 8 and the neighbouring filters 8*t .. 8*t + 7, and reads channels t and t + 4.
//
// Shared memory holds what a lane needs for a product in 16 bytes: a pair of pixels of channels t and t + 4, and two
// columns of weights of both channels. Per row of taps and warp that is 4 loads of pixels and 6 of weights for 48
// products of tf32, without bank conflicts: planes of channels are 2 units of 16 bytes apart, modulo 4, and weights lie
// in the order of lanes. So there is about one wavefront per product, which takes an SM two cycles.
#pragma once
#include <type_traits>

#include "convolution.h"
#include "mma.h"
#include "winograd.h"

namespace hg::cuda {

struct MmaShape {
  using Element = float;
  static constexpr int kGroup = 8, kWindows = kWarps * 16, kOwn = 2, kColumns = 4, kChunk = 8;
  static constexpr bool kStacked = false;
  static constexpr int kWeights = kChunk * 9 * kFilters;
  static constexpr int kSums = kWarps * kColumns * kGroup;
  HG_DEVICE static int window(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + 8 * i; }
  HG_DEVICE static int filter(int thread) { return thread % 4 * kGroup; }
};

// weights[tap][j/2][lane 4*g + t][j%2][half]: element (t + 4*half, g) of the j-th 8 filters, of kChunk inputs from c0
// on; 0 beyond the last.
template <Precision precision>
HG_DEVICE void load_fragments(const Filter<float>& filter, const float* w, int c0, int k0, float* weights) {
  static_assert(MmaShape::kWeights == 9 * kThreads, "a thread has the same element of every tap");
  const int i = static_cast<int>(threadIdx.x), j = i / 128 * 2 + i / 2 % 2, n = i / 16 % 8;
  const int c = c0 + i / 4 % 4 + i % 2 * 4, k = k0 + 8 * (n / 2) + 2 * j + n % 2;
  const bool any = c < filter.inputs() && k < filter.outputs();
  HG_NO_UNROLL
  for (int tap = 0; tap < 9; ++tap) {
    const int64_t row = filter.turned ? static_cast<int64_t>(8 - tap) * filter.C + k : static_cast<int64_t>(tap) * filter.C + c;
    weights[tap * kThreads + i] = any ? stored<precision>(w[row * filter.K + (filter.turned ? c : k)]) : 0.0f;
  }
}

// products[2*i + dy][j] += pixels (dy, 0) and (dy, 1) of the thread's i-th window, `corner[i]` pixels into the tile, by
// the j-th 8 filters. Begins and ends with no thread inside the shared arrays. As in convolve, what loading needs is
// computed anew for every chunk; `entry` counts episodes over all directions, E to a direction.
template <Precision precision, class Term>
HG_DEVICE void convolve_mma(const Term* terms, int term, int entry, int E, int k0, const Tiling& t, int tile, const int (&corner)[2],
                            float* pixels, float* weights, float (&products)[4][4][4]) {
  using Fragment = Operand<precision>[4];  // of channels t and t + 4: (left, right pixel), (left, right pixel)
  HG_NO_UNROLL
  for (int c0 = 0; c0 < terms[forgotten(term)].filter.inputs(); c0 += MmaShape::kChunk) {
    {
      const Term& now = terms[forgotten(term)];
      const auto put = [pixels, plane = t.plane](int c, int i, float v) {
        pixels[2 * (c % 4 * plane + i / 2 * 2 + c / 4) + i % 2] = stored<precision>(v);
      };
      const int index = forgotten(entry);
      const int64_t p = index / E, e = index % E;
      load_pixels<float>(now.source.at(p, e), t, place_of(t, forgotten(tile)), c0, 2, put);
      load_fragments<precision>(now.filter, now.filter.w.at(p, e), c0, k0, weights);
    }
    __syncthreads();
    const int lane = forgotten(static_cast<int>(threadIdx.x)) % 32;
    const float* const plane = pixels + 2 * (lane % 4 * t.plane);
    const auto load = [&](int row, Fragment(&to)[2][2]) {
      HG_UNROLL
      for (int i = 0; i < 2; ++i) HG_UNROLL
      for (int x = 0; x < 2; ++x) {
        const Quad<float> v = *reinterpret_cast<const Quad<float>*>(plane + 2 * (corner[i] + row * t.width) + 4 * x);
        HG_UNROLL
        for (int j = 0; j < 4; ++j) to[i][x][j] = operand<precision>(v.v[j]);
      }
    };
    Fragment rows[2][2][2];  // of two rows of pixels, the windows' columns 0, 1 and 2, 3
    load(0, rows[0]);
    HG_NO_UNROLL
    for (int r = 0; r < 3; ++r) {
      load(r + 1, rows[1]);
      HG_UNROLL
      for (int s = 0; s < 3; ++s) {
        const Quad<float>* const from = reinterpret_cast<const Quad<float>*>(weights) + (3 * r + s) * 64 + lane;
        Operand<precision> b[4][2];
        HG_UNROLL
        for (int j = 0; j < 4; j += 2) {
          const Quad<float> v = from[j * 16];
          HG_UNROLL
          for (int i = 0; i < 4; ++i) b[j + i / 2][i % 2] = operand<precision>(v.v[i]);
        }
        HG_UNROLL
        for (int i = 0; i < 2; ++i) HG_UNROLL
        for (int dy = 0; dy < 2; ++dy) {
          const Fragment(&at)[2] = rows[dy][i];
          if (s == 1) {
            const Fragment middle = {at[0][1], at[1][0], at[0][3], at[1][2]};
            multiply<precision>(products[2 * i + dy], middle, b);
          } else {
            multiply<precision>(products[2 * i + dy], at[s / 2], b);
          }
        }
      }
      HG_UNROLL
      for (int i = 0; i < 2; ++i) HG_UNROLL
      for (int x = 0; x < 2; ++x) HG_UNROLL
      for (int j = 0; j < 4; ++j) rows[0][i][x][j] = rows[1][i][x][j];
    }
    __syncthreads();
  }
}

template <Precision precision, class Source, class Epilogue>
__global__ void __launch_bounds__(kThreads, precision == kTf32 ? 2 : 1)
    mma3x3(const Convolution<float, Source> a, const Epilogue epilogue) {
  using Shape = MmaShape;
  SharedMemory shared;
  float* const pixels = shared.take<float>(Shape::kChunk * a.tiling.plane);
  float* const weights = shared.take<float>(Shape::kWeights);
  float* const sums = Epilogue::kSums ? shared.take<float>(Shape::kSums) : nullptr;
  float products[4][4][4] = {};
  {
    const int thread = static_cast<int>(threadIdx.x);
    const Spot spot = spot_of<Shape>(a, static_cast<int>(blockIdx.x), thread);
    int corner[2];
    HG_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Window window = window_of(a.tiling, place_of(a.tiling, spot.tile), Shape::window(thread, i));
      corner[i] = (window.image * a.tiling.height + window.y) * a.tiling.width + window.x;
    }
    HG_NO_UNROLL
    for (int i = 0; i < a.n_terms; ++i)
      convolve_mma<precision>(a.terms, i, spot.p * static_cast<int>(a.E) + spot.e, static_cast<int>(a.E), spot.k0, a.tiling, spot.tile,
                              corner, pixels, weights, products);
  }
  const int thread = forgotten(static_cast<int>(threadIdx.x));
  const Spot spot = spot_of<Shape>(a, forgotten(static_cast<int>(blockIdx.x)), thread);
  const Place at = place_of(a.tiling, spot.tile);
  Window windows[2];
  float accumulators[2][4][Shape::kGroup];
  HG_UNROLL
  for (int i = 0; i < 2; ++i) {
    windows[i] = window_of(a.tiling, at, Shape::window(thread, i));
    HG_UNROLL
    for (int q = 0; q < 4; ++q) HG_UNROLL
    for (int k = 0; k < Shape::kGroup; ++k) accumulators[i][q][k] = products[2 * i + q / 2][k / 2][q % 2 * 2 + k % 2];
  }
  epilogue.template finish<Shape>(spot, at, windows, accumulators, sums);
}

// The precision that was asked for, where the device and the sizes have it: with up to 4 channels most of a product would be zeros.
template <class T>
Precision precision_of(int64_t asked, int64_t channels) {
  return std::is_same<T, float>::value && channels > 4 && asked != kFloat32 && has_tf32() ? static_cast<Precision>(asked) : kFloat32;
}

// For `entries` episodes over all directions.
template <class T, class Source>
Convolution<T, Source> convolution(Precision precision, int64_t entries, int64_t E, int64_t N, int64_t H, int64_t W, int64_t inputs,
                                   int64_t outputs) {
  Convolution<T, Source> a = convolution<T, Source>(E, N, H, W, inputs, outputs);
  a.precision = precision;
  if (precision == kFloat32) {
    if (!by_winograd<T>(inputs, outputs)) return spread(a, entries);
    tile_winograd(a);
    return a;
  }
  const std::size_t rest = kSharedLimit - shared_size(MmaShape::kWeights * sizeof(float)) - shared_size(MmaShape::kSums * sizeof(float));
  a.planes = MmaShape::kChunk;
  a.tiling = choose_tiling(N, H, W, MmaShape::kWindows, static_cast<int>(rest / (MmaShape::kChunk * sizeof(float))));
  return a;
}

template <Precision precision, class Source, class Epilogue>
void launch_mma(const Launch& launch, const char* name, const Convolution<float, Source>& a, int64_t entries, const Epilogue& epilogue) {
  const std::size_t shared = shared_size(MmaShape::kChunk * static_cast<std::size_t>(a.tiling.plane) * sizeof(float)) +
                             shared_size(MmaShape::kWeights * sizeof(float)) +
                             (Epilogue::kSums ? shared_size(MmaShape::kSums * sizeof(float)) : 0);
  launch(name, mma3x3<precision, Source, Epilogue>, entries * a.filter_tiles() * a.tiling.tiles(), kThreads, shared, a, epilogue);
  if constexpr (Epilogue::kSums) launch_close(launch, a, entries, epilogue);
}

// launch_convolution in the precision that `a` was made for.
template <class T, class Source, class Epilogue>
void launch_precise(const Launch& launch, const char* name, const Convolution<T, Source>& a, int64_t entries, const Epilogue& epilogue) {
  if constexpr (Epilogue::kSums) {
    if (a.tiling.tiles() == 0) return launch_close(launch, a, entries, epilogue);
  }
  if constexpr (std::is_same<T, float>::value) {
    if (a.schedule == kWinograd) return launch_winograd(launch, name, a, entries, epilogue);
    if (a.precision == kTf32) return launch_mma<kTf32>(launch, name, a, entries, epilogue);
    if (a.precision == kThreeTf32) return launch_mma<kThreeTf32>(launch, name, a, entries, epilogue);
  }
  launch_convolution(launch, name, a, entries, epilogue);
}

}  // namespace hg::cuda

// conv_bn_relu_pool_value: z = conv(x, w) is written once, with its statistics; a second pass normalizes and pools.
// A task owns z, y and code of a few images of one episode.
//
// By Winograd's algorithm, a tile of pixels is summed and pooled where it is made, and y holds z at the winners until the second
// pass. The winner has the largest z, or the smallest where gamma < 0; where gamma is 0, all are equal. Pixels with equal
// patches have z that differ by rounding errors: of them only the first takes part.
#include "../registry.h"

// Axes: E episodes; N images, H x W pixels, C channels; K filters; h x w pooled pixels.
HG_SIGNATURE(conv_bn_relu_pool_value, "x=E|NHWC w=E|33CK gamma=E|K beta=E|K -> y=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK",
             "eps:float>=0 precision:0..2", "h=H/2 w=W/2")

#ifdef HG_SIMD
#include "moments.h"

namespace hg::HG_SIMD {
namespace {

// Pixels with equal patches have z that differ by less than this multiple of the largest sum that their tile could have. Others may, too.
constexpr float kNear = 0x1p-22F;
// Numbers of two patches are equal if they differ by at most this multiple of the largest one that the tile reads: a block before this
// one leaves rounding errors where its own patches were equal.
constexpr float kEqual = 0x1p-19F;

// Of an episode's filters, rows of K: the sign of gamma, and how near two z are where it matters, for images of size 1.
inline void signs(const Block& b, const float* w, const float* gamma, float* sign, float* near) {
  for (int64_t k = 0; k < b.K; ++k) {
    float sum = 0;
    for (int64_t j = 0; j < b.taps(); ++j) sum += __builtin_fabsf(w[j * b.K + k]);
    sign[k] = static_cast<float>((gamma[k] > 0) - (gamma[k] < 0));
    near[k] = gamma[k] == 0 ? -1 : kNear * sum;
  }
}

HG_INLINE Vec<float> size_of(const Vec<float>& a) { return (Vec<float>)((Mask<float>)a & 0x7fffffff); }

// Whether all C numbers of two pixels are equal.
inline bool equal_pixels(const float* p, const float* q, int64_t C, float difference) {
  Mask<float> off{};
  for (int64_t c = 0; c < C; c += kLanes<float>) {
    off |= size_of(load(p + c) - load(q + c)) > difference;
  }
  return !any(off);
}

// The pixels of a window, as bits, that have no equal patch among those before them. pixel(i, j): those of the 4x4 around it.
template <class Pixel>
HG_INLINE unsigned distinct(const Pixel& pixel, int64_t C, float difference) {
  const auto equal = [&](int p, int q) {
    for (int tap = 4; tap < 13; ++tap) {  // the middle first: it tells most patches apart
      const int i = tap % 9 / 3, j = tap % 3;
      if (!equal_pixels(pixel(p / 2 + i, p % 2 + j), pixel(q / 2 + i, q % 2 + j), C, difference)) return false;
    }
    return true;
  };
  unsigned bits = 1;
  for (int p = 1; p < 4; ++p) {
    bool first = true;
    for (int q = 0; q < p; ++q) first = first && !((bits >> q & 1) != 0 && equal(p, q));
    bits |= static_cast<unsigned>(first) << p;
  }
  return bits;
}

// z at a window's winners among the pixels of `bits`, and their codes. z: the first of the window's pixels, in rows of W.
inline void pool_window(const float* z, int64_t W, int64_t K, unsigned bits, const float* sign, float* pooled, unsigned char* code) {
  for (int64_t k = 0; k < K; k += kLanes<float>) {
    const Vec<float> turn = load(sign + k);
    Vec<float> best = load(z + k) * turn;
    Mask<float> winner{};
    for (int p = 1; p < 4; ++p) {
      if ((bits >> p & 1) == 0) continue;
      const Vec<float> other = load(z + (p / 2 * W + p % 2) * K + k) * turn;
      const Mask<float> better = other > best;
      best = better ? other : best;
      winner = better ? Mask<float>{} + p : winner;
    }
    store(pooled + k, best * turn);
    store_code<float>(code + k, winner);
  }
}

// f(i, part) for the parts of a vector, in double, from lane i on.
template <class F>
HG_INLINE void in_double(const Vec<float>& v, const F& f) {
  constexpr int D = kLanes<double>;
  typedef float Half __attribute__((vector_size(HG_VECTOR_BYTES / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  for (int i = 0; i < 2; ++i) f(i * D, __builtin_convertvector(halves[i], Vec<double>));
}
HG_INLINE void add_to(double* sum, const Vec<double>& v) { store(sum, load(sum) + v); }

// z of a task's images, z at the winners and the winners' codes, and part: mean and sum of squared deviations.
inline void winograd_task(const Block& b, const float* x, const float* filters, const float* sign, const float* near, const BlockTask& t,
                          float* z, float* y, unsigned char* code, double* part) {
  const int64_t H = b.H, W = b.W, h = b.h, w = b.w;
  // Rows of K: sum z; the sum over tiles of (sum z)^2/pixels; the sum of squared deviations from the tile's mean.
  double* const sums = scratch_of<double>(kSlotSums, 3 * b.K);
  __builtin_memset(sums, 0, static_cast<std::size_t>(3 * b.K) * sizeof(double));
  float* const out = images_at(z, t.first, H, W, b.K);
  float* const pooled = images_at(y, t.first, h, w, b.K);
  unsigned char* const codes = images_at(code, t.first, h, w, b.K);
  const WinogradTerm term{{dense(images_at(x, t.first, H, W, b.C), t.n, H, W, b.C), 0}, filters};
  const float* const zeros = zero_pixel(b.C);
  winograd_convolve<true>(&term, 1, b.K, false, [=](auto size, auto K, const Tile& tile, const float* m, float scale) {
    constexpr int M = size.M, N = size.N;
    const int64_t rows = lower(M, H - tile.y), cols = lower(N, W - tile.x);
    const int64_t pitch = W * K, row = w * K, place = ((tile.image * h + tile.y / 2) * w + tile.x / 2) * K;
    float* const to = out + ((tile.image * H + tile.y) * W + tile.x) * K;
    const auto finish = [=](auto all) {
      constexpr bool kWhole = decltype(all)::value;
      const auto there = [=](int i, int j) { return kWhole || (i < rows && j < cols); };
      const float pixels = kWhole ? 1.0F * M * N : static_cast<float>(rows * cols), inverse = 1.0F / pixels;
      Mask<float> close{};
      for (int64_t k = 0; k < K; k += kLanes<float>) {
        Vec<float> v[M][N];
        winograd_output<M, N>(m + k, K, v);
        Vec<float> sum{}, squares{};
        for (int i = 0; i < M; ++i)
          for (int j = 0; j < N; ++j)
            if (there(i, j)) {
              store(to + i * pitch + j * K + k, v[i][j]);
              sum += v[i][j];
            }
        const Vec<float> mean = sum * inverse;
        for (int i = 0; i < M; ++i)
          for (int j = 0; j < N; ++j)
            if (there(i, j)) squares += (v[i][j] - mean) * (v[i][j] - mean);
        in_double(sum, [&](int64_t i, const Vec<double>& part_of) {
          add_to(sums + k + i, part_of);
          add_to(sums + K + k + i, part_of * part_of * (1.0 / static_cast<double>(pixels)));
        });
        in_double(squares, [&](int64_t i, const Vec<double>& part_of) { add_to(sums + 2 * K + k + i, part_of); });
        const Vec<float> turn = load(sign + k), least = load(near + k) * scale;
        for (int i = 0; i < M; i += 2)
          for (int j = 0; j < N; j += 2) {
            if (!there(i + 1, j + 1)) continue;
            Vec<float> best = v[i][j] * turn;
            Mask<float> winner{};
            for (int p = 1; p < 4; ++p) {
              const Vec<float> other = v[i + p / 2][j + p % 2] * turn, by = other - best;
              const Mask<float> better = by > Vec<float>{};
              close |= size_of(by) <= least;
              best = better ? other : best;
              winner = better ? Mask<float>{} + p : winner;
            }
            const int64_t window = place + i / 2 * row + j / 2 * K + k;
            store(pooled + window, best * turn);
            store_code<float>(codes + window, winner);
          }
      }
      if (!any(close)) return;
      for (int i = 0; i < M; i += 2)
        for (int j = 0; j < N; j += 2) {
          if (!there(i + 1, j + 1)) continue;
          const int64_t window = place + i / 2 * row + j / 2 * K;
          with_patch<4, 4>(term.source, b.C, {tile.image, tile.y + i, tile.x + j}, -1, zeros, [&](const auto& pixel) {
            const unsigned bits = distinct(pixel, b.C, kEqual * scale);
            if (bits != 15) pool_window(to + i * pitch + j * K, W, K, bits, sign, pooled + window, codes + window);
          });
        }
    };
    rows == M&& cols == N ? finish(std::true_type{}) : finish(std::false_type{});
  });
  const double pixels = static_cast<double>(t.n * H * W);
  for (int64_t k = 0; k < b.K; ++k) {
    part[k] = sums[k] / pixels;
    part[b.K + k] = sums[2 * b.K + k] + (sums[b.K + k] - sums[k] * part[k]);
  }
}

// u = (z - mean)*scale + shift at the winners, ReLU, and the active bits, in place.
inline void activate(const Block& b, int64_t windows, const float* mean, const float* scale, const float* shift, float* y,
                     unsigned char* code) {
  for (int64_t q = 0; q < windows; ++q)
    for (int64_t k = 0; k < b.K; k += kLanes<float>) {
      const int64_t at = q * b.K + k;
      const Vec<float> u = (load(y + at) - load(mean + k)) * load(scale + k) + load(shift + k);
      const Mask<float> off = u <= Vec<float>{};
      store(y + at, off ? Vec<float>{} : u);
      store_code<float>(code + at, load_code<float>(code + at) | (~off & 4));
    }
}

template <class T, class S>
void value(const Call& call) {
  const Block b = block_of<T, S, ByWinograd::convolutions>(call);
  HG_ARGS(x, w, gamma, beta, y, mean, rstd, z, code)

  float* const ways = scratch_of<float>(kSlotWeights2, b.E * 2 * b.K + 1);
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t e = 0; b.winograd && e < b.E; ++e) signs(b, w.at(e), gamma.at(e), ways + e * 2 * b.K, ways + (e * 2 + 1) * b.K);
  }
  double* const parts = scratch_of<double>(kSlotPartSums, b.E * b.chunks * 2 * b.Kp);
  for_banks<T>(b, banks_of(w, 1), false, [&](int64_t first, int64_t count) {
    const FilterBank<T> filters = pack_bank(b, w, 1, first, count, false, kSlotWeights);
    for_tasks(b, 1, first, count, [&](int64_t index) {
      const BlockTask t = task_of(b, index);
      double* const part = parts + index * 2 * b.Kp;
      if constexpr (std::is_same_v<T, float>) {
        const float* const way = ways + t.batch * 2 * b.K;
        if (b.winograd)
          return winograd_task(b, x.at(t.batch), filters.at(t.batch), way, way + b.K, t, z.at(t.batch), y.at(t.batch), code.at(t.batch),
                               part);
      }
      T* const to = images_at(z.at(t.batch), t.first, b.H, b.W, b.K);
      convolve<T>(b, {Input<T>(b, x.at(t.batch), t, kSlotX), filters.at(t.batch)}, nullptr, false, dense(to, t.n, b.H, b.W, b.K));
      statistics(to, t.n * b.H * b.W, b, part, part + b.Kp);
    });
  });

  const T* const scalars = normalization(b, parts, HG_ATTRIBUTE(eps), gamma, beta, mean, rstd);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const T* const s = scalars + t.batch * 3 * b.Kp;
    if constexpr (std::is_same_v<T, float>) {
      const int64_t at = t.first * b.h * b.w * b.K;
      if (b.winograd) return activate(b, t.n * b.h * b.w, s, s + b.Kp, s + 2 * b.Kp, y.at(t.batch) + at, code.at(t.batch) + at);
    }
    for (int64_t i = t.first; i < t.first + t.n; ++i)
      for (int64_t p = 0; p < b.h; ++p) {
        const int64_t at = (i * b.h + p) * b.w * b.K;
        pool_row(z.at(t.batch) + (i * b.H + 2 * p) * b.W * b.K, b.W * b.K, b.K, b.w, b.K, s, s + b.Kp, s + 2 * b.Kp, y.at(t.batch) + at,
                 code.at(t.batch) + at);
      }
  });
}

HG_KERNEL(conv_bn_relu_pool_value, value)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

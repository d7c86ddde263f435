// matmul: out[a, b] = x[a, b] y[a, b]. Axes of x and y have any strides, so that a turned matrix or one that is shared by entries of a
// batch is read as it lies.
//
// Bits depend on the numbers and on K alone, not on M and N beyond 1, the strides, the batch or the threads. K is cut into equal runs of at
// most kMostRun. An element is the sum of its runs in order, and a run is a chain of multiply-adds in order, from zero. Where M or N is 1,
// kPartial sums take turns along K, and go on in double.
//
// A task owns a rectangle of one matrix. It packs the factor whose elements fill vectors into panels of two vectors, and the other one
// into rows or columns of a register tile. A factor that is used too rarely to pay for it is read in place.
#include "../registry.h"

HG_SIGNATURE(matmul, "x=ABMK| y=ABKN| -> out=ABMN")

#ifdef HG_SIMD
#include "simd.h"

namespace hg::HG_SIMD {
namespace {

constexpr int64_t kMostRun = 320;                     // of K; a panel of it fills half of the first-level cache
constexpr int64_t kBand = 16 * kTile;                 // rows of a packed left factor; they stay in the second-level cache
constexpr int64_t kMostRows = 512, kMostPanels = 32;  // of a task
constexpr int64_t kSeveral = int64_t(1) << 19;        // multiply-adds of a call that is worth a second thread
constexpr int64_t kTaskProducts = int64_t(1) << 25;   // of a call's many tasks each, so that a thread that is held up keeps few waiting
constexpr int64_t kWholePanels = int64_t(1) << 15;    // elements of panels that are packed for all of K at once
enum Slot : int { kSlotLeft = 0, kSlotRight, kSlotVector, kSlotPartial };

template <class T>
constexpr int64_t kWidth = 2 * kLanes<T>;  // of a panel

// A matrix by the strides, in elements, along its own axis and along the summed one.
template <class T>
struct Factor {
  const T* data;
  int64_t step, k_step;
  HG_INLINE const T* at(int64_t i, int64_t k) const { return data + i * step + k * k_step; }
  HG_INLINE Factor from(int64_t i, int64_t k) const { return {at(i, k), step, k_step}; }
};

// One entry of the batch: out(i, j) = sum over k of left(i, k) * right(j, k). Vectors run along j.
template <class T>
struct Product {
  Factor<T> left, right;
  int64_t I, J, K;
  T* out;
  int64_t out_i, out_j;  // steps; one of them is 1
};

// --- Register tiles ---

// Where a tile's sums go: stored, or added to what is there.
template <class T>
struct Target {
  T* out;
  int64_t step;  // between rows, or between columns where `turned`
  int64_t lanes;
  bool turned, add;
};

template <class T, int M, int NV>
HG_INLINE void put(const Vec<T> (&acc)[M][NV], const Target<T>& to) {
  constexpr int V = kLanes<T>;
  if (!to.turned && to.lanes == NV * V) {
    HG_UNROLL(24)
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < NV; ++n) {
        T* const p = to.out + m * to.step + n * V;
        store(p, to.add ? load(p) + acc[m][n] : acc[m][n]);
      }
    return;
  }
  T sums[M][NV * V];
  HG_UNROLL(24)
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < NV; ++n) store(sums[m] + n * V, acc[m][n]);
  for (int64_t j = 0; to.turned && j < to.lanes; ++j) {
    T* const p = to.out + j * to.step;
    for (int m = 0; m < M; ++m) p[m] = to.add ? p[m] + sums[m][j] : sums[m][j];
  }
  for (int m = 0; !to.turned && m < M; ++m) {
    T* const p = to.out + m * to.step;
    int64_t j = 0;
    for (; j + V <= to.lanes; j += V) store(p + j, to.add ? load(p + j) + load(sums[m] + j) : load(sums[m] + j));
    for (; j < to.lanes; ++j) p[j] = to.add ? p[j] + sums[m][j] : sums[m][j];
  }
}

// M rows by NV vectors. The left factor is a row of k for each m (kRows), else a column of m for each k; `left_step` lies between them.
template <class T, int M, int NV, bool kRows>
void tile(const T* left, int64_t left_step, const T* right, int64_t right_step, int64_t ahead, int64_t run, const Target<T>& to) {
  constexpr int V = kLanes<T>;
  if (to.add && !to.turned)
    for (int m = 0; m < M; ++m) __builtin_prefetch(to.out + m * to.step, 1);
  Vec<T> acc[M][NV];
  HG_UNROLL(24)  // GCC leaves loops of more than 16 rounds as they are, and their sums in memory
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < NV; ++n) acc[m][n] = Vec<T>{};
  // One pointer for three rows: the addresses then need few registers for any step.
  constexpr int B = kRows ? (M + 2) / 3 : 1;
  const T* base[B];
  for (int b = 0; b < B; ++b) base[b] = left + 3 * b * left_step;
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t k0 = 0; k0 < run; k0 += kRows ? kLine : run) {
    for (int m = 0; kRows && m < M; ++m) __builtin_prefetch(left + (M + m) * left_step + k0);  // what the next tile reads
    for (int64_t k = k0; k < (kRows ? lower(run, k0 + kLine) : run); ++k, right += right_step) {
      Vec<T> v[NV];
      for (int n = 0; n < NV; ++n) v[n] = load(right + n * V);
      if (!kRows) __builtin_prefetch(right + ahead, 0, 2);
      HG_UNROLL(24)
      for (int m = 0; m < M; ++m) {
        const T value = kRows ? base[m / 3 % B][(m % 3) * left_step + k] : left[m];
        for (int n = 0; n < NV; ++n) acc[m][n] += v[n] * value;
      }
      if (!kRows) left += left_step;
    }
  }
  put(acc, to);
}

// A tile of m rows, at most M: turns their number into a template argument.
template <class T, int M, int NV, bool kRows>
HG_INLINE void tile_of(int64_t m, const T* left, int64_t left_step, const T* right, int64_t right_step, int64_t ahead, int64_t run,
                       const Target<T>& to) {
  if (m == M) return tile<T, M, NV, kRows>(left, left_step, right, right_step, ahead, run, to);
  if constexpr (M > 1) tile_of<T, M - 1, NV, kRows>(m, left, left_step, right, right_step, ahead, run, to);
}

// body(first, m) for rows cut evenly into tiles: 7 become 4 + 3, not 6 + 1.
template <class Body>
HG_INLINE void for_tiles(int64_t rows, const Body& body) {
  for (int64_t tiles = ceil_div(rows, kTile), done = 0; tiles > 0; --tiles) {
    const int64_t m = ceil_div(rows - done, tiles);
    body(done, m);
    done += m;
  }
}

// --- Packing ---

// out[k][width] = the first `lanes` elements of the factor for each k of a run, then zeros.
template <class T>
void pack_panel(const Factor<T>& f, int64_t lanes, int64_t width, int64_t run, T* out) {
  constexpr int64_t V = kLanes<T>;
  if (f.step == 1 && lanes == width) {
    const T* from = f.data;
    for (int64_t k = 0; k < run; ++k, from += f.k_step, out += width)
      for (int64_t n = 0; n < width; n += V) store(out + n, load(from + n));
    return;
  }
  if (f.k_step == 1 && f.step != 1 && run >= V) {
    for (int64_t n = 0; n < width; n += V)
      for (int64_t block = 0; block < run; block += V) {
        const int64_t k = lower(block, run - V);  // the last block may overlap the one before
        Vec<T> r[V];
        for (int64_t j = 0; j < V; ++j) r[j] = n + j < lanes ? load(f.at(n + j, k)) : Vec<T>{};
        transpose<T>(r);
        for (int64_t i = 0; i < V; ++i) store(out + (k + i) * width + n, r[i]);
      }
    return;
  }
  for (int64_t k = 0; k < run; ++k)
    for (int64_t j = 0; j < width; ++j) out[k * width + j] = j < lanes ? *f.at(j, k) : T(0);
}

// For each tile of rows a column for each k of a run. Writes up to a vector more than rows*run elements.
template <class T>
void pack_left(const Factor<T>& f, int64_t rows, int64_t run, T* out) {
  constexpr int64_t V = kLanes<T>, G = (kTile + V - 1) / V, kTogether = 16;
  if (f.step == 1) {
    for (int64_t k0 = 0; k0 < run; k0 += kTogether)
      for_tiles(rows, [&](int64_t first, int64_t m) {
        T* const to = out + first * run;
        for (int64_t k = k0; k < lower(run, k0 + kTogether); ++k) {
          if (m == kTile)
            __builtin_memcpy(to + k * kTile, f.at(first, k), kTile * sizeof(T));
          else
            for (int64_t i = 0; i < m; ++i) to[k * m + i] = *f.at(first + i, k);
        }
      });
    return;
  }
  for_tiles(rows, [&](int64_t first, int64_t m) {
    T* const to = out + first * run;
    if (f.k_step == 1 && run >= V) {
      for (int64_t block = 0; block < run; block += V) {
        const int64_t k = lower(block, run - V);  // the last block may overlap the one before
        Vec<T> r[G][V];
        for (int64_t g = 0; g < G; ++g) {
          for (int64_t j = 0; j < V; ++j) r[g][j] = g * V + j < m ? load(f.at(first + g * V + j, k)) : Vec<T>{};
          transpose<T>(r[g]);
        }
        // In this order, as what a store writes beyond its column is overwritten.
        for (int64_t i = 0; i < V; ++i)
          for (int64_t g = 0; g < G; ++g)
            if (g * V < m) store(to + (k + i) * m + g * V, r[g][i]);
      }
    } else {
      for (int64_t k = 0; k < run; ++k)
        for (int64_t i = 0; i < m; ++i) to[k * m + i] = *f.at(first + i, k);
    }
  });
}

// --- A task ---

template <class T>
struct Panels {
  const T* packed;       // null where the panels of whole vectors are read in place
  const T* last_packed;  // the last one, where it is not whole
  int64_t J;
};

// Rows [0, rows) of the left factor times all panels, over one run.
template <class T, bool kRows>
void multiply(const Factor<T>& left, const T* left_packed, const Factor<T>& right, const Panels<T>& panels, int64_t rows, int64_t run,
              T* out, int64_t out_i, int64_t out_j, bool add) {
  constexpr int64_t V = kLanes<T>, W = kWidth<T>;
  const bool turned = out_j != 1;
  for (int64_t j = 0; j < panels.J; j += W) {
    const int64_t lanes = lower(W, panels.J - j), width = lanes <= V ? V : W;
    const bool in_place = panels.packed == nullptr && lanes == width;
    const T* const b = in_place ? right.at(j, 0) : panels.packed == nullptr ? panels.last_packed : panels.packed + j * run;
    const int64_t b_step = in_place ? right.k_step : width, ahead = in_place ? W : 0;
    const auto one = [&](int64_t first, int64_t m, auto vectors, auto twice) {
      constexpr int NV = decltype(vectors)::value;
      const Target<T> to{out + first * out_i + j * out_j, turned ? out_j : out_i, lanes, turned, add};
      const T* const a = left_packed != nullptr ? left_packed + first * run : left.at(first, 0);
      const int64_t a_step = kRows ? left.step : left_packed != nullptr ? m : left.k_step;
      if constexpr (decltype(twice)::value)
        tile<T, 2 * kTile, 1, kRows>(a, a_step, b, b_step, ahead, run, to);
      else
        tile_of<T, kTile, NV, kRows>(m, a, a_step, b, b_step, ahead, run, to);
    };
    if (width == W) {
      for_tiles(rows, [&](int64_t first, int64_t m) { one(first, m, std::integral_constant<int, 2>{}, std::false_type{}); });
      continue;
    }
    int64_t done = 0;  // a tile of one vector has room for twice the rows
    if (left_packed == nullptr)
      for (; done + 2 * kTile <= rows; done += 2 * kTile) one(done, 2 * kTile, std::integral_constant<int, 1>{}, std::true_type{});
    for_tiles(rows - done, [&](int64_t first, int64_t m) { one(done + first, m, std::integral_constant<int, 1>{}, std::false_type{}); });
  }
}

template <class T>
void rectangle(const Product<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t cols) {
  constexpr int64_t V = kLanes<T>, W = kWidth<T>;
  const int64_t runs = ceil_div(p.K, kMostRun), most = ceil_div(p.K, higher(1, runs));
  const int64_t panels = ceil_div(cols, W), padded = round_up(cols, V);
  const bool in_place = p.right.step == 1 && (rows <= 2 * kTile || p.right.k_step <= W);
  const bool pack = (p.left.k_step != 1 && p.left.step != 1) || panels >= (p.left.k_step == 1 ? 4 : 2);
  const bool whole = in_place || padded * p.K <= kWholePanels;  // then rows are read once, from end to end
  const int64_t band = whole ? 2 * kTile : kBand;
  T* const right_packed = scratch_of<T>(kSlotRight, (in_place ? W : padded) * (whole ? p.K : most) + 1);
  T* const left_packed = scratch_of<T>(kSlotLeft, pack ? band * most + V : 1);
  const auto begin = [&](int64_t r) { return p.K / runs * r + lower(r, p.K % runs); };
  const auto packed_run = [&](int64_t r) { return right_packed + (whole ? begin(r) * (in_place ? W : padded) : 0); };
  const auto pack_right = [&](int64_t r) {
    const int64_t k = begin(r), run = begin(r + 1) - k;
    for (int64_t j = in_place ? cols / W * W : 0; j < cols; j += W) {
      const int64_t lanes = lower(W, cols - j), width = lanes <= V ? V : W;
      if (!in_place || lanes < width) pack_panel(p.right.from(j0 + j, k), lanes, width, run, packed_run(r) + (in_place ? 0 : j * run));
    }
  };
  const auto rows_of_run = [&](int64_t r, int64_t i, int64_t n) {
    const int64_t k = begin(r), run = begin(r + 1) - k;
    const Factor<T> left = p.left.from(i0 + i, k);
    if (pack) pack_left(left, n, run, left_packed);
    const Panels<T> right{in_place ? nullptr : packed_run(r), packed_run(r), cols};
    T* const out = p.out + (i0 + i) * p.out_i + j0 * p.out_j;
    (!pack && left.k_step == 1 ? multiply<T, true> : multiply<T, false>)(left, pack ? left_packed : nullptr, p.right.from(j0, k), right, n,
                                                                         run, out, p.out_i, p.out_j, r > 0);
  };
  for (int64_t r = 0; r < runs; ++r) {
    pack_right(r);
    for (int64_t i = 0; !whole && i < rows; i += band) rows_of_run(r, i, lower(band, rows - i));
  }
  for (int64_t i = 0; whole && i < rows; i += band)
    for (int64_t r = 0; r < runs; ++r) rows_of_run(r, i, lower(band, rows - i));
}

// --- A matrix times a vector ---

constexpr int kChains = 4;  // vectors of partial sums; they are added in pairs
template <class T>
constexpr int64_t kPartial = kChains * kLanes<T>;
template <class T>
constexpr int64_t kRound = kFlush * kPartial<T>;  // elements of K that are added before the sums go on in double

// out[i] = sum over k of f(i, k) * v[k]; I rows that lie along k.
template <class T, int I>
HG_INLINE void dots(const Factor<T>& f, const T* v, int64_t K, T* out) {
  constexpr int64_t V = kLanes<T>;
  double total[I] = {};
  const int64_t whole = K / kPartial<T> * kPartial<T>;
  for (int64_t k0 = 0; k0 < K; k0 += kRound<T>) {
    Vec<T> acc[I][kChains];
    for (int i = 0; i < I; ++i)
      for (int c = 0; c < kChains; ++c) acc[i][c] = Vec<T>{};
    for (int64_t k = k0; k < lower(whole, k0 + kRound<T>); k += kPartial<T>) {
      for (int i = 0; i < I; ++i)  // of the next rows
        for (int c = 0; c < kChains; c += 2) __builtin_prefetch(f.data + (I + i) * f.step + k + c * V);
      for (int c = 0; c < kChains; ++c) {
        const Vec<T> w = load(v + k + c * V);
        for (int i = 0; i < I; ++i) acc[i][c] += load(f.data + i * f.step + k + c * V) * w;
      }
    }
    if (whole < K && k0 + kRound<T> > whole)
      for (int i = 0; i < I; ++i) {
        T row[kPartial<T>] = {}, rest[kPartial<T>] = {};
        for (int64_t k = whole; k < K; ++k) {
          row[k - whole] = f.data[i * f.step + k];
          rest[k - whole] = v[k];
        }
        for (int c = 0; c < kChains; ++c) acc[i][c] += load(row + c * V) * load(rest + c * V);
      }
    for (int i = 0; i < I; ++i) {
      const Vec<T> sum = (acc[i][0] + acc[i][1]) + (acc[i][2] + acc[i][3]);
      for (int l = 0; l < V; ++l) total[i] += static_cast<double>(sum[l]);
    }
  }
  for (int i = 0; i < I; ++i) out[i] = static_cast<T>(total[i]);
}

// The same for n rows, at most kColumns, that lie along i: the partial sums are in memory.
constexpr int64_t kColumns = 512;
template <class T>
void columns(const Factor<T>& f, const T* v, int64_t n, int64_t K, T* out) {
  T* const partial = scratch_of<T>(kSlotPartial, kPartial<T> * kColumns);
  double total[kColumns] = {};
  for (int64_t k0 = 0; k0 < K; k0 += kRound<T>) {
    for (int64_t l = 0; l < kPartial<T>; ++l)
      for (int64_t i = 0; i < n; ++i) partial[l * kColumns + i] = T(0);
    constexpr int64_t P = kPartial<T>;
    const int64_t end = lower(K, k0 + kRound<T>), fours = k0 + (end - k0) / (4 * P) * 4 * P;
    for (int64_t k = k0; k < end; k += k < fours && k % P == P - 1 ? 3 * P + 1 : 1) {
      const T* const from = f.at(0, k);
      T* const __restrict to = partial + k % P * kColumns;
      if (k < fours) {  // four terms of each sum
        const T *const b = from + P * f.k_step, *const c = b + P * f.k_step, *const d = c + P * f.k_step;
        for (int64_t i = 0; i < n; ++i) {
          T sum = to[i] + from[i] * v[k];
          sum += b[i] * v[k + P];
          sum += c[i] * v[k + 2 * P];
          to[i] = sum + d[i] * v[k + 3 * P];
        }
      } else {
        for (int64_t i = 0; i < n; ++i) to[i] += from[i] * v[k];
      }
    }
    constexpr int64_t kNext = kLanes<T> * kColumns;
    for (int64_t l = 0; l < kLanes<T>; ++l)
      for (int64_t i = 0; i < n; ++i) {
        const T* const from = partial + l * kColumns + i;
        total[i] += static_cast<double>((from[0] + from[kNext]) + (from[2 * kNext] + from[3 * kNext]));
      }
  }
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(total[i]);
}

template <class T>
void times_vector(const Product<T>& p, int64_t i0, int64_t rows) {
  const T* v = p.right.data;
  if (p.right.k_step != 1) {
    T* const line = scratch_of<T>(kSlotVector, p.K);
    for (int64_t k = 0; k < p.K; ++k) line[k] = *p.right.at(0, k);
    v = line;
  }
  T* const out = p.out + i0;
  if (p.left.k_step != 1 && p.left.step == 1) {
    for (int64_t i = 0; i < rows; i += kColumns) columns(p.left.from(i0 + i, 0), v, lower(kColumns, rows - i), p.K, out + i);
    return;
  }
  constexpr int kTogether = 2;
  const bool pack = p.left.k_step != 1;
  T* const copy = scratch_of<T>(kSlotLeft, pack ? kTogether * p.K : 1);
  for (int64_t i = 0; i < rows; i += kTogether) {
    const int64_t n = lower(kTogether, rows - i);
    Factor<T> f = p.left.from(i0 + i, 0);
    if (pack) {
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < p.K; ++k) copy[j * p.K + k] = *f.at(j, k);
      f = {copy, p.K, 1};
    }
    if (n == kTogether)
      dots<T, kTogether>(f, v, p.K, out + i);
    else
      for (int64_t j = 0; j < n; ++j) dots<T, 1>(f.from(j, 0), v, p.K, out + i + j);
  }
}

// --- A call ---

// An argument of four axes: strides in elements. Those of axes of one element are of no meaning, and made 1 where that helps.
template <class T>
struct Matrices {
  const T* data;
  int64_t stride[4];
  explicit Matrices(const View& view) : data(static_cast<const T*>(view.data)) {
    for (int i = 0; i < 4; ++i) stride[i] = view.shape[i] == 1 ? (i < 2 ? 0 : 1) : view.stride[i] / static_cast<int64_t>(sizeof(T));
  }
};

struct Cut {
  int64_t down, across;  // pieces of I and of the panels of J
};

// Rectangles that fit the caches, cut so that the threads end together. The cut does not matter to the bits.
template <class T>
Cut cut_of(int64_t batch, int64_t I, int64_t J, int64_t K) {
  constexpr int64_t W = kWidth<T>, kPackingCost = 5;  // of an element, in multiply-adds of a tile
  const int64_t panels = ceil_div(J, W), tiles = ceil_div(I, kTile), products = batch * I * J * K;
  const int64_t threads = products < kSeveral ? 1 : thread_count();
  const int64_t fewest = lower(16, products / kTaskProducts), most = higher(fewest, 4 * threads);
  const Cut least{ceil_div(I, kMostRows), ceil_div(panels, kMostPanels)};
  Cut best = least;
  int64_t shortest = INT64_MAX;
  for (int64_t down = least.down; down <= tiles && (down == least.down || batch * down * least.across <= most); ++down)
    for (int64_t across = least.across; across <= panels; ++across) {
      const int64_t tasks = batch * down * across, rows = ceil_div(tiles, down) * kTile, cols = ceil_div(panels, across) * W;
      if (tasks > most && shortest != INT64_MAX) break;
      const int64_t time = ceil_div(tasks, threads) * (rows * cols + kPackingCost * (rows + cols));
      if (time < shortest && (tasks >= fewest || (down == tiles && across == panels))) {
        shortest = time;
        best = {down, across};
      }
    }
  return best;
}

template <class T, class S>
void run(const Call& call) {
  const Matrices<T> x(call.arrays[call.first[find(S::signature.arrays, "x")]]), y(call.arrays[call.first[find(S::signature.arrays, "y")]]);
  T* const out = HG_ARG(out).data;
  int64_t A = HG_DIM(A), B = HG_DIM(B), M = HG_DIM(M);
  const int64_t N = HG_DIM(N), K = HG_DIM(K);
  for (int64_t i = 0; K == 0 && i < A * B * M * N; ++i) out[i] = T(0);
  if (A * B * M * N * K == 0) return;
  const bool by_vector = M == 1 || N == 1;
  // Entries that share y are rows of one product, where those of x follow one another.
  if (M > 1 && (B == 1 || (y.stride[1] == 0 && x.stride[1] == M * x.stride[2]))) {
    M *= B;
    B = 1;
    if (A > 1 && y.stride[0] == 0 && x.stride[0] == M * x.stride[2]) {
      M *= A;
      A = 1;
    }
  }
  // Vectors run along N, or along M where that spares a transposition of the larger factor.
  const bool rows_of_x = x.stride[3] == 1, rows_of_y = y.stride[3] == 1;
  const int64_t few = 2 * kWidth<T>;
  const bool swap =
      by_vector ? M == 1 : (N < M && N < few && !rows_of_x && x.stride[2] == 1) || (M < N && M < few && !rows_of_y && y.stride[2] == 1);
  const auto product = [&](int64_t entry) {
    const int64_t a = entry / B, b = entry % B;
    const Factor<T> rows{x.data + a * x.stride[0] + b * x.stride[1], x.stride[2], x.stride[3]};
    const Factor<T> cols{y.data + a * y.stride[0] + b * y.stride[1], y.stride[3], y.stride[2]};
    T* const to = out + entry * M * N;
    return swap ? Product<T>{cols, rows, N, M, K, to, 1, N} : Product<T>{rows, cols, M, N, K, to, N, 1};
  };
  const int64_t batch = A * B, I = swap ? N : M, J = swap ? M : N;
  const Cut cut = by_vector ? Cut{higher(1, lower(I / (kColumns / 2), I * K / kSeveral * 2)), 1} : cut_of<T>(batch, I, J, K);
  const int64_t tasks = cut.down * cut.across, panels = ceil_div(J, kWidth<T>);
  const auto task = [&](int64_t index) {
    const Product<T> p = product(index / tasks);
    const int64_t down = index % tasks / cut.across, across = index % cut.across;
    if (by_vector) {
      const int64_t i0 = I * down / cut.down, i1 = I * (down + 1) / cut.down;
      return times_vector(p, i0, i1 - i0);
    }
    const int64_t tiles = ceil_div(I, kTile), i0 = lower(I, tiles * down / cut.down * kTile),
                  i1 = lower(I, tiles * (down + 1) / cut.down * kTile);
    const int64_t j0 = panels * across / cut.across * kWidth<T>, j1 = lower(J, panels * (across + 1) / cut.across * kWidth<T>);
    rectangle(p, i0, i1 - i0, j0, j1 - j0);
  };
  if (batch * I * J * K >= kSeveral)
    parallel_for(batch * tasks, task);
  else
    for (int64_t index = 0; index < batch * tasks; ++index) task(index);
}

HG_KERNEL(matmul, run)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

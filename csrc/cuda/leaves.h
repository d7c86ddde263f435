// Leaves of a pytree in one launch: their pointers and sizes are parameters of the kernel. A block owns a chunk of one leaf.
#pragma once
#include <algorithm>

#include "../optimizer_step.h"

namespace hg::cuda {

constexpr int kMostLeaves = 24;              // of a launch
constexpr int kParameters = 4096 - 64;       // bytes of a kernel's, which its table must fit into
constexpr int64_t kFewElements = 1ll << 20;  // up to here a thread owns one quad, so that the work spreads wide
constexpr int kQuads = 4;                    // beyond

struct Range {
  int count;
  int first_block[kMostLeaves + 1];  // blocks of leaf i are first_block[i] .. first_block[i + 1] - 1
};

template <class S, int kIn, int kOut>
struct Table {
  using T = typename S::Element;
  // A leaf takes its pointers and its size; the range, the fields and the rest come once.
  static constexpr int kFit = (kParameters - static_cast<int>(sizeof(Range)) - 8 * (S::kFields + 2)) / (8 * (kIn + kOut + 1));
  static constexpr int kLeaves = kFit < kMostLeaves ? kFit : kMostLeaves;
  const T* in[kLeaves][kIn];  // null where absent
  T* out[kLeaves][kOut];
  int64_t size[kLeaves];
  Range range;
  int quads;  // of a thread
  double field[S::kFields], extra;
};

// Of the calling block.
struct Place {
  int leaf;
  int64_t p, begin, count;  // direction; first element and number of elements of the chunk
};
template <class S, int kIn, int kOut>
HG_DEVICE Place place_of(const Table<S, kIn, kOut>& t) {
  Place at;
  const int blocks = t.range.first_block[t.range.count];
  at.p = blockIdx.x / blocks;
  const int block = static_cast<int>(blockIdx.x - at.p * blocks);
  at.leaf = 0;
  HG_NO_UNROLL
  while (t.range.first_block[at.leaf + 1] <= block) ++at.leaf;
  const int64_t chunk = static_cast<int64_t>(t.quads) * 4 * kThreads;
  at.begin = (block - t.range.first_block[at.leaf]) * chunk;
  at.count = lower(chunk, t.size[at.leaf] - at.begin);
  return at;
}

// The constants of the block's leaf; arrays of fields begin at input `from`. One thread makes them for all.
template <class S, int kIn, int kOut>
HG_DEVICE S constants_of(const Table<S, kIn, kOut>& t, int from, int leaf, S* shared) {
  if (threadIdx.x == 0) {
    double field[S::kFields];
    unsigned given = 0;
    HG_UNROLL
    for (int i = 0; i < S::kFields; ++i) {
      const auto* const array = t.in[leaf][from + i];
      field[i] = array != nullptr ? static_cast<double>(*array) : t.field[i];
      given |= array != nullptr ? 1u << i : 0u;
    }
    *shared = S::of(field, given, t.extra);
  }
  __syncthreads();
  return *shared;
}

// Elements k .. k + 3 of n arrays, counted from `offset`, where there are `count` elements: v[i][j] is element j of array i.
template <class T, int n>
HG_DEVICE void load_all(const T* const* from, int64_t offset, int k, int count, Quad<T> (&v)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) {
    v[i] = Quad<T>{};
    if (from[i] == nullptr) continue;
    const T* const row = from[i] + offset;
    v[i] = load_quad(row, k, count, k + 4 <= count && reinterpret_cast<std::uintptr_t>(row) % 16 == 0);
  }
}
template <class T, int n>
HG_DEVICE void store_all(T* const* to, int64_t offset, int k, int count, const Quad<T> (&v)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) {
    if (to[i] == nullptr) continue;
    T* const row = to[i] + offset;
    store_quad(row, k, count, k + 4 <= count && reinterpret_cast<std::uintptr_t>(row) % 16 == 0, v[i]);
  }
}
template <class T, int n>
HG_DEVICE void lane_of(const Quad<T> (&v)[n], int j, T (&x)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) x[i] = v[i].v[j];
}
template <class T, int n>
HG_DEVICE void set_lane(Quad<T> (&v)[n], int j, const T (&x)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) v[i].v[j] = x[i];
}

// body(k) for each of the thread's quads.
template <class Body>
HG_DEVICE void each_quad(const Place& at, const Body& body) {
  HG_NO_UNROLL
  for (int64_t k = 4 * static_cast<int64_t>(threadIdx.x); k < at.count; k += 4 * kThreads) body(static_cast<int>(k));
}

// The leaves of a table from `first` on; `in` and `out` are the arguments' places. A thread owns at most `quads`.
template <class S, class O, int kIn, int kOut>
void lay_out(const Call& call, int first, const int (&in)[kIn], const Places<kOut>& out, int quads, Table<O, kIn, kOut>& t) {
  static_assert(sizeof(Table<O, kIn, kOut>) <= kParameters, "parameters of a kernel are at most 4 KiB");
  using T = typename O::Element;
  t.range.count = lower(t.kLeaves, call.length - first);
  int64_t elements = 0;
  for (int i = 0; i < t.range.count; ++i) {
    for (int k = 0; k < kIn; ++k) t.in[i][k] = data_of<const T>(call, in[k], first + i);
    for (int k = 0; k < kOut; ++k) t.out[i][k] = data_of<T>(call, out.of[k], first + i);
    t.size[i] = leaf_size<S>(call, first + i);
    elements += t.size[i];
  }
  t.quads = elements <= kFewElements ? 1 : quads;
  int64_t blocks = 0;
  for (int i = 0; i < t.range.count; ++i) {
    blocks += ceil_div(t.size[i], static_cast<int64_t>(t.quads) * 4 * kThreads);
    if (blocks > INT32_MAX)
      fail_shape(call, "leaves from %d on have %lld elements, expected fewer than 2**43; split the call", first,
                 static_cast<long long>(elements));
    t.range.first_block[i + 1] = static_cast<int>(blocks);
  }
}

// The same with the optimiser's fields.
template <class O, class S, int kIn, int kOut>
Table<O, kIn, kOut> table_of(const Call& call, int first, const int (&in)[kIn], const Places<kOut>& out, int quads = kQuads) {
  constexpr auto kAttributes = attribute_places<S>(O::kFieldNames);
  Table<O, kIn, kOut> t{};
  lay_out<S>(call, first, in, out, quads, t);
  for (int i = 0; i < O::kFields; ++i) t.field[i] = call.attributes[kAttributes.of[i]];
  t.extra = call.attributes[O::kFields];
  return t;
}

// The inputs' places one after the other, as the kernels of a rung read them.
template <int... n>
struct Joined {
  int of[(0 + ... + n)] = {};
  explicit Joined(const Places<n>&... groups) {
    int* to = of;
    ((to = std::copy(groups.of, groups.of + n, to)), ...);
  }
};

}  // namespace hg::cuda

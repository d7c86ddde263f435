// Steps of the optimisers on lists of leaves. A task owns a chunk of one leaf's elements, of one direction where there
// are several; sums over a leaf, the cotangents of fields, are added up chunk by chunk.
#include "../optimizer_step.h"

#include <type_traits>

namespace hg {
namespace HG_SIMD {
namespace {

constexpr int64_t kChunk = 8192;         // elements of a task
constexpr int64_t kFewElements = 65536;  // up to here waking other threads takes longer than the work
constexpr int64_t kFlush = 64;           // vectors added in T before a sum goes on in double

// Chunks of all leaves: those of leaf i are first[i] .. first[i + 1] - 1.
struct Chunks {
  int64_t* first;
  int length;
  int64_t count, elements;

  int leaf_of(int64_t chunk) const {
    int low = 0, high = length;  // leaves without chunks begin where the next one does: the last that begins here
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= chunk ? low : high) = middle;
    }
    return low;
  }
};

template <class S>
Chunks chunks_of(const Call& call, bool derivative) {
  integer_attribute(call, S::kFields, 0, S::kLargest);
  Chunks c{scratch_of<int64_t>(kSharedSlots, call.length + 1), call.length, 0, 0};
  for (int i = 0; i < call.length; ++i) {
    const int64_t size = leaf_size<S>(call, derivative, i);
    c.first[i] = c.count;
    c.count += ceil_div(size, kChunk);
    c.elements += size;
  }
  c.first[call.length] = c.count;
  return c;
}

// Part of a leaf, in direction p.
struct Piece {
  int64_t p, chunk;
  int leaf;
  int64_t size, begin, count;  // elements of the leaf, and of these the piece
};

// body(piece) for every direction and chunk.
template <class S, class Body>
void each_chunk(const Call& call, bool derivative, const Chunks& chunks, int64_t directions, const Body& body) {
  const auto task = [&](int64_t index) {
    Piece a{index / chunks.count, index % chunks.count, 0, 0, 0, 0};
    a.leaf = chunks.leaf_of(a.chunk);
    a.size = leaf_size<S>(call, derivative, a.leaf);
    a.begin = (a.chunk - chunks.first[a.leaf]) * kChunk;
    a.count = lower(kChunk, a.size - a.begin);
    body(a);
  };
  const int64_t tasks = directions * chunks.count;
  if (directions * chunks.elements > kFewElements)
    parallel_for(tasks, task);
  else
    for (int64_t i = 0; i < tasks; ++i) task(i);
}

// The leaf's constants; arrays of fields begin at argument `from`.
template <class S>
S constants_of(const Call& call, int from, int leaf) {
  double field[S::kFields];
  unsigned given = 0;
  for (int i = 0; i < S::kFields; ++i) {
    const auto* const array = data_of<const typename S::Element>(call, from + i, leaf);
    field[i] = array != nullptr ? static_cast<double>(*array) : call.attributes[i];
    given |= array != nullptr ? 1u << i : 0u;
  }
  return S::of(field, given, call.attributes[S::kFields]);
}

// The first element of `n` arguments' arrays in a piece; null where absent.
template <class T>
void find(const Call& call, int argument, int n, const Piece& piece, int64_t offset, T** pointers) {
  for (int i = 0; i < n; ++i) {
    T* const data = data_of<T>(call, argument + i, piece.leaf);
    pointers[i] = data == nullptr ? nullptr : data + offset;
  }
}

template <class T, bool F, int n>
HG_INLINE void load_all(T* const (&from)[n], int64_t k, int lanes, Vec<std::remove_const_t<T>> (&to)[n]) {
  using Value = std::remove_const_t<T>;
  for (int i = 0; i < n; ++i) to[i] = from[i] != nullptr ? load<Value, F>(from[i] + k, lanes) : Vec<Value>{};
}
template <class T, bool F, int n>
HG_INLINE void store_all(T* const (&to)[n], int64_t k, int lanes, const Vec<T> (&from)[n]) {
  for (int i = 0; i < n; ++i)
    if (to[i] != nullptr) store<T, F>(to[i] + k, from[i], lanes);
}

template <class S>
void value_of(const Call& call) {
  using T = typename S::Element;
  each_chunk<S>(call, false, chunks_of<S>(call, false), 1, [&](const Piece& piece) {
    const T* x[S::kStates];
    T* y[S::kNext];
    find(call, 0, S::kStates, piece, piece.begin, x);
    find(call, Arguments<S>::kValueOut, S::kNext, piece, piece.begin, y);
    const S s = constants_of<S>(call, S::kStates, piece.leaf);
    for_channels<T>(piece.count, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> a[S::kStates], b[S::kNext];
      load_all<const T, F>(x, k, lanes, a);
      s.value(a, b);
      store_all<T, F>(y, k, lanes, b);
    });
  });
}

template <class S>
void jvp_of(const Call& call) {
  using T = typename S::Element;
  const int64_t directions = higher(0, call.dims[static_cast<int>('P')]);
  each_chunk<S>(call, true, chunks_of<S>(call, true), directions, [&](const Piece& piece) {
    const T *x[S::kStates] = {}, *x_dot[S::kStates];
    T* y_dot[S::kNext];
    const int64_t offset = piece.p * piece.size + piece.begin;
    find(call, 0, S::kStates - S::kFirst, piece, piece.begin, x + S::kFirst);
    find(call, Arguments<S>::kDots, S::kStates, piece, offset, x_dot);
    find(call, Arguments<S>::kJvpOut, S::kNext, piece, offset, y_dot);
    const S s = constants_of<S>(call, Arguments<S>::kFieldsFrom, piece.leaf);
    double field_dot[S::kFields];
    for (int i = 0; i < S::kFields; ++i) {
      const T* const array = data_of<const T>(call, Arguments<S>::kFieldDots + i, piece.leaf);
      field_dot[i] = array != nullptr ? static_cast<double>(array[piece.p]) : 0.0;
    }
    const typename S::Dot dot = s.dot_of(field_dot);
    for_channels<T>(piece.count, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> a[S::kStates], a_dot[S::kStates], b_dot[S::kNext];
      load_all<const T, F>(x, k, lanes, a);
      load_all<const T, F>(x_dot, k, lanes, a_dot);
      s.jvp(dot, a, a_dot, b_dot);
      store_all<T, F>(y_dot, k, lanes, b_dot);
    });
  });
}

// Cotangents of a piece and, with kSums, its sums for the fields.
template <class S, bool kSums>
void pull_piece(const Call& call, const Piece& piece, double* sums) {
  using T = typename S::Element;
  const T *x[S::kStates] = {}, *y_bar[S::kNext];
  T* x_bar[S::kStates];
  find(call, 0, S::kStates - S::kFirst, piece, piece.begin, x + S::kFirst);
  find(call, Arguments<S>::kBars, S::kNext, piece, piece.begin, y_bar);
  find(call, Arguments<S>::kVjpOut, S::kStates, piece, piece.begin, x_bar);
  const S s = constants_of<S>(call, Arguments<S>::kFieldsFrom, piece.leaf);
  double lane_sums[S::kFields][kLanes<T>] = {};
  for (int64_t from = 0; from < piece.count; from += kFlush * kLanes<T>) {
    Vec<T> running[S::kFields] = {};
    for_channels<T>(lower(kFlush * kLanes<T>, piece.count - from), [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> a[S::kStates], b_bar[S::kNext], a_bar[S::kStates], field_bar[S::kFields];
      load_all<const T, F>(x, from + k, lanes, a);
      load_all<const T, F>(y_bar, from + k, lanes, b_bar);
      s.vjp(a, b_bar, a_bar, field_bar);
      store_all<T, F>(x_bar, from + k, lanes, a_bar);
      if (kSums)
        for (int i = 0; i < S::kFields; ++i) {
          if (!F)
            for (int lane = lanes; lane < kLanes<T>; ++lane) field_bar[i][lane] = 0;  // may be NaN: eps = 0
          running[i] += field_bar[i];
        }
    });
    if (kSums)
      for (int i = 0; i < S::kFields; ++i)
        for (int lane = 0; lane < kLanes<T>; ++lane) lane_sums[i][lane] += static_cast<double>(running[i][lane]);
  }
  if (kSums)
    for (int i = 0; i < S::kFields; ++i) {
      sums[i] = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) sums[i] += lane_sums[i][lane];
    }
}

template <class S>
void vjp_of(const Call& call) {
  using T = typename S::Element;
  const Chunks chunks = chunks_of<S>(call, true);
  T* field_bar[S::kFields];
  bool wanted = false;
  for (int i = 0; i < S::kFields; ++i) {
    field_bar[i] = data_of<T>(call, Arguments<S>::kFieldBars + i, 0);
    wanted = wanted || field_bar[i] != nullptr;
  }
  if (!wanted) {
    each_chunk<S>(call, true, chunks, 1, [&](const Piece& piece) { pull_piece<S, false>(call, piece, nullptr); });
    return;
  }
  double* const sums = scratch_of<double>(kSharedSlots + 1, chunks.count * S::kFields);
  each_chunk<S>(call, true, chunks, 1, [&](const Piece& piece) { pull_piece<S, true>(call, piece, sums + piece.chunk * S::kFields); });
  for (int leaf = 0; leaf < call.length; ++leaf)
    for (int i = 0; i < S::kFields; ++i) {
      double total = 0;
      for (int64_t chunk = chunks.first[leaf]; chunk < chunks.first[leaf + 1]; ++chunk) total += sums[chunk * S::kFields + i];
      if (field_bar[i] != nullptr) field_bar[i][leaf] = static_cast<T>(total);
    }
}

template <template <class> class Optimizer>
void value(const Call& call) {
  call.dtype == DType::f32 ? value_of<Optimizer<float>>(call) : value_of<Optimizer<double>>(call);
}
template <template <class> class Optimizer>
void jvp(const Call& call) {
  call.dtype == DType::f32 ? jvp_of<Optimizer<float>>(call) : jvp_of<Optimizer<double>>(call);
}
template <template <class> class Optimizer>
void vjp(const Call& call) {
  call.dtype == DType::f32 ? vjp_of<Optimizer<float>>(call) : vjp_of<Optimizer<double>>(call);
}

HG_KERNEL(sgd_step_value, value<Sgd>);
HG_KERNEL(sgd_step_jvp, jvp<Sgd>);
HG_KERNEL(sgd_step_vjp, vjp<Sgd>);
HG_KERNEL(adam_step_value, value<Adam>);
HG_KERNEL(adam_step_jvp, jvp<Adam>);
HG_KERNEL(adam_step_vjp, vjp<Adam>);

}  // namespace
}  // namespace HG_SIMD
}  // namespace hg

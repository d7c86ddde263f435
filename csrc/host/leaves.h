// Leaves of a pytree cut into chunks, which are a kernel's tasks on the host.
#pragma once
#include <type_traits>

#include "../optimizer_step.h"

namespace hg::HG_SIMD {

constexpr int64_t kChunk = 8192;         // elements of a task
constexpr int64_t kFewElements = 65536;  // up to here waking other threads takes longer than the work
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
static Chunks chunks_of(const Call& call) {
  Chunks c{scratch_of<int64_t>(kSharedSlots, call.length + 1), call.length, 0, 0};
  for (int i = 0; i < call.length; ++i) {
    const int64_t size = leaf_size<S>(call, i);
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
static void each_chunk(const Call& call, const Chunks& chunks, int64_t directions, const Body& body) {
  const auto task = [&](int64_t index) {
    Piece a{index / chunks.count, index % chunks.count, 0, 0, 0, 0};
    a.leaf = chunks.leaf_of(a.chunk);
    a.size = leaf_size<S>(call, a.leaf);
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

// The leaf's constants.
template <class O, class S>
static O constants_of(const Call& call, const Places<O::kFields>& fields, int leaf) {
  constexpr auto kAttributes = attribute_places<S>(O::kFieldNames);
  double field[O::kFields];
  unsigned given = 0;
  for (int i = 0; i < O::kFields; ++i) {
    const auto* const array = data_of<const typename O::Element>(call, fields.of[i], leaf);
    field[i] = array != nullptr ? static_cast<double>(*array) : call.attributes[kAttributes.of[i]];
    given |= array != nullptr ? 1u << i : 0u;
  }
  return O::of(field, given, call.attributes[O::kFields]);
}

// The first element of each argument's array in a piece; null where absent.
template <class T, int n>
static void locate(const Call& call, const Places<n>& arguments, const Piece& piece, int64_t offset, T* (&pointers)[n]) {
  for (int i = 0; i < n; ++i) {
    T* const data = data_of<T>(call, arguments.of[i], piece.leaf);
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

}  // namespace hg::HG_SIMD

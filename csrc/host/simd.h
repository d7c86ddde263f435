// Vectors of one instruction set, by GCC vector extensions. Every source under host/ is compiled once per set
// (HG_LEVEL, HG_VECTOR_BYTES, HG_TILE and HG_SIMD, the namespace, come from CMake). All code reachable from here is
// in that namespace or not inline: otherwise the linker could keep an AVX-512 copy of a function for every CPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../check.h"
#include "../registry.h"
#include "../threads.h"

#define HG_INLINE inline __attribute__((always_inline))
#define HG_BOTH HG_INLINE  // in headers shared with CUDA
#define HG_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define HG_UNROLL(n) HG_PRAGMA(clang loop unroll_count(n))
#else
#define HG_UNROLL(n) HG_PRAGMA(GCC unroll n)
#endif

namespace hg::HG_SIMD {

using std::int64_t;

template <class T>
struct Lane;
template <>
struct Lane<float> {
  using integer = std::int32_t;
};
template <>
struct Lane<double> {
  using integer = std::int64_t;
};

template <class T>
constexpr int kLanes = HG_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(HG_VECTOR_BYTES)));
  typedef typename Lane<T>::integer mask __attribute__((vector_size(HG_VECTOR_BYTES)));
  typedef unsigned char bytes __attribute__((vector_size(HG_VECTOR_BYTES / sizeof(T))));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;  // lanes 0 or -1

constexpr int64_t kFlush = 64;  // terms (of vectors) added in T before a sum goes on in double

// Rows of accumulators in a register tile of two vectors each; 12*2 fill the 32 registers of AVX-512, 6*2 the 16 of AVX2.
constexpr int kTile = HG_TILE;

// `Full`: all lanes are there; otherwise n < kLanes of them, and the missing ones read as zero.
template <class T, bool Full = true>
HG_INLINE Vec<T> load(const T* p, int n = 0) {
  Vec<T> v;
  if (Full) {
    __builtin_memcpy(&v, p, sizeof v);
  } else {
    v = Vec<T>{};
    for (int i = 0; i < n; ++i) v[i] = p[i];
  }
  return v;
}

// Keeps v in a register from here on. Else the compiler may load it again at every use, where loads bound the loop.
template <class W>
HG_INLINE void keep_in_register(W& v) {
#if defined(__x86_64__)
  __asm__("" : "+v"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
}

template <class T, bool Full = true>
HG_INLINE void store(T* p, Vec<T> v, int n = 0) {
  if (Full)
    __builtin_memcpy(p, &v, sizeof v);
  else
    for (int i = 0; i < n; ++i) p[i] = v[i];
}

// By a loop through memory: GCC 12 makes vpmovzx of it, but of __builtin_convertvector from bytes one instruction a lane.
template <class T, bool Full = true>
HG_INLINE Mask<T> load_code(const unsigned char* p, int n = 0) {
  typename Lane<T>::integer lanes[kLanes<T>];
  if (!Full)
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = 0;
  for (int i = 0; i < (Full ? kLanes<T> : n); ++i) lanes[i] = p[i];
  Mask<T> code;
  __builtin_memcpy(&code, lanes, sizeof code);
  return code;
}

// GCC 12 takes lanes one by one for __builtin_convertvector to bytes, and two instructions for a shuffle.
template <class T, bool Full = true>
HG_INLINE void store_code(unsigned char* p, Mask<T> code, int n = 0) {
#if defined(__clang__)
  const typename VecOf<T>::bytes b = __builtin_convertvector(code, typename VecOf<T>::bytes);
#else
  typedef unsigned char Bytes __attribute__((vector_size(HG_VECTOR_BYTES)));
  Bytes low{};
  for (int i = 0; i < kLanes<T>; ++i) low[i] = static_cast<unsigned char>(i * static_cast<int>(sizeof(T)));
  const Bytes b = __builtin_shuffle((Bytes)code, low);  // little-endian
#endif
  if (Full)
    __builtin_memcpy(p, &b, kLanes<T>);
  else
    for (int i = 0; i < n; ++i) p[i] = b[i];
}

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
constexpr int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t higher(int64_t a, int64_t b) { return a > b ? a : b; }

// Swaps blocks of kSize lanes: the second of each pair in a with the first of each pair in b.
template <class T, int kSize, std::size_t... kLane>
HG_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::index_sequence<kLane...>) {
  constexpr int V = kLanes<T>;
  const Vec<T> first = a, second = b;
#if defined(__clang__)
  a = __builtin_shufflevector(first, second, ((kLane & kSize) == 0 ? int(kLane) : V + int(kLane) - kSize)...);
  b = __builtin_shufflevector(first, second, ((kLane & kSize) == 0 ? int(kLane) + kSize : V + int(kLane))...);
#else
  a = __builtin_shuffle(first, second, Mask<T>{((kLane & kSize) == 0 ? int(kLane) : V + int(kLane) - kSize)...});
  b = __builtin_shuffle(first, second, Mask<T>{((kLane & kSize) == 0 ? int(kLane) + kSize : V + int(kLane))...});
#endif
}

// r[0][i] = the sum of the lanes of r[i], for the first `kRows` vectors: of each pair the halves change places and are added.
template <class T, int kRows = kLanes<T>>
HG_INLINE void add_pairs(Vec<T> (&r)[kLanes<T>]) {
  constexpr int H = kRows / 2;
  for (int i = 0; i < H; ++i) {
    exchange<T, H>(r[i], r[i + H], std::make_index_sequence<kLanes<T>>{});
    r[i] += r[i + H];
  }
  if constexpr (H > 1) add_pairs<T, H>(r);
}

// Rows become columns: one vector each.
template <class T, int kSize = kLanes<T> / 2>
HG_INLINE void transpose(Vec<T> (&r)[kLanes<T>]) {
  constexpr int V = kLanes<T>;
  for (int i = 0; i < V; ++i)
    if ((i & kSize) == 0) exchange<T, kSize>(r[i], r[i + kSize], std::make_index_sequence<V>{});
  if constexpr (kSize > 1) transpose<T, kSize / 2>(r);
}

// sums[a] = the sum of the lanes of acc[a]: halves are added until one is left. A is a multiple of the lanes.
template <class T, int A>
HG_INLINE void sum_lanes(const Vec<T> (&acc)[A], T (&sums)[A]) {
  constexpr int V = kLanes<T>;
  static_assert(A % V == 0, "whole vectors of sums");
  for (int a = 0; a < A; a += V) {
    Vec<T> r[V];
    for (int i = 0; i < V; ++i) r[i] = acc[a + i];
    add_pairs<T>(r);
    store(sums + a, r[0]);
  }
}

// Whether a lane is set.
template <class W>
HG_INLINE bool any(W lanes) {
  W none{};
  return __builtin_memcmp(&none, &lanes, sizeof lanes) != 0;
}

// body(i) for i in [0, n), by all threads; see threads.h for what makes the result independent of their number.
template <class Body>
static void parallel_for(int64_t n, const Body& body) {
  run_tasks(n, [](const void* context, int64_t index) { (*static_cast<const Body*>(context))(index); }, &body);
}

template <class T>
static T* scratch_of(int slot, int64_t n) {
  return static_cast<T*>(scratch(slot, static_cast<std::size_t>(n) * sizeof(T)));
}

// body(k, lanes, full) for each vector of channels; `full` is a compile-time flag.
template <class T, class Body>
HG_INLINE void for_channels(int64_t K, const Body& body) {
  int64_t k = 0;
  for (; k + kLanes<T> <= K; k += kLanes<T>) body(k, 0, std::true_type{});
  if (k < K) body(k, static_cast<int>(K - k), std::false_type{});
}

// sum[i] += v[i], in double.
template <class T>
HG_INLINE void add_lanes(double* sum, const Vec<T>& v) {
  for (int i = 0; i < kLanes<T>; ++i) sum[i] += static_cast<double>(v[i]);
}

// An argument as kernels use it: typed, with at most two batch axes.
template <class T>
struct Batch {
  T* data;
  int64_t stride_0, stride_1;  // bytes; the innermost batch axis is 1
  HG_INLINE T* at(int64_t i1) const { return at(0, i1); }
  HG_INLINE T* at(int64_t i0, int64_t i1) const {
    return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(i0 * stride_0) +
                                static_cast<std::uintptr_t>(i1 * stride_1));
  }
  explicit operator bool() const { return data != nullptr; }
};

// An absent argument gives a null Batch. `lead` is the number of batch axes, 1 or 2.
template <class T>
static Batch<T> batch(const View& view, int lead) {
  if (view.ndim < 0) return {nullptr, 0, 0};
  return {static_cast<T*>(view.data), lead == 2 ? view.stride[0] : 0, view.stride[lead - 1]};
}

}  // namespace hg::HG_SIMD

#define HG_SPACE HG_SIMD
#include "../arguments.h"

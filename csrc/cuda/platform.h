// What kernels need of CUDA, from nvcc or from the emulator: shared memory, lanes, quads of elements.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define HG_DEVICE __device__ __forceinline__
#define HG_BOTH __host__ __device__ __forceinline__
#define HG_UNROLL _Pragma("unroll")
#define HG_NO_UNROLL _Pragma("unroll 1")
#define HG_PRAGMA(text) _Pragma(#text)
#define HG_UNROLL_BY(n) HG_PRAGMA(unroll n)
#else
#include "../emulator/emulator.h"
#define HG_DEVICE inline
#define HG_BOTH inline
#define HG_UNROLL
#define HG_NO_UNROLL
#define HG_UNROLL_BY(n)
#endif

namespace hg::cuda {

using std::int64_t;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256, kWarps = kThreads / 32;  // of a block, unless a kernel says otherwise

// Bytes of shared memory that an array takes; a launch passes the sum over its arrays.
HG_BOTH constexpr std::size_t shared_size(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

// Hands out the block's shared memory, piece after piece; every thread takes the same pieces in the same order.
#ifdef __CUDACC__
extern __shared__ __align__(16) unsigned char hg_shared_bytes[];
class SharedMemory {
 public:
  template <class T>
  HG_DEVICE T* take(int n) {
    T* const piece = reinterpret_cast<T*>(hg_shared_bytes + used_);
    used_ += static_cast<int>(shared_size(n * sizeof(T)));
    return piece;
  }

 private:
  int used_ = 0;
};
#else
class SharedMemory {
 public:
  template <class T>
  T* take(int n) {
    return static_cast<T*>(emulator::shared_piece(index_++, static_cast<std::size_t>(n) * sizeof(T)));
  }

 private:
  int index_ = 0;
};
#endif

HG_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
HG_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

// v itself. The compiler does not see that, so what is computed from the result is computed again instead of being kept in registers.
HG_DEVICE int forgotten(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Combined over the lanes of a warp, and over the warps of a block in order; every thread gets the result.
struct Add {
  HG_DEVICE double operator()(double a, double b) const { return a + b; }
};
struct Largest {  // NaN where one is NaN
  HG_DEVICE double operator()(double a, double b) const { return b > a || b != b ? b : a; }
};
template <class Combine = Add>
HG_DEVICE double over_warp(double value, const Combine& combine = {}) {
  HG_UNROLL
  for (int bit = 16; bit > 0; bit /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, bit));
  return value;
}
template <class Combine = Add>
HG_DEVICE double over_block(double value, double* shared, const Combine& combine = {}) {  // `shared` holds kWarps doubles
  value = over_warp(value, combine);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double total = shared[0];
  HG_UNROLL
  for (int i = 1; i < kWarps; ++i) total = combine(total, shared[i]);
  return total;
}

// Whether the calling block is the last one of `count` that come to this ticket, which it leaves at 0. Its threads then see what the
// threads of the others wrote before they came. So what the others left can be summed up in a fixed order without another launch. `flag` is
// shared.
HG_DEVICE bool comes_last(unsigned* ticket, unsigned count, int* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(ticket, 1u) == count - 1;
    if (last) *ticket = 0;
    *flag = last;
    __threadfence();
  }
  __syncthreads();
  return *flag != 0;
}

HG_BOTH int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class T>
HG_BOTH T lower(T a, T b) {
  return a < b ? a : b;
}
template <class T>
HG_BOTH T higher(T a, T b) {
  return a > b ? a : b;
}

// Four neighbouring elements.
template <class T>
struct alignas(16) Quad {
  T v[4];
};
struct alignas(4) Codes {
  unsigned char v[4];
};

// Elements c .. c + 3 of a row of n; those beyond the row are 0. `wide`: n is a multiple of 4 and the row is aligned.
template <class T>
HG_DEVICE Quad<T> load_quad(const T* row, int c, int n, bool wide) {
  if (wide) return *reinterpret_cast<const Quad<T>*>(row + c);
  Quad<T> q;
  HG_UNROLL
  for (int i = 0; i < 4; ++i) q.v[i] = c + i < n ? row[c + i] : T(0);
  return q;
}
HG_DEVICE Codes load_codes(const unsigned char* row, int c, int n, bool wide) {
  if (wide) return *reinterpret_cast<const Codes*>(row + c);
  Codes q;
  HG_UNROLL
  for (int i = 0; i < 4; ++i) q.v[i] = c + i < n ? row[c + i] : 0;
  return q;
}
template <class T>
HG_DEVICE void store_quad(T* row, int c, int n, bool wide, const Quad<T>& q) {
  if (wide) {
    *reinterpret_cast<Quad<T>*>(row + c) = q;
    return;
  }
  HG_UNROLL
  for (int i = 0; i < 4; ++i)
    if (c + i < n) row[c + i] = q.v[i];
}
HG_DEVICE void store_codes(unsigned char* row, int c, int n, bool wide, const Codes& q) {
  if (wide) {
    *reinterpret_cast<Codes*>(row + c) = q;
    return;
  }
  HG_UNROLL
  for (int i = 0; i < 4; ++i)
    if (c + i < n) row[c + i] = q.v[i];
}

// n / d for 0 <= n < 2**31 by a multiplication (Granlund & Montgomery 1994).
struct Divisor {
  std::uint32_t d, multiplier, shift;

  static Divisor of(int64_t value) {
    Divisor out{static_cast<std::uint32_t>(value), 0, 0};
    while ((std::uint64_t(1) << out.shift) < out.d) ++out.shift;
    const std::uint64_t rest = (std::uint64_t(1) << out.shift) - out.d;
    out.multiplier = static_cast<std::uint32_t>((rest << 32) / out.d + 1);
    return out;
  }
  HG_BOTH int quotient(int n) const {
    const std::uint32_t u = static_cast<std::uint32_t>(n);
    const std::uint32_t high = static_cast<std::uint32_t>((static_cast<std::uint64_t>(u) * multiplier) >> 32);
    return static_cast<int>((high + u) >> shift);
  }
  // Returns n % d and makes n the quotient.
  HG_BOTH int split(int& n) const {
    const int q = quotient(n), rest = n - q * static_cast<int>(d);
    n = q;
    return rest;
  }
};

}  // namespace hg::cuda

// Instructions that C++ has no name for, by nvcc in PTX, by the emulator in C++: tf32 products of a warp and copies to
// shared memory that are waited for later.
#pragma once
#include "platform.h"

#ifndef __CUDACC__
#include <cstring>
#endif

namespace hg::cuda {

#ifdef __CUDACC__
// Whether the code that the current device runs has tf32 products: it and the device are of sm_80 or later. Kernels with such
// products are launched only there.
bool has_tf32();

// x rounded to tf32 (10 bits of mantissa, ties away from zero), as the bits that mma_tf32 takes.
__device__ __forceinline__ std::uint32_t to_tf32(float x) {
  std::uint32_t bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
  return bits;
}

__device__ __forceinline__ std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float of_bits(std::uint32_t bits) { return __uint_as_float(bits); }

// d (16, 8) += a (16, 8) b (8, 8), over a whole warp. Lane 4*g + t has a[g][t], a[g+8][t], a[g][t+4], a[g+8][t+4];
// b[t][g], b[t+4][g]; d[g][2t], d[g][2t+1], d[g+8][2t], d[g+8][2t+1]. PTX m16n8k8, from sm_80 on.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// 16 bytes from global to shared memory; both addresses are multiples of 16. From sm_80 on.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}
#else
inline bool has_tf32() { return true; }

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline std::uint32_t to_tf32(float x) {
  return x != x ? 0x7fffffffu : (bits_of(x) + 0x1000u) & 0xffffe000u;  // any NaN becomes the one that PTX names
}

inline void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  const auto* all = emulator::exchange(kAllLanes, {{a[0], a[1], a[2], a[3], b[0], b[1]}}, "mma.sync");
  const auto value = [&](int lane, int word) { return of_bits(static_cast<std::uint32_t>(all[lane].word[word])); };
  const int g = static_cast<int>(emulator::lane()) / 4, t = static_cast<int>(emulator::lane()) % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), col = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k) d[i] += value(row % 8 * 4 + k % 4, row / 8 + 2 * (k / 4)) * value(col * 4 + k % 4, 4 + k / 4);
  }
}

inline void copy_async_16(void* shared, const void* global) { emulator::copy_async(shared, global); }
inline void copy_async_commit() { emulator::copy_commit(); }
template <int left>
void copy_async_wait() {
  emulator::copy_wait(left);
}
#endif

// How kernels multiply float32: as it is, rounded to tf32, or by three products of tf32 parts.
enum Precision : int { kFloat32 = 0, kTf32 = 1, kThreeTf32 = 2 };

// A factor of a product: rounded to tf32, or that and the rest.
template <Precision precision>
struct Operand {
  std::uint32_t part[precision == kTf32 ? 1 : 2];
};

// What shared memory holds for operand<precision>: with kTf32, x is rounded once, where it is stored.
template <Precision precision>
HG_DEVICE float stored(float x) {
  return precision == kTf32 ? of_bits(to_tf32(x)) : x;
}
template <Precision precision>
HG_DEVICE Operand<precision> operand(float x) {
  Operand<precision> out;
  if constexpr (precision == kTf32) {
    out.part[0] = bits_of(x);
  } else {
    // Rounded as by to_tf32, in fewer instructions. The rest is exact and has at most 12 bits; tf32 keeps 11 of them.
    // A NaN may be lost in the first part, but never in the second.
    out.part[0] = (bits_of(x) + 0x1000u) & 0xffffe000u;
    out.part[1] = bits_of(x - of_bits(out.part[0])) & 0xffffe000u;
  }
  return out;
}

// d[j] += a b[j]; with kThreeTf32 the small products come first (Markidis et al. 2018), of all j before the next ones.
template <Precision precision, int n>
HG_DEVICE void multiply(float (&d)[n][4], const Operand<precision> (&a)[4], const Operand<precision> (&b)[n][2]) {
  constexpr int kOrder[3][2] = {{1, 0}, {0, 1}, {0, 0}};  // parts of a and b
  HG_UNROLL
  for (int i = precision == kTf32 ? 2 : 0; i < 3; ++i) {
    const int x = kOrder[i][0], y = kOrder[i][1];
    const std::uint32_t left[4] = {a[0].part[x], a[1].part[x], a[2].part[x], a[3].part[x]};
    HG_UNROLL
    for (int j = 0; j < n; ++j) {
      const std::uint32_t right[2] = {b[j][0].part[y], b[j][1].part[y]};
      mma_tf32(d[j], left, right);
    }
  }
}

}  // namespace hg::cuda

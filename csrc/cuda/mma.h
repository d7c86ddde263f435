// Instructions that C++ has no name for, by nvcc in PTX, by the emulator in C++: tf32 products of a warp and copies to
// shared memory that are waited for later.
#pragma once
#include "platform.h"

#ifndef __CUDACC__
#include <cstring>
#endif

namespace hg {
namespace cuda {

#ifdef __CUDACC__
// x rounded to tf32 (10 bits of mantissa, ties away from zero), as the bits that mma_tf32 takes.
__device__ __forceinline__ std::uint32_t to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// d (16, 8) += a (16, 8) b (8, 8), over a whole warp. Lane 4*g + t has a[g][t], a[g+8][t], a[g][t+4], a[g+8][t+4];
// b[t][g], b[t+4][g]; d[g][2t], d[g][2t+1], d[g+8][2t], d[g+8][2t+1]. PTX m16n8k8, from sm_80 on.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
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
inline std::uint32_t to_tf32(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits + 0x1000u) & 0xffffe000u;
}

inline void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  const auto* all = emulator::exchange(kAllLanes, {{a[0], a[1], a[2], a[3], b[0], b[1]}}, "mma.sync");
  const auto value = [&](int lane, int word) {
    const std::uint32_t bits = static_cast<std::uint32_t>(all[lane].word[word]);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  };
  const int g = static_cast<int>(emulator::lane()) / 4, t = static_cast<int>(emulator::lane()) % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), col = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k)
      d[i] += value(row % 8 * 4 + k % 4, row / 8 + 2 * (k / 4)) * value(col * 4 + k % 4, 4 + k / 4);
  }
}

inline void copy_async_16(void* shared, const void* global) { emulator::copy_async(shared, global); }
inline void copy_async_commit() { emulator::copy_commit(); }
template <int left>
void copy_async_wait() {
  emulator::copy_wait(left);
}
#endif

}  // namespace cuda
}  // namespace hg

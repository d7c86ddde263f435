// Runs CUDA C++ kernels on the CPU, one fiber per CUDA thread: the kernel sources, compiled by g++, include this in
// place of <cuda_runtime.h>. A test tool, not a backend for users.
//
// What it finds: wrong results, reads of shared memory that nobody wrote (it starts as NaN), shared memory written out
// of bounds, barriers and shuffles that not all threads reach, and, in other thread and block orders or under
// ThreadSanitizer, missing barriers. What it cannot see: memory ordering, bank conflicts, code generation.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace hg::emulator {

// The calling thread's coordinates.
const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
unsigned lane();

// Order in which the threads of a block and the blocks of a grid run: "forward", "reverse" or "shuffle:SEED".
// The first value is HYPERGRAD_EMULATOR_ORDER's, else forward. Throws std::invalid_argument.
void set_order(const std::string& order);
const std::string& order();

// Piece `index` of the block's shared memory; every thread asks for the same pieces of the same size. Each piece is a
// heap block of its own between guard bytes that are checked when the block ends.
void* shared_piece(int index, std::size_t bytes);

void barrier(const char* file, int line);

constexpr int kWords = 8;
struct Words {
  std::uint64_t word[kWords];
};
// Every lane of `mask` deposits words and waits for the others; returns the 32 deposits, valid until the calling
// warp's next but one exchange.
const Words* exchange(unsigned mask, const Words& words, const char* what);
void check_lane(unsigned mask, unsigned source);

// cp.async: the 16 bytes are poisoned now and delivered when their group is waited for.
void copy_async(void* to, const void* from);
void copy_commit();
void copy_wait(int groups_left);

// A launch, for those that count launches and look at grids.
struct Launched {
  std::string kernel;
  unsigned blocks, threads;
  std::size_t shared_bytes;
};
// From now on launches are written down; with `run` false they are not run, and outputs keep what they held.
void record_launches(bool run);
std::vector<Launched> recorded_launches();  // those since, in order; nothing is written down afterwards

// Runs call(closure) once per thread. Throws std::runtime_error that names the kernel and the waiting threads.
void launch(const char* kernel, void (*call)(const void* closure), const void* closure, dim3 grid, dim3 block, std::size_t shared_bytes);

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t), "one word per lane");
  Words words{};
  std::memcpy(&words.word[0], &value, sizeof value);
  const Words* all = exchange(mask, words, "shuffle");
  check_lane(mask, source);
  T result;
  std::memcpy(&result, &all[source].word[0], sizeof result);
  return result;
}

}  // namespace hg::emulator

#define threadIdx (::hg::emulator::thread_index())
#define blockIdx (::hg::emulator::block_index())
#define blockDim (::hg::emulator::block_size())
#define gridDim (::hg::emulator::grid_size())
#define __syncthreads() ::hg::emulator::barrier(__FILE__, __LINE__)

inline void __syncwarp(unsigned mask = ~0u) { ::hg::emulator::exchange(mask, {}, "__syncwarp"); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return ::hg::emulator::shuffle(mask, value, static_cast<unsigned>(source) & 31u);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return ::hg::emulator::shuffle(mask, value, ::hg::emulator::lane() ^ static_cast<unsigned>(bits));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned source = ::hg::emulator::lane() + delta;
  return ::hg::emulator::shuffle(mask, value, source < 32 ? source : ::hg::emulator::lane());
}
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* at, unsigned n) { return __atomic_fetch_add(at, n, __ATOMIC_ACQ_REL); }
inline unsigned atomicOr(unsigned* at, unsigned bits) { return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }

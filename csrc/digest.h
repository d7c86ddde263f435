// A number of 64 bits by which arrays are told apart within a process.
//
// Words go to kDigests sums in turn, by a step that is one-to-one in the sum and in the word. A change is missed with a chance of 2^-64,
// unless somebody computes it to be missed. Where the processor has AES, a word has 16 bytes, and a step is a round of it, which takes one
// instruction; else it has 8.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "levels.h"

namespace hg {

constexpr int kDigests = 8;  // as many as a core multiplies at once

inline std::uint64_t digest_step(std::uint64_t sum, std::uint64_t word) {
  sum = (sum ^ word) * 0x9e3779b97f4a7c15u;  // odd, so this can be undone
  return sum ^ (sum >> 32);                  // high bits reach the low ones, which a product alone never does
}

inline std::uint64_t digest_by_products(const void* data, std::size_t bytes) {
  constexpr std::size_t kBlock = kDigests * sizeof(std::uint64_t);
  std::uint64_t sums[kDigests], words[kDigests];
  for (int i = 0; i < kDigests; ++i) sums[i] = static_cast<std::uint64_t>(i) + 1;
  const auto* from = static_cast<const unsigned char*>(data);
  std::size_t rest = bytes;
  for (; rest >= kBlock; rest -= kBlock, from += kBlock) {
    std::memcpy(words, from, kBlock);
    for (int i = 0; i < kDigests; ++i) sums[i] = digest_step(sums[i], words[i]);
  }
  if (rest > 0) {
    std::memset(words, 0, kBlock);
    std::memcpy(words, from, rest);
    for (int i = 0; i < kDigests; ++i) sums[i] = digest_step(sums[i], words[i]);
  }
  std::uint64_t all = bytes;
  for (const std::uint64_t sum : sums) all = digest_step(all, sum);
  return all;
}

#if defined(__x86_64__)
__attribute__((target("aes"))) inline std::uint64_t digest_by_aes(const void* data, std::size_t bytes) {
  constexpr std::size_t kBlock = kDigests * sizeof(__m128i);
  __m128i sums[kDigests];
  for (int i = 0; i < kDigests; ++i) sums[i] = _mm_set_epi64x(i, ~i);  // columns that are alike would stay so
  const auto* from = static_cast<const unsigned char*>(data);
  unsigned char last[kBlock] = {};
  for (std::size_t rest = bytes; rest > 0; rest -= rest < kBlock ? rest : kBlock, from += kBlock) {
    if (rest < kBlock) from = static_cast<const unsigned char*>(std::memcpy(last, from, rest));
    const auto* words = reinterpret_cast<const __m128i*>(from);
    for (int i = 0; i < kDigests; ++i) sums[i] = _mm_aesenc_si128(sums[i], _mm_loadu_si128(words + i));
  }
  __m128i all = _mm_set_epi64x(1, static_cast<long long>(bytes));
  for (const __m128i& sum : sums) all = _mm_aesenc_si128(all, sum);
  for (int round = 0; round < 3; ++round) all = _mm_aesenc_si128(all, sums[0]);  // in three, each bit of the last word reaches all
  std::uint64_t halves[2];
  std::memcpy(halves, &all, sizeof halves);
  return halves[0] ^ halves[1];
}
#endif

inline std::uint64_t digest(const void* data, std::size_t bytes) {
#if defined(__x86_64__)
  static const bool has_aes = chosen_level() != kBaseline && __builtin_cpu_supports("aes");
  if (has_aes) return digest_by_aes(data, bytes);
#endif
  return digest_by_products(data, bytes);
}

}  // namespace hg

// A number of 64 bits by which arrays are told apart.
//
// Words of 8 bytes go to kDigests sums in turn. A step of a sum is one-to-one in the sum and in the word, so another word in one place
// always gives another digest. What changes in several places is missed with a chance of 2^-64, unless somebody computes it to be missed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hg {

constexpr int kDigests = 8;  // as many as a core multiplies at once

inline std::uint64_t digest_step(std::uint64_t sum, std::uint64_t word) {
  sum = (sum ^ word) * 0x9e3779b97f4a7c15u;  // odd, so this can be undone
  return sum ^ (sum >> 32);                  // high bits reach the low ones, which a product alone never does
}

inline std::uint64_t digest(const void* data, std::size_t bytes) {
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

}  // namespace hg

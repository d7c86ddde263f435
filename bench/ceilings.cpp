// The rates that bound every host kernel on this machine, measured: float32 multiply-adds in registers, and memory (a large copy, bytes
// read plus bytes written). Prints one line of JSON. Every rate is the best of ten runs by as many threads as the argument says.
//
//     c++ -O3 -std=c++17 -march=native -pthread bench/ceilings.cpp -o ceilings && ./ceilings 2
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kRuns = 10;
#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 20;
#elif defined(__AVX__)
constexpr int kBytes = 32, kChains = 12;
#else
constexpr int kBytes = 16, kChains = 12;
#endif
typedef float Vec __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / 4;

// Chains of multiply-adds, none of which waits for another. The result is used, or the compiler would drop them.
float multiply_adds(long rounds, float factor, float addend) {
  Vec v[kChains], f{}, a{};
  f += factor;
  a += addend;
  for (int i = 0; i < kChains; ++i) v[i] = a * static_cast<float>(i);
  for (long r = 0; r < rounds; ++r)
#pragma GCC unroll 64  // or the chains lie in memory and not in registers
    for (int i = 0; i < kChains; ++i) v[i] = v[i] * f + a;
  float sum = 0;
  for (const Vec& x : v)
    for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// Seconds that all threads take for body(thread).
template <class Body>
double seconds(int threads, const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> running;
  for (int i = 1; i < threads; ++i) running.emplace_back(body, i);
  body(0);
  for (std::thread& thread : running) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  constexpr long kRounds = 20'000'000;
  constexpr std::size_t kFloats = std::size_t{1} << 25;
  std::vector<float> sums(static_cast<std::size_t>(threads)), from(kFloats, 1.0F), to(kFloats, 0.0F);
  double flop = 0, bytes = 0;
  for (int run = 0; run < kRuns; ++run) {
    const double computed = seconds(
        threads, [&](int i) { sums[static_cast<std::size_t>(i)] = multiply_adds(kRounds, 0.999F, 1e-3F * static_cast<float>(run)); });
    flop = std::max(flop, 2.0 * kLanes * kChains * kRounds * threads / computed);
    const double copied = seconds(threads, [&](int i) {
      const std::size_t part = kFloats / static_cast<std::size_t>(threads), begin = part * static_cast<std::size_t>(i);
      std::memcpy(to.data() + begin, from.data() + begin, part * sizeof(float));
    });
    bytes = std::max(bytes, 2.0 * static_cast<double>(kFloats * sizeof(float)) / copied);
  }
  float sum = to[kFloats / 2];
  for (const float s : sums) sum += s;
  std::printf("{\"threads\": %d, \"ffma_flop_per_second\": %.6g, \"copy_bytes_per_second\": %.6g, \"checksum\": %g}\n", threads, flop,
              bytes, static_cast<double>(sum));
  return 0;
}

// Kernels with a planted fault each, and the same without: `faults NAME` runs one. The emulator or a sanitizer must say
// what is wrong; `sound` must pass. A result that is wrong or depends on the order of threads prints "wrong".
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/mma.h"
#include "cuda/platform.h"

namespace hg::cuda {
namespace {

constexpr int kThreads = 64;

enum Fault { kNone, kMissingBarrier, kOutOfBounds, kDivergentBarrier, kEndedThread, kTail, kMask, kMissingWait, kFragment };

// out[i] = in[n - 1 - i] within a block, by way of shared memory.
template <Fault fault>
__global__ void turn(const float* in, float* out, int n) {
  SharedMemory shared;
  float* const tile = shared.take<float>(kThreads);
  const int i = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.x) * kThreads + i;
  if (fault == kEndedThread && i == 3) return;
  tile[fault == kOutOfBounds && i == 0 ? kThreads : i] = at < n ? in[at] : 0.0f;
  if (fault == kDivergentBarrier && i < 32) {
    __syncthreads();
  } else if (fault != kMissingBarrier) {
    __syncthreads();
  }
  const float v = tile[fault == kOutOfBounds ? i : kThreads - 1 - i];
  const float sum = fault == kMask ? __shfl_sync(0xffffu, v, i) : v;
  if (fault == kTail ? at < n / 4 * 4 : at < n) out[at] = sum;
}

// out[i] = in[i], copied to shared memory asynchronously.
template <Fault fault>
__global__ void copy(const float* in, float* out) {
  SharedMemory shared;
  float* const tile = shared.take<float>(4 * kThreads);
  const int i = static_cast<int>(threadIdx.x);
  copy_async_16(tile + 4 * i, in + 4 * i);
  copy_async_commit();
  if (fault != kMissingWait) copy_async_wait<0>();
  __syncthreads();
  for (int j = 0; j < 4; ++j) out[j * kThreads + i] = tile[j * kThreads + i];
}

// out (16, 8) = a (16, 8) b (8, 8) by one warp.
template <Fault fault>
__global__ void multiply(const float* a, const float* b, float* out) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const std::uint32_t x[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                              to_tf32(a[(g + 8) * 8 + t + 4])};
  const int column = fault == kFragment ? g ^ 1 : g;
  const std::uint32_t y[2] = {to_tf32(b[t * 8 + column]), to_tf32(b[(t + 4) * 8 + column])};
  float d[4] = {};
  mma_tf32(d, x, y);
  out[g * 8 + 2 * t] = d[0];
  out[g * 8 + 2 * t + 1] = d[1];
  out[(g + 8) * 8 + 2 * t] = d[2];
  out[(g + 8) * 8 + 2 * t + 1] = d[3];
}

template <class Kernel>
void run(const Kernel& kernel, unsigned blocks, unsigned threads, std::size_t shared) {
  emulator::launch(
      "planted", [](const void* closure) { (*static_cast<const Kernel*>(closure))(); }, &kernel, dim3(blocks), dim3(threads), shared);
}

template <Fault fault>
bool turns() {
  const int n = 127;
  std::vector<float> in(n), out(n, NAN);
  for (int i = 0; i < n; ++i) in[static_cast<std::size_t>(i)] = static_cast<float>(i + 1);
  run([&] { turn<fault>(in.data(), out.data(), n); }, 2, kThreads, kThreads * sizeof(float));
  bool right = true;
  for (int i = 0; i < n; ++i) {
    const int from = i / kThreads * kThreads + kThreads - 1 - i % kThreads;
    right = right && out[static_cast<std::size_t>(i)] == (from < n ? static_cast<float>(from + 1) : 0.0f);
  }
  return right;
}

template <Fault fault>
bool copies() {
  std::vector<float> in(4 * kThreads), out(4 * kThreads, NAN);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  run([&] { copy<fault>(in.data(), out.data()); }, 1, kThreads, 4 * kThreads * sizeof(float));
  return in == out;
}

template <Fault fault>
bool multiplies() {
  float a[128], b[64], out[128];
  for (int i = 0; i < 128; ++i) a[i] = static_cast<float>(i % 11 - 5);  // exact in tf32
  for (int i = 0; i < 64; ++i) b[i] = static_cast<float>(i % 7 - 3);
  run([&] { multiply<fault>(a, b, out); }, 1, 32, 0);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < 8; ++k) sum += a[i * 8 + k] * b[k * 8 + j];
      if (out[i * 8 + j] != sum) return false;
    }
  return true;
}

}  // namespace
}  // namespace hg::cuda

int main(int argc, char** argv) {
  using namespace hg::cuda;
  const std::string name = argc > 1 ? argv[1] : "";
  bool right = true;
  try {
    for (const char* order : {"forward", "reverse", "shuffle:5"}) {
      hg::emulator::set_order(order);
      if (name == "sound")
        right = right && turns<kNone>() && copies<kNone>() && multiplies<kNone>();
      else if (name == "missing_barrier")
        right = right && turns<kMissingBarrier>();
      else if (name == "out_of_bounds")
        right = right && turns<kOutOfBounds>();
      else if (name == "divergent_barrier")
        right = right && turns<kDivergentBarrier>();
      else if (name == "ended_thread")
        right = right && turns<kEndedThread>();
      else if (name == "tail")
        right = right && turns<kTail>();
      else if (name == "mask")
        right = right && turns<kMask>();
      else if (name == "missing_wait")
        right = right && copies<kMissingWait>();
      else if (name == "fragment")
        right = right && multiplies<kFragment>();
      else
        return 2;
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  if (!right) std::printf("wrong\n");
  return right ? 0 : 1;
}

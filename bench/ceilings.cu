// The rates that bound every kernel on this GPU, measured: device memory (a large copy, bytes read plus bytes written),
// float32 multiply-adds, and tf32 products by mma.sync. Prints one line of JSON. Every rate is the best of ten runs.
//
//     nvcc -O3 -std=c++17 -arch=native bench/ceilings.cu -o ceilings && ./ceilings
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kThreads = 256, kBlocksPerProcessor = 8, kRuns = 10;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "ceilings: %s failed: %s (%s)\n", what, cudaGetErrorString(error), cudaGetErrorName(error));
  std::exit(1);
}

__global__ void __launch_bounds__(kThreads) copy(const float4* from, float4* to, long long n) {
  const long long step = static_cast<long long>(gridDim.x) * kThreads;
  for (long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) to[i] = from[i];
}

// 32 chains of multiply-adds per thread, none of which waits for another.
constexpr int kChains = 32;
__global__ void __launch_bounds__(kThreads) multiply_adds(float* out, int rounds, float factor, float addend) {
  float v[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) v[i] = static_cast<float>(threadIdx.x + i);
#pragma unroll 1
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int repeat = 0; repeat < 8; ++repeat)
#pragma unroll
      for (int i = 0; i < kChains; ++i) v[i] = fmaf(v[i], factor, addend);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum += v[i];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// 8 tiles of 16 x 8 outputs per warp; m16n8k8 is 2048 operations.
constexpr int kTiles = 8;
__global__ void __launch_bounds__(kThreads) tf32_products(float* out, int rounds, float seed) {
  float d[kTiles][4] = {};
#if __CUDA_ARCH__ >= 800
  unsigned a[4], b[kTiles][2];
  for (int i = 0; i < 4; ++i) a[i] = __float_as_uint(seed + static_cast<float>(threadIdx.x + i));
  for (int t = 0; t < kTiles; ++t)
    for (int i = 0; i < 2; ++i) b[t][i] = __float_as_uint(seed * static_cast<float>(t + i + 1));
#pragma unroll 1
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int repeat = 0; repeat < 4; ++repeat)
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[t][0]), "r"(b[t][1]));
#endif
  float sum = 0;
  for (int t = 0; t < kTiles; ++t) sum += d[t][0] + d[t][1] + d[t][2] + d[t][3];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Seconds of the fastest of some runs, after one to warm up.
template <class Run>
double fastest(const Run& run) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&stop), "cudaEventCreate");
  float best = 1e30F;
  for (int i = 0; i <= kRuns; ++i) {
    check(cudaEventRecord(start), "cudaEventRecord");
    run();
    check(cudaGetLastError(), "launch");
    check(cudaEventRecord(stop), "cudaEventRecord");
    check(cudaEventSynchronize(stop), "kernel");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
    if (i > 0) best = std::min(best, ms);
  }
  check(cudaEventDestroy(start), "cudaEventDestroy");
  check(cudaEventDestroy(stop), "cudaEventDestroy");
  return best * 1e-3;
}

}  // namespace

int main() {
  int device = 0, processors = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  const int blocks = processors * kBlocksPerProcessor;

  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  const long long quads = static_cast<long long>(std::min<std::size_t>(std::size_t(4) << 30, free / 4) / sizeof(float4));
  float4 *from = nullptr, *to = nullptr;
  check(cudaMalloc(&from, static_cast<std::size_t>(quads) * sizeof(float4)), "cudaMalloc");
  check(cudaMalloc(&to, static_cast<std::size_t>(quads) * sizeof(float4)), "cudaMalloc");
  check(cudaMemset(from, 0x3f, static_cast<std::size_t>(quads) * sizeof(float4)), "cudaMemset");
  const double by_kernel = fastest([&] { copy<<<blocks * 4, kThreads>>>(from, to, quads); });
  const double by_runtime = fastest([&] {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(quads) * sizeof(float4), cudaMemcpyDeviceToDevice), "cudaMemcpyAsync");
  });
  const double bytes = 2.0 * static_cast<double>(quads) * sizeof(float4);

  float* const out = reinterpret_cast<float*>(to);
  const int rounds = 4096;
  const double multiply = fastest([&] { multiply_adds<<<blocks, kThreads>>>(out, rounds, 0.999F, 0.001F); });
  const double operations = 2.0 * kChains * 8 * rounds * blocks * kThreads;
  const double product = fastest([&] { tf32_products<<<blocks, kThreads>>>(out, rounds, 0.5F); });
  const double in_products = 2048.0 * kTiles * 4 * rounds * blocks * (kThreads / 32);

  std::printf("{\"copy_bytes_per_second\": %.4g, \"ffma_flop_per_second\": %.4g, \"mma_tf32_flop_per_second\": ",
              bytes / std::min(by_kernel, by_runtime), operations / multiply);
  if (major >= 8)
    std::printf("%.4g", in_products / product);
  else
    std::printf("null");
  std::printf(", \"processors\": %d}\n", processors);
  return 0;
}

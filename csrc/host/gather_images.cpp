// gather_images: bytes of chosen images as numbers. A task owns some whole images.
#include "simd.h"

namespace hg {
namespace HG_SIMD {
namespace {

constexpr int64_t kTaskBytes = 1 << 17;

template <class T>
void gather(const Call& call) {
  const auto dim = [&](char axis) { return higher(0, call.dims[static_cast<int>(axis)]); };
  const int64_t M = dim('M'), N = dim('N'), count = dim('E') * N, size = dim('H') * dim('W') * dim('C');
  if (size == 0) return;
  const auto images = batch<const unsigned char>(call, 0, 1);
  const auto index = batch<const int64_t>(call, 1, 1);
  T* const x = batch<T>(call, 2, 1).data;
  const int64_t group = ceil_div(kTaskBytes, size);
  parallel_for(ceil_div(count, group), [&](int64_t task) {
    for (int64_t i = task * group; i < lower(count, (task + 1) * group); ++i) {
      const int64_t row = index.at(i / N)[i % N];
      T* const __restrict to = x + i * size;
      if (row < 0 || row >= M) {
        for (int64_t k = 0; k < size; ++k) to[k] = static_cast<T>(__builtin_nan(""));
        continue;
      }
      const unsigned char* const __restrict from = images.at(row);
      for (int64_t k = 0; k < size; ++k) to[k] = static_cast<T>(from[k]) / T(255);
    }
  });
}

void gather_images(const Call& call) { call.dtype == DType::f32 ? gather<float>(call) : gather<double>(call); }

HG_KERNEL(gather_images, gather_images);

}  // namespace
}  // namespace HG_SIMD
}  // namespace hg

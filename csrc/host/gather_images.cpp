// gather_images: bytes of chosen images as numbers. A task owns some whole images.
#include "../registry.h"

// Axes: M images staged, E episodes of N. The quotient byte / 255 is correctly rounded. An image whose index is not in
// 0 .. M-1 is NaN, and nothing is read for it.
HG_SIGNATURE(gather_images, "images:u8=M|HWC index:i64=E|N -> x=E|NHWC")

#ifdef HG_SIMD
#include "simd.h"

namespace hg::HG_SIMD {
namespace {

constexpr int64_t kTaskBytes = 1 << 17;

template <class T, class S>
void gather(const Call& call) {
  const int64_t M = HG_DIM(M), N = HG_DIM(N), count = HG_DIM(E) * N, size = HG_DIM(H) * HG_DIM(W) * HG_DIM(C);
  if (size == 0) return;
  HG_ARGS(images, index, x)
  const int64_t group = ceil_div(kTaskBytes, size);
  parallel_for(ceil_div(count, group), [&](int64_t task) {
    for (int64_t i = task * group; i < lower(count, (task + 1) * group); ++i) {
      const int64_t row = index.at(i / N)[i % N];
      T* const __restrict to = x.data + i * size;
      if (row < 0 || row >= M) {
        for (int64_t k = 0; k < size; ++k) to[k] = static_cast<T>(__builtin_nan(""));
        continue;
      }
      const unsigned char* const __restrict from = images.at(row);
      for (int64_t k = 0; k < size; ++k) to[k] = static_cast<T>(from[k]) / T(255);
    }
  });
}

HG_KERNEL(gather_images, gather)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

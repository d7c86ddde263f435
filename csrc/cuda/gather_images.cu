// gather_images: bytes of chosen images as numbers. A thread owns four neighbouring elements of one image, so that a
// warp reads 128 bytes and writes them at once.
#include <cmath>

#include "../host/gather_images.cpp"  // its signatures

#include "launch.h"

namespace hg::cuda {
namespace {

struct Gather {
  int64_t M, size;  // images staged, bytes of one
  bool wide;        // every image is aligned and holds whole quads
  Divisor by_parts, by_images;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather(const Gather g, Batch<const unsigned char> images, Batch<const int64_t> index, Batch<T> x) {
  int image = static_cast<int>(blockIdx.x);
  const int64_t k = 4 * (static_cast<int64_t>(g.by_parts.split(image)) * kThreads + threadIdx.x);
  if (k >= g.size) return;
  int e = image;
  const int n = g.by_images.split(e);
  const int64_t row = index.at(0, e)[n];
  const bool known = row >= 0 && row < g.M;
  const int rest = static_cast<int>(lower<int64_t>(4, g.size - k));
  Quad<T> out;
  HG_UNROLL
  for (int i = 0; i < 4; ++i) out.v[i] = static_cast<T>(NAN);
  if (known) {
    const Codes bytes = load_codes(images.at(0, row) + k, 0, rest, g.wide);
    HG_UNROLL
    for (int i = 0; i < 4; ++i) out.v[i] = static_cast<T>(bytes.v[i]) / T(255);
  }
  store_quad(x.data + image * g.size + k, 0, rest, g.wide, out);
}

template <class T, class S>
void run(const Call& call) {
  const int64_t N = HG_DIM(N), count = HG_DIM(E) * N;
  const int64_t size = HG_DIM(H) * HG_DIM(W) * HG_DIM(C), parts = ceil_div(size, 4 * kThreads);
  if (count == 0 || parts == 0) return;
  if (parts > INT32_MAX || count > INT32_MAX / parts)
    fail_shape(call, "there are %lld images of %lld bytes, expected fewer than 2**31 blocks of %d bytes; split the call",
               static_cast<long long>(count), static_cast<long long>(size), 4 * kThreads);
  HG_ARGS(images, index, x)
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const bool wide = size % 4 == 0 && images.stride_1 % 4 == 0 && address(images.data) % 4 == 0 && address(x.data) % 16 == 0;
  const Launch launch(call);
  launch("gather", gather<T>, count * parts, kThreads, 0, Gather{HG_DIM(M), size, wide, Divisor::of(parts), Divisor::of(N)}, images, index,
         x);
}

HG_KERNEL(gather_images, run)

}  // namespace
}  // namespace hg::cuda

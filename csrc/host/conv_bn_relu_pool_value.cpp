// conv_bn_relu_pool_value: z = conv(x, w) is written once, with its statistics; a second pass normalizes and pools.
// A task owns z, y and code of a few images of one episode.
#include "../registry.h"

// Axes: E episodes; N images, H x W pixels, C channels; K filters; h x w pooled pixels.
HG_SIGNATURE(conv_bn_relu_pool_value, "x=E|NHWC w=E|33CK gamma=E|K beta=E|K -> y=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK",
             "eps:float>=0 precision:0..2", "h=H/2 w=W/2")

#ifdef HG_SIMD
#include "moments.h"

namespace hg::HG_SIMD {
namespace {

template <class T, class S>
void value(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x, w, gamma, beta, y, mean, rstd, z, code)

  const FilterBank<T> filters = pack_bank(b, w, 1, false, kSlotWeights);
  double* const parts = scratch_of<double>(kSlotPartSums, b.E * b.chunks * 2 * b.Kp);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const Images<T> padded = padded_input(b, x.at(t.batch), t, kSlotX);
    T* const to = images_at(z.at(t.batch), t.first, b.H, b.W, b.K);
    conv_images(padded, filters.at(t.batch), int64_t(1), dense(to, t.n, b.H, b.W, b.K), false);
    double* const part = parts + index * 2 * b.Kp;
    statistics(to, t.n * b.H * b.W, b, part, part + b.Kp);
  });

  const T* const scalars = normalization(b, parts, HG_ATTRIBUTE(eps), gamma, beta, mean, rstd);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const T* const s = scalars + t.batch * 3 * b.Kp;
    for (int64_t i = t.first; i < t.first + t.n; ++i)
      for (int64_t p = 0; p < b.h; ++p) {
        const int64_t at = (i * b.h + p) * b.w * b.K;
        pool_row(z.at(t.batch) + (i * b.H + 2 * p) * b.W * b.K, b.W * b.K, b.K, b.w, b.K, s, s + b.Kp, s + 2 * b.Kp, y.at(t.batch) + at,
                 code.at(t.batch) + at);
      }
  });
}

HG_KERNEL(conv_bn_relu_pool_value, value)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

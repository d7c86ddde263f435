// conv_bn_relu_pool_vjp: B and G from pooled-size sums, then z_bar is formed per image in scratch and feeds both the
// gradient of x and that of w. A task owns x_bar of a few images of one episode and one partial sum of w_bar.
//   z_bar = gamma*s*(u_bar - B/M - xhat*G/M);  x_bar = dgrad(z_bar, w);  w_bar = wgrad(x, z_bar)
#include "../registry.h"

HG_SIGNATURE(conv_bn_relu_pool_vjp,
             "y_bar=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK x=E|NHWC w=E|33CK gamma=E|K"
             " -> x_bar?=E|NHWC w_bar?=E|33CK gamma_bar=E|K beta_bar=E|K",
             "precision:0..2", "h=H/2 w=W/2")

#ifdef HG_SIMD
#include "block.h"

namespace hg::HG_SIMD {
namespace {

template <class T, class S>
void vjp(const Call& call) {
  const Block b = block_of<T, S, ByWinograd::convolutions>(call);
  HG_ARGS(y_bar, mean, rstd, z, x, w, gamma, code, x_bar, w_bar, gamma_bar, beta_bar)

  T* const scalars = scratch_of<T>(kSlotScalars, b.E * 4 * b.Kp);  // mean, a, b, d
  for (int64_t e = 0; e < b.E; ++e) pad_channels(b, mean.at(e), scalars + e * 4 * b.Kp);
  double* const parts = scratch_of<double>(kSlotPartSums, b.E * b.chunks * 2 * b.Kp);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    double* const part = parts + index * 2 * b.Kp;
    __builtin_memset(part, 0, static_cast<std::size_t>(2 * b.Kp) * sizeof(double));
    for (int64_t i = t.first; i < t.first + t.n; ++i)
      for (int64_t p = 0; p < b.h; ++p) {
        const int64_t at = (i * b.h + p) * b.w * b.K;
        reduce_row(b, y_bar.at(t.batch) + at, code.at(t.batch) + at, z.at(t.batch) + (i * b.H + 2 * p) * b.W * b.K,
                   scalars + t.batch * 4 * b.Kp, part);
      }
  });

  double* const sums = scratch_of<double>(kSlotPartSums2, 2 * b.Kp);
  const double M = static_cast<double>(higher(1, b.pixels()));
  for (int64_t e = 0; e < b.E; ++e) {
    merge_sums(b, parts, e, 2, sums);
    for (int64_t k = 0; k < b.Kp; ++k) {
      T* const s = scalars + e * 4 * b.Kp + k;
      s[b.Kp] = s[2 * b.Kp] = s[3 * b.Kp] = T(0);
      if (k >= b.K) continue;
      const NormBar bar = norm_bar(static_cast<double>(gamma.at(e)[k]), static_cast<double>(rstd.at(e)[k]), sums[k], sums[b.Kp + k], M);
      beta_bar.at(e)[k] = static_cast<T>(sums[k]);
      gamma_bar.at(e)[k] = static_cast<T>(bar.G);
      s[b.Kp] = static_cast<T>(bar.scale);
      s[2 * b.Kp] = static_cast<T>(bar.by_z);
      s[3 * b.Kp] = static_cast<T>(bar.shift);
    }
  }

  const int64_t size = b.taps() * b.Kp;
  T* const w_parts = scratch_of<T>(kSlotParts, w_bar ? b.E * b.chunks * size + 1 : 1);
  if (!x_bar && !w_bar) return;
  for_banks<T>(b, x_bar ? banks_of(w, 1) : 0, true, [&](int64_t first, int64_t count) {
    const FilterBank<T> filters = x_bar ? pack_bank(b, w, 1, first, count, true, kSlotWeights) : FilterBank<T>{};
    for_tasks(b, 1, first, count, [&](int64_t index) {
      const BlockTask t = task_of(b, index);
      const T* const s = scalars + t.batch * 4 * b.Kp;
      const ZBar<T> constants{s, s + b.Kp, s + 2 * b.Kp, s + 3 * b.Kp};
      const Images<T> bordered = dense(scratch_of<T>(kSlotZ, t.n * (b.H + 2) * (b.W + 2) * b.Kp), t.n, b.H + 2, b.W + 2, b.Kp);
      const Images<T> z_bar = interior(bordered);
      clear_border(bordered);
      for (int64_t i = 0; i < t.n; ++i) {
        const int64_t at = (t.first + i) * b.h * b.w * b.K;
        form_z_bar(b, constants, y_bar.at(t.batch) + at, code.at(t.batch) + at, z.at(t.batch) + (t.first + i) * b.H * b.W * b.K, z_bar, i);
      }
      if (x_bar)
        convolve<T>(b, {Input<T>(bordered), filters.at(t.batch)}, nullptr, true,
                    dense(images_at(x_bar.at(t.batch), t.first, b.H, b.W, b.C), t.n, b.H, b.W, b.C));
      if (w_bar) convolve_filters<T>(b, {Input<T>(b, x.at(t.batch), t, kSlotX), Input<T>(bordered)}, nullptr, w_parts + index * size);
    });
  });
  if (!w_bar) return;
  parallel_for(b.E * 3, [&](int64_t index) {
    const int64_t e = index / 3, r = index % 3 * 3 * b.C;
    merge_parts(w_parts + e * b.chunks * size + r * b.Kp, b.chunks, size, b.Kp, 3 * b.C, b.K, w_bar.at(e) + r * b.K);
  });
}

HG_KERNEL(conv_bn_relu_pool_vjp, vjp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

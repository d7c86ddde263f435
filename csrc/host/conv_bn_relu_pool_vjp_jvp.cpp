// conv_bn_relu_pool_vjp_jvp: the tangent of the gradient. z_bar and, per direction, z_bar_dot are formed per image in
// scratch. A task owns x_bar_dot of a few images of one episode, for all directions, and their partial w_bar_dot.
//   q = u_bar - B/M - xhat*G/M;  s_dot = -s*s*c;  xhat_dot = s*(z_dot - mean(z_dot) - xhat*c)
//   B_dot = sum u_bar_dot;  G_dot = sum (u_bar_dot*xhat + u_bar*xhat_dot)
//   z_bar_dot = (gamma_dot*s + gamma*s_dot)*q + gamma*s*(u_bar_dot - B_dot/M - xhat_dot*G/M - xhat*G_dot/M)
//   w_bar_dot = wgrad(x_dot, z_bar) + wgrad(x, z_bar_dot);  x_bar_dot = dgrad(z_bar_dot, w) + dgrad(z_bar, w_dot)
#include "../registry.h"

HG_SIGNATURE(conv_bn_relu_pool_vjp_jvp,
             "y_bar=E|NhwK y_bar_dot?=PE|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK x=E|NHWC w=E|33CK gamma=E|K"
             " x_dot?=PE|NHWC w_dot?=PE|33CK gamma_dot?=PE|K z_dot=PE|NHWK z_dot_mean=PE|K c=PE|K"
             " -> x_bar_dot?=PE|NHWC w_bar_dot=PE|33CK gamma_bar_dot=PE|K beta_bar_dot=PE|K",
             "precision:0..2", "h=H/2 w=W/2")

#ifdef HG_SIMD
#include "block.h"

namespace hg::HG_SIMD {
namespace {

// Constants of z_bar (4 rows of Kp per episode) and of z_bar_dot (7 rows per direction and episode).
template <class T>
struct Constants {
  T *bar, *dot;
  int64_t Kp;
  ZBar<T> z_bar(int64_t e) const {
    const T* s = bar + e * 4 * Kp;
    return {s, s + Kp, s + 2 * Kp, s + 3 * Kp};
  }
  ZBarDot<T> z_bar_dot(int64_t pe) const {
    const T* s = dot + pe * 7 * Kp;
    return {s, s + Kp, s + 2 * Kp, s + 3 * Kp, s + 4 * Kp, s + 5 * Kp, s + 6 * Kp};
  }
};

template <class T, class S>
Constants<T> constants(const Call& call, const Block& b) {
  HG_ARGS(y_bar, y_bar_dot, code, mean, rstd, z, gamma, gamma_dot, z_dot, z_dot_mean, c, gamma_bar_dot, beta_bar_dot)
  const int64_t Kp = b.Kp, tasks = b.E * b.chunks;
  const Constants<T> out{scratch_of<T>(kSlotScalars, b.E * 4 * Kp), scratch_of<T>(kSlotScalars2, b.P * b.E * 7 * Kp), Kp};
  for (int64_t e = 0; e < b.E; ++e) pad_channels(b, mean.at(e), out.bar + e * 4 * Kp);
  for (int64_t pe = 0; pe < b.P * b.E; ++pe) pad_channels(b, z_dot_mean.at(pe / b.E, pe % b.E), out.dot + (pe * 7 + 1) * Kp);

  // Partial sums: 2 rows per (episode, chunk), then 3 per (direction, episode, chunk).
  double* const parts = scratch_of<double>(kSlotPartSums, tasks * (2 + 3 * b.P) * Kp);
  double* const parts_dot = parts + tasks * 2 * Kp;
  parallel_for(tasks * (1 + b.P), [&](int64_t index) {
    const int64_t p = index / tasks - 1, own = index % tasks, rows = p < 0 ? 2 : 3;
    const BlockTask t = task_of(b, own);
    const int64_t e = t.batch;
    double* const part = p < 0 ? parts + own * 2 * Kp : parts_dot + (p * tasks + own) * 3 * Kp;
    __builtin_memset(part, 0, static_cast<std::size_t>(rows * Kp) * sizeof(double));
    const T* const m = out.bar + e * 4 * Kp;
    for (int64_t i = t.first; i < t.first + t.n; ++i)
      for (int64_t r = 0; r < b.h; ++r) {
        const int64_t at = (i * b.h + r) * b.w * b.K, row = (i * b.H + 2 * r) * b.W * b.K;
        if (p < 0)
          reduce_row(b, y_bar.at(e) + at, code.at(e) + at, z.at(e) + row, m, part);
        else
          reduce_row_dot(b, y_bar.at(e) + at, y_bar_dot ? y_bar_dot.at(p, e) + at : nullptr, code.at(e) + at, z.at(e) + row, m,
                         z_dot.at(p, e) + row, out.dot + ((p * b.E + e) * 7 + 1) * Kp, part);
      }
  });

  double* const sums = scratch_of<double>(kSlotPartSums2, 5 * Kp);
  const double M = static_cast<double>(higher(1, b.pixels()));
  for (int64_t pe = 0; pe < higher(1, b.P) * b.E; ++pe) {
    const int64_t p = pe / b.E, e = pe % b.E;
    merge_sums(b, parts, e, 2, sums);
    if (b.P > 0) merge_sums(b, parts_dot, pe, 3, sums + 2 * Kp);
    for (int64_t k = 0; k < Kp; ++k) {
      T* const bar = out.bar + e * 4 * Kp + k;
      if (k >= b.K) {
        bar[Kp] = bar[2 * Kp] = bar[3 * Kp] = T(0);
        for (int i = 0; i < 7 && b.P > 0; ++i) out.dot[(pe * 7 + i) * Kp + k] = T(0);
        continue;
      }
      const double s = static_cast<double>(rstd.at(e)[k]), B = sums[k];
      const NormBar of = norm_bar(static_cast<double>(gamma.at(e)[k]), s, B, sums[Kp + k], M);
      bar[Kp] = static_cast<T>(of.scale);
      bar[2 * Kp] = static_cast<T>(of.by_z);
      bar[3 * Kp] = static_cast<T>(of.shift);
      if (b.P == 0) continue;
      const double c_ = static_cast<double>(c.at(p, e)[k]), B_dot = sums[2 * Kp + k];
      const double g_dot = gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) : 0.0;
      const NormBar of_dot = norm_bar_dot(of, g_dot * s, s, c_, B, B_dot, sums[3 * Kp + k] + sums[4 * Kp + k], M);
      T* const dot = out.dot + pe * 7 * Kp + k;
      dot[0] = bar[0];
      dot[2 * Kp] = static_cast<T>(of.scale);
      dot[3 * Kp] = static_cast<T>(of_dot.scale);
      dot[4 * Kp] = static_cast<T>(of_dot.by_z);
      dot[5 * Kp] = static_cast<T>(of.by_z);
      dot[6 * Kp] = static_cast<T>(of_dot.shift);
      gamma_bar_dot.at(p, e)[k] = static_cast<T>(of_dot.G);
      beta_bar_dot.at(p, e)[k] = static_cast<T>(B_dot);
    }
  }
  return out;
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Block b = block_of<T, S, ByWinograd::convolutions>(call);
  HG_ARGS(y_bar, y_bar_dot, code, z, x, w, x_dot, w_dot, z_dot, x_bar_dot, w_bar_dot)
  const Constants<T> s = constants<T, S>(call, b);
  const int64_t size = b.taps() * b.Kp;
  T* const parts = scratch_of<T>(kSlotParts, b.P * b.E * b.chunks * size + 1);
  for_banks<T>(b, x_bar_dot ? banks_of(w, 1) + banks_of(w_dot, b.P) : 0, true, [&](int64_t first, int64_t count) {
    const FilterBank<T> filters = x_bar_dot ? pack_bank(b, w, 1, first, count, true, kSlotWeights) : FilterBank<T>{};
    const FilterBank<T> filters_dot = x_bar_dot ? pack_bank(b, w_dot, b.P, first, count, true, kSlotWeights2) : FilterBank<T>{};
    for_tasks(b, 1, first, count, [&](int64_t index) {
      const BlockTask t = task_of(b, index);
      const int64_t e = t.batch, all = t.n * (b.H + 2) * (b.W + 2) * b.Kp;
      const Images<T> z_bar = dense(scratch_of<T>(kSlotZ, all), t.n, b.H + 2, b.W + 2, b.Kp);
      const Images<T> z_bar_dot = dense(scratch_of<T>(kSlotZDot, all), t.n, b.H + 2, b.W + 2, b.Kp);
      const Input<T> x_in(b, x.at(e), t, kSlotX);
      clear_border(z_bar);
      clear_border(z_bar_dot);
      const auto each_image = [&](const auto& form) {
        for (int64_t i = 0; i < t.n; ++i) form(i, (t.first + i) * b.h * b.w * b.K, (t.first + i) * b.H * b.W * b.K);
      };
      if (x_dot || filters_dot)
        each_image([&](int64_t i, int64_t at, int64_t image) {
          form_z_bar(b, s.z_bar(e), y_bar.at(e) + at, code.at(e) + at, z.at(e) + image, interior(z_bar), i);
        });
      for (int64_t p = 0; p < b.P; ++p) {
        const int64_t pe = p * b.E + e;
        each_image([&](int64_t i, int64_t at, int64_t image) {
          form_z_bar_dot(b, s.z_bar_dot(pe), y_bar.at(e) + at, y_bar_dot ? y_bar_dot.at(p, e) + at : nullptr, code.at(e) + at,
                         z.at(e) + image, z_dot.at(p, e) + image, interior(z_bar_dot), i);
        });
        if (x_bar_dot) {
          const Images<T> out = dense(images_at(x_bar_dot.at(p, e), t.first, b.H, b.W, b.C), t.n, b.H, b.W, b.C);
          const Term<T> by_w_dot{Input<T>(z_bar), filters_dot ? filters_dot.at(p, e) : nullptr};
          convolve(b, {Input<T>(z_bar_dot), filters.at(e)}, filters_dot ? &by_w_dot : nullptr, true, out);
        }
        T* const part = parts + (pe * b.chunks + index % b.chunks) * size;
        const Pair<T> by_z_bar_dot{x_in, Input<T>(z_bar_dot)};
        if (x_dot) {
          const Pair<T> by_x_dot{Input<T>(b, x_dot.at(p, e), t, kSlotXDot), Input<T>(z_bar)};
          convolve_filters(b, by_z_bar_dot, &by_x_dot, part);
        } else {
          convolve_filters<T>(b, by_z_bar_dot, nullptr, part);
        }
      }
    });
  });
  parallel_for(b.P * b.E * 3, [&](int64_t index) {
    const int64_t pe = index / 3, r = index % 3 * 3 * b.C;
    merge_parts(parts + pe * b.chunks * size + r * b.Kp, b.chunks, size, b.Kp, 3 * b.C, b.K, w_bar_dot.at(pe / b.E, pe % b.E) + r * b.K);
  });
}

HG_KERNEL(conv_bn_relu_pool_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

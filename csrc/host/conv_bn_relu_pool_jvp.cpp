// conv_bn_relu_pool_jvp: z_dot = conv(x_dot, w) + conv(x, w_dot) with mean(z_dot) and c = mean(xhat*z_dot), then y_dot
// at the stored winners. A task owns z_dot and y_dot of a few images of one direction and episode.
//   xhat_dot = s*(z_dot - mean(z_dot) - xhat*c);  y_dot = gamma_dot*xhat + gamma*xhat_dot + beta_dot, where active
#include "../registry.h"

HG_SIGNATURE(conv_bn_relu_pool_jvp,
             "x=E|NHWC w=E|33CK gamma=E|K code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK"
             " x_dot?=PE|NHWC w_dot?=PE|33CK gamma_dot?=PE|K beta_dot?=PE|K -> y_dot=PE|NhwK z_dot=PE|NHWK z_dot_mean=PE|K c=PE|K",
             "precision:0..2", "h=H/2 w=W/2")

#ifdef HG_SIMD
#include "moments.h"

namespace hg::HG_SIMD {
namespace {

template <class T>
void y_dot_row(const Block& b, const unsigned char* code, const T* z, const T* z_dot, const T* s, T* y_dot) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    const int64_t n = b.Kp;
    const Vec<T> m = load(s + k), m_dot = load(s + n + k), by_z = load(s + 2 * n + k), by_z_dot = load(s + 3 * n + k),
                 shift = load(s + 4 * n + k);
    for (int64_t q = 0; q < b.w; ++q) {
      const Mask<T> c = load_code<T, F>(code + q * b.K + k, lanes);
      const Window<T, F> v(z, b.W * b.K, b.K, q, k, lanes), v_dot(z_dot, b.W * b.K, b.K, q, k, lanes);
      const Vec<T> u_dot = (v.at(c) - m) * by_z + (v_dot.at(c) - m_dot) * by_z_dot + shift;
      store<T, F>(y_dot + q * b.K + k, if_active<T>(c, u_dot), lanes);
    }
  });
}

template <class T, class S>
void jvp(const Call& call) {
  const Block b = block_of<T, S, ByWinograd::convolutions>(call);
  HG_ARGS(x, w, gamma, mean, rstd, z, code, x_dot, w_dot, gamma_dot, beta_dot, y_dot, z_dot, z_dot_mean)
  const auto c_out = HG_ARG(c);

  T* const means = scratch_of<T>(kSlotScalars, b.E * b.Kp);
  for (int64_t e = 0; e < b.E; ++e) pad_channels(b, mean.at(e), means + e * b.Kp);
  double* const parts = scratch_of<double>(kSlotPartSums, b.P * b.E * b.chunks * 3 * b.Kp);
  for_banks<T>(b, (x_dot ? banks_of(w, 1) : 0) + banks_of(w_dot, b.P), false, [&](int64_t first, int64_t count) {
    const FilterBank<T> filters = x_dot ? pack_bank(b, w, 1, first, count, false, kSlotWeights) : FilterBank<T>{};
    const FilterBank<T> filters_dot = pack_bank(b, w_dot, b.P, first, count, false, kSlotWeights2);
    for_tasks(b, b.P, first, count, [&](int64_t index) {
      const BlockTask t = task_of(b, index);
      const int64_t p = t.batch / b.E, e = t.batch % b.E;
      T* const to = images_at(z_dot.at(p, e), t.first, b.H, b.W, b.K);
      const Images<T> out = dense(to, t.n, b.H, b.W, b.K);
      const auto by_x_dot = [&] { return Term<T>{Input<T>(b, x_dot.at(p, e), t, kSlotXDot), filters.at(e)}; };
      const auto by_w_dot = [&] { return Term<T>{Input<T>(b, x.at(e), t, kSlotX), filters_dot.at(p, e)}; };
      if (x_dot && w_dot) {
        const Term<T> second = by_w_dot();
        convolve(b, by_x_dot(), &second, false, out);
      } else if (x_dot || w_dot) {
        convolve<T>(b, x_dot ? by_x_dot() : by_w_dot(), nullptr, false, out);
      } else {
        __builtin_memset(to, 0, static_cast<std::size_t>(t.n * out.image) * sizeof(T));
      }
      moments(b, images_at(z.at(e), t.first, b.H, b.W, b.K), to, t.n * b.H * b.W, means + e * b.Kp, parts + index * 3 * b.Kp);
    });
  });

  T* const scalars = scratch_of<T>(kSlotScalars2, b.P * b.E * 5 * b.Kp);
  for (int64_t pe = 0; pe < b.P * b.E; ++pe) {
    const int64_t p = pe / b.E, e = pe % b.E;
    for (int64_t k = 0; k < b.Kp; ++k) {
      T* const s = scalars + pe * 5 * b.Kp + k;
      for (int i = 0; i < 5; ++i) s[i * b.Kp] = T(0);
      if (k >= b.K) continue;
      const Moments of = merge_moments(b, parts, pe, k);
      const double r = static_cast<double>(rstd.at(e)[k]), c = r * of.product;
      const NormDot dot = norm_dot(static_cast<double>(gamma.at(e)[k]), gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) : 0.0, r, c);
      z_dot_mean.at(p, e)[k] = s[b.Kp] = static_cast<T>(of.mean);
      c_out.at(p, e)[k] = static_cast<T>(c);
      s[0] = mean.at(e)[k];
      s[2 * b.Kp] = static_cast<T>(dot.by_z);
      s[3 * b.Kp] = static_cast<T>(dot.by_z_dot);
      s[4 * b.Kp] = beta_dot ? beta_dot.at(p, e)[k] : T(0);
    }
  }

  parallel_for(b.P * b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t p = t.batch / b.E, e = t.batch % b.E;
    for (int64_t i = t.first; i < t.first + t.n; ++i)
      for (int64_t r = 0; r < b.h; ++r) {
        const int64_t at = (i * b.h + r) * b.w * b.K, row = (i * b.H + 2 * r) * b.W * b.K;
        y_dot_row(b, code.at(e) + at, z.at(e) + row, z_dot.at(p, e) + row, scalars + t.batch * 5 * b.Kp, y_dot.at(p, e) + at);
      }
  });
}

HG_KERNEL(conv_bn_relu_pool_jvp, jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

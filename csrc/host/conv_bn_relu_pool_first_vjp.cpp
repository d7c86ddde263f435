// conv_bn_relu_pool_first_vjp and _first_vjp_jvp: sums over the winners only, closed with Cov.
//   G_dot = s*(w.U_dot + w_dot.U - c*G);  c = s*w_dot'Cov w;  s_dot = -s*s*c
//   w_bar_dot = (gamma_dot*s + gamma*s_dot)*(U - G*s*Cov w)
//               + gamma*s*(U_dot - G_dot*s*Cov w - G*(s_dot*Cov w + s*Cov w_dot))
// A task owns the partial sums of a few images.
#include "../registry.h"

HG_SIGNATURE(conv_bn_relu_pool_first_vjp,
             "y_bar=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K patch_mean=E|g patch_cov=E|gg x=E|NHWC w=E|33CK gamma=E|K"
             " -> w_bar=E|33CK gamma_bar=E|K beta_bar=E|K",
             "", "h=H/2 w=W/2 g=9*C")
HG_SIGNATURE(conv_bn_relu_pool_first_vjp_jvp,
             "y_bar=E|NhwK y_bar_dot?=PE|NhwK code:u8=E|NhwK mean=E|K rstd=E|K patch_mean=E|g patch_cov=E|gg"
             " x=E|NHWC w=E|33CK gamma=E|K w_dot?=PE|33CK gamma_dot?=PE|K -> w_bar_dot=PE|33CK gamma_bar_dot=PE|K beta_bar_dot=PE|K",
             "", "h=H/2 w=W/2 g=9*C")

#ifdef HG_SIMD
#include "first.h"

namespace hg::HG_SIMD {

// u_bar of one image over its windows, 0 at the losers: (2h, 2w) pixels of Kp; adds the sums to B.
template <class T>
static void scatter_image(const Block& b, const T* y_bar, const unsigned char* code, T* out, double* B) {
  const int64_t pitch = 2 * b.w * b.Kp;
  for (int64_t p = 0; p < b.h; ++p)
    for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> sum{};
      for (int64_t q = 0; q < b.w; ++q) {
        const int64_t at = (p * b.w + q) * b.K + k;
        const Mask<T> c = load_code<T, F>(code + at, lanes), winner = c & 3;
        const Vec<T> u_bar = if_active<T>(c, load<T, F>(y_bar + at, lanes)), zero{};
        T* to = out + 2 * p * pitch + 2 * q * b.Kp + k;
        store(to, winner == 0 ? u_bar : zero);
        store(to + b.Kp, winner == 1 ? u_bar : zero);
        store(to + pitch, winner == 2 ? u_bar : zero);
        store(to + pitch + b.Kp, winner == 3 ? u_bar : zero);
        sum += u_bar;
      }
      add_lanes<T>(B + k, sum);
    });
}

#if HG_VECTOR_BYTES == 64
// part (taps, Kp) += sum u_bar*patch over one image with a border, B += sum u_bar.
template <int64_t C>
static void add_winners(const Block& b, const float* bordered, int64_t pitch, const float* y_bar, const unsigned char* code, float* part,
                        double* B) {
  float* const pixels = scratch_of<float>(kSlotBand, 16 * C * b.w);
  for (int64_t p = 0; p < b.h; ++p) {
    window_pixels<C>(bordered + 2 * p * pitch, pitch, b.w, pixels);
    for_channels<float>(b.K, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<float> sum{}, product[9 * C] = {};
      for (int64_t q = 0; q < b.w; ++q) {
        const int64_t at = (p * b.w + q) * b.K + k;
        const Mask<float> c = load_code<float, F>(code + at, lanes);
        const Vec<float> u_bar = if_active<float>(c, load<float, F>(y_bar + at, lanes));
        sum += u_bar;
        for_taps(c, [&](int tap, const Mask<float>& index) {
          for (int i = 0; i < C; ++i) product[tap * C + i] += permuted(load(pixels + (q * C + i) * 16), index) * u_bar;
        });
      }
      for (int i = 0; i < 9 * C; ++i) store(part + i * b.Kp + k, load(part + i * b.Kp + k) + product[i]);
      add_lanes<float>(B + k, sum);
    });
  }
}
#endif

// U and B of the cotangents y_bar of `directions` times E entries; entry i belongs to episode i % E.
// x is shifted by the mean of its pixels before the products: the exact shift by m follows, in double.
template <class T>
static Gathered gather(const Block& b, const Batch<const T>& y_bar, const Batch<const unsigned char>& code, const Batch<const T>& x,
                       const Batch<const T>& patch_mean, int64_t directions, int slot) {
  const int64_t entries = directions * b.E, tasks = entries * b.chunks, size = b.taps() * b.Kp;
  double* const out = scratch_of<double>(slot, entries * (b.taps() + 1) * b.K + 1);
  const Gathered sums{out, out + entries * b.taps() * b.K, b.taps() * b.K, b.K};
  T* const parts = scratch_of<T>(kSlotParts, tasks * size + 1);
  double* const parts_B = scratch_of<double>(kSlotPartSums, tasks * b.Kp + 1);
  parallel_for(tasks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t p = t.batch / b.E, e = t.batch % b.E;
    const Images<T> padded = padded_input(b, x.at(e), t, kSlotX, patch_mean.at(e) + 4 * b.C);
    double* const B = parts_B + index * b.Kp;
    __builtin_memset(B, 0, static_cast<std::size_t>(b.Kp) * sizeof(double));
    T* const part = parts + index * size;
    const int64_t own = t.first * b.h * b.w * b.K;
    if constexpr (std::is_same_v<T, float>) {
#if HG_VECTOR_BYTES == 64
      if (b.C == 1 || b.C == 3) {
        __builtin_memset(part, 0, static_cast<std::size_t>(size) * sizeof(T));
        for (int64_t i = 0; i < t.n; ++i) {
          const int64_t at = own + i * b.h * b.w * b.K;
          const auto add = b.C == 1 ? add_winners<1> : add_winners<3>;
          add(b, padded.data + i * padded.image, padded.pitch, y_bar.at(p, e) + at, code.at(e) + at, part, B);
        }
        return;
      }
#else
      if (b.winograd) return winograd_wgrad_winners(as_const(padded), y_bar.at(p, e) + own, code.at(e) + own, b.K, part, B);
#endif
    }
    __builtin_memset(part, 0, static_cast<std::size_t>(size) * sizeof(T));
    const Images<T> u_bar = dense(scratch_of<T>(kSlotZ, t.n * 4 * b.h * b.w * b.Kp + 1), t.n, 2 * b.h, 2 * b.w, b.Kp);
    for (int64_t i = 0; i < t.n; ++i) {
      const int64_t at = own + i * b.h * b.w * b.K;
      scatter_image(b, y_bar.at(p, e) + at, code.at(e) + at, u_bar.data + i * u_bar.image, B);
    }
    wgrad_images(as_const(padded), as_const(u_bar), int64_t(3), 3 * b.C, int64_t(1), part);
  });
  parallel_for(entries, [&](int64_t entry) {
    const T* const m = patch_mean.at(entry % b.E);
    double* const B = sums.beta(entry);
    for (int64_t k = 0; k < b.K; ++k) {
      B[k] = 0;
      for (int64_t chunk = 0; chunk < b.chunks; ++chunk) B[k] += parts_B[(entry * b.chunks + chunk) * b.Kp + k];
    }
    merge_parts(parts + entry * b.chunks * size, b.chunks, size, b.Kp, b.taps(), b.K, sums.u(entry));
    for (int64_t j = 0; j < b.taps(); ++j) {
      const double shift = static_cast<double>(m[j]) - static_cast<double>(m[4 * b.C + j % b.C]);
      for (int64_t k = 0; k < b.K; ++k) sums.u(entry)[j * b.K + k] -= B[k] * shift;
    }
  });
  return sums;
}

namespace {

template <class T, class S>
void vjp(const Call& call) {
  const Block b = block_of<T, S, ByWinograd::first_sums>(call);
  HG_ARGS(y_bar, rstd, patch_mean, patch_cov, x, w, gamma, code, w_bar, gamma_bar, beta_bar)
  const Gathered sums = gather(b, y_bar, code, x, patch_mean, 1, kSlotPartSums2);
  parallel_for(b.E, [&](int64_t e) {
    double* const cov_w = scratch_of<double>(kSlotSums, b.taps() * b.K + b.K + 1);
    double* const w_u = cov_w + b.taps() * b.K;
    const double* const U = sums.u(e);
    cov_times(b, patch_cov.at(e), w.at(e), cov_w);
    channel_dot(b, w.at(e), U, w_u);
    for (int64_t k = 0; k < b.K; ++k) {
      const double s = static_cast<double>(rstd.at(e)[k]);
      const FirstBar bar = first_bar(static_cast<double>(gamma.at(e)[k]), 0, s, w_u[k], 0, 0);
      gamma_bar.at(e)[k] = static_cast<T>(bar.G);
      beta_bar.at(e)[k] = static_cast<T>(sums.beta(e)[k]);
      for (int64_t j = k; j < b.taps() * b.K; j += b.K) w_bar.at(e)[j] = static_cast<T>(bar.scale * (U[j] - bar.G * s * cov_w[j]));
    }
  });
}

template <class T, class S>
void vjp_jvp(const Call& call) {
  const Block b = block_of<T, S, ByWinograd::first_sums>(call);
  HG_ARGS(y_bar, y_bar_dot, rstd, patch_mean, patch_cov, x, w, gamma, code, w_dot, gamma_dot, w_bar_dot, gamma_bar_dot, beta_bar_dot)
  const Gathered sums = gather(b, y_bar, code, x, patch_mean, 1, kSlotPartSums2);
  const Gathered sums_dot = y_bar_dot ? gather(b, y_bar_dot, code, x, patch_mean, b.P, kSlotParts2) : Gathered{nullptr, nullptr, 0, 0};
  parallel_for(b.P * b.E, [&](int64_t pe) {
    const int64_t p = pe / b.E, e = pe % b.E, size = b.taps() * b.K;
    double* const cov_w = scratch_of<double>(kSlotSums, 2 * size + 4 * b.K + 1);
    double *const cov_w_dot = cov_w + size, *const w_u = cov_w_dot + size, *const w_u_dot = w_u + b.K, *const w_dot_u = w_u_dot + b.K,
                  *const product = w_dot_u + b.K;
    const double* const U = sums.u(e);
    const double* const U_dot = y_bar_dot ? sums_dot.u(pe) : nullptr;
    cov_times(b, patch_cov.at(e), w.at(e), cov_w);
    channel_dot(b, w.at(e), U, w_u);
    for (int64_t k = 0; k < b.K; ++k) w_u_dot[k] = w_dot_u[k] = product[k] = 0;
    if (U_dot != nullptr) channel_dot(b, w.at(e), U_dot, w_u_dot);
    if (w_dot) {
      cov_times(b, patch_cov.at(e), w_dot.at(p, e), cov_w_dot);
      channel_dot(b, w_dot.at(p, e), U, w_dot_u);
      channel_dot(b, w_dot.at(p, e), cov_w, product);
    }
    for (int64_t k = 0; k < b.K; ++k) {
      const double s = static_cast<double>(rstd.at(e)[k]), gain_dot = gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) * s : 0.0;
      const FirstBar bar = first_bar(static_cast<double>(gamma.at(e)[k]), gain_dot, s, w_u[k], w_u_dot[k] + w_dot_u[k], product[k]);
      gamma_bar_dot.at(p, e)[k] = static_cast<T>(bar.G_dot);
      beta_bar_dot.at(p, e)[k] = static_cast<T>(U_dot != nullptr ? sums_dot.beta(pe)[k] : 0.0);
      for (int64_t j = k; j < size; j += b.K) {
        const double u_dot = U_dot != nullptr ? U_dot[j] : 0.0, cov_dot = w_dot ? cov_w_dot[j] : 0.0;
        w_bar_dot.at(p, e)[j] =
            static_cast<T>(bar.scale_dot * (U[j] - bar.G * s * cov_w[j]) +
                           bar.scale * (u_dot - bar.G_dot * s * cov_w[j] - bar.G * (bar.s_dot * cov_w[j] + s * cov_dot)));
      }
    }
  });
}

HG_KERNEL(conv_bn_relu_pool_first_vjp, vjp)
HG_KERNEL(conv_bn_relu_pool_first_vjp_jvp, vjp_jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

// conv_bn_relu_pool_first_value and _first_jvp: convolution, normalization, ReLU and maximum in one pass over two rows
// at a time; z stays in scratch. A task owns the pooled rows of a few images.
#include "../registry.h"

HG_SIGNATURE(conv_bn_relu_pool_first_value,
             "x=E|NHWC w=E|33CK gamma=E|K beta=E|K patch_mean=E|g patch_cov=E|gg -> y=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K",
             "eps:float>=0", "h=H/2 w=W/2 g=9*C")
HG_SIGNATURE(conv_bn_relu_pool_first_jvp,
             "x=E|NHWC w=E|33CK gamma=E|K code:u8=E|NhwK mean=E|K rstd=E|K patch_mean=E|g patch_cov=E|gg"
             " w_dot?=PE|33CK gamma_dot?=PE|K beta_dot?=PE|K -> y_dot=PE|NhwK",
             "", "h=H/2 w=W/2 g=9*C")

#ifdef HG_SIMD
#include "first.h"

namespace hg::HG_SIMD {
namespace {

// The two rows of z that pooled row p of image i needs, in a band of 2*w pixels of Kp.
template <class T>
HG_INLINE void band_of(const Block& b, const Images<T>& padded, int64_t i, int64_t p, const Packed<T>& filter, T* band) {
  const Images<T> rows{padded.data + i * padded.image + 2 * p * padded.pitch, 1, 4, padded.cols, padded.step, padded.pitch, padded.image};
  conv_images(rows, filter, int64_t(1), dense(band, 1, 2, 2 * b.w, b.Kp), false);
}

template <class T, class S>
void value(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x, w, gamma, beta, patch_mean, patch_cov, y, mean, rstd, code)
  const double eps = HG_ATTRIBUTE(eps);

  T* const scalars = scratch_of<T>(kSlotScalars, b.E * 3 * b.Kp);  // mean, scale, shift
  parallel_for(b.E, [&](int64_t e) {
    double* const cov_w = scratch_of<double>(kSlotSums, b.taps() * b.K + b.K + 1);
    double* const variance = cov_w + b.taps() * b.K;
    cov_times(b, patch_cov.at(e), w.at(e), cov_w);
    channel_dot(b, w.at(e), cov_w, variance);
    for (int64_t k = 0; k < b.Kp; ++k) {
      T* const s = scalars + e * 3 * b.Kp + k;
      s[0] = s[b.Kp] = s[2 * b.Kp] = T(0);
      if (k >= b.K) continue;
      double m = 0;
      for (int64_t j = 0; j < b.taps(); ++j) m += static_cast<double>(patch_mean.at(e)[j]) * static_cast<double>(w.at(e)[j * b.K + k]);
      const T r = static_cast<T>(inverse_root((variance[k] < 0 ? 0.0 : variance[k]) + eps));  // a NaN stays
      mean.at(e)[k] = s[0] = static_cast<T>(m);
      rstd.at(e)[k] = r;
      s[b.Kp] = gamma.at(e)[k] * r;
      s[2 * b.Kp] = beta.at(e)[k];
    }
  });
  const FilterBank<T> filters = pack_bank(b, w, 1, false, kSlotWeights);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const Images<T> padded = padded_input(b, x.at(t.batch), t, kSlotX);
    T* const band = scratch_of<T>(kSlotBand, 4 * b.w * b.Kp + 1);
    const T* const s = scalars + t.batch * 3 * b.Kp;
    for (int64_t i = 0; i < t.n; ++i)
      for (int64_t p = 0; p < b.h; ++p) {
        const int64_t at = ((t.first + i) * b.h + p) * b.w * b.K;
        band_of(b, padded, i, p, filters.at(t.batch), band);
        pool_row(band, 2 * b.w * b.Kp, b.Kp, b.w, b.K, s, s + b.Kp, s + 2 * b.Kp, y.at(t.batch) + at, code.at(t.batch) + at);
      }
  });
}

// y_dot = by_z*(z - mean) + by_z_dot*(z_dot - mean(z_dot)) + shift at the winners; z_dot may be null.
template <class T>
void y_dot_row(const Block& b, const unsigned char* code, const T* z, const T* z_dot, const T* s, T* y_dot) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    const int64_t n = b.Kp, pitch = 2 * b.w * b.Kp;
    const Vec<T> m = load(s + k), m_dot = load(s + n + k), by_z = load(s + 2 * n + k), by_z_dot = load(s + 3 * n + k);
    const Vec<T> shift = load(s + 4 * n + k);
    for (int64_t q = 0; q < b.w; ++q) {
      const Mask<T> c = load_code<T, F>(code + q * b.K + k, lanes);
      const Window<T, F> v(z, pitch, b.Kp, q, k, lanes);
      Vec<T> u_dot = (v.at(c) - m) * by_z + shift;
      if (z_dot != nullptr) {
        const Window<T, F> v_dot(z_dot, pitch, b.Kp, q, k, lanes);
        u_dot += (v_dot.at(c) - m_dot) * by_z_dot;
      }
      store<T, F>(y_dot + q * b.K + k, if_active<T>(c, u_dot), lanes);
    }
  });
}

template <class T, class S>
void jvp(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x, w, gamma, mean, rstd, patch_mean, patch_cov, code, w_dot, gamma_dot, beta_dot, y_dot)

  T* const scalars = scratch_of<T>(kSlotScalars, b.P * b.E * 5 * b.Kp);  // mean, mean(z_dot), by_z, by_z_dot, shift
  parallel_for(b.P * b.E, [&](int64_t pe) {
    const int64_t p = pe / b.E, e = pe % b.E, size = b.taps() * b.K;
    double* const cov_w = scratch_of<double>(kSlotSums, size + b.K + 1);
    double* const product = cov_w + size;  // w_dot'Cov w, which is c/s
    for (int64_t k = 0; k < b.K; ++k) product[k] = 0;
    if (w_dot) {
      cov_times(b, patch_cov.at(e), w.at(e), cov_w);
      channel_dot(b, w_dot.at(p, e), cov_w, product);
    }
    for (int64_t k = 0; k < b.Kp; ++k) {
      T* const s = scalars + pe * 5 * b.Kp + k;
      for (int i = 0; i < 5; ++i) s[i * b.Kp] = T(0);
      if (k >= b.K) continue;
      double m_dot = 0;
      for (int64_t j = 0; j < b.taps() && w_dot; ++j)
        m_dot += static_cast<double>(patch_mean.at(e)[j]) * static_cast<double>(w_dot.at(p, e)[j * b.K + k]);
      const double r = static_cast<double>(rstd.at(e)[k]), g = static_cast<double>(gamma.at(e)[k]);
      const double g_dot = gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) : 0.0;
      s[0] = mean.at(e)[k];
      s[b.Kp] = static_cast<T>(m_dot);
      s[2 * b.Kp] = static_cast<T>(g_dot * r - g * r * r * r * product[k]);
      s[3 * b.Kp] = static_cast<T>(g * r);
      s[4 * b.Kp] = beta_dot ? beta_dot.at(p, e)[k] : T(0);
    }
  });
  const FilterBank<T> filters = pack_bank(b, w, 1, false, kSlotWeights);
  const FilterBank<T> filters_dot = pack_bank(b, w_dot, b.P, false, kSlotWeights2);
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t e = t.batch;
    const Images<T> padded = padded_input(b, x.at(e), t, kSlotX);
    T* const band = scratch_of<T>(kSlotBand, 4 * b.w * b.Kp + 1);
    T* const band_dot = scratch_of<T>(kSlotBandDot, 4 * b.w * b.Kp + 1);
    for (int64_t i = 0; i < t.n; ++i)
      for (int64_t r = 0; r < b.h; ++r) {
        const int64_t at = ((t.first + i) * b.h + r) * b.w * b.K;
        band_of(b, padded, i, r, filters.at(e), band);
        for (int64_t p = 0; p < b.P; ++p) {
          if (w_dot) band_of(b, padded, i, r, filters_dot.at(p, e), band_dot);
          y_dot_row(b, code.at(e) + at, band, w_dot ? band_dot : nullptr, scalars + (p * b.E + e) * 5 * b.Kp, y_dot.at(p, e) + at);
        }
      }
  });
}

HG_KERNEL(conv_bn_relu_pool_first_value, value)
HG_KERNEL(conv_bn_relu_pool_first_jvp, jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

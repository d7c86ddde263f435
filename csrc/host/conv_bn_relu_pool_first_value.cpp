// conv_bn_relu_pool_first_value and _first_jvp. The value has gamma*rstd in its filters: u comes out of the convolution, and is
// pooled in registers. The tangent needs z and z_dot, two rows at a time in scratch. A task owns the pooled rows of a few images.
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

// Filters of each entry, with what is added to their convolution: rows of Kp, as many as taps and one.
template <class T>
struct Folded {
  T* data;
  int64_t size;
  T* at(int64_t entry) const { return data + entry * size; }
};
template <class T>
Folded<T> folded(const Block& b, int64_t entries) {
  const int64_t size = (b.taps() + 1) * b.Kp;
  T* const data = scratch_of<T>(kSlotWeights, entries * size + 1);
  for (int64_t i = 0; i < entries * size; ++i) data[i] = T(0);  // the channels beyond K
  return {data, size};
}

// The four pixels of kWindows windows from q on, one vector of channels: finish(window, pixels). `top` is the first of four rows of
// the padded image.
template <int kWindows, class T, class Channels, class Finish>
HG_INLINE void windows(const Block& b, Channels C, const T* top, int64_t pitch, const T* filters, int64_t q, const Finish& finish) {
  Vec<T> u[2][2 * kWindows];
  for (int p = 0; p < 2 * kWindows; ++p) u[0][p] = u[1][p] = load(filters + b.taps() * b.Kp);
  const int64_t run = 3 * C;
  for (int dy = 0; dy < 3; ++dy) {
    const T *first = top + dy * pitch + 2 * q * C, *second = first + pitch;
    HG_UNROLL(1)  // unrolled, the pixels that windows share would be kept in registers that are not there
    for (int64_t j = 0; j < run; ++j, filters += b.Kp) {
      const Vec<T> weight = load(filters);
      for (int p = 0; p < 2 * kWindows; ++p) {
        u[0][p] += weight * first[p * C + j];
        u[1][p] += weight * second[p * C + j];
      }
    }
  }
  for (int i = 0; i < kWindows; ++i) {
    const Vec<T> pixels[4] = {u[0][2 * i], u[0][2 * i + 1], u[1][2 * i], u[1][2 * i + 1]};
    finish(q + i, pixels);
  }
}

// finish(place, pixels, lanes, full) for all windows of a task: `place` counts elements of the pooled images.
template <class T, class Finish>
HG_INLINE void for_windows(const Block& b, const Images<T>& padded, const BlockTask& t, const T* filters, const Finish& finish) {
  const auto images = [&](auto C) {
    for (int64_t i = 0; i < t.n; ++i)
      for (int64_t p = 0; p < b.h; ++p) {
        const T* const top = padded.data + i * padded.image + 2 * p * padded.pitch;
        const int64_t row = ((t.first + i) * b.h + p) * b.w * b.K;
        for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
          const auto at = [&](int64_t q, const Vec<T>* pixels) { finish(row + q * b.K + k, pixels, lanes, full); };
          int64_t q = 0;
          for (; q + 2 <= b.w; q += 2) windows<2>(b, C, top, padded.pitch, filters + k, q, at);
          if (q < b.w) windows<1>(b, C, top, padded.pitch, filters + k, q, at);
        });
      }
  };
  b.C == 1 ? images(std::integral_constant<int64_t, 1>{}) : b.C == 3 ? images(std::integral_constant<int64_t, 3>{}) : images(b.C);
}

template <class T, class S>
void value(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x, w, gamma, beta, patch_mean, patch_cov, y, mean, rstd, code)
  const double eps = HG_ATTRIBUTE(eps);

  const Folded<T> filters = folded<T>(b, b.E);  // u = x * (gamma*rstd*w) + beta - gamma*rstd*mean
  parallel_for(b.E, [&](int64_t e) {
    double* const cov_w = scratch_of<double>(kSlotSums, b.taps() * b.K + b.K + 1);
    double* const variance = cov_w + b.taps() * b.K;
    cov_times(b, patch_cov.at(e), w.at(e), cov_w);
    channel_dot(b, w.at(e), cov_w, variance);
    for (int64_t k = 0; k < b.K; ++k) {
      T* const to = filters.at(e) + k;
      const T* const own = w.at(e) + k;
      double m = 0;
      for (int64_t j = 0; j < b.taps(); ++j) m += static_cast<double>(patch_mean.at(e)[j]) * static_cast<double>(own[j * b.K]);
      const double r = inverse_root((variance[k] < 0 ? 0.0 : variance[k]) + eps);  // a NaN stays
      const double scale = static_cast<double>(gamma.at(e)[k]) * r;
      mean.at(e)[k] = static_cast<T>(m);
      rstd.at(e)[k] = static_cast<T>(r);
      for (int64_t j = 0; j < b.taps(); ++j) to[j * b.Kp] = static_cast<T>(scale * static_cast<double>(own[j * b.K]));
      to[b.taps() * b.Kp] = static_cast<T>(static_cast<double>(beta.at(e)[k]) - scale * m);
    }
  });
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const Images<T> padded = padded_input(b, x.at(t.batch), t, kSlotX);
    T* const to = y.at(t.batch);
    unsigned char* const codes = code.at(t.batch);
    for_windows(b, padded, t, filters.at(t.batch), [=](int64_t place, const Vec<T>* u, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      const Pooled<T> pooled = pool<T>(u);
      store<T, F>(to + place, pooled.y, lanes);
      store_code<T, F>(codes + place, pooled.code, lanes);
    });
  });
}

template <class T, class S>
void jvp(const Call& call) {
  const Block b = block_of<T, S>(call);
  HG_ARGS(x, w, gamma, mean, rstd, patch_mean, patch_cov, code, w_dot, gamma_dot, beta_dot, y_dot)

  // y_dot = by_z*(z - mean) + by_z_dot*(z_dot - mean(z_dot)) + beta_dot at the winners: one convolution, by by_z*w + by_z_dot*w_dot.
  const Folded<T> filters = folded<T>(b, b.P * b.E);
  parallel_for(b.P * b.E, [&](int64_t pe) {
    const int64_t p = pe / b.E, e = pe % b.E, size = b.taps() * b.K;
    double* const cov_w = scratch_of<double>(kSlotSums, size + b.K + 1);
    double* const product = cov_w + size;  // w_dot'Cov w, which is c/s
    for (int64_t k = 0; k < b.K; ++k) product[k] = 0;
    if (w_dot) {
      cov_times(b, patch_cov.at(e), w.at(e), cov_w);
      channel_dot(b, w_dot.at(p, e), cov_w, product);
    }
    for (int64_t k = 0; k < b.K; ++k) {
      const double s = static_cast<double>(rstd.at(e)[k]), g_dot = gamma_dot ? static_cast<double>(gamma_dot.at(p, e)[k]) : 0.0;
      const NormDot dot = norm_dot(static_cast<double>(gamma.at(e)[k]), g_dot, s, s * product[k]);
      T* const to = filters.at(pe) + k;
      double shift = (beta_dot ? static_cast<double>(beta_dot.at(p, e)[k]) : 0.0) - dot.by_z * static_cast<double>(mean.at(e)[k]);
      for (int64_t j = 0; j < b.taps(); ++j) {
        const double own = w_dot ? static_cast<double>(w_dot.at(p, e)[j * b.K + k]) : 0.0;
        to[j * b.Kp] = static_cast<T>(dot.by_z * static_cast<double>(w.at(e)[j * b.K + k]) + dot.by_z_dot * own);
        shift -= dot.by_z_dot * own * static_cast<double>(patch_mean.at(e)[j]);
      }
      to[b.taps() * b.Kp] = static_cast<T>(shift);
    }
  });
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const int64_t e = t.batch;
    const Images<T> padded = padded_input(b, x.at(e), t, kSlotX);
    const unsigned char* const codes = code.at(e);
    for (int64_t p = 0; p < b.P; ++p) {
      T* const to = y_dot.at(p, e);
      for_windows(b, padded, t, filters.at(p * b.E + e), [=](int64_t place, const Vec<T>* u, int lanes, auto full) {
        constexpr bool F = decltype(full)::value;
        const Mask<T> c = load_code<T, F>(codes + place, lanes);
        store<T, F>(to + place, if_active<T>(c, select<T>(c, u[0], u[1], u[2], u[3])), lanes);
      });
    }
  });
}

HG_KERNEL(conv_bn_relu_pool_first_value, value)
HG_KERNEL(conv_bn_relu_pool_first_jvp, jvp)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

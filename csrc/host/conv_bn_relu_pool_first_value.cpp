// conv_bn_relu_pool_first_value and _first_jvp: the convolution of two rows by two windows stays in registers, where it is pooled.
// z is never stored. A task owns the pooled rows of a few images.
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

// The four pixels of kWindows windows from q on, for NV vectors of channels: finish(window, vector, pixels). `top` is the first of four
// rows of the padded image.
template <int kWindows, int NV, class T, class Channels, class Finish>
HG_INLINE void windows(const Block& b, Channels C, const T* top, int64_t pitch, const T* filters, int64_t q, const Finish& finish) {
  constexpr int V = kLanes<T>;
  Vec<T> u[2][2 * kWindows][NV];
  for (int p = 0; p < 2 * kWindows; ++p)
    for (int n = 0; n < NV; ++n) u[0][p][n] = u[1][p][n] = load(filters + b.taps() * b.Kp + n * V);
  const int64_t run = 3 * C;
  for (int dy = 0; dy < 3; ++dy) {
    const T *first = top + dy * pitch + 2 * q * C, *second = first + pitch;
    HG_UNROLL(1)  // unrolled, the pixels that windows share would be kept in registers that are not there
    for (int64_t j = 0; j < run; ++j, filters += b.Kp) {
      Vec<T> weight[NV];
      for (int n = 0; n < NV; ++n) weight[n] = load(filters + n * V);
      for (int p = 0; p < 2 * kWindows; ++p) {
        const T upper = first[p * C + j], below = second[p * C + j];
        for (int n = 0; n < NV; ++n) {
          u[0][p][n] += weight[n] * upper;
          u[1][p][n] += weight[n] * below;
        }
      }
    }
  }
  for (int i = 0; i < kWindows; ++i)
    for (int n = 0; n < NV; ++n) {
      const Vec<T> pixels[4] = {u[0][2 * i][n], u[0][2 * i + 1][n], u[1][2 * i][n], u[1][2 * i + 1][n]};
      finish(q + i, n, pixels);
    }
}

// finish(place, k, pixels, lanes, full) for all windows of a task: `place` counts elements of the pooled images. Two vectors of
// channels at once need the fewest loads; a last one has two windows.
template <class T, class Finish>
HG_INLINE void for_windows(const Block& b, const Images<T>& padded, const BlockTask& t, const T* filters, const Finish& finish) {
  constexpr int64_t V = kLanes<T>;
  const int64_t pairs = b.K / (2 * V) * (2 * V);
  const auto images = [&](auto C) {
    for (int64_t i = 0; i < t.n; ++i)
      for (int64_t p = 0; p < b.h; ++p) {
        const T* const top = padded.data + i * padded.image + 2 * p * padded.pitch;
        const int64_t row = ((t.first + i) * b.h + p) * b.w * b.K;
        for (int64_t k = 0; k < pairs; k += 2 * V)
          for (int64_t q = 0; q < b.w; ++q)
            windows<1, 2>(b, C, top, padded.pitch, filters + k, q, [&](int64_t, int n, const Vec<T>* pixels) {
              finish(row + q * b.K + k + n * V, k + n * V, pixels, 0, std::true_type{});
            });
        for_channels<T>(b.K - pairs, [&](int64_t rest, int lanes, auto full) {
          const int64_t k = pairs + rest;
          const auto at = [&](int64_t q, int, const Vec<T>* pixels) { finish(row + q * b.K + k, k, pixels, lanes, full); };
          int64_t q = 0;
          for (; q + 2 <= b.w; q += 2) windows<2, 1>(b, C, top, padded.pitch, filters + k, q, at);
          if (q < b.w) windows<1, 1>(b, C, top, padded.pitch, filters + k, q, at);
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

  // gamma*rstd is not folded into the filters: equal sums are ties, and the first pixel wins.
  const Folded<T> filters = folded<T>(b, b.E);
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
      for (int64_t j = 0; j < b.taps(); ++j) {
        const T own = w.at(e)[j * b.K + k];
        filters.at(e)[j * b.Kp + k] = own;
        m += static_cast<double>(patch_mean.at(e)[j]) * static_cast<double>(own);
      }
      const T r = static_cast<T>(inverse_root((variance[k] < 0 ? 0.0 : variance[k]) + eps));  // a NaN stays
      mean.at(e)[k] = s[0] = static_cast<T>(m);
      rstd.at(e)[k] = r;
      s[b.Kp] = gamma.at(e)[k] * r;
      s[2 * b.Kp] = beta.at(e)[k];
    }
  });
  parallel_for(b.E * b.chunks, [&](int64_t index) {
    const BlockTask t = task_of(b, index);
    const Images<T> padded = padded_input(b, x.at(t.batch), t, kSlotX);
    const T* const s = scalars + t.batch * 3 * b.Kp;
    const int64_t Kp = b.Kp;
    T* const to = y.at(t.batch);
    unsigned char* const codes = code.at(t.batch);
    for_windows(b, padded, t, filters.at(t.batch), [=](int64_t place, int64_t k, const Vec<T>* z, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> u[4];
      for (int i = 0; i < 4; ++i) u[i] = (z[i] - load(s + k)) * load(s + Kp + k) + load(s + 2 * Kp + k);
      const Pooled<T> pooled = pool<T>(u);
      store<T, F>(to + place, pooled.y, lanes);
      store_code<T, F>(codes + place, pooled.code, lanes);
    });
  });
}

#if HG_VECTOR_BYTES == 64
// y_dot of one image with a border.
template <int64_t C>
void y_dot_image(const Block& b, const float* bordered, int64_t pitch, const float* filters, const unsigned char* code, float* y_dot) {
  float* const pixels = scratch_of<float>(kSlotBand, 16 * C * b.w);
  for (int64_t p = 0; p < b.h; ++p) {
    window_pixels<C>(bordered + 2 * p * pitch, pitch, b.w, pixels);
    for_channels<float>(b.K, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      for (int64_t q = 0; q < b.w; ++q) {
        const int64_t at = (p * b.w + q) * b.K + k;
        const Mask<float> c = load_code<float, F>(code + at, lanes);
        Vec<float> u[3] = {load(filters + 9 * C * b.Kp + k), {}, {}};  // by rows of taps: three sums that do not wait for each other
        for_taps(c, [&](int tap, const Mask<float>& index) {
          for (int i = 0; i < C; ++i)
            u[tap / 3] += permuted(load(pixels + (q * C + i) * 16), index) * load(filters + (tap * C + i) * b.Kp + k);
        });
        store<float, F>(y_dot + at, if_active<float>(c, u[0] + u[1] + u[2]), lanes);
      }
    });
  }
}
#endif

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
#if HG_VECTOR_BYTES == 64
      if constexpr (std::is_same_v<T, float>) {
        if (b.C == 1 || b.C == 3) {
          for (int64_t i = 0; i < t.n; ++i) {
            const int64_t at = (t.first + i) * b.h * b.w * b.K;
            const auto image = b.C == 1 ? y_dot_image<1> : y_dot_image<3>;
            image(b, padded.data + i * padded.image, padded.pitch, filters.at(p * b.E + e), codes + at, to + at);
          }
          continue;
        }
      }
#endif
      for_windows(b, padded, t, filters.at(p * b.E + e), [=](int64_t place, int64_t, const Vec<T>* u, int lanes, auto full) {
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

// The fused block on data (x has neither tangent nor cotangent). With m and Cov the mean and covariance of its 3x3
// patches, mean(z) = w.m and var(z) = w'Cov w, so nothing dense is stored or summed; see block.h for the notation.
// Gradients need U = sum u_bar*(patch - m), gathered at the winners:
//   G = s*w.U;  w_bar = gamma*s*(U - G*s*Cov w)
#pragma once
#include "block.h"

namespace hg::HG_SIMD {

// out[j, k] = sum_i cov[j, i] * w[i, k], in double; w is (taps, K) with rows of K.
template <class T>
static void cov_times(const Block& b, const T* cov, const T* w, double* out) {
  const int64_t n = b.taps();
  __builtin_memset(out, 0, static_cast<std::size_t>(n * b.K) * sizeof(double));
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < n; ++i) {
      const double v = static_cast<double>(cov[j * n + i]);
      for (int64_t k = 0; k < b.K; ++k) out[j * b.K + k] += v * static_cast<double>(w[i * b.K + k]);
    }
}

// out[k] = sum_j a[j, k] * other[j, k]
template <class A>
static void channel_dot(const Block& b, const A* a, const double* other, double* out) {
  for (int64_t k = 0; k < b.K; ++k) out[k] = 0;
  for (int64_t j = 0; j < b.taps(); ++j)
    for (int64_t k = 0; k < b.K; ++k) out[k] += static_cast<double>(a[j * b.K + k]) * other[j * b.K + k];
}

#if HG_VECTOR_BYTES == 64
// What is needed at the winners alone is a quarter of a dense convolution. A window's patches are its 4x4 pixels: in each channel sixteen
// numbers, one vector, from which a permutation takes every filter's own.
// The numbers at `index`: of one vector, or of two, 16 to 31 in the second.
HG_INLINE Vec<float> permuted(const Vec<float>& from, const Mask<float>& index) {
#if defined(__clang__)
  return __builtin_ia32_permvarsf512(from, index);
#else
  return __builtin_shuffle(from, index);
#endif
}
HG_INLINE Vec<float> permuted(const Vec<float>& from, const Vec<float>& second, const Mask<float>& index) {
#if defined(__clang__)
  return __builtin_ia32_vpermi2varps512(from, index, second);
#else
  return __builtin_shuffle(from, second, index);
#endif
}
// The 4x4 pixels of each of w windows, (w, C, 4, 4), of an image with a border; `top` is the first of their rows. A vector may be read
// from where any pixel begins.
template <int64_t C>
HG_INLINE void window_pixels(const float* top, int64_t pitch, int64_t w, float* out) {
  for (int64_t q = 0; q < w; ++q, top += 2 * C, out += 16 * C) {
    if constexpr (C == 1) {
      for (int i = 0; i < 4; ++i) __builtin_memcpy(out + 4 * i, top + i * pitch, 4 * sizeof(float));
    } else {
      static_assert(C == 3, "an index for each channel");
      const Mask<float> index = {0, 3, 6, 9, 16, 19, 22, 25, 0, 3, 6, 9, 16, 19, 22, 25};  // of two rows, twice
      const Mask<float> upper = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
      Vec<float> row[4];
      for (int i = 0; i < 4; ++i) row[i] = load(top + i * pitch);
      for (int c = 0; c < C; ++c)
        store(out + 16 * c, upper != 0 ? permuted(row[0], row[1], index + c) : permuted(row[2], row[3], index + c));
    }
  }
}
// body(tap, index) for the nine taps: the tap's place among the 4x4 pixels, at each filter's winner.
template <class Body>
HG_INLINE void for_taps(const Mask<float>& code, const Body& body) {
  const Mask<float> winner = (code & 1) + 2 * (code & 2);
  HG_UNROLL(9)
  for (int tap = 0; tap < 9; ++tap) body(tap, winner + (tap / 3 * 4 + tap % 3));
}
#endif

// U (taps rows of K) and B of each batch entry.
struct Gathered {
  double *U, *B;
  int64_t size, K;
  double* u(int64_t entry) const { return U + entry * size; }
  double* beta(int64_t entry) const { return B + entry * K; }
};

}  // namespace hg::HG_SIMD

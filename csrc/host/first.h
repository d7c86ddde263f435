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

// U (taps rows of K) and B of each batch entry.
struct Gathered {
  double *U, *B;
  int64_t size, K;
  double* u(int64_t entry) const { return U + entry * size; }
  double* beta(int64_t entry) const { return B + entry * K; }
};

}  // namespace hg::HG_SIMD

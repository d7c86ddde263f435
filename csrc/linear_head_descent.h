// Steps of gradient descent on the mean cross-entropy of softmax(x w + bias) while the features x stay, and their transposes; what is done
// for each example or element, written once for the host and for CUDA.
//
// Weights move in the span of the features. With R_t = softmax(z_t) - one_hot(label), N examples and G = x x' + 1, where the 1 is the
// bias's,
//   z_{t+1} = z_t - lr/N G R_t;   w_T = w_0 - lr/N x' A,   bias_T = bias_0 - lr/N sum of A over examples,   A = sum of all R_t
// so the features are read at the beginning and at the end alone, however many steps there are.
//
// Transposed, from the last step to the first, with y = x w_bar + bias_bar at w_T: let C_t = -lr S_t (y - sum over classes of S_t y) with
// S_t = softmax(z_t), which is the tangent of R_t when the weights move along -lr w_bar. Then
//   lr_bar -= R_t . y / N,   y += G C_t / N,   w_bar += x' C_t / N,   bias_bar += sum of C_t over examples / N
// and with V_t = sum of C_s over the steps s after t, V = sum of all C_t,
//   x_bar = (-lr A w_bar' + V w_0') / N - lr/N^2 sum over t of (R_t V_t' + V_t R_t') x     with w_bar at w_T
// Source: Franceschi et al. 2017, eq. 7, where w_bar is alpha, written out for this loss.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(HG_SIMD)  // a source of the host, compiled once per instruction set
#include "host/simd.h"
#else
#include "cuda/launch.h"
#endif

namespace hg::HG_SPACE {

constexpr int64_t kRun = 16;  // terms of a sum over examples that are added in T before their sum is added to the others

// One episode. Arrays of examples by classes are rows of K.
template <class T>
struct HeadDescent {
  int64_t N, K;
  double lr;
  const int64_t* label;
  const T* gram;  // G, (N, N)

  // Row n of R, from that of z; NaN where its label is no class.
  HG_BOTH void residuals(int64_t n, const double* z, T* residual) const {
    const double* const row = z + n * K;
    double top = -INFINITY, sum = 0;
    for (int64_t k = 0; k < K; ++k) top = row[k] > top || row[k] != row[k] ? row[k] : top;
    for (int64_t k = 0; k < K; ++k) sum += exp(row[k] - top);
    const bool known = label[n] >= 0 && label[n] < K;
    for (int64_t k = 0; k < K; ++k)
      residual[n * K + k] = known ? static_cast<T>(exp(row[k] - top) / sum - (k == label[n] ? 1.0 : 0.0)) : static_cast<T>(NAN);
  }

  // Row n of C, from those of R and y. Returns their product R . y.
  HG_BOTH double residuals_bar(int64_t n, const T* residual, const double* y, double* c) const {
    double mean = 0, slope = 0;
    for (int64_t i = n * K; i < (n + 1) * K; ++i) {
      mean += softmax(n, i, residual) * y[i];
      slope += static_cast<double>(residual[i]) * y[i];
    }
    for (int64_t i = n * K; i < (n + 1) * K; ++i) c[i] = -lr * softmax(n, i, residual) * (y[i] - mean);
    return slope;
  }

  // Element i of G times `rows`, for a thread that owns it; the host forms them all by vectors.
  template <class U>
  HG_BOTH double product(int64_t i, const U* rows) const {
    const T* const g = gram + i / K * N;
    double sum = 0;
    for (int64_t m = 0, at = i % K; m < N; ++m, at += K) sum += static_cast<double>(g[m]) * static_cast<double>(rows[at]);
    return sum;
  }

  // Element (n, m) of R V' + V R', likewise.
  HG_BOTH double pair(int64_t n, int64_t m, const T* residual, const double* v) const {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k)
      sum += static_cast<double>(residual[n * K + k]) * v[m * K + k] + v[n * K + k] * static_cast<double>(residual[m * K + k]);
    return sum;
  }

 private:
  HG_BOTH double softmax(int64_t n, int64_t i, const T* residual) const {
    return static_cast<double>(residual[i]) + (i == n * K + label[n] ? 1.0 : 0.0);
  }
};

}  // namespace hg::HG_SPACE

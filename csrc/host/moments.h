// First and second moments of channels over pixels, and of their tangents: sums of a task, merged over tasks in order.
#pragma once
#include "block.h"

namespace hg::HG_SIMD {

// Mean and sum of squared deviations of each channel over some pixels, by two passes over them.
template <class T>
static void statistics(const T* z, int64_t pixels, const Block& b, double* mean, double* m2) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    constexpr int V = kLanes<T>;
    double sum[V] = {}, rest[V] = {}, squares[V] = {};
    for (int64_t i = 0; i < pixels; i += kFlush) {
      Vec<T> s{};
      for (int64_t j = i; j < lower(i + kFlush, pixels); ++j) s += load<T, F>(z + j * b.K + k, lanes);
      add_lanes<T>(sum, s);
    }
    Vec<T> near;  // the mean, rounded: differences to it are small and are corrected below
    for (int v = 0; v < V; ++v) near[v] = static_cast<T>(sum[v] / static_cast<double>(pixels));
    for (int64_t i = 0; i < pixels; i += kFlush) {
      Vec<T> r{}, q{};
      for (int64_t j = i; j < lower(i + kFlush, pixels); ++j) {
        const Vec<T> d = load<T, F>(z + j * b.K + k, lanes) - near;
        r += d;
        q += d * d;
      }
      add_lanes<T>(rest, r);
      add_lanes<T>(squares, q);
    }
    for (int v = 0; v < V; ++v) {
      const double off = rest[v] / static_cast<double>(pixels);
      mean[k + v] = static_cast<double>(near[v]) + off;
      m2[k + v] = squares[v] - rest[v] * off;
    }
  });
}

struct Statistics {
  double mean, variance;
};
// Of one channel of an episode, from the parts (mean and squared deviations, rows of Kp) of all its tasks.
HG_INLINE Statistics merge_statistics(const Block& b, const double* parts, int64_t entry, int64_t k) {
  double n = 0, m = 0, m2 = 0;
  for (int64_t chunk = 0; chunk < b.chunks; ++chunk) {  // Chan, Golub & LeVeque 1979
    const double* part = parts + (entry * b.chunks + chunk) * 2 * b.Kp + k;
    const double count = static_cast<double>(b.images(chunk) * b.H * b.W);
    if (count == 0) continue;
    const double d = part[0] - m, all = n + count;
    m += d * count / all;
    m2 += part[b.Kp] + d * d * n * count / all;
    n = all;
  }
  return {m, n > 0 ? m2 / n : 0.0};
}

// Writes mean and rstd; returns rows of Kp for each episode, mean, scale, shift: u = (z - mean)*scale + shift.
template <class T>
static const T* normalization(const Block& b, const double* parts, double eps, const Batch<const T>& gamma, const Batch<const T>& beta,
                              const Batch<T>& mean, const Batch<T>& rstd) {
  T* const scalars = scratch_of<T>(kSlotScalars, b.E * 3 * b.Kp + 1);
  for (int64_t e = 0; e < b.E; ++e)
    for (int64_t k = 0; k < b.Kp; ++k) {
      T* const s = scalars + e * 3 * b.Kp + k;
      s[0] = s[b.Kp] = s[2 * b.Kp] = T(0);
      if (k >= b.K) continue;
      const Statistics of = merge_statistics(b, parts, e, k);
      mean.at(e)[k] = s[0] = static_cast<T>(of.mean);
      rstd.at(e)[k] = static_cast<T>(inverse_root(of.variance + eps));
      s[b.Kp] = gamma.at(e)[k] * rstd.at(e)[k];
      s[2 * b.Kp] = beta.at(e)[k];
    }
  return scalars;
}

// Of a tangent, part rows: mean of z_dot, sum (z - mean)*(z_dot - that mean), sum (z - mean).
template <class T>
static void moments(const Block& b, const T* z, const T* z_dot, int64_t pixels, const T* mean, double* part) {
  for_channels<T>(b.K, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    constexpr int V = kLanes<T>;
    double sum[V] = {}, rest[V] = {}, product[V] = {}, deviation[V] = {};
    for (int64_t i = 0; i < pixels; i += kFlush) {
      Vec<T> s{};
      for (int64_t j = i; j < lower(i + kFlush, pixels); ++j) s += load<T, F>(z_dot + j * b.K + k, lanes);
      add_lanes<T>(sum, s);
    }
    const Vec<T> m = load(mean + k);
    Vec<T> near;
    for (int v = 0; v < V; ++v) near[v] = static_cast<T>(sum[v] / static_cast<double>(pixels));
    for (int64_t i = 0; i < pixels; i += kFlush) {
      Vec<T> r{}, p{}, d{};
      for (int64_t j = i; j < lower(i + kFlush, pixels); ++j) {
        const Vec<T> dz = load<T, F>(z + j * b.K + k, lanes) - m;
        const Vec<T> dd = load<T, F>(z_dot + j * b.K + k, lanes) - near;
        r += dd;
        p += dz * dd;
        d += dz;
      }
      add_lanes<T>(rest, r);
      add_lanes<T>(product, p);
      add_lanes<T>(deviation, d);
    }
    for (int v = 0; v < V; ++v) {
      const double off = rest[v] / static_cast<double>(pixels);
      part[k + v] = static_cast<double>(near[v]) + off;
      part[b.Kp + k + v] = product[v] - off * deviation[v];
      part[2 * b.Kp + k + v] = deviation[v];
    }
  });
}

struct Moments {
  double mean, product;  // mean of z_dot, and of (z - mean)*z_dot
};
HG_INLINE Moments merge_moments(const Block& b, const double* parts, int64_t entry, int64_t k) {
  const double M = static_cast<double>(higher(1, b.pixels()));
  double total = 0, product = 0;
  for (int64_t chunk = 0; chunk < b.chunks; ++chunk) {
    const double count = static_cast<double>(b.images(chunk) * b.H * b.W);
    total += count == 0 ? 0.0 : parts[(entry * b.chunks + chunk) * 3 * b.Kp + k] * count;
  }
  const double mean = total / M;
  for (int64_t chunk = 0; chunk < b.chunks && b.pixels() > 0; ++chunk) {
    const double* part = parts + (entry * b.chunks + chunk) * 3 * b.Kp + k;
    product += part[b.Kp] + (part[0] - mean) * part[2 * b.Kp];
  }
  return {mean, product / M};
}

}  // namespace hg::HG_SIMD

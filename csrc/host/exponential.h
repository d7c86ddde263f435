// The exponential function of an array, in double, by vectors.
#pragma once
#include "simd.h"

namespace hg::HG_SIMD {

// exp(x) for x <= 0 and NaN, within 2 units in the last place; 0 below -708, where it is less than the smallest normal number.
//
// x = n*log(2) + r with |r| <= log(2)/2. exp(r) is its Taylor polynomial of degree 13, whose remainder is below 5e-18, and 2^n is made
// of its bits. Source: Cody & Waite 1980, Software Manual for the Elementary Functions (log(2) in two parts).
HG_INLINE Vec<double> exponential(Vec<double> x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5*2^52: adding it leaves a whole number in the low bits
  const Mask<double> tiny = x < -708.0;
  x = tiny ? Vec<double>{} - 708.0 : x;
  const Vec<double> shifted = x * 1.4426950408889634 + kMagic;
  const Vec<double> n = shifted - kMagic;
  const Vec<double> r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  Vec<double> p = r * (1.0 / 6227020800) + 1.0 / 479001600;
  constexpr double kFactors[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                                 1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
  for (const double factor : kFactors) p = p * r + factor;
  const Mask<double> power = ((Mask<double>)shifted + 1023) << 52;
  const Vec<double> result = p * (Vec<double>)power;
  return tiny ? Vec<double>{} : result;
}

inline void exponentials(double* x, int64_t n) {
  constexpr int64_t V = kLanes<double>;
  for (int64_t i = 0; i < n; i += V) {
    const int lanes = static_cast<int>(lower(V, n - i));
    if (lanes == V)
      store(x + i, exponential(load(x + i)));
    else
      store<double, false>(x + i, exponential(load<double, false>(x + i, lanes)), lanes);
  }
}

}  // namespace hg::HG_SIMD

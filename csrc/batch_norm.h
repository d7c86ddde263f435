// Batch normalization of one channel, in double: what its derivatives are formed with, written once for the host and for
// CUDA. s is rstd, B = sum u_bar and G = sum u_bar*xhat over M pixels, c = mean(xhat*z_dot); `product` is a sum of cotangents
// times (z - mean), gain_dot is gamma_dot*s. See host/block.h for the rest of the notation.
#pragma once

namespace hg::HG_SPACE {

// z_bar = scale*u_bar + by_z*(z - mean) + shift.
struct NormBar {
  double G, scale, by_z, shift;
};
HG_BOTH NormBar norm_bar(double gamma, double s, double B, double product, double M) {
  const double G = product * s, scale = gamma * s;
  return {G, scale, -scale * s * G / M, -scale * B / M};
}

// Its tangent: scale_dot*u_bar + scale*u_bar_dot + by_z*(z - mean) + bar.by_z*(z_dot - mean(z_dot)) + shift, the product being
// sum (u_bar_dot*(z - mean) + u_bar*(z_dot - mean(z_dot))).
HG_BOTH NormBar norm_bar_dot(const NormBar& bar, double gain_dot, double s, double c, double B, double B_dot, double product, double M) {
  const double G = bar.G, scale = bar.scale, G_dot = s * (product - c * G), scale_dot = gain_dot - scale * s * c;
  return {G_dot, scale_dot, -(scale_dot * s * G + scale * (s * G_dot - s * s * c * G)) / M, -(scale_dot * B + scale * B_dot) / M};
}

// y_dot = by_z*(z - mean) + by_z_dot*(z_dot - mean(z_dot)) + beta_dot.
struct NormDot {
  double by_z, by_z_dot;
};
HG_BOTH NormDot norm_dot(double gamma, double gamma_dot, double s, double c) { return {gamma_dot * s - gamma * s * s * c, gamma * s}; }

// The block on data: w_bar = scale*(U - G*s*cov) for each filter and tap, with U = sum u_bar*(patch - mean) and cov = Cov w
// there; and what its tangent is formed with.
struct FirstBar {
  double G, scale, s_dot, G_dot, scale_dot;
};
// w_U = w.U, w_U_dot its tangent, product = w_dot'Cov w.
HG_BOTH FirstBar first_bar(double gamma, double gain_dot, double s, double w_U, double w_U_dot, double product) {
  const double G = s * w_U, c = s * product, s_dot = -s * s * c;
  return {G, gamma * s, s_dot, s * (w_U_dot - c * G), gain_dot + gamma * s_dot};
}

}  // namespace hg::HG_SPACE

// The steps of the optimisers per element: value, tangent and cotangents, written once for the host and for CUDA.
//
// An optimiser is a struct of a leaf's constants with T the arrays' type; V is T or a vector of T. `x` holds the states before the step and
// the gradient, `y` the states after it, both in the order of the signatures; `field` the hyperparameters. A state that is absent is zero.
#pragma once
#include <cstdint>

#if defined(HG_SIMD)  // a source of the host, compiled once per instruction set
#include "host/simd.h"
#else
#include "cuda/launch.h"
#endif

namespace hg::HG_SPACE {

#if defined(HG_SIMD)
template <class V>
HG_BOTH V inverse_root(V v) {
  for (int i = 0; i < static_cast<int>(sizeof v / sizeof v[0]); ++i) v[i] = __builtin_sqrt(v[i]);
  return 1 / v;
}
template <>
HG_BOTH Vec<float> inverse_root(Vec<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return 1 / v;
}
#else
HG_BOTH float inverse_root(float v) { return 1 / sqrtf(v); }
HG_BOTH double inverse_root(double v) { return 1 / sqrt(v); }
#endif

// base^n for n >= 0 by squaring.
HG_BOTH double whole_power(double base, int64_t n) {
  double power = 1;
  for (; n > 0; n /= 2, base *= base)
    if (n % 2 == 1) power *= base;
  return power;
}

// g' = g + decay w,  v' = momentum v + g',  w' = w - lr v', with Nesterov's form w' = w - lr (g' + momentum v').
template <class T>
struct Sgd {
  using Element = T;
  static constexpr int kStates = 3, kNext = 2, kFields = 3;
  static constexpr const char* kNames[] = {"w", "v", "g"};  // of the states and the gradient
  static constexpr const char* kNextNames[] = {"w", "v"};   // of the states after the step
  static constexpr const char* kFieldNames[] = {"lr", "momentum", "weight_decay"};

  T lr, momentum, decay;
  bool decays, nesterov;

  struct Dot {
    T lr, momentum, decay;
  };

  // `given` has a bit for every field that is an array, `extra` is the last attribute.
  static HG_BOTH Sgd of(const double* field, unsigned given, double extra) {
    return {static_cast<T>(field[0]), static_cast<T>(field[1]), static_cast<T>(field[2]), (given & 4u) != 0 || field[2] != 0, extra != 0};
  }
  HG_BOTH Dot dot_of(const double* dot) const { return {static_cast<T>(dot[0]), static_cast<T>(dot[1]), static_cast<T>(dot[2])}; }

  template <class V>
  HG_BOTH V decayed(const V (&x)[kStates]) const {
    return decays ? x[2] + decay * x[0] : x[2];  // 0*w would be NaN where w is not finite
  }

  template <class V>
  HG_BOTH void value(const V (&x)[kStates], V (&y)[kNext]) const {
    const V g = decayed(x);
    y[1] = momentum * x[1] + g;
    y[0] = x[0] - lr * (nesterov ? g + momentum * y[1] : y[1]);
  }

  template <class V>
  HG_BOTH void jvp(const Dot& dot, const V (&x)[kStates], const V (&x_dot)[kStates], V (&y_dot)[kNext]) const {
    const V g = decayed(x), v = momentum * x[1] + g;
    const V g_dot = decays ? x_dot[2] + decay * x_dot[0] + dot.decay * x[0] : x_dot[2];
    const V v_dot = momentum * x_dot[1] + dot.momentum * x[1] + g_dot;
    const V step = nesterov ? g + momentum * v : v;
    const V step_dot = nesterov ? g_dot + momentum * v_dot + dot.momentum * v : v_dot;
    y_dot[1] = v_dot;
    y_dot[0] = x_dot[0] - lr * step_dot - dot.lr * step;
  }

  template <class V>
  HG_BOTH void vjp(const V (&x)[kStates], const V (&y_bar)[kNext], V (&x_bar)[kStates], V* field_bar) const {
    const V g = decayed(x), v = momentum * x[1] + g;
    const V step_bar = -(lr * y_bar[0]);
    const V v_bar = y_bar[1] + (nesterov ? momentum * step_bar : step_bar);
    const V g_bar = nesterov ? step_bar + v_bar : v_bar;
    x_bar[0] = decays ? y_bar[0] + decay * g_bar : y_bar[0];
    x_bar[1] = momentum * v_bar;
    x_bar[2] = g_bar;
    field_bar[0] = -(y_bar[0] * (nesterov ? g + momentum * v : v));
    field_bar[1] = nesterov ? v_bar * x[1] + step_bar * v : v_bar * x[1];
    field_bar[2] = g_bar * x[0];
  }
};

// m' = b1 m + (1-b1) g,  s' = b2 s + (1-b2) g^2,  w' = w - lr u / sqrt(q), where u = m'/(1-b1^(t+1)) and q = s'/(1-b2^(t+1)) + eps.
template <class T>
struct Adam {
  using Element = T;
  static constexpr int kStates = 4, kNext = 3, kFields = 4;
  static constexpr const char *kNames[] = {"w", "m", "s", "g"}, *kNextNames[] = {"w", "m", "s"};
  static constexpr const char* kFieldNames[] = {"lr", "beta1", "beta2", "eps"};

  T lr, beta1, beta2, eps;
  T rest1, rest2;        // 1 - beta
  T inverse1, inverse2;  // 1/(1 - beta^(t+1))
  T slope1, slope2;      // derivative of 1 - beta^(t+1)

  struct Dot {
    T lr, beta1, beta2, eps;
    T correction1, correction2;  // tangents of 1 - beta^(t+1)
  };

  // In double, since 1 - beta^(t+1) loses digits.
  static HG_BOTH Adam of(const double* field, unsigned, double extra) {
    const int64_t t = static_cast<int64_t>(extra);
    const double power1 = whole_power(field[1], t), power2 = whole_power(field[2], t), count = extra + 1;
    return {static_cast<T>(field[0]),
            static_cast<T>(field[1]),
            static_cast<T>(field[2]),
            static_cast<T>(field[3]),
            static_cast<T>(1 - field[1]),
            static_cast<T>(1 - field[2]),
            static_cast<T>(1 / (1 - power1 * field[1])),
            static_cast<T>(1 / (1 - power2 * field[2])),
            static_cast<T>(-count * power1),
            static_cast<T>(-count * power2)};
  }
  HG_BOTH Dot dot_of(const double* dot) const {
    const T b1 = static_cast<T>(dot[1]), b2 = static_cast<T>(dot[2]);
    return {static_cast<T>(dot[0]), b1, b2, static_cast<T>(dot[3]), slope1 * b1, slope2 * b2};
  }

  template <class V>
  struct Terms {
    V m, s, u, root, step;  // after the step; root = q^-1/2, step = u*root
  };
  template <class V>
  HG_BOTH Terms<V> terms(const V (&x)[kStates]) const {
    Terms<V> a;
    a.m = beta1 * x[1] + rest1 * x[3];
    a.s = beta2 * x[2] + rest2 * (x[3] * x[3]);
    a.u = a.m * inverse1;
    a.root = inverse_root(V(a.s * inverse2 + eps));
    a.step = a.u * a.root;
    return a;
  }

  template <class V>
  HG_BOTH void value(const V (&x)[kStates], V (&y)[kNext]) const {
    const Terms<V> a = terms(x);
    y[0] = x[0] - lr * a.step;
    y[1] = a.m;
    y[2] = a.s;
  }

  template <class V>
  HG_BOTH void jvp(const Dot& dot, const V (&x)[kStates], const V (&x_dot)[kStates], V (&y_dot)[kNext]) const {
    const Terms<V> a = terms(x);
    const V m_dot = beta1 * x_dot[1] + rest1 * x_dot[3] + dot.beta1 * (x[1] - x[3]);
    const V s_dot = beta2 * x_dot[2] + 2 * rest2 * (x[3] * x_dot[3]) + dot.beta2 * (x[2] - x[3] * x[3]);
    const V u_dot = (m_dot - dot.correction1 * a.u) * inverse1;
    const V q_dot = (s_dot - dot.correction2 * (a.s * inverse2)) * inverse2 + dot.eps;
    const V step_dot = (u_dot - T(0.5) * a.u * q_dot * (a.root * a.root)) * a.root;
    y_dot[0] = x_dot[0] - lr * step_dot - dot.lr * a.step;
    y_dot[1] = m_dot;
    y_dot[2] = s_dot;
  }

  template <class V>
  HG_BOTH void vjp(const V (&x)[kStates], const V (&y_bar)[kNext], V (&x_bar)[kStates], V* field_bar) const {
    const Terms<V> a = terms(x);
    const V step_bar = -(lr * y_bar[0]);
    const V u_bar = step_bar * a.root;
    const V q_bar = T(-0.5) * step_bar * a.step * (a.root * a.root);
    const V m_bar = y_bar[1] + u_bar * inverse1, s_bar = y_bar[2] + q_bar * inverse2;
    x_bar[0] = y_bar[0];
    x_bar[1] = beta1 * m_bar;
    x_bar[2] = beta2 * s_bar;
    x_bar[3] = rest1 * m_bar + 2 * rest2 * (x[3] * s_bar);
    field_bar[0] = -(y_bar[0] * a.step);
    field_bar[1] = m_bar * (x[1] - x[3]) - slope1 * (u_bar * a.u * inverse1);
    field_bar[2] = s_bar * (x[2] - x[3] * x[3]) - slope2 * (q_bar * (a.s * inverse2) * inverse2);
    field_bar[3] = q_bar;
  }
};

// Adam with weights that decay beside its step: w' = w - lr (u / sqrt(q) + decay w).
template <class T>
struct AdamW : Adam<T> {
  using Base = Adam<T>;
  using Base::kNext, Base::kStates;
  static constexpr int kFields = 5;
  static constexpr const char* kFieldNames[] = {"lr", "beta1", "beta2", "eps", "weight_decay"};

  T decay;

  struct Dot : Base::Dot {
    T decay;
  };

  static HG_BOTH AdamW of(const double* field, unsigned given, double extra) {
    return {Base::of(field, given, extra), static_cast<T>(field[4])};
  }
  HG_BOTH Dot dot_of(const double* dot) const { return {Base::dot_of(dot), static_cast<T>(dot[4])}; }

  template <class V>
  HG_BOTH void value(const V (&x)[kStates], V (&y)[kNext]) const {
    Base::value(x, y);
    y[0] = y[0] - this->lr * (decay * x[0]);
  }

  template <class V>
  HG_BOTH void jvp(const Dot& dot, const V (&x)[kStates], const V (&x_dot)[kStates], V (&y_dot)[kNext]) const {
    Base::jvp(dot, x, x_dot, y_dot);
    y_dot[0] = y_dot[0] - this->lr * (decay * x_dot[0] + dot.decay * x[0]) - dot.lr * (decay * x[0]);
  }

  template <class V>
  HG_BOTH void vjp(const V (&x)[kStates], const V (&y_bar)[kNext], V (&x_bar)[kStates], V* field_bar) const {
    Base::vjp(x, y_bar, x_bar, field_bar);
    const V step_bar = -(this->lr * y_bar[0]);
    x_bar[0] = x_bar[0] + decay * step_bar;
    field_bar[0] = field_bar[0] - y_bar[0] * (decay * x[0]);
    field_bar[4] = step_bar * x[0];
  }
};

// s' = keep s + add g^2,  v' = momentum v + u,  w' = w - lr v', where u = g / sqrt(s' + eps), keep = decay and add = 1 - decay.
template <class T>
struct Rmsprop {
  using Element = T;
  static constexpr int kStates = 4, kNext = 3, kFields = 4;
  static constexpr const char *kNames[] = {"w", "s", "v", "g"}, *kNextNames[] = {"w", "s", "v"};
  static constexpr const char* kFieldNames[] = {"lr", "decay", "eps", "momentum"};

  T lr, keep, add, eps, momentum;

  struct Dot {
    T lr, decay, eps, momentum;
  };

  static HG_BOTH Rmsprop of(const double* field, unsigned, double) {
    return {static_cast<T>(field[0]), static_cast<T>(field[1]), static_cast<T>(1 - field[1]), static_cast<T>(field[2]),
            static_cast<T>(field[3])};
  }
  HG_BOTH Dot dot_of(const double* dot) const {
    return {static_cast<T>(dot[0]), static_cast<T>(dot[1]), static_cast<T>(dot[2]), static_cast<T>(dot[3])};
  }

  template <class V>
  struct Terms {
    V s, v, u, root;  // after the step; root = (s + eps)^-1/2
  };
  template <class V>
  HG_BOTH Terms<V> terms(const V (&x)[kStates]) const {
    Terms<V> a;
    a.s = keep * x[1] + add * (x[3] * x[3]);
    a.root = inverse_root(V(a.s + eps));
    a.u = x[3] * a.root;
    a.v = momentum * x[2] + a.u;
    return a;
  }

  template <class V>
  HG_BOTH void value(const V (&x)[kStates], V (&y)[kNext]) const {
    const Terms<V> a = terms(x);
    y[0] = x[0] - lr * a.v;
    y[1] = a.s;
    y[2] = a.v;
  }

  template <class V>
  HG_BOTH void jvp(const Dot& dot, const V (&x)[kStates], const V (&x_dot)[kStates], V (&y_dot)[kNext]) const {
    const Terms<V> a = terms(x);
    const V s_dot = keep * x_dot[1] + 2 * add * (x[3] * x_dot[3]) + dot.decay * (x[1] - x[3] * x[3]);
    const V u_dot = (x_dot[3] - T(0.5) * a.u * (s_dot + dot.eps) * a.root) * a.root;
    const V v_dot = momentum * x_dot[2] + dot.momentum * x[2] + u_dot;
    y_dot[0] = x_dot[0] - lr * v_dot - dot.lr * a.v;
    y_dot[1] = s_dot;
    y_dot[2] = v_dot;
  }

  template <class V>
  HG_BOTH void vjp(const V (&x)[kStates], const V (&y_bar)[kNext], V (&x_bar)[kStates], V* field_bar) const {
    const Terms<V> a = terms(x);
    const V v_bar = y_bar[2] - lr * y_bar[0];
    const V q_bar = T(-0.5) * v_bar * a.u * (a.root * a.root);
    const V s_bar = y_bar[1] + q_bar;
    x_bar[0] = y_bar[0];
    x_bar[1] = keep * s_bar;
    x_bar[2] = momentum * v_bar;
    x_bar[3] = v_bar * a.root + 2 * add * (x[3] * s_bar);
    field_bar[0] = -(y_bar[0] * a.v);
    field_bar[1] = s_bar * (x[1] - x[3] * x[3]);
    field_bar[2] = q_bar;
    field_bar[3] = v_bar * x[2];
  }
};

// s' = s + g^2,  w' = w - lr g / sqrt(s' + eps): RMSprop that keeps all and has no velocity.
template <class T>
struct Adagrad : Rmsprop<T> {
  using Base = Rmsprop<T>;
  using Base::kNext, Base::kStates;
  using typename Base::Dot;
  static constexpr int kFields = 2;
  static constexpr const char* kFieldNames[] = {"lr", "eps"};

  static HG_BOTH Adagrad of(const double* field, unsigned, double) {
    return {{static_cast<T>(field[0]), 1, 1, static_cast<T>(field[1]), 0}};
  }
  HG_BOTH Dot dot_of(const double* dot) const { return {static_cast<T>(dot[0]), 0, static_cast<T>(dot[1]), 0}; }

  template <class V>
  HG_BOTH void vjp(const V (&x)[kStates], const V (&y_bar)[kNext], V (&x_bar)[kStates], V* field_bar) const {
    V all[Base::kFields];
    Base::vjp(x, y_bar, x_bar, all);
    field_bar[0] = all[0];
    field_bar[1] = all[2];
  }
};

// Places in signature S of the arguments with these names and the suffix; -1 where it has none.
template <int n>
struct Places {
  int of[n];
  constexpr int count() const {
    int found = 0;
    for (const int place : of) found += place >= 0;
    return found;
  }
};
template <class S, int n>
constexpr Places<n> places(const char* const (&names)[n], const char* suffix) {
  Places<n> all{};
  for (int i = 0; i < n; ++i) all.of[i] = find(S::signature.arrays, names[i], suffix);
  return all;
}

// Places of the attributes with these names.
template <class S, int n>
constexpr Places<n> attribute_places(const char* const (&names)[n]) {
  Places<n> all{};
  for (int i = 0; i < n; ++i) all.of[i] = find(S::signature.attributes, names[i]);
  return all;
}

// Where the kernels of optimiser O with signature S find what they read and write; every argument is among it.
template <class O, class S>
struct Arguments {
  static constexpr auto x = places<S>(O::kNames, ""), x_dot = places<S>(O::kNames, "_dot"), x_bar = places<S>(O::kNames, "_bar");
  static constexpr auto y = places<S>(O::kNextNames, "_next"), y_dot = places<S>(O::kNextNames, "_next_dot"),
                        y_bar = places<S>(O::kNextNames, "_next_bar");
  static constexpr auto field = places<S>(O::kFieldNames, ""), field_dot = places<S>(O::kFieldNames, "_dot"),
                        field_bar = places<S>(O::kFieldNames, "_bar");
  static_assert(x.count() + x_dot.count() + x_bar.count() + y.count() + y_dot.count() + y_bar.count() + field.count() + field_dot.count() +
                        field_bar.count() ==
                    count(S::signature.arrays),
                "an argument that nothing reads");
};

// Data of element i of the list at `place`; null where it is absent.
template <class T>
inline T* data_of(const Call& call, int place, int i) {
  if (place < 0) return nullptr;
  const View& view = call.arrays[call.first[place] + i];
  return view.ndim < 0 ? nullptr : static_cast<T*>(view.data);
}
// Elements of leaf i, as its gradient, its next weights or (below their first axis) its terms have, one of which is given in every call.
template <class S>
inline int64_t leaf_size(const Call& call, int i) {
  constexpr int kGradient = find(S::signature.arrays, "g"), kNext = find(S::signature.arrays, "w", "_next"),
                kTerms = find(S::signature.arrays, "x"),
                kGiven = kGradient >= 0 ? kGradient
                         : kNext >= 0   ? kNext
                                        : kTerms;
  static_assert(kGiven >= 0, "the signature has a gradient, next weights or terms");
  const View& view = call.arrays[call.first[kGiven] + i];
  int64_t size = 1;
  for (int d = kGiven == kTerms ? 1 : 0; d < view.ndim; ++d) size *= view.shape[d];
  return size;
}

}  // namespace hg::HG_SPACE

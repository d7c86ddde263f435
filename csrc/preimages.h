// The two maps of a step of momentum SGD, and the floats that a map sends to a given one; written once for the host and for CUDA.
//
// Floats are taken as whole numbers in their order, neighbours for neighbours, where both zeros are 0. A map never decreases. So the
// floats that it sends to an image are the numbers first .. next - 1, where `first` is the lowest number whose image is that one or
// more, and `next` the lowest whose image is more. Arithmetic on the reals says where they are up to one place; the map itself decides.
#pragma once
#include <cstring>

#include "optimizer_step.h"

#if defined(HG_SIMD)
#define HG_HERE HG_INLINE
#else
#define HG_HERE HG_DEVICE
#endif

namespace hg::HG_SPACE {

// V is float, double or on the host a vector of them. Whole and Word are integers as large as its elements, with sign and without.
template <class V>
struct Numbers;
template <>
struct Numbers<float> {
  using Element = float;
  using Whole = std::int32_t;
  using Word = std::uint32_t;
};
template <>
struct Numbers<double> {
  using Element = double;
  using Whole = std::int64_t;
  using Word = std::uint64_t;
};
#if defined(HG_SIMD)
template <>
struct Numbers<Vec<float>> {
  using Element = float;
  using Whole = Mask<float>;
  typedef std::uint32_t Word __attribute__((vector_size(HG_VECTOR_BYTES)));
};
template <>
struct Numbers<Vec<double>> {
  using Element = double;
  using Whole = Mask<double>;
  typedef std::uint64_t Word __attribute__((vector_size(HG_VECTOR_BYTES)));
};
#endif
template <class V>
using Whole = typename Numbers<V>::Whole;
template <class V>
using Word = typename Numbers<V>::Word;

template <class To, class From>
HG_HERE To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "the same size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

template <class T>
struct Floats {
  using W = typename Numbers<T>::Whole;
  static constexpr W kZero = static_cast<W>(typename Numbers<T>::Word(1) << (8 * sizeof(T) - 1));  // the bits of -0
  static constexpr W kMagnitude = ~kZero;
  static constexpr W kOne = 1;
  static constexpr W kInfinity = static_cast<W>(sizeof(T) == 4 ? 0x7f800000ll : 0x7ff0000000000000ll);  // its bits and its number
};

// a - b without end: a vector computes both sides of a choice, also where the side that is not taken has no room for its result.
template <class V>
HG_HERE Whole<V> wrapped_difference(Whole<V> a, Whole<V> b) {
  return same_bits<Whole<V>>(same_bits<Word<V>>(a) - same_bits<Word<V>>(b));
}

template <class V>
HG_HERE Whole<V> number_of(V x) {
  using F = Floats<typename Numbers<V>::Element>;
  const Whole<V> bits = same_bits<Whole<V>>(x);
  return bits < 0 ? -(bits & F::kMagnitude) : bits;
}
template <class V>
HG_HERE V float_of(Whole<V> n) {
  using F = Floats<typename Numbers<V>::Element>;
  return same_bits<V>(n < 0 ? wrapped_difference<V>(Whole<V>{} + F::kZero, n) : n);
}

// v itself. The compiler does not see that: it would take a product that all places of a search share out of the search, and then
// no longer join it with the sum that follows, as it does in the step.
#if defined(__CUDACC__)
HG_HERE float hidden(float v) {
  asm volatile("" : "+f"(v));
  return v;
}
HG_HERE double hidden(double v) {
  asm volatile("" : "+d"(v));
  return v;
}
#else
template <class V>
HG_HERE V hidden(V v) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(v));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+m"(v));
#endif
  return v;
}
#endif

#ifndef HG_SIMD
HG_HERE bool any(bool lane) { return lane; }
#endif

// What a step of the map's kind leaves open: the reals that are rounded to the image are `middle` + (rest -+ reach) / slope.
template <class V>
struct Estimate {
  V middle, rest;
  typename Numbers<V>::Element slope;
};

// The distance from |x| to the next float.
template <class V>
HG_HERE V spacing(V x) {
  using T = typename Numbers<V>::Element;
  const Word<V> bits = same_bits<Word<V>>(x) & static_cast<typename Numbers<T>::Word>(Floats<T>::kMagnitude);
  return same_bits<V>(bits + 1) - same_bits<V>(bits);
}

// a + b rounded, and what rounding took (Knuth 1969).
template <class V>
HG_HERE V sum(V a, V b, V& rest) {
  const V s = a + b, own = s - a;
  rest = (a - (s - own)) + (b - own);
  return s;
}

// w -> w' at the velocity v'. 1*v' + (-0) is v' itself, so the step takes it as the next velocity.
template <class T>
struct WeightMap {
  using Element = T;
  static constexpr int kGiven = 1, kFields = 1;
  static constexpr const char *kGivenNames[] = {"v_next"}, *kFieldNames[] = {"lr"};
  static constexpr const char *kFromNames[] = {"w"}, *kToNames[] = {"w_next"};

  Sgd<T> step;

  static HG_BOTH WeightMap of(const double* field, unsigned, double) { return {{static_cast<T>(field[0]), 1, 0, false, false}}; }

  template <class V>
  HG_HERE V shared(const V (&given)[kGiven]) const {
    return given[0];
  }
  template <class V>
  HG_HERE V operator()(V w, V v_next) const {
    const V x[] = {hidden(w), hidden(v_next), -V{}};
    V y[2];
    step.value(x, y);
    return hidden(y[0]);
  }
  template <class V>
  HG_HERE Estimate<V> estimate(V image, V v_next) const {
    Estimate<V> a{image, V{}, 1};
    const V move = step.lr * v_next;
    a.middle = sum(image, move, a.rest);
    a.rest += step.lr * v_next - move;  // one rounding where the two are joined
    return a;
  }
};

// v -> v' at the weight and its gradient. All v share the gradient with what the weight's decay adds.
template <class T>
struct VelocityMap {
  using Element = T;
  static constexpr int kGiven = 2, kFields = 2;
  static constexpr const char *kGivenNames[] = {"w", "g"}, *kFieldNames[] = {"momentum", "weight_decay"};
  static constexpr const char *kFromNames[] = {"v"}, *kToNames[] = {"v_next"};

  Sgd<T> step, plain;

  static HG_BOTH VelocityMap of(const double* field, unsigned given, double) {
    const T momentum = static_cast<T>(field[0]);
    return {{0, momentum, static_cast<T>(field[1]), (given & 2u) != 0 || field[1] != 0, false}, {0, momentum, 0, false, false}};
  }

  template <class V>
  HG_HERE V shared(const V (&given)[kGiven]) const {
    const V x[] = {given[0], V{}, given[1]};
    return hidden(step.decayed(x));
  }
  template <class V>
  HG_HERE V operator()(V v, V g) const {
    const V x[] = {V{}, hidden(v), hidden(g)};
    V y[2];
    plain.value(x, y);
    return hidden(y[1]);
  }
  template <class V>
  HG_HERE Estimate<V> estimate(V image, V g) const {
    Estimate<V> a{V{}, V{}, step.momentum};
    const V moved = sum(image, -g, a.rest);
    a.middle = moved / step.momentum;
    a.rest += moved - step.momentum * a.middle;
    return a;
  }
};

// `numbers` + offset, rounded down but for offsets that lack little of a whole number. Large ones are cut off.
template <class V>
HG_HERE Whole<V> moved(Whole<V> numbers, V offset) {
  using T = typename Numbers<V>::Element;
  constexpr T kMost = T(1 << 20);
  constexpr T kWhole = T(3ll << (sizeof(T) == 4 ? 22 : 51));  // added to a small number, it leaves no room for a fraction
  const V least = V{} - kMost, most = V{} + kMost;
  offset = offset < most ? (offset > least ? offset : least) : most;  // of NaN, too
  return numbers + (same_bits<Whole<V>>(V(offset - T(0.499)) + kWhole) - same_bits<Whole<V>>(V{} + kWhole));
}

// The lowest number whose image is `image` or more, with kAbove more. It is `at` or the next, or else searched for.
template <bool kAbove, class V, class Map>
HG_HERE Whole<V> edge(const Map& map, V image, V shared, Whole<V> at) {
  using F = Floats<typename Numbers<V>::Element>;
  const auto reached = [&](Whole<V> number) {
    const V y = map(float_of<V>(number), shared);
    return kAbove ? y > image : y >= image;
  };
  const auto below = reached(at - 1), here = reached(at), above = reached(at + 1);
  Whole<V> high = here ? at : at + 1, low = high - 1;  // the edge lies in (low, high]
  auto open = below | !above;
  if (!any(open)) return high;
  const Whole<V> least = Whole<V>{} - F::kInfinity, most = Whole<V>{} + F::kInfinity;
  const auto down = below;
  high = down ? at - 1 : high;
  low = above ? low : at + 1;
  for (auto step = F::kOne; any(open); step = step < F::kInfinity / 8 ? 4 * step : F::kInfinity) {  // farther and farther away
    Whole<V> next = down ? high - (high > least + step ? Whole<V>{} + step : wrapped_difference<V>(high, least))
                         : low + (low < most - step ? Whole<V>{} + step : wrapped_difference<V>(most, low));
    const auto yes = reached(next), no = !yes;
    high = open & yes ? next : high;
    low = open & no ? next : low;
    open = open & (down ? yes & (next > least) : no & (next < most));
  }
  while (any(low + 1 < high)) {
    const Whole<V> middle = (low >> 1) + (high >> 1) + (low & high & 1);
    const auto yes = reached(middle);
    high = yes ? middle : high;
    low = yes ? low : middle;
  }
  return high;
}

// What a map sends to `image`: the first number, and how many there are beside it. There is one at least where the image is of the map.
template <class V>
struct Preimages {
  Whole<V> first;
  Word<V> rest;
};
template <class V, class Map>
HG_HERE Preimages<V> preimages(const Map& map, V image, V shared) {
  using F = Floats<typename Numbers<V>::Element>;
  constexpr auto kMost = F::kInfinity - (F::kOne << 22);  // no offset leads beyond infinity
  const Estimate<V> a = map.estimate(image, shared);
  const V place = spacing(a.middle) * a.slope, reach = spacing(image) * typename Numbers<V>::Element(0.5);
  Whole<V> at = number_of(a.middle);  // of NaN, too
  at = at < kMost ? (at > -kMost ? at : Whole<V>{} - kMost) : Whole<V>{} + kMost;
  const Whole<V> first = edge<false>(map, image, shared, moved<V>(at, (a.rest - reach) / place));
  const Whole<V> next = edge<true>(map, image, shared, moved<V>(at, (a.rest + reach) / place));
  return {first, same_bits<Word<V>>(next) - same_bits<Word<V>>(first) - 1};
}

}  // namespace hg::HG_SPACE

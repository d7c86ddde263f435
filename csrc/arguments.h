// What a kernel was given, by name and checked by the compiler. A kernel is a template over the element type T and its
// signature S that takes `call`. Included where HG_SPACE names the kernels' namespace, which has `batch`.
#pragma once
#include "registry.h"

namespace hg::HG_SPACE {

// Typed as the signature says, `const` for an input; null where it is absent.
template <class T, class S, int kIndex>
static auto argument(const Call& call) {
  static_assert(kIndex >= 0, "the kernel's signature has no argument of this name");
  constexpr Slot kSlot = slot_of(S::signature, kIndex);
  using Plain = std::conditional_t<kSlot.type == 'u', unsigned char, std::conditional_t<kSlot.type == 'i', std::int64_t, T>>;
  return batch<std::conditional_t<kSlot.output, Plain, const Plain>>(call.arrays[call.first[kIndex]], kSlot.lead);
}

template <int kIndex>
static double attribute(const Call& call) {
  static_assert(kIndex >= 0, "the kernel's signature has no attribute of this name");
  return call.attributes[kIndex];
}

// Length of an axis; 0 where the call does not say it, and without `kNeeded` where the signature does not have it.
template <class S, char kAxis, bool kNeeded = true>
static std::int64_t dim(const Call& call) {
  static_assert(!kNeeded || has_axis(S::signature, kAxis), "the kernel's signature has no such axis");
  return call.dims[static_cast<int>(kAxis)] < 0 ? 0 : call.dims[static_cast<int>(kAxis)];
}

}  // namespace hg::HG_SPACE

// f(a) f(b) ... for up to 32 names.
#define HG_EACH(f, ...) HG_SCAN(HG_EACH_NEXT(f, __VA_ARGS__))
#define HG_EACH_NEXT(f, name, ...) f(name) __VA_OPT__(HG_EACH_AGAIN HG_NOTHING()()(f, __VA_ARGS__))
#define HG_EACH_AGAIN() HG_EACH_NEXT
#define HG_NOTHING()
#define HG_SCAN(...) HG_SCAN_4(HG_SCAN_4(HG_SCAN_4(HG_SCAN_4(__VA_ARGS__))))
#define HG_SCAN_4(...) HG_SCAN_2(HG_SCAN_2(HG_SCAN_2(HG_SCAN_2(__VA_ARGS__))))
#define HG_SCAN_2(...) HG_SCAN_1(HG_SCAN_1(__VA_ARGS__))
#define HG_SCAN_1(...) __VA_ARGS__

#define HG_ARG(name) ::hg::HG_SPACE::argument<T, S, ::hg::find(S::signature.arrays, #name)>(call)
// Declares a constant for every argument named.
#define HG_ARGS(...) HG_EACH(HG_DECLARE_, __VA_ARGS__)
#define HG_DECLARE_(name) const auto name = HG_ARG(name);
// Sets the members of `a` of these names.
#define HG_MEMBERS(...) HG_EACH(HG_SET_, __VA_ARGS__)
#define HG_SET_(name) a.name = HG_ARG(name);
#define HG_ATTRIBUTE(name) ::hg::HG_SPACE::attribute<::hg::find(S::signature.attributes, #name)>(call)
#define HG_INTEGER(name) static_cast<std::int64_t>(HG_ATTRIBUTE(name))
#define HG_DIM(axis) ::hg::HG_SPACE::dim<S, #axis[0]>(call)
#define HG_DIM_IF_ANY(axis) ::hg::HG_SPACE::dim<S, #axis[0], false>(call)

// The kernel table. A source file registers its kernels with HG_KERNEL; there is no central list.
#pragma once
#include "view.h"

namespace hg {

// Declares a kernel's arguments. `arrays` reads "x=E|NHWC w=E|33CK -> y=E|NhwK code:u8=E|NhwK":
// name, optional `?` (the argument may be absent: a 1-d array of size 0), optional `*` (a list), optional `:u8` or
// `:i64` (otherwise the call's float32 or float64), and one letter or digit per axis. Input axes before `|` may have
// any stride, those after it are C-contiguous; outputs are C-contiguous throughout. Equal capital letters are equal
// sizes; h = H/2, w = W/2, g = 9*C. `attributes` reads "stride:int eps:float".
//
// A list, "w*=~ lr?*= w_dot?*=P~ -> lr_bar?=n", is n arrays in a row, n the same for all lists of a call; `?` holds for
// each of them. A last axis `~` stands for any number of axes, the same for element i of every list with `~`. The
// letter n is the length of the lists.
struct Signature {
  const char* name;
  const char* arrays;
  const char* attributes;
};

using Launcher = void (*)(const Call& call);

// Instruction sets a kernel may be compiled for, in rising order.
enum Level : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kLevels = 3 };

struct Register {
  Register(const Signature* signature, Level level, Launcher launcher);
};

}  // namespace hg

#ifndef HG_LEVEL
#define HG_LEVEL ::hg::kBaseline
#endif
#define HG_KERNEL(name, function) \
  static const ::hg::Register hg_register_##name { &::hg::signatures::name, HG_LEVEL, function }

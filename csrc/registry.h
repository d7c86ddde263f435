// Signatures of kernels, what a kernel asks its own signature at compile time, and registration. A host source states its
// kernels' signatures with HG_SIGNATURE, its CUDA twin includes them, and both register with HG_KERNEL: there is no list.
#pragma once
#include <type_traits>

#include "levels.h"
#include "view.h"

namespace hg {

// `arrays` reads "x=E|NHWC w=E|33CK -> y=E|NhwK code:u8=E|NhwK": name, optional `?` (it may be absent), optional `*` (a
// list), optional `:u8` or `:i64` (otherwise the call's float32 or float64), and one letter or digit per axis. Equal
// letters are equal sizes. Input axes before `|` may have any stride, those after it are C-contiguous; outputs are
// C-contiguous throughout. A list, "w*=~ lr?*= w_dot?*=P~ -> lr_bar?=n", has n arrays, n the same for all lists of a call;
// `?` holds for each of them. A last axis `~` stands for any number of axes, the same for element i of every list with `~`.
//
// `attributes` reads "stride:1..8 eps:float>=0 lr:float": whole numbers within bounds, or floating-point numbers.
// `derived` reads "h=H/2 Q=(W+2*pad_w-S)/stride+1": axes that follow from others and from attributes; / rounds down.
struct Signature {
  const char* name;
  const char* arrays;
  const char* attributes = "";
  const char* derived = "";
};

// --- A signature read by the compiler ---

// Where `word` goes on after name and suffix; null where it begins with another name.
constexpr const char* after_name(const char* word, const char* name, const char* suffix) {
  for (; *name != 0 && *word == *name; ++name) ++word;
  if (*name != 0) return nullptr;
  for (; *suffix != 0 && *word == *suffix; ++suffix) ++word;
  const bool ends = *word == '?' || *word == '*' || *word == ':' || *word == '=';
  return *suffix == 0 && ends ? word : nullptr;
}
constexpr const char* next_word(const char* text) {
  while (*text != 0 && *text != ' ') ++text;
  while (*text == ' ') ++text;
  return text;
}
// Place of the argument, or attribute, of this name among `words`; -1 where there is none.
constexpr int find(const char* words, const char* name, const char* suffix = "") {
  int index = 0;
  for (; *words != 0; words = next_word(words)) {
    if (after_name(words, name, suffix) != nullptr) return index;
    index += *words != '-';  // all but `->`
  }
  return -1;
}
constexpr int count(const char* words) {
  int n = 0;
  for (; *words != 0; words = next_word(words)) n += *words != '-';
  return n;
}

// What the signature says of argument `index`.
struct Slot {
  char type = 'f';  // or the first letter of u8 and i64
  int lead = 0;     // axes before `|`
  bool output = false;
};
constexpr Slot slot_of(const Signature& signature, int index) {
  Slot slot;
  const char* word = signature.arrays;
  for (; *word != 0; word = next_word(word)) {
    if (*word == '-')
      slot.output = true;
    else if (index-- == 0)
      break;
  }
  for (; *word != 0 && *word != '='; ++word)
    if (*word == ':') slot.type = word[1];
  for (const char* const axes = word + 1; *word != 0 && *word != ' '; ++word)
    if (*word == '|') slot.lead = static_cast<int>(word - axes);
  return slot;
}
constexpr bool has_axis(const Signature& signature, char axis) {
  bool axes = false;
  for (const char* at = signature.arrays; *at != 0; ++at) {
    if (axes && *at == axis) return true;
    axes = *at == '=' || (axes && *at != ' ');
  }
  return false;
}

// --- Registration ---

using Launcher = void (*)(const Call& call);

struct Register {
  Register(const Signature* signature, Level level, Launcher launcher);
};

}  // namespace hg

#ifndef HG_LEVEL
#define HG_LEVEL ::hg::kBaseline
#endif

// At namespace scope: HG_SIGNATURE(name, arrays[, attributes[, derived]]). The type signatures::name stands for the kernel.
#define HG_SIGNATURE(kernel, ...)                                     \
  namespace hg::signatures {                                          \
  struct kernel {                                                     \
    static constexpr ::hg::Signature signature{#kernel, __VA_ARGS__}; \
  };                                                                  \
  }

// Registers `function`, a template over the element type and the signature (and what follows) that takes a Call.
#define HG_KERNEL(kernel, function, ...)                                                                                                   \
  static const ::hg::Register hg_register_##kernel{&::hg::signatures::kernel::signature, HG_LEVEL, [](const ::hg::Call& hg_call) {         \
                                                     hg_call.dtype == ::hg::DType::f32                                                     \
                                                         ? function<float, ::hg::signatures::kernel __VA_OPT__(, ) __VA_ARGS__>(hg_call)   \
                                                         : function<double, ::hg::signatures::kernel __VA_OPT__(, ) __VA_ARGS__>(hg_call); \
                                                   }};

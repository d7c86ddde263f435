// Stacks that are switched by hand: the x86-64 calling convention in a few instructions, ucontext elsewhere.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace hg::emulator {

constexpr std::size_t kStackBytes = 256 << 10;

struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t state;
#endif
};

// Makes `context` start `entry` (which never returns) on the stack [stack, stack + kStackBytes).
void prepare(Context& context, char* stack, void (*entry)());
// Saves the running context in `from` and continues `to`.
void switch_context(Context& from, Context& to);

// A stack with an unmapped page below it.
char* new_stack();
void delete_stack(char* stack);

}  // namespace hg::emulator

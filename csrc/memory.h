// Memory of arrays that is kept for the next array of about the same size. What the system gives is cleared, page by page, when
// it is first written, and that takes as long as a cheap kernel.
//
// With what is in use, what is kept stays below five quarters of the most that was ever in use at once. The quarter is for sizes that take
// turns: without it, steps that repeat would return memory and ask for it again.
#pragma once
#include <cstddef>

namespace hg {

constexpr std::size_t kLeastKept = 1 << 14;  // bytes; smaller blocks come from malloc and go back to it

// Contents undefined; null where there is no memory. Aligned to 64 bytes, or as malloc does where it is small.
void* take_memory(std::size_t bytes);
void give_memory(void* block);
void* resize_memory(void* block, std::size_t bytes);

struct MemoryUse {
  std::size_t used, kept, most;  // bytes in use, bytes kept, most in use so far; of blocks that are not small
};
MemoryUse memory_use();
void release_memory();  // gives what is kept back to the system; `most` begins again

// A block from the system, aligned to 64 bytes; null where there is none. A large one is a mapping of its own, which leaves no gap in the
// heap when it goes: malloc keeps such gaps for smaller blocks.
void* system_block(std::size_t bytes);
void free_system_block(void* block, std::size_t bytes);

}  // namespace hg

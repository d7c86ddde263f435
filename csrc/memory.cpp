#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hg {
namespace {

// Before the memory of a large block; a small one has the last two numbers alone.
struct Header {
  std::uint64_t unused[6];
  std::uint64_t freed;  // when
  std::size_t room;     // bytes after the header
};
static_assert(sizeof(Header) == 64, "keeps the alignment");
constexpr std::size_t kSmallHeader = 16;  // what malloc aligns to
Header* header_of(void* memory) { return static_cast<Header*>(memory) - 1; }

struct Pool {
  std::mutex mutex;
  std::multimap<std::size_t, Header*> blocks;  // by room
  std::size_t used = 0, kept = 0, most = 0;
  std::uint64_t clock = 0;

  void drop(std::multimap<std::size_t, Header*>::iterator block) {
    kept -= block->first;
    free_system_block(block->second, sizeof(Header) + block->first);
    blocks.erase(block);
  }
  // Frees the blocks that have been unused for longest, until no more than `bytes` are kept.
  void shrink(std::size_t bytes) {
    while (kept > bytes)
      drop(std::min_element(blocks.begin(), blocks.end(), [](const auto& a, const auto& b) { return a.second->freed < b.second->freed; }));
  }
};

// Never destroyed: arrays may live until the process ends.
Pool& pool() {
  static Pool* const one = new Pool;
  return *one;
}

// Whole steps of a thirty-second to a sixteenth of the size, so that blocks of nearly the same size serve each other.
std::size_t room_for(std::size_t bytes) {
  std::size_t step = 4096;
  while (step * 32 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

Header* new_block(std::size_t room) {
  auto* const block = static_cast<Header*>(system_block(sizeof(Header) + room));
  if (block != nullptr) block->room = room;
  return block;
}

#if defined(__SANITIZE_ADDRESS__) || !defined(__linux__)
constexpr std::size_t kLeastMapped = SIZE_MAX;  // the sanitizer sees no overflow of a mapping
#else
constexpr std::size_t kLeastMapped = 1 << 18;  // bytes
#endif

}  // namespace

void* system_block(std::size_t bytes) {
#if defined(__linux__)
  if (bytes >= kLeastMapped) {
    void* const block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return nullptr;
    constexpr std::size_t kHuge = 1 << 21;  // bytes of a large page
    if (bytes >= 2 * kHuge) madvise(block, bytes / kHuge * kHuge, MADV_HUGEPAGE);
    return block;
  }
#endif
  return std::aligned_alloc(sizeof(Header), (bytes + sizeof(Header) - 1) / sizeof(Header) * sizeof(Header));
}

void free_system_block(void* block, std::size_t bytes) {
#if defined(__linux__)
  if (bytes >= kLeastMapped) {
    munmap(block, bytes);
    return;
  }
#endif
  std::free(block);
}

void* take_memory(std::size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  if (bytes < kLeastKept) {
    char* const block = static_cast<char*>(std::malloc(kSmallHeader + bytes));
    if (block == nullptr) return nullptr;
    header_of(block + kSmallHeader)->room = bytes;
    return block + kSmallHeader;
  }
  const std::size_t room = room_for(bytes);
  Pool& shared = pool();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  Header* block = nullptr;
  const auto found = shared.blocks.lower_bound(room);
  if (found != shared.blocks.end() && found->first <= room + room / 8) {
    block = found->second;
    shared.kept -= found->first;
    shared.blocks.erase(found);
  } else {
    const std::size_t all = shared.used + room;
    shared.shrink(shared.most > all ? shared.most - all : 0);
    block = new_block(room);
    if (block == nullptr) {
      shared.shrink(0);
      block = new_block(room);
    }
    if (block == nullptr) return nullptr;
  }
  shared.used += block->room;
  shared.most = std::max(shared.most, shared.used);
  return block + 1;
}

void give_memory(void* memory) {
  if (memory == nullptr) return;
  Header* const block = header_of(memory);
  if (block->room < kLeastKept) return std::free(static_cast<char*>(memory) - kSmallHeader);
  Pool& shared = pool();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  shared.used -= block->room;
  shared.kept += block->room;
  block->freed = ++shared.clock;
  shared.blocks.emplace(block->room, block);
}

void* resize_memory(void* memory, std::size_t bytes) {
  if (memory == nullptr) return take_memory(bytes);
  void* const other = take_memory(bytes);
  if (other == nullptr) return nullptr;
  std::memcpy(other, memory, std::min(bytes, header_of(memory)->room));
  give_memory(memory);
  return other;
}

MemoryUse memory_use() {
  Pool& shared = pool();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  return {shared.used, shared.kept, shared.most};
}

void release_memory() {
  Pool& shared = pool();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  shared.shrink(0);
  shared.most = shared.used;
}

}  // namespace hg

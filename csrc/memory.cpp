#include "memory.h"

#include <algorithm>
#include <atomic>
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

struct Header;
using Blocks = std::multimap<std::size_t, Header*>;

// Before the memory of a large block; a small one has the last number alone.
struct Header {
  Blocks::iterator place;  // among the kept ones
  Header *older, *newer;   // neighbours in the order in which they were freed
  std::uint64_t unused[4];
  std::size_t room;  // bytes after the header
};
static_assert(sizeof(Header) == 64, "keeps the alignment");
constexpr std::size_t kSmallHeader = 16;  // what malloc aligns to
Header* header_of(void* memory) { return static_cast<Header*>(memory) - 1; }

struct Pool {
  std::mutex mutex;
  Blocks blocks;  // by room; of equal ones, the last that was freed comes first, as caches may still hold it
  Header *oldest = nullptr, *newest = nullptr;
  std::size_t used = 0, kept = 0, most = 0;

  void keep(Header* block) {
    kept += block->room;
    block->place = blocks.emplace_hint(blocks.lower_bound(block->room), block->room, block);
    block->older = newest;
    block->newer = nullptr;
    (newest != nullptr ? newest->newer : oldest) = block;
    newest = block;
  }
  void take(Header* block) {
    kept -= block->room;
    blocks.erase(block->place);
    (block->older != nullptr ? block->older->newer : oldest) = block->newer;
    (block->newer != nullptr ? block->newer->older : newest) = block->older;
  }
  // Frees the blocks that have been unused for longest, until no more than `bytes` are kept.
  void shrink(std::size_t bytes) {
    while (kept > bytes) {
      Header* const block = oldest;
      take(block);
      free_system_block(block, sizeof(Header) + block->room);
    }
  }
};

// Never destroyed: arrays may live until the process ends.
Pool& pool() {
  static Pool* const one = new Pool;
  return *one;
}

// Whole steps of a thirty-second to a sixteenth of the size, so that blocks of nearly the same size serve each other.
std::size_t room_for(std::size_t bytes) {
  std::size_t step = kLeastKept / 32;
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
constexpr std::size_t kPage = 4096;  // no more than a page has

}  // namespace

void* system_block(std::size_t bytes) {
#if defined(__linux__)
  if (bytes >= kLeastMapped) {
    void* const all = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    // Arrays that begin at the same place of a page would take the same lines of the cache.
    static std::atomic<std::size_t> count{0};
    char* const block = static_cast<char*>(all) + count.fetch_add(5) % 16 * (kPage / 16);
    constexpr std::size_t kHuge = 1 << 21;  // bytes of a large page
    if (bytes >= 2 * kHuge) madvise(all, bytes / kHuge * kHuge, MADV_HUGEPAGE);
    return block;
  }
#endif
  return std::aligned_alloc(sizeof(Header), (bytes + sizeof(Header) - 1) / sizeof(Header) * sizeof(Header));
}

void free_system_block(void* block, std::size_t bytes) {
#if defined(__linux__)
  if (bytes >= kLeastMapped) {
    char* const all = static_cast<char*>(block) - reinterpret_cast<std::uintptr_t>(block) % kPage;
    munmap(all, bytes + kPage);
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
  if (found != shared.blocks.end() && found->first <= room + room / 4) {
    block = found->second;
    shared.take(block);
  } else {
    const std::size_t all = shared.used + room;
    const std::size_t limit = shared.most + shared.most / 4;
    shared.shrink(limit > all ? limit - all : 0);
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
  shared.keep(block);
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

// The emulator's scheduler. Never compiled with -fsanitize=thread: it tells ThreadSanitizer what synchronizes by hand. Code that runs on a
// fiber uses no containers and no memset, because the linker or the sanitizer would put instrumented ones in their place.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>

#include "emulator.h"
#include "fiber.h"

extern "C" {  // sanitizer hooks; weak, so that this object links with every build
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* bottom, std::size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* save, const void** bottom, std::size_t* size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, std::size_t size);
}

namespace hg::emulator {
namespace {

constexpr unsigned kMostThreads = 1024, kWarp = 32;
constexpr int kMostCopies = 64, kMostMasks = 8, kMostPieces = 16;
constexpr std::size_t kGuard = 64, kLastFrames = 16 << 10;
constexpr unsigned char kGuardByte = 0xa5, kPoison = 0xff;  // all ones: a NaN in every floating-point type
constexpr unsigned kNoSync = 1;                             // switching fibers is no synchronization of its own

// A barrier of some threads. Two tags alternate, so that a fast thread's next arrival is not seen by a slow one.
struct Meeting {
  unsigned arrived = 0, generation = 0, mask = 0;
  const char* file = nullptr;
  int line = 0;
  char tag[2] = {};
};

struct Copy {
  void* to;
  const void* from;
  int group;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  void *fake_stack = nullptr, *tsan = nullptr;
  dim3 index;
  unsigned number = 0;
  bool done = true;
  const Meeting* waits = nullptr;
  unsigned generation = 0;
  const char* what = nullptr;
  int line = 0;
  int group = 0;
  Copy copies[kMostCopies];
  int n_copies = 0;
};

struct Warp {
  Meeting meetings[kMostMasks];  // by mask; 0 is a free one
  Words table[2][kWarp];
};

struct Piece {
  unsigned char* memory;
  std::size_t bytes;
};

struct Machine {
  std::mutex mutex;
  std::string order_name = "forward";
  bool reversed = false, shuffled = false;
  unsigned seed = 0;

  const char* kernel = "";
  void (*call)(const void*) = nullptr;
  const void* closure = nullptr;
  dim3 block, block_dim, grid_dim;
  unsigned threads = 0, alive = 0, position = 0;
  Fiber main, *current = &main;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> queue;
  Meeting everyone;
  Warp warps[kMostThreads / kWarp];
  Piece pieces[kMostPieces];
  int n_pieces = 0;
  // Under ThreadSanitizer the pieces of a block lie in one mapping, made and kept for the launch by the launching
  // thread: an allocation by a fiber, or one freed early, would look like a race or hide one.
  std::vector<unsigned char*> mappings;
  std::size_t shared_limit = 0, shared_used = 0;
  std::string failure;
  bool recording = false, skipping = false;  // launches
  std::vector<Launched> launched;
  bool abandoned = false;     // the launch before left threads in the middle of their work
  char begins = 0, ends = 0;  // tags: launch to thread, thread to launch

  Machine() {
    const char* given = std::getenv("HYPERGRAD_EMULATOR_ORDER");
    if (given != nullptr && given[0] != '\0') choose(given);
  }
  ~Machine() {
    for (const auto& fiber : fibers) delete_stack(fiber->stack);
  }
  void choose(const std::string& name) {
    const std::string prefix = "shuffle:";
    const bool shuffle = name.compare(0, prefix.size(), prefix) == 0 && name.size() > prefix.size() &&
                         name.find_first_not_of("0123456789", prefix.size()) == std::string::npos;
    if (name != "forward" && name != "reverse" && !shuffle)
      throw std::invalid_argument("emulator: order is '" + name + "', expected forward, reverse or shuffle:SEED");
    order_name = name;
    reversed = name == "reverse";
    shuffled = shuffle;
    seed = shuffle ? static_cast<unsigned>(std::strtoul(name.c_str() + prefix.size(), nullptr, 10)) : 0;
  }
};

Machine& machine() {
  static Machine m;
  return m;
}

bool under_tsan() { return &__tsan_create_fiber != nullptr; }

void fill(unsigned char* to, unsigned char value, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) static_cast<volatile unsigned char*>(to)[i] = value;
}

void release(void* tag) {
  if (&__tsan_release != nullptr) __tsan_release(tag);
}
void acquire(void* tag) {
  if (&__tsan_acquire != nullptr) __tsan_acquire(tag);
}

void go(Fiber& to) {
  Machine& m = machine();
  Fiber& from = *m.current;
  m.current = &to;
  if (&__sanitizer_start_switch_fiber != nullptr)
    __sanitizer_start_switch_fiber(from.done && &from != &m.main ? nullptr : &from.fake_stack, to.stack, kStackBytes);
  if (&__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(to.tsan, kNoSync);
  switch_context(from.context, to.context);
  if (&__sanitizer_finish_switch_fiber != nullptr) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

std::string place(const Machine& m) {
  return "emulator: " + std::string(m.kernel) + ", block (" + std::to_string(m.block.x) + ", " + std::to_string(m.block.y) + ", " +
         std::to_string(m.block.z) + "): ";
}

bool runs(const Fiber& fiber) { return !fiber.done && (fiber.waits == nullptr || fiber.waits->generation != fiber.generation); }

std::string threads_waiting(const Machine& m) {
  constexpr int kShown = 6;
  std::string text;
  int waiting = 0;
  for (const auto& fiber : m.fibers) {
    if (fiber->done || runs(*fiber) || ++waiting > kShown) continue;
    text += (waiting > 1 ? "; thread " : "thread ") + std::to_string(fiber->number) + " waits at " + fiber->what;
    if (fiber->line != 0) text += " line " + std::to_string(fiber->line);
    if (fiber->waits->mask != 0) {
      char mask[16];
      std::snprintf(mask, sizeof mask, "%08x", fiber->waits->mask);
      text += std::string(" mask ") + mask;
    }
  }
  if (waiting > kShown) text += "; and " + std::to_string(waiting - kShown) + " more";
  return text;
}

// Gives up the launch: the threads stay where they are, and launch() throws.
[[noreturn]] void fail(const std::string& why) {
  Machine& m = machine();
  const std::string waiting = threads_waiting(m);
  m.failure = place(m) + why + (waiting.empty() ? "" : ": " + waiting);
  go(m.main);
  std::abort();  // nobody continues a thread of a failed launch
}

// Continues the next thread that is not waiting; the calling one itself where it is the only one.
void next() {
  Machine& m = machine();
  if (m.alive == 0) return go(m.main);
  const unsigned n = static_cast<unsigned>(m.queue.size());
  for (unsigned i = 1; i <= n; ++i) {
    const unsigned at = (m.position + i) % n;
    if (!runs(*m.queue[at])) continue;
    m.position = at;
    if (m.queue[at] != m.current) go(*m.queue[at]);
    return;
  }
  fail("deadlock");
}

void meet(Meeting& meeting, unsigned needed, const char* what, int line) {
  Machine& m = machine();
  Fiber& me = *m.current;
  char* const tag = &meeting.tag[meeting.generation & 1];
  release(tag);
  if (++meeting.arrived >= needed) {
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    me.waits = &meeting;
    me.generation = meeting.generation;
    me.what = what;
    me.line = line;
    next();
    me.waits = nullptr;
  }
  acquire(tag);
}

void thread_main() {
  Machine& m = machine();
  if (&__sanitizer_finish_switch_fiber != nullptr) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  acquire(&m.begins);
  m.call(m.closure);
  release(&m.ends);
  m.current->done = true;
  --m.alive;
  if (m.everyone.arrived > 0) fail("divergent barrier: thread " + std::to_string(m.current->number) + " has ended");
  next();
  std::abort();  // a finished thread is never continued
}

std::size_t mapping_bytes() { return machine().shared_limit + kMostPieces * (2 * kGuard + 16); }

void prepare_block(unsigned linear) {
  Machine& m = machine();
  m.alive = m.threads;
  m.everyone = Meeting();
  for (Warp& warp : m.warps)
    for (Meeting& meeting : warp.meetings)
      if (meeting.mask != 0) meeting = Meeting();
  m.shared_used = 0;
  m.n_pieces = 0;
  if (under_tsan()) {
    void* const memory = mmap(nullptr, mapping_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    m.mappings.push_back(static_cast<unsigned char*>(memory));
  }
  m.queue.clear();
  for (unsigned i = 0; i < m.threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    fiber.number = i;
    fiber.index = dim3(i % m.block_dim.x, i / m.block_dim.x % m.block_dim.y, i / m.block_dim.x / m.block_dim.y);
    fiber.done = false;
    fiber.waits = nullptr;
    fiber.group = 0;
    fiber.n_copies = 0;
    // The frames of a thread that has ended never return, and AddressSanitizer still guards their variables.
    if (&__asan_unpoison_memory_region != nullptr) {
      const std::size_t used = m.abandoned ? kStackBytes : kLastFrames;
      __asan_unpoison_memory_region(fiber.stack + kStackBytes - used, used);
    }
    prepare(fiber.context, fiber.stack, thread_main);
    m.queue.push_back(&fiber);
  }
  if (m.reversed) std::reverse(m.queue.begin(), m.queue.end());
  if (m.shuffled) {
    std::mt19937 random(m.seed + linear);
    std::shuffle(m.queue.begin(), m.queue.end(), random);
  }
  m.position = 0;
  m.abandoned = false;
}

void end_block() {
  Machine& m = machine();
  for (int i = 0; i < m.n_pieces; ++i) {
    const Piece& piece = m.pieces[i];
    for (std::size_t j = 0; j < kGuard && m.failure.empty(); ++j)
      if (piece.memory[j] != kGuardByte || piece.memory[kGuard + piece.bytes + j] != kGuardByte)
        m.failure = place(m) + "shared memory piece " + std::to_string(i) + " of " + std::to_string(piece.bytes) +
                    " bytes was written out of bounds";
    if (!under_tsan()) std::free(piece.memory);
  }
}

}  // namespace

const dim3& thread_index() { return machine().current->index; }
const dim3& block_index() { return machine().block; }
const dim3& block_size() { return machine().block_dim; }
const dim3& grid_size() { return machine().grid_dim; }
unsigned lane() { return machine().current->number % kWarp; }

void set_order(const std::string& name) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().choose(name);
}
const std::string& order() { return machine().order_name; }

void record_launches(bool run) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  m.recording = true;
  m.skipping = !run;
  m.launched.clear();
}
std::vector<Launched> recorded_launches() {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  m.recording = m.skipping = false;
  return std::move(m.launched);
}

void* shared_piece(int index, std::size_t bytes) {
  Machine& m = machine();
  if (index < m.n_pieces) {
    if (m.pieces[index].bytes != bytes) fail("threads disagree on the size of shared memory piece " + std::to_string(index));
    return m.pieces[index].memory + kGuard;
  }
  if (index >= kMostPieces) fail("takes more than " + std::to_string(kMostPieces) + " pieces of shared memory");
  const std::size_t offset = m.shared_used + static_cast<std::size_t>(index) * 2 * kGuard;
  m.shared_used += (bytes + 15) / 16 * 16;
  if (m.shared_used > m.shared_limit)
    fail("takes " + std::to_string(m.shared_used) + " bytes of shared memory, launched with " + std::to_string(m.shared_limit));
  unsigned char* const memory = under_tsan() ? m.mappings.back() + offset : static_cast<unsigned char*>(std::malloc(bytes + 2 * kGuard));
  if (memory == nullptr) throw std::bad_alloc();
  fill(memory, kGuardByte, kGuard);
  fill(memory + kGuard, kPoison, bytes);
  fill(memory + kGuard + bytes, kGuardByte, kGuard);
  m.pieces[m.n_pieces++] = {memory, bytes};
  return memory + kGuard;
}

void barrier(const char* file, int line) {
  Machine& m = machine();
  Meeting& all = m.everyone;
  if (all.arrived == 0) {
    all.file = file;
    all.line = line;
  } else if (all.line != line || std::strcmp(all.file, file) != 0) {
    fail("divergent barrier: thread " + std::to_string(m.current->number) + " is at __syncthreads line " + std::to_string(line));
  }
  if (m.alive != m.threads) fail("divergent barrier: a thread has ended before line " + std::to_string(line));
  meet(all, m.threads, "__syncthreads", line);
}

const Words* exchange(unsigned mask, const Words& words, const char* what) {
  Machine& m = machine();
  Warp& warp = m.warps[m.current->number / kWarp];
  const unsigned me = lane();
  if ((mask >> me & 1u) == 0) fail(std::string(what) + ": lane " + std::to_string(me) + " is not in its own mask");
  int slot = 0;
  while (slot < kMostMasks && warp.meetings[slot].mask != mask && warp.meetings[slot].mask != 0) ++slot;
  if (slot == kMostMasks) fail(std::string(what) + ": more than " + std::to_string(kMostMasks) + " masks in one warp");
  Meeting& meeting = warp.meetings[slot];
  meeting.mask = mask;
  Words* const table = warp.table[meeting.generation & 1];
  table[me] = words;
  meet(meeting, static_cast<unsigned>(__builtin_popcount(mask)), what, 0);
  return table;
}

void check_lane(unsigned mask, unsigned source) {
  if ((mask >> source & 1u) == 0) fail("shuffle reads lane " + std::to_string(source) + ", which is not in its mask");
}

void copy_async(void* to, const void* from) {
  Fiber& me = *machine().current;
  if (me.n_copies == kMostCopies) fail("more than " + std::to_string(kMostCopies) + " asynchronous copies in flight");
  fill(static_cast<unsigned char*>(to), kPoison, 16);
  me.copies[me.n_copies++] = {to, from, me.group};
}
void copy_commit() { ++machine().current->group; }
void copy_wait(int groups_left) {
  Fiber& me = *machine().current;
  int kept = 0;
  for (int i = 0; i < me.n_copies; ++i) {
    const Copy copy = me.copies[i];
    if (copy.group < me.group - groups_left)
      std::memcpy(copy.to, copy.from, 16);
    else
      me.copies[kept++] = copy;
  }
  me.n_copies = kept;
}

void launch(const char* kernel, void (*call)(const void*), const void* closure, dim3 grid, dim3 block, std::size_t shared_bytes) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  if (m.recording) m.launched.push_back({kernel, grid.x * grid.y * grid.z, block.x * block.y * block.z, shared_bytes});
  if (m.skipping) return;
  m.kernel = kernel;
  m.call = call;
  m.closure = closure;
  m.grid_dim = grid;
  m.block_dim = block;
  m.threads = block.x * block.y * block.z;
  m.shared_limit = shared_bytes;
  m.failure.clear();
  if (m.threads == 0 || m.threads > kMostThreads)
    throw std::runtime_error(place(m) + "blocks of " + std::to_string(m.threads) + " threads, expected 1 to 1024");
  while (m.fibers.size() < m.threads) {
    m.fibers.push_back(std::make_unique<Fiber>());
    m.fibers.back()->stack = new_stack();
  }
  if (under_tsan()) {  // made once: making 256 of them takes longer than most kernels
    m.main.tsan = __tsan_get_current_fiber();
    for (unsigned i = 0; i < m.threads; ++i)
      if (m.fibers[i]->tsan == nullptr) m.fibers[i]->tsan = __tsan_create_fiber(0);
  }
  std::vector<unsigned> blocks(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<unsigned>(i);
  if (m.reversed) std::reverse(blocks.begin(), blocks.end());
  if (m.shuffled) {
    std::mt19937 random(m.seed);
    std::shuffle(blocks.begin(), blocks.end(), random);
  }
  for (const unsigned linear : blocks) {
    m.block = dim3(linear % grid.x, linear / grid.x % grid.y, linear / grid.x / grid.y);
    prepare_block(linear);
    release(&m.begins);  // what the launch did, not what the blocks before did: a race between blocks stays visible
    go(*m.queue[0]);
    end_block();
    if (!m.failure.empty()) break;
  }
  acquire(&m.ends);
  for (unsigned char* memory : m.mappings) munmap(memory, mapping_bytes());
  m.mappings.clear();
  m.abandoned = !m.failure.empty();
  if (m.abandoned) throw std::runtime_error(m.failure);
}

}  // namespace hg::emulator

#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "check.h"
#include "memory.h"

namespace hg {
namespace {

thread_local bool inside_task = false;

// Tells the processor that this thread only waits.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Arena {
  void* block[kScratchSlots] = {};
  std::size_t bytes[kScratchSlots] = {};
  void drop(int slot) {
    if (block[slot] != nullptr) free_system_block(block[slot], bytes[slot]);
    block[slot] = nullptr;
    bytes[slot] = 0;
  }
  ~Arena() {
    for (int slot = 0; slot < kScratchSlots; ++slot) drop(slot);
  }
};
thread_local Arena arena;

// Waits for a while without sleeping: to wake a sleeper takes longer than most gaps between two kernels. Afterwards the condition may
// still not hold.
constexpr std::chrono::microseconds kSpin{200};
template <class Condition>
void spin_until(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
}

class Pool {
 public:
  // Workers are started when first needed and never end; those beyond the wanted number skip the round. Where the system gives
  // no more threads, those that there are do the work.
  void run(std::int64_t n, int threads, void (*task)(const void*, std::int64_t), const void* context) {
    int helpers = static_cast<int>(n < threads ? n : threads) - 1;
    if (static_cast<int>(workers_.size()) < helpers) start(helpers);
    helpers = std::min(helpers, static_cast<int>(workers_.size()));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      context_ = context;
      n_ = n;
      next_.store(0, std::memory_order_relaxed);
      helpers_ = helpers;
      error_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(mutex_);
    helpers_ = 0;  // nothing is left for a worker that has not woken up yet, so nobody waits for it
    if (active_ != 0) {
      lock.unlock();
      spin_until([this] { return active_ == 0; });
      lock.lock();
    }
    done_.wait(lock, [this] { return active_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  std::mutex busy;  // one parallel region at a time

 private:
  // Starts workers until there are so many, or no more can be. Their stacks leave the tasks room for scratch.
  void start(int wanted) {
    constexpr std::size_t kRoom = std::size_t(1) << 24;
    void* const room = system_block(kRoom);
    try {
      while (room != nullptr && static_cast<int>(workers_.size()) < wanted) {
        const int index = static_cast<int>(workers_.size());
        workers_.emplace_back([this, index, seen = round_.load()] { work(index, seen); });
      }
    } catch (const std::exception&) {  // std::system_error, or no memory for one
    }
    if (room != nullptr) free_system_block(room, kRoom);
  }

  void drain() {
    inside_task = true;
    try {
      for (std::int64_t i = next_.fetch_add(1); i < n_; i = next_.fetch_add(1)) task_(context_, i);
    } catch (...) {
      next_.store(n_);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_task = false;
  }

  void work(int index, std::uint64_t seen) {
    for (;;) {
      spin_until([&] { return round_ != seen; });
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        if (index >= helpers_) continue;
        ++active_;
      }
      drain();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  void (*task_)(const void*, std::int64_t) = nullptr;
  const void* context_ = nullptr;
  std::int64_t n_ = 0;
  std::atomic<std::int64_t> next_{0};
  int helpers_ = 0;
  std::atomic<int> active_{0};
  std::atomic<std::uint64_t> round_{0};
  std::exception_ptr error_;
};

// Never destroyed: its threads may still sleep when the process exits.
std::atomic<Pool*> current_pool{nullptr};

Pool* pool() {
  static const bool ready = [] {
    current_pool.store(new Pool);
    // A forked child has the parent's pool but none of its threads: it starts with a pool of its own.
    pthread_atfork(nullptr, nullptr, [] { current_pool.store(new Pool); });
    return true;
  }();
  return ready ? current_pool.load(std::memory_order_acquire) : nullptr;
}

int default_threads() {
  const char* wanted = std::getenv("HYPERGRAD_NUM_THREADS");
  if (wanted != nullptr && wanted[0] != '\0') {
    char* end = nullptr;
    const long n = std::strtol(wanted, &end, 10);
    if (*end != '\0' || n < 1 || n > 4096)
      throw BadArgument(std::string("HYPERGRAD_NUM_THREADS: value is '") + wanted + "', expected an integer from 1 to 4096");
    return static_cast<int>(n);
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

std::atomic<int>& wanted_threads() {
  static std::atomic<int> n{default_threads()};
  return n;
}

}  // namespace

void run_tasks(std::int64_t n, void (*task)(const void*, std::int64_t), const void* context) {
  if (n <= 0) return;
  const int threads = thread_count();
  if (n > 1 && threads > 1 && !inside_task) {
    Pool* const shared = pool();
    const std::unique_lock<std::mutex> lock(shared->busy, std::try_to_lock);
    if (lock.owns_lock()) {
      shared->run(n, threads, task, context);
      return;
    }
  }
  for (std::int64_t i = 0; i < n; ++i) task(context, i);
}

int thread_count() { return wanted_threads().load(); }

void set_thread_count(int n) {
  if (n < 1 || n > 4096) throw BadArgument("set_threads: n is " + std::to_string(n) + ", expected 1 to 4096");
  wanted_threads().store(n);
}

void* scratch(int slot, std::size_t bytes) {
  bytes = bytes == 0 ? 1 : bytes;  // never null
  if (bytes > arena.bytes[slot]) {
    arena.drop(slot);
    arena.block[slot] = system_block(bytes);
    if (arena.block[slot] == nullptr) throw std::bad_alloc();
    arena.bytes[slot] = bytes;
  }
  return arena.block[slot];
}

}  // namespace hg

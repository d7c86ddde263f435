// A persistent thread pool and per-thread scratch.
//
// The work is cut into tasks by the shapes alone, tasks write disjoint memory, and whoever merges partial sums does so
// in task order afterwards. So results have the same bits for any number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hg {

// Calls task(context, i) for i in [0, n). Runs on the calling thread alone where the pool is busy or the call is
// nested. The first exception of a task is thrown again here, after all threads have stopped.
void run_tasks(std::int64_t n, void (*task)(const void* context, std::int64_t index), const void* context);

int thread_count();
void set_thread_count(int n);  // n >= 1

// Memory of the calling thread, 64-byte aligned, kept for reuse; contents undefined. A slot's earlier memory is gone
// when a larger block is asked of the same slot. Tasks use slots below kSharedSlots, whoever starts tasks the others.
constexpr int kSharedSlots = 16;
constexpr int kScratchSlots = 32;
void* scratch(int slot, std::size_t bytes);

}  // namespace hg

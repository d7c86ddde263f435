// A persistent thread pool and per-thread scratch.
//
// Tasks write disjoint memory, and partial sums are merged in task order afterwards. Where the cut into tasks matters to the bits, the
// shapes alone decide it. So results have the same bits for any number of threads.
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
// when a larger block is asked of the same slot. Tasks use the slots below kSharedSlots; code that
// starts tasks uses the others, whose memory its tasks may read.
constexpr int kSharedSlots = 16;
constexpr int kScratchSlots = 32;
void* scratch(int slot, std::size_t bytes);

}  // namespace hg

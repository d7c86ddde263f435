// Host side of a kernel call: batches of arrays, scratch, and checked launches.
#pragma once
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../check.h"
#include "../registry.h"
#include "platform.h"

namespace hg::cuda {

constexpr std::size_t kSharedLimit = 48 << 10;  // what every GPU gives a block without asking

// One array per batch entry, strides in elements. Null where an optional argument is absent.
template <class T>
struct Batch {
  T* data;
  int64_t stride_0, stride_1;
  bool wide;  // every row of the last axis is aligned and holds whole quads
  HG_BOTH T* at(int64_t i0, int64_t i1) const { return data + i0 * stride_0 + i1 * stride_1; }
  HG_BOTH explicit operator bool() const { return data != nullptr; }
};

// `lead` is the number of batch axes, 1 or 2; with 1 the first one has stride 0.
template <class T>
Batch<T> batch(const View& view, int lead) {
  if (view.ndim < 0) return {nullptr, 0, 0, false};
  const int64_t item = static_cast<int64_t>(sizeof(T));
  const auto stride = [&](int axis) { return view.shape[axis] > 1 ? view.stride[axis] / item : 0; };
  Batch<T> out{static_cast<T*>(view.data), lead == 2 ? stride(0) : 0, stride(lead - 1), false};
  out.wide = view.shape[view.ndim - 1] % 4 == 0 && out.stride_0 % 4 == 0 && out.stride_1 % 4 == 0 &&
             reinterpret_cast<std::uintptr_t>(view.data) % (sizeof(T) == 1 ? 4 : 16) == 0;
  return out;
}

#ifdef __CUDACC__
// Whether HYPERGRAD_SYNC asks to wait for every kernel, so that a fault is told at the kernel that has it and not at a later call.
inline bool waits_for_kernels() {
  static const bool waits = [] {
    const char* const given = std::getenv("HYPERGRAD_SYNC");
    return given != nullptr && given[0] != '\0' && std::string(given) != "0";
  }();
  return waits;
}
inline cudaError_t wait_unless_recording(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  return error != cudaSuccess || status != cudaStreamCaptureStatusNone ? error : cudaStreamSynchronize(stream);
}
#endif

// An output as the input of the next kernel.
template <class T>
Batch<const T> as_input(const Batch<T>& a) {
  return {a.data, a.stride_0, a.stride_1, a.wide};
}

// One call: hands out its scratch and launches its kernels in order on its stream. While the call only asks how much
// scratch it needs, nothing is launched; so sizes are said once.
class Launch {
 public:
  explicit Launch(const Call& call) : call_(call) {}
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  template <class T>
  T* scratch(int64_t n) {
    const std::size_t offset = used_;
    used_ += (static_cast<std::size_t>(n) * sizeof(T) + 255) / 256 * 256;
    if (call_.needed != nullptr) {
      *call_.needed = used_;
      return nullptr;
    }
    if (used_ > call_.scratch_bytes)
      throw std::logic_error(std::string(call_.signature->name) + ": scratch is " + std::to_string(call_.scratch_bytes) +
                             " bytes, expected at least " + std::to_string(used_));
    return reinterpret_cast<T*>(static_cast<unsigned char*>(call_.scratch) + offset);
  }

  // Counters for `comes_last`; all launches of the call may use the same ones.
  unsigned* tickets(int64_t n) {
    const std::size_t count = static_cast<std::size_t>(n);
    if (call_.needed != nullptr) {
      *call_.tickets_needed = higher(*call_.tickets_needed, count);
      return nullptr;
    }
    if (count > call_.n_tickets)
      throw std::logic_error(std::string(call_.signature->name) + ": there are " + std::to_string(call_.n_tickets) +
                             " tickets, expected at least " + std::to_string(count));
    return call_.tickets;
  }

  // A grid of no blocks is no launch. `name` is the kernel's, for errors.
  template <class... Parameters, class... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, std::size_t shared,
                  const Arguments&... arguments) const {
    if (call_.needed != nullptr || blocks == 0) return;
    if (blocks > INT32_MAX)
      fail_shape(call_, "%s takes %lld blocks, expected fewer than 2**31; split the call", name, static_cast<long long>(blocks));
    if (shared > kSharedLimit)
      throw std::logic_error(std::string(name) + ": " + std::to_string(shared) + " bytes of shared memory, expected at most " +
                             std::to_string(kSharedLimit));
#ifdef __CUDACC__
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared, static_cast<cudaStream_t>(call_.stream)>>>(
        arguments...);
    cudaError_t error = cudaGetLastError();
    const char* what = ": launch of ";
    if (error == cudaSuccess && waits_for_kernels()) {
      error = wait_unless_recording(static_cast<cudaStream_t>(call_.stream));
      what = ": the kernel ";
    }
    if (error != cudaSuccess)
      throw std::runtime_error(std::string(call_.signature->name) + what + name + " failed: " + cudaGetErrorString(error) + " (" +
                               cudaGetErrorName(error) + ")");
#else
    const auto run = [&] { kernel(arguments...); };
    emulator::launch(
        name, [](const void* closure) { (*static_cast<const decltype(run)*>(closure))(); }, &run, dim3(static_cast<unsigned>(blocks)),
        dim3(static_cast<unsigned>(threads)), shared);
#endif
  }

 private:
  const Call& call_;
  std::size_t used_ = 0;
};

}  // namespace hg::cuda

#define HG_SPACE cuda
#include "../arguments.h"

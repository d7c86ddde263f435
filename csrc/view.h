// Borrowed arrays and call arguments: what every kernel, host or CUDA, receives.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hg {

constexpr int kMaxDims = 6;
constexpr int kMaxArguments = 24;
constexpr int kMaxAttributes = 8;

enum class DType : std::uint8_t { f32, f64, u8, i64 };

struct View {  // never owns, never allocates
  void* data;
  DType dtype;
  int ndim;  // -1 where an optional argument is absent
  std::int64_t shape[kMaxDims];
  std::int64_t stride[kMaxDims];  // in bytes, as NumPy and CuPy report them
};

struct Signature;
struct Kernel;

// One checked call. Arrays stand in the signature's order, inputs before outputs; those of a list stand together.
struct Call {
  const Signature* signature;
  const Kernel* kernel;  // what the table knows of it
  const View* arrays;
  int n_arrays;
  int length;                         // of every list
  const int* first;                   // of each argument, the index of its first array
  bool typed;                         // whether there is a floating-point array yet
  DType dtype;                        // of every floating-point array of the call
  std::int64_t dims[128];             // size of each axis letter of the signature, -1 where unknown
  double attributes[kMaxAttributes];  // in the signature's order; integers are exact below 2**53
  void* stream;
  // Device kernels never allocate. Where `needed` is not null the launcher only writes there how many bytes of scratch
  // this call takes; otherwise `scratch` holds that many. Host kernels keep scratch of their own and never look here.
  void* scratch;
  std::size_t scratch_bytes;
  std::size_t* needed;
  // Likewise counters that are 0 before every launch of the call and after it, by which the blocks of a grid find out which is the last.
  unsigned* tickets;
  std::size_t n_tickets;
  std::size_t* tickets_needed;
};

}  // namespace hg

// sum_leaves: a thread owns four neighbouring elements of one leaf.
#include "../host/sum_leaves.cpp"  // its signature

#include "launch.h"
#include "leaves.h"

namespace hg::cuda {
namespace {

// What a table of leaves needs to know of an optimiser, for the sum, which is none.
template <class T>
struct Summed {
  using Element = T;
  static constexpr int kFields = 1;  // unused
};
template <class T>
using SumTable = Table<Summed<T>, 2, 1>;

template <class T>
__global__ void __launch_bounds__(kThreads) add_leaves(const SumTable<T> t, int64_t P, int64_t Q) {
  const Place at = place_of(t);
  const int64_t size = t.size[at.leaf];
  const int count = static_cast<int>(at.count);
  const T *const x = t.in[at.leaf][0], *const y = t.in[at.leaf][1];
  T* const out = t.out[at.leaf][0];
  const auto aligned = [count](const T* row, int k) { return k + 4 <= count && reinterpret_cast<std::uintptr_t>(row) % 16 == 0; };
  each_quad(at, [&](int k) {
    double sum[4] = {};
    HG_NO_UNROLL
    for (int64_t p = 0; p < P; ++p) {
      const T* const row = x + p * size + at.begin;
      const Quad<T> v = load_quad(row, k, count, aligned(row, k));
      HG_UNROLL
      for (int j = 0; j < 4; ++j) sum[j] += static_cast<double>(v.v[j]);
    }
    Quad<T> total;
    HG_UNROLL
    for (int j = 0; j < 4; ++j) total.v[j] = static_cast<T>(sum[j]);
    if (y != nullptr) {
      const Quad<T> v = load_quad(y + at.begin, k, count, aligned(y + at.begin, k));
      HG_UNROLL
      for (int j = 0; j < 4; ++j) total.v[j] += v.v[j];
    }
    HG_NO_UNROLL
    for (int64_t q = 0; q < Q; ++q) {
      T* const row = out + q * size + at.begin;
      store_quad(row, k, count, aligned(row, k), total);
    }
  });
}

template <class T, class S>
void run(const Call& call) {
  constexpr int kIn[2] = {find(S::signature.arrays, "x"), find(S::signature.arrays, "y")};
  constexpr Places<1> kOut{{find(S::signature.arrays, "out")}};
  const Launch launch(call);
  for (int first = 0; first < call.length; first += SumTable<T>::kLeaves) {
    SumTable<T> t{};
    lay_out<S>(call, first, kIn, kOut, kQuads, t);
    launch("add_leaves", add_leaves<T>, t.range.first_block[t.range.count], kThreads, 0, t, HG_DIM(P), HG_DIM(Q));
  }
}

HG_KERNEL(sum_leaves, run)

}  // namespace
}  // namespace hg::cuda

// sum_leaves: out[q] = the sum of x over its leading axis, plus y, for every q, on lists of leaves: sums of trees, sums over episodes, and
// copies for every episode. The sum over p is added in double, in order. A task owns a chunk of one leaf.
#include "../registry.h"

HG_SIGNATURE(sum_leaves, "x*=P~ y?*=~ -> out*=Q~")

#ifdef HG_SIMD
#include "../optimizer_step.h"
#include "leaves.h"

namespace hg::HG_SIMD {
namespace {

template <class T, class S>
void run(const Call& call) {
  constexpr int kX = find(S::signature.arrays, "x"), kY = find(S::signature.arrays, "y"), kOut = find(S::signature.arrays, "out");
  const int64_t P = HG_DIM(P), Q = HG_DIM(Q);
  each_chunk<S>(call, chunks_of<S>(call), 1, [&](const Piece& piece) {
    const T* const x = data_of<const T>(call, kX, piece.leaf);
    const T* const y = data_of<const T>(call, kY, piece.leaf);
    T* const out = data_of<T>(call, kOut, piece.leaf);
    for (int64_t i = piece.begin; i < piece.begin + piece.count; ++i) {
      double sum = 0;
      for (int64_t p = 0; p < P; ++p) sum += static_cast<double>(x[p * piece.size + i]);
      const T total = y == nullptr ? static_cast<T>(sum) : static_cast<T>(sum) + y[i];
      for (int64_t q = 0; q < Q; ++q) out[q * piece.size + i] = total;
    }
  });
}

HG_KERNEL(sum_leaves, run)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

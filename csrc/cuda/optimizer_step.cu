// Steps of the optimisers on lists of leaves, all of them in one launch: a leaf's pointers and size are parameters of
// the kernel. A block owns a chunk of one leaf, of one direction where there are several, a thread four neighbouring
// elements at a time. Sums over a leaf, the cotangents of fields: a block writes its own, a second kernel adds them up.
#include "../host/optimizer_step.cpp"  // its signatures
#include "../optimizer_step.h"
#include "leaves.h"

namespace hg::cuda {
namespace {

template <class S>
using ValueTable = Table<S, S::kStates + S::kFields, S::kNext>;
template <class S>
__global__ void __launch_bounds__(kThreads) step_value(const ValueTable<S> t) {
  using T = typename S::Element;
  SharedMemory memory;
  const Place at = place_of(t);
  const S s = constants_of(t, S::kStates, at.leaf, memory.take<S>(1));
  const int count = static_cast<int>(at.count);
  each_quad(at, [&](int k) {
    Quad<T> x[S::kStates], y[S::kNext];
    load_all(t.in[at.leaf], at.begin, k, count, x);
    HG_UNROLL
    for (int j = 0; j < 4; ++j) {
      T a[S::kStates], b[S::kNext];
      lane_of(x, j, a);
      s.value(a, b);
      set_lane(y, j, b);
    }
    store_all(t.out[at.leaf], at.begin, k, count, y);
  });
}

template <class S>
using JvpTable = Table<S, 2 * (S::kStates + S::kFields), S::kNext>;
template <class S>
__global__ void __launch_bounds__(kThreads) step_jvp(const JvpTable<S> t) {
  using T = typename S::Element;
  SharedMemory memory;
  const Place at = place_of(t);
  const S s = constants_of(t, S::kStates, at.leaf, memory.take<S>(1));
  const int count = static_cast<int>(at.count);
  const T* const* const dots = t.in[at.leaf] + S::kStates + S::kFields;
  double field_dot[S::kFields];
  HG_UNROLL
  for (int i = 0; i < S::kFields; ++i) {
    const T* const array = dots[S::kStates + i];
    field_dot[i] = array != nullptr ? static_cast<double>(array[at.p]) : 0.0;
  }
  const typename S::Dot dot = s.dot_of(field_dot);
  const int64_t offset = at.p * t.size[at.leaf] + at.begin;
  each_quad(at, [&](int k) {
    Quad<T> x[S::kStates], x_dot[S::kStates], y_dot[S::kNext];
    load_all(t.in[at.leaf], at.begin, k, count, x);
    load_all(dots, offset, k, count, x_dot);
    HG_UNROLL
    for (int j = 0; j < 4; ++j) {
      T a[S::kStates], a_dot[S::kStates], b_dot[S::kNext];
      lane_of(x, j, a);
      lane_of(x_dot, j, a_dot);
      s.jvp(dot, a, a_dot, b_dot);
      set_lane(y_dot, j, b_dot);
    }
    store_all(t.out[at.leaf], offset, k, count, y_dot);
  });
}

template <class T, int kFields>
struct FieldBars {
  T* bar[kFields];  // of the launch's first leaf; null where not wanted
};
// A warp owns the cotangents of a leaf's fields.
template <class T, int kFields>
HG_DEVICE void close_fields(const Range& range, const double* sums, const FieldBars<T, kFields>& fields) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  HG_NO_UNROLL
  for (int leaf = static_cast<int>(threadIdx.x) / 32; leaf < range.count; leaf += kWarps) {
    HG_UNROLL
    for (int i = 0; i < kFields; ++i) {
      double sum = 0;
      HG_NO_UNROLL
      for (int block = range.first_block[leaf] + lane; block < range.first_block[leaf + 1]; block += 32)
        sum += sums[static_cast<int64_t>(block) * kFields + i];
      sum = over_warp(sum);
      if (lane == 0 && fields.bar[i] != nullptr) fields.bar[i][leaf] = static_cast<T>(sum);
    }
  }
}

template <class S>
using VjpTable = Table<S, S::kStates + S::kFields + S::kNext, S::kStates>;
// With kSums, sums[block, i] is the block's sum for field i, and the last block adds them up.
template <class S, bool kSums>
__global__ void __launch_bounds__(kThreads)
    step_vjp(const VjpTable<S> t, double* sums, unsigned* ticket, const FieldBars<typename S::Element, S::kFields> fields) {
  using T = typename S::Element;
  SharedMemory memory;
  const Place at = place_of(t);
  const S s = constants_of(t, S::kStates, at.leaf, memory.take<S>(1));
  const int count = static_cast<int>(at.count);
  T total[S::kFields] = {};
  each_quad(at, [&](int k) {
    Quad<T> x[S::kStates], y_bar[S::kNext], x_bar[S::kStates];
    load_all(t.in[at.leaf], at.begin, k, count, x);
    load_all(t.in[at.leaf] + S::kStates + S::kFields, at.begin, k, count, y_bar);
    HG_UNROLL
    for (int j = 0; j < 4; ++j) {
      T a[S::kStates], b_bar[S::kNext], a_bar[S::kStates], field_bar[S::kFields];
      lane_of(x, j, a);
      lane_of(y_bar, j, b_bar);
      s.vjp(a, b_bar, a_bar, field_bar);
      set_lane(x_bar, j, a_bar);
      HG_UNROLL
      for (int i = 0; i < S::kFields; ++i)
        if (kSums && k + j < count) total[i] += field_bar[i];
    }
    store_all(t.out[at.leaf], at.begin, k, count, x_bar);
  });
  if (!kSums) return;
  double* const warps = memory.take<double>(kWarps * S::kFields);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  HG_UNROLL
  for (int i = 0; i < S::kFields; ++i) {
    const double sum = over_warp(static_cast<double>(total[i]));
    if (lane == 0) warps[warp * S::kFields + i] = sum;
  }
  __syncthreads();
  if (threadIdx.x < S::kFields) {
    double sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += warps[i * S::kFields + static_cast<int>(threadIdx.x)];
    sums[static_cast<int64_t>(blockIdx.x) * S::kFields + threadIdx.x] = sum;
  }
  if (comes_last(ticket, static_cast<unsigned>(t.range.first_block[t.range.count]), memory.take<int>(1)))
    close_fields(t.range, sums, fields);
}
// Of leaves that have no elements.
template <class T, int kFields>
__global__ void __launch_bounds__(kThreads) no_fields(const Range range, const FieldBars<T, kFields> fields) {
  close_fields(range, static_cast<const double*>(nullptr), fields);
}

template <class S>
constexpr std::size_t kShared = shared_size(sizeof(S));

template <class T, class S, template <class> class Optimizer>
void value(const Call& call) {
  using O = Optimizer<T>;
  using At = Arguments<O, S>;
  const Launch launch(call);
  for (int first = 0; first < call.length; first += ValueTable<O>::kLeaves) {
    const ValueTable<O> t = table_of<O, S>(call, first, Joined(At::x, At::field).of, At::y);
    launch("step_value", step_value<O>, t.range.first_block[t.range.count], kThreads, kShared<O>, t);
  }
}

template <class T, class S, template <class> class Optimizer>
void jvp(const Call& call) {
  using O = Optimizer<T>;
  using At = Arguments<O, S>;
  const Launch launch(call);
  const int64_t directions = HG_DIM(P);
  for (int first = 0; first < call.length; first += JvpTable<O>::kLeaves) {
    const JvpTable<O> t = table_of<O, S>(call, first, Joined(At::x, At::field, At::x_dot, At::field_dot).of, At::y_dot);
    launch("step_jvp", step_jvp<O>, directions * t.range.first_block[t.range.count], kThreads, kShared<O>, t);
  }
}

template <class T, class S, template <class> class Optimizer>
void vjp(const Call& call) {
  using O = Optimizer<T>;
  using At = Arguments<O, S>;
  FieldBars<T, O::kFields> all{};
  bool wanted = false;
  for (int i = 0; i < O::kFields; ++i) {
    all.bar[i] = data_of<T>(call, At::field_bar.of[i], 0);
    wanted = wanted || all.bar[i] != nullptr;
  }
  Launch launch(call);
  for (int first = 0; first < call.length; first += VjpTable<O>::kLeaves) {
    const VjpTable<O> t = table_of<O, S>(call, first, Joined(At::x, At::field, At::y_bar).of, At::x_bar);
    const int blocks = t.range.first_block[t.range.count];
    if (!wanted) {
      launch("step_vjp", step_vjp<O, false>, blocks, kThreads, kShared<O>, t, static_cast<double*>(nullptr),
             static_cast<unsigned*>(nullptr), all);
      continue;
    }
    double* const sums = launch.template scratch<double>(static_cast<int64_t>(blocks) * O::kFields);
    FieldBars<T, O::kFields> own = all;
    for (T*& bar : own.bar) bar = bar == nullptr ? nullptr : bar + first;
    if (blocks == 0) {
      launch("no_fields", no_fields<T, O::kFields>, 1, kThreads, 0, t.range, own);
      continue;
    }
    launch("step_vjp", step_vjp<O, true>, blocks, kThreads,
           kShared<O> + shared_size(kWarps * O::kFields * sizeof(double)) + shared_size(sizeof(int)), t, sums, launch.tickets(1), own);
  }
}

HG_KERNEL(sgd_step_value, value, Sgd)
HG_KERNEL(sgd_step_jvp, jvp, Sgd)
HG_KERNEL(sgd_step_vjp, vjp, Sgd)
HG_KERNEL(adam_step_value, value, Adam)
HG_KERNEL(adam_step_jvp, jvp, Adam)
HG_KERNEL(adam_step_vjp, vjp, Adam)
HG_KERNEL(adamw_step_value, value, AdamW)
HG_KERNEL(adamw_step_jvp, jvp, AdamW)
HG_KERNEL(adamw_step_vjp, vjp, AdamW)
HG_KERNEL(rmsprop_step_value, value, Rmsprop)
HG_KERNEL(rmsprop_step_jvp, jvp, Rmsprop)
HG_KERNEL(rmsprop_step_vjp, vjp, Rmsprop)
HG_KERNEL(adagrad_step_value, value, Adagrad)
HG_KERNEL(adagrad_step_jvp, jvp, Adagrad)
HG_KERNEL(adagrad_step_vjp, vjp, Adagrad)

}  // namespace
}  // namespace hg::cuda

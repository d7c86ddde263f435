// Steps of the optimisers on lists of leaves, all of them in one launch: a leaf's pointers and size are parameters of
// the kernel. A block owns a chunk of one leaf, of one direction where there are several, a thread four neighbouring
// elements at a time. Sums over a leaf, the cotangents of fields: a block writes its own, a second kernel adds them up.
#include "../host/optimizer_step.cpp"  // its signatures
#include "../optimizer_step.h"

namespace hg::cuda {
namespace {

constexpr int kMostLeaves = 24;              // of a launch
constexpr int kParameters = 4096 - 64;       // bytes of a kernel's, which its table must fit into
constexpr int64_t kFewElements = 1ll << 20;  // up to here a thread owns one quad, so that the work spreads wide
constexpr int kQuads = 4;                    // beyond

struct Range {
  int count;
  int first_block[kMostLeaves + 1];  // blocks of leaf i are first_block[i] .. first_block[i + 1] - 1
};

template <class S, int kIn, int kOut>
struct Table {
  using T = typename S::Element;
  // A leaf takes its pointers and its size; the range, the fields and the rest come once.
  static constexpr int kFit = (kParameters - static_cast<int>(sizeof(Range)) - 8 * (S::kFields + 2)) / (8 * (kIn + kOut + 1));
  static constexpr int kLeaves = kFit < kMostLeaves ? kFit : kMostLeaves;
  const T* in[kLeaves][kIn];  // null where absent
  T* out[kLeaves][kOut];
  int64_t size[kLeaves];
  Range range;
  int quads;  // of a thread
  double field[S::kFields], extra;
};

// Of the calling block.
struct Place {
  int leaf;
  int64_t p, begin, count;  // direction; first element and number of elements of the chunk
};
template <class S, int kIn, int kOut>
HG_DEVICE Place place_of(const Table<S, kIn, kOut>& t) {
  Place at;
  const int blocks = t.range.first_block[t.range.count];
  at.p = blockIdx.x / blocks;
  const int block = static_cast<int>(blockIdx.x - at.p * blocks);
  at.leaf = 0;
  HG_NO_UNROLL
  while (t.range.first_block[at.leaf + 1] <= block) ++at.leaf;
  const int64_t chunk = static_cast<int64_t>(t.quads) * 4 * kThreads;
  at.begin = (block - t.range.first_block[at.leaf]) * chunk;
  at.count = lower(chunk, t.size[at.leaf] - at.begin);
  return at;
}

// The constants of the block's leaf; arrays of fields begin at input `from`. One thread makes them for all.
template <class S, int kIn, int kOut>
HG_DEVICE S constants_of(const Table<S, kIn, kOut>& t, int from, int leaf, S* shared) {
  if (threadIdx.x == 0) {
    double field[S::kFields];
    unsigned given = 0;
    HG_UNROLL
    for (int i = 0; i < S::kFields; ++i) {
      const auto* const array = t.in[leaf][from + i];
      field[i] = array != nullptr ? static_cast<double>(*array) : t.field[i];
      given |= array != nullptr ? 1u << i : 0u;
    }
    *shared = S::of(field, given, t.extra);
  }
  __syncthreads();
  return *shared;
}

// Elements k .. k + 3 of n arrays, counted from `offset`, where there are `count` elements: v[i][j] is element j of array i.
template <class T, int n>
HG_DEVICE void load_all(const T* const* from, int64_t offset, int k, int count, Quad<T> (&v)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) {
    v[i] = Quad<T>{};
    if (from[i] == nullptr) continue;
    const T* const row = from[i] + offset;
    v[i] = load_quad(row, k, count, k + 4 <= count && reinterpret_cast<std::uintptr_t>(row) % 16 == 0);
  }
}
template <class T, int n>
HG_DEVICE void store_all(T* const* to, int64_t offset, int k, int count, const Quad<T> (&v)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) {
    if (to[i] == nullptr) continue;
    T* const row = to[i] + offset;
    store_quad(row, k, count, k + 4 <= count && reinterpret_cast<std::uintptr_t>(row) % 16 == 0, v[i]);
  }
}
template <class T, int n>
HG_DEVICE void lane_of(const Quad<T> (&v)[n], int j, T (&x)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) x[i] = v[i].v[j];
}
template <class T, int n>
HG_DEVICE void set_lane(Quad<T> (&v)[n], int j, const T (&x)[n]) {
  HG_UNROLL
  for (int i = 0; i < n; ++i) v[i].v[j] = x[i];
}

// body(k) for each of the thread's quads.
template <class Body>
HG_DEVICE void each_quad(const Place& at, const Body& body) {
  HG_NO_UNROLL
  for (int64_t k = 4 * static_cast<int64_t>(threadIdx.x); k < at.count; k += 4 * kThreads) body(static_cast<int>(k));
}

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

template <class S>
using VjpTable = Table<S, S::kStates + S::kFields + S::kNext, S::kStates>;
// With kSums, sums[block, i] is the block's sum for field i.
template <class S, bool kSums>
__global__ void __launch_bounds__(kThreads) step_vjp(const VjpTable<S> t, double* sums) {
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
}

template <class T, int kFields>
struct FieldBars {
  T* bar[kFields];  // of the launch's first leaf; null where not wanted
};
// A warp owns the cotangents of one leaf's fields.
template <class T, int kFields>
__global__ void __launch_bounds__(32) step_field_bars(const Range range, const double* sums, const FieldBars<T, kFields> fields) {
  const int leaf = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  HG_UNROLL
  for (int i = 0; i < kFields; ++i) {
    double sum = 0;
    for (int block = range.first_block[leaf] + lane; block < range.first_block[leaf + 1]; block += 32)
      sum += sums[static_cast<int64_t>(block) * kFields + i];
    sum = over_warp(sum);
    if (lane == 0 && fields.bar[i] != nullptr) fields.bar[i][leaf] = static_cast<T>(sum);
  }
}

// The table of leaves from `first` on; `in` and `out` are the arguments' places.
template <class O, class S, int kIn, int kOut>
Table<O, kIn, kOut> table_of(const Call& call, int first, const int (&in)[kIn], const Places<kOut>& out) {
  static_assert(sizeof(Table<O, kIn, kOut>) <= kParameters, "parameters of a kernel are at most 4 KiB");
  using T = typename O::Element;
  Table<O, kIn, kOut> t{};
  t.range.count = lower(t.kLeaves, call.length - first);
  int64_t elements = 0;
  for (int i = 0; i < t.range.count; ++i) {
    for (int k = 0; k < kIn; ++k) t.in[i][k] = data_of<const T>(call, in[k], first + i);
    for (int k = 0; k < kOut; ++k) t.out[i][k] = data_of<T>(call, out.of[k], first + i);
    t.size[i] = leaf_size<S>(call, first + i);
    elements += t.size[i];
  }
  t.quads = elements <= kFewElements ? 1 : kQuads;
  int64_t blocks = 0;
  for (int i = 0; i < t.range.count; ++i) {
    blocks += ceil_div(t.size[i], static_cast<int64_t>(t.quads) * 4 * kThreads);
    if (blocks > INT32_MAX)
      fail_shape(call, "leaves from %d on have %lld elements, expected fewer than 2**43; split the call", first,
                 static_cast<long long>(elements));
    t.range.first_block[i + 1] = static_cast<int>(blocks);
  }
  for (int i = 0; i < O::kFields; ++i) t.field[i] = call.attributes[i];
  t.extra = call.attributes[O::kFields];
  return t;
}

// The inputs' places one after the other, as the kernels of a rung read them.
template <int... n>
struct Joined {
  int of[(0 + ... + n)] = {};
  explicit Joined(const Places<n>&... groups) {
    int* to = of;
    ((to = std::copy(groups.of, groups.of + n, to)), ...);
  }
};

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
      launch("step_vjp", step_vjp<O, false>, blocks, kThreads, kShared<O>, t, static_cast<double*>(nullptr));
      continue;
    }
    double* const sums = launch.template scratch<double>(static_cast<int64_t>(blocks) * O::kFields);
    launch("step_vjp", step_vjp<O, true>, blocks, kThreads, kShared<O> + shared_size(kWarps * O::kFields * sizeof(double)), t, sums);
    FieldBars<T, O::kFields> own = all;
    for (T*& bar : own.bar) bar = bar == nullptr ? nullptr : bar + first;
    launch("step_field_bars", step_field_bars<T, O::kFields>, t.range.count, 32, 0, t.range, sums, own);
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

// Steps of the optimisers on lists of leaves. A task owns a chunk of one leaf's elements, of one direction where there
// are several; sums over a leaf, the cotangents of fields, are added up chunk by chunk.
#include "../registry.h"

// A field is one number for all leaves, the attribute, or given as arrays without axes, one for each leaf. An array that is
// given takes the number's place.
#define HG_SGD_ATTRIBUTES "lr:float momentum:float weight_decay:float nesterov:0..1"
HG_SIGNATURE(sgd_step_value, "w*=~ v?*=~ g*=~ lr?*= momentum?*= weight_decay?*= -> w_next*=~ v_next?*=~", HG_SGD_ATTRIBUTES)
HG_SIGNATURE(sgd_step_jvp,
             "w*=~ v?*=~ g*=~ lr?*= momentum?*= weight_decay?*="
             " w_dot?*=P~ v_dot?*=P~ g_dot?*=P~ lr_dot?*=P momentum_dot?*=P weight_decay_dot?*=P -> w_next_dot?*=P~ v_next_dot?*=P~",
             HG_SGD_ATTRIBUTES)
HG_SIGNATURE(sgd_step_vjp,
             "w*=~ v?*=~ g*=~ lr?*= momentum?*= weight_decay?*= w_next_bar?*=~ v_next_bar?*=~"
             " -> w_bar?*=~ v_bar?*=~ g_bar?*=~ lr_bar?=n momentum_bar?=n weight_decay_bar?=n",
             HG_SGD_ATTRIBUTES)

#define HG_ADAM_ATTRIBUTES "lr:float beta1:float beta2:float eps:float t:0..4503599627370496"
HG_SIGNATURE(adam_step_value, "w*=~ m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*= -> w_next*=~ m_next*=~ s_next*=~", HG_ADAM_ATTRIBUTES)
HG_SIGNATURE(adam_step_jvp,
             "m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*="
             " w_dot?*=P~ m_dot?*=P~ s_dot?*=P~ g_dot?*=P~ lr_dot?*=P beta1_dot?*=P beta2_dot?*=P eps_dot?*=P"
             " -> w_next_dot?*=P~ m_next_dot?*=P~ s_next_dot?*=P~",
             HG_ADAM_ATTRIBUTES)
HG_SIGNATURE(adam_step_vjp,
             "m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*= w_next_bar?*=~ m_next_bar?*=~ s_next_bar?*=~"
             " -> w_bar?*=~ m_bar?*=~ s_bar?*=~ g_bar?*=~ lr_bar?=n beta1_bar?=n beta2_bar?=n eps_bar?=n",
             HG_ADAM_ATTRIBUTES)

#define HG_ADAMW_ATTRIBUTES "lr:float beta1:float beta2:float eps:float weight_decay:float t:0..4503599627370496"
HG_SIGNATURE(adamw_step_value, "w*=~ m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*= weight_decay?*= -> w_next*=~ m_next*=~ s_next*=~",
             HG_ADAMW_ATTRIBUTES)
HG_SIGNATURE(adamw_step_jvp,
             "w*=~ m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*= weight_decay?*="
             " w_dot?*=P~ m_dot?*=P~ s_dot?*=P~ g_dot?*=P~ lr_dot?*=P beta1_dot?*=P beta2_dot?*=P eps_dot?*=P weight_decay_dot?*=P"
             " -> w_next_dot?*=P~ m_next_dot?*=P~ s_next_dot?*=P~",
             HG_ADAMW_ATTRIBUTES)
HG_SIGNATURE(adamw_step_vjp,
             "w*=~ m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*= weight_decay?*= w_next_bar?*=~ m_next_bar?*=~ s_next_bar?*=~"
             " -> w_bar?*=~ m_bar?*=~ s_bar?*=~ g_bar?*=~ lr_bar?=n beta1_bar?=n beta2_bar?=n eps_bar?=n weight_decay_bar?=n",
             HG_ADAMW_ATTRIBUTES)

#define HG_RMSPROP_ATTRIBUTES "lr:float decay:float eps:float momentum:float"
HG_SIGNATURE(rmsprop_step_value, "w*=~ s*=~ v?*=~ g*=~ lr?*= decay?*= eps?*= momentum?*= -> w_next*=~ s_next*=~ v_next?*=~",
             HG_RMSPROP_ATTRIBUTES)
HG_SIGNATURE(rmsprop_step_jvp,
             "s*=~ v?*=~ g*=~ lr?*= decay?*= eps?*= momentum?*="
             " w_dot?*=P~ s_dot?*=P~ v_dot?*=P~ g_dot?*=P~ lr_dot?*=P decay_dot?*=P eps_dot?*=P momentum_dot?*=P"
             " -> w_next_dot?*=P~ s_next_dot?*=P~ v_next_dot?*=P~",
             HG_RMSPROP_ATTRIBUTES)
HG_SIGNATURE(rmsprop_step_vjp,
             "s*=~ v?*=~ g*=~ lr?*= decay?*= eps?*= momentum?*= w_next_bar?*=~ s_next_bar?*=~ v_next_bar?*=~"
             " -> w_bar?*=~ s_bar?*=~ v_bar?*=~ g_bar?*=~ lr_bar?=n decay_bar?=n eps_bar?=n momentum_bar?=n",
             HG_RMSPROP_ATTRIBUTES)

#define HG_ADAGRAD_ATTRIBUTES "lr:float eps:float"
HG_SIGNATURE(adagrad_step_value, "w*=~ s*=~ g*=~ lr?*= eps?*= -> w_next*=~ s_next*=~", HG_ADAGRAD_ATTRIBUTES)
HG_SIGNATURE(adagrad_step_jvp,
             "s*=~ g*=~ lr?*= eps?*= w_dot?*=P~ s_dot?*=P~ g_dot?*=P~ lr_dot?*=P eps_dot?*=P -> w_next_dot?*=P~ s_next_dot?*=P~",
             HG_ADAGRAD_ATTRIBUTES)
HG_SIGNATURE(adagrad_step_vjp, "s*=~ g*=~ lr?*= eps?*= w_next_bar?*=~ s_next_bar?*=~ -> w_bar?*=~ s_bar?*=~ g_bar?*=~ lr_bar?=n eps_bar?=n",
             HG_ADAGRAD_ATTRIBUTES)

#ifdef HG_SIMD
#include "../optimizer_step.h"
#include "leaves.h"

namespace hg::HG_SIMD {
namespace {

template <class T, class S, template <class> class Optimizer>
void value(const Call& call) {
  using O = Optimizer<T>;
  using At = Arguments<O, S>;
  each_chunk<S>(call, chunks_of<S>(call), 1, [&](const Piece& piece) {
    const T* x[O::kStates];
    T* y[O::kNext];
    locate(call, At::x, piece, piece.begin, x);
    locate(call, At::y, piece, piece.begin, y);
    const O s = constants_of<O, S>(call, At::field, piece.leaf);
    for_channels<T>(piece.count, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> a[O::kStates], b[O::kNext];
      load_all<const T, F>(x, k, lanes, a);
      s.value(a, b);
      store_all<T, F>(y, k, lanes, b);
    });
  });
}

template <class T, class S, template <class> class Optimizer>
void jvp(const Call& call) {
  using O = Optimizer<T>;
  using At = Arguments<O, S>;
  each_chunk<S>(call, chunks_of<S>(call), HG_DIM(P), [&](const Piece& piece) {
    const T *x[O::kStates], *x_dot[O::kStates];
    T* y_dot[O::kNext];
    const int64_t offset = piece.p * piece.size + piece.begin;
    locate(call, At::x, piece, piece.begin, x);
    locate(call, At::x_dot, piece, offset, x_dot);
    locate(call, At::y_dot, piece, offset, y_dot);
    const O s = constants_of<O, S>(call, At::field, piece.leaf);
    double field_dot[O::kFields];
    for (int i = 0; i < O::kFields; ++i) {
      const T* const array = data_of<const T>(call, At::field_dot.of[i], piece.leaf);
      field_dot[i] = array != nullptr ? static_cast<double>(array[piece.p]) : 0.0;
    }
    const typename O::Dot dot = s.dot_of(field_dot);
    for_channels<T>(piece.count, [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> a[O::kStates], a_dot[O::kStates], b_dot[O::kNext];
      load_all<const T, F>(x, k, lanes, a);
      load_all<const T, F>(x_dot, k, lanes, a_dot);
      s.jvp(dot, a, a_dot, b_dot);
      store_all<T, F>(y_dot, k, lanes, b_dot);
    });
  });
}

// Cotangents of a piece and, with kSums, its sums for the fields.
template <class O, class S, bool kSums>
void pull_piece(const Call& call, const Piece& piece, double* sums) {
  using T = typename O::Element;
  using At = Arguments<O, S>;
  const T *x[O::kStates], *y_bar[O::kNext];
  T* x_bar[O::kStates];
  locate(call, At::x, piece, piece.begin, x);
  locate(call, At::y_bar, piece, piece.begin, y_bar);
  locate(call, At::x_bar, piece, piece.begin, x_bar);
  const O s = constants_of<O, S>(call, At::field, piece.leaf);
  double lane_sums[O::kFields][kLanes<T>] = {};
  for (int64_t from = 0; from < piece.count; from += kFlush * kLanes<T>) {
    Vec<T> running[O::kFields] = {};
    for_channels<T>(lower(kFlush * kLanes<T>, piece.count - from), [&](int64_t k, int lanes, auto full) {
      constexpr bool F = decltype(full)::value;
      Vec<T> a[O::kStates], b_bar[O::kNext], a_bar[O::kStates], field_bar[O::kFields];
      load_all<const T, F>(x, from + k, lanes, a);
      load_all<const T, F>(y_bar, from + k, lanes, b_bar);
      s.vjp(a, b_bar, a_bar, field_bar);
      store_all<T, F>(x_bar, from + k, lanes, a_bar);
      if (kSums)
        for (int i = 0; i < O::kFields; ++i) {
          if (!F)
            for (int lane = lanes; lane < kLanes<T>; ++lane) field_bar[i][lane] = 0;  // may be NaN: eps = 0
          running[i] += field_bar[i];
        }
    });
    if (kSums)
      for (int i = 0; i < O::kFields; ++i)
        for (int lane = 0; lane < kLanes<T>; ++lane) lane_sums[i][lane] += static_cast<double>(running[i][lane]);
  }
  if (kSums)
    for (int i = 0; i < O::kFields; ++i) {
      sums[i] = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) sums[i] += lane_sums[i][lane];
    }
}

template <class T, class S, template <class> class Optimizer>
void vjp(const Call& call) {
  using O = Optimizer<T>;
  const Chunks chunks = chunks_of<S>(call);
  T* field_bar[O::kFields];
  bool wanted = false;
  for (int i = 0; i < O::kFields; ++i) {
    field_bar[i] = data_of<T>(call, Arguments<O, S>::field_bar.of[i], 0);
    wanted = wanted || field_bar[i] != nullptr;
  }
  if (!wanted) {
    each_chunk<S>(call, chunks, 1, [&](const Piece& piece) { pull_piece<O, S, false>(call, piece, nullptr); });
    return;
  }
  double* const sums = scratch_of<double>(kSharedSlots + 1, chunks.count * O::kFields);
  each_chunk<S>(call, chunks, 1, [&](const Piece& piece) { pull_piece<O, S, true>(call, piece, sums + piece.chunk * O::kFields); });
  for (int leaf = 0; leaf < call.length; ++leaf)
    for (int i = 0; i < O::kFields; ++i) {
      double total = 0;
      for (int64_t chunk = chunks.first[leaf]; chunk < chunks.first[leaf + 1]; ++chunk) total += sums[chunk * O::kFields + i];
      if (field_bar[i] != nullptr) field_bar[i][leaf] = static_cast<T>(total);
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
}  // namespace hg::HG_SIMD
#endif

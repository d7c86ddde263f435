// conv2d_fprop, conv2d_dgrad, conv2d_wgrad. Each task owns the outputs of a few images (wgrad: one partial sum).
#include "../registry.h"

// Axes: A, B batch; N images, H x W pixels, C channels; R x S filters, K of them; P x Q output pixels. `precision` permits a
// device to multiply float32 as tf32 (1) or as three tf32 products (2) instead of as it is (0).
#define HG_CONV_ATTRIBUTES "stride:1..1048576 pad_h:0..1048576 pad_w:0..1048576 precision:0..2"
#define HG_CONV_AXES "P=(H+2*pad_h-R)/stride+1 Q=(W+2*pad_w-S)/stride+1"
HG_SIGNATURE(conv2d_fprop, "x=AB|NHWC w=AB|RSCK -> y=AB|NPQK", HG_CONV_ATTRIBUTES, HG_CONV_AXES)
HG_SIGNATURE(conv2d_dgrad, "y_bar=AB|NPQK w=AB|RSCK -> x_bar=AB|NHWC", HG_CONV_ATTRIBUTES, HG_CONV_AXES)
HG_SIGNATURE(conv2d_wgrad, "x=AB|NHWC y_bar=AB|NPQK -> w_bar=AB|RSCK", HG_CONV_ATTRIBUTES, HG_CONV_AXES)

#ifdef HG_SIMD
#include "winograd.h"

namespace hg::HG_SIMD {
namespace {

struct Geometry {
  int64_t A, B, N, H, W, C, R, S, K, P, Q, stride, pad_h, pad_w;
  int64_t chunks;  // tasks per batch entry
  bool winograd = false;
};

template <class T, class S>
Geometry geometry(const Call& call) {
  Geometry g{HG_DIM(A), HG_DIM(B), HG_DIM(N), HG_DIM(H),          HG_DIM(W),         HG_DIM(C),         HG_DIM(R), HG_DIM(S),
             HG_DIM(K), HG_DIM(P), HG_DIM(Q), HG_INTEGER(stride), HG_INTEGER(pad_h), HG_INTEGER(pad_w), 0};
  check_filter(call, g.H + 2 * g.pad_h, g.W + 2 * g.pad_w);
  const int64_t pixels = higher(1, higher(g.H * g.W, g.P * g.Q));
  g.winograd = g.R == 3 && g.S == 3 && g.stride == 1 && g.pad_h == 1 && g.pad_w == 1 && by_winograd<T>(g.N * g.H * g.W, g.C, g.K);
  g.chunks = tasks_of(g.A * g.B, g.N, pixels, g.winograd ? kWinogradTask : kTaskPixels);
  return g;
}

struct Task {
  int64_t a, b, first, n;
};
HG_INLINE Task task_of(const Geometry& g, int64_t index) {
  const int64_t chunk = index % g.chunks, pair = index / g.chunks;
  const int64_t first = first_image(chunk, g.N, g.chunks);
  return {pair / g.B, pair % g.B, first, first_image(chunk + 1, g.N, g.chunks) - first};
}

// Filters shared along a batch axis (stride 0) are packed once.
template <class T>
struct Filters {
  int64_t along_a, along_b;
  explicit Filters(const Batch<const T>& w, const Geometry& g)
      : along_a(w.stride_0 == 0 ? lower(1, g.A) : g.A), along_b(w.stride_1 == 0 ? lower(1, g.B) : g.B) {}
  int64_t count() const { return along_a * along_b; }
  int64_t index(int64_t a, int64_t b) const { return (along_a == 1 ? 0 : a) * along_b + (along_b == 1 ? 0 : b); }
};

// Winograd's transforms of the filters: `turned` for the gradient of the input.
inline const float* transformed(const Geometry& g, const Filters<float>& filters, const Batch<const float>& w, bool turned) {
  const int64_t size = winograd_filters_size(g.C, g.K, turned);
  float* const out = scratch_of<float>(kSlotWeights, filters.count() * size);
  parallel_for(filters.count(), [&](int64_t i) {
    winograd_filters(w.at(i / filters.along_b, i % filters.along_b), g.C, g.K, turned, g.H, g.W, out + i * size);
  });
  return out;
}
// Images of a task in an array of H x W pixels and so many channels, of which nothing lies around them.
template <class T>
HG_INLINE Images<T> images_of(const Geometry& g, const Batch<T>& a, const Task& t, int64_t channels) {
  return dense(a.at(t.a, t.b) + t.first * g.H * g.W * channels, t.n, g.H, g.W, channels);
}
// to = the convolution of `from`, of `channels` channels, with these filters.
inline void by_tiles(const Geometry& g, const Batch<const float>& from, int64_t channels, const Batch<const float>& w, bool turned,
                     const Batch<float>& to) {
  const Filters<float> filters(w, g);
  const float* const packed = transformed(g, filters, w, turned);
  parallel_for(g.A * g.B * g.chunks, [&](int64_t index) {
    const Task t = task_of(g, index);
    const WinogradTerm term{{images_of(g, from, t, channels), 0},
                            packed + filters.index(t.a, t.b) * winograd_filters_size(g.C, g.K, turned)};
    winograd_images(&term, 1, turned, images_of(g, to, t, turned ? g.C : g.K));
  });
}

// Rows and columns of the padded input that a stride-1 walk over the outputs reads.
HG_INLINE int64_t reach(int64_t outputs, int64_t stride, int64_t taps) { return (outputs - 1) * stride + taps; }

template <class T, class S>
void fprop(const Call& call) {
  const Geometry g = geometry<T, S>(call);
  HG_ARGS(x, w, y)
  if constexpr (std::is_same_v<T, float>) {
    if (g.winograd) return by_tiles(g, x, g.C, w, false, y);
  }
  const int64_t size = packed_size<T>(g.R, g.S * g.C, g.K);
  const Filters<T> filters(w, g);
  T* const packed = scratch_of<T>(kSlotWeights, filters.count() * size);
  parallel_for(filters.count(),
               [&](int64_t i) { pack_forward(w.at(i / filters.along_b, i % filters.along_b), g.R, g.S, g.C, g.K, packed + i * size); });
  const int64_t rows = reach(g.P, g.stride, g.R), cols = reach(g.Q, g.stride, g.S);
  parallel_for(g.A * g.B * g.chunks, [&](int64_t index) {
    const Task t = task_of(g, index);
    const Images<T> padded = dense(scratch_of<T>(kSlotX, t.n * rows * cols * g.C), t.n, rows, cols, g.C);
    pad_images(dense(x.at(t.a, t.b) + t.first * g.H * g.W * g.C, t.n, g.H, g.W, g.C), g.C, g.pad_h, g.pad_w, padded);
    const Packed<T> filter{packed + filters.index(t.a, t.b) * size, g.R, g.S * g.C, g.K};
    conv_images(as_const(padded), filter, g.stride, dense(y.at(t.a, t.b) + t.first * g.P * g.Q * g.K, t.n, g.P, g.Q, g.K), false);
  });
}

// One axis of dgrad for pixels h with (h + pad) % stride == phase: only every stride-th tap reaches them, so that they
// are a stride-1 convolution of y_bar with those taps, turned.
struct Phase {
  int64_t taps;   // phase, phase + stride, ...
  int64_t first;  // first pixel
  int64_t count;  // pixels
  int64_t top;    // zero rows before y_bar (negative: rows skipped)
  Phase(int64_t phase, int64_t pad, int64_t stride, int64_t taps_in_all, int64_t pixels) {
    taps = phase < taps_in_all ? ceil_div(taps_in_all - phase, stride) : 0;
    const int64_t t0 = pad > phase ? ceil_div(pad - phase, stride) : 0;
    first = stride * t0 + phase - pad;
    count = first < pixels ? ceil_div(pixels - first, stride) : 0;
    top = taps - 1 - t0;
  }
};

template <class T, class S>
void dgrad(const Call& call) {
  const Geometry g = geometry<T, S>(call);
  HG_ARGS(y_bar, w, x_bar)
  if constexpr (std::is_same_v<T, float>) {
    if (g.winograd) return by_tiles(g, y_bar, g.K, w, true, x_bar);
  }
  const int64_t phases = lower(g.stride, higher(g.H, g.W) + higher(g.pad_h, g.pad_w));
  const int64_t size = packed_size<T>(g.R, g.S * g.K, g.C);  // all phases of one filter fit: their taps are disjoint
  const Filters<T> filters(w, g);
  T* const packed = scratch_of<T>(kSlotWeights, filters.count() * size);
  // Offset of a phase's filters in the packed memory: by the taps of the phases before it.
  const auto offset = [&](int64_t ph, int64_t pw) {
    const auto before = [&](int64_t phase, int64_t taps) {
      int64_t sum = 0;
      for (int64_t f = 0; f < phase && f < taps; ++f) sum += ceil_div(taps - f, g.stride);
      return sum;
    };
    const int64_t rows = ph < g.R ? ceil_div(g.R - ph, g.stride) : 0;
    return (before(ph, g.R) * g.S + rows * before(pw, g.S)) * g.K * round_up(g.C, kLanes<T>);
  };
  parallel_for(filters.count(), [&](int64_t i) {
    const T* from = w.at(i / filters.along_b, i % filters.along_b);
    for (int64_t ph = 0; ph < lower(g.stride, g.R); ++ph)
      for (int64_t pw = 0; pw < lower(g.stride, g.S); ++pw) {
        const int64_t rows = ceil_div(g.R - ph, g.stride), cols = ceil_div(g.S - pw, g.stride);
        const int64_t r_step = g.S * g.C * g.K, s_step = g.C * g.K;
        const int64_t last = (ph + (rows - 1) * g.stride) * r_step + (pw + (cols - 1) * g.stride) * s_step;
        pack_filters(from + last, rows, cols, g.K, g.K, g.C, -g.stride * r_step, -g.stride * s_step, int64_t(1), g.K,
                     packed + i * size + offset(ph, pw));
      }
  });
  parallel_for(g.A * g.B * g.chunks, [&](int64_t index) {
    const Task t = task_of(g, index);
    const Images<const T> from = dense(y_bar.at(t.a, t.b) + t.first * g.P * g.Q * g.K, t.n, g.P, g.Q, g.K);
    T* const to = x_bar.at(t.a, t.b) + t.first * g.H * g.W * g.C;
    for (int64_t ph = 0; ph < phases; ++ph)
      for (int64_t pw = 0; pw < phases; ++pw) {
        const Phase v(ph, g.pad_h, g.stride, g.R, g.H), h(pw, g.pad_w, g.stride, g.S, g.W);
        if (v.count == 0 || h.count == 0) continue;
        const Images<T> out{
            to + (v.first * g.W + h.first) * g.C, t.n, v.count, h.count, g.stride * g.C, g.stride * g.W * g.C, g.H * g.W * g.C};
        const int64_t rows = v.taps == 0 || h.taps == 0 ? 0 : v.count + v.taps - 1, cols = h.count + h.taps - 1;
        const Images<T> padded = dense(scratch_of<T>(kSlotX, t.n * rows * cols * g.K + 1), t.n, rows, cols, g.K);
        pad_images(from, g.K, v.top, h.top, padded);
        const Packed<T> filter{packed + filters.index(t.a, t.b) * size + offset(ph, pw), rows == 0 ? 0 : v.taps, h.taps * g.K, g.C};
        conv_images(as_const(padded), filter, int64_t(1), out, false);
      }
  });
}

template <class T, class S>
void wgrad(const Call& call) {
  const Geometry g = geometry<T, S>(call);
  HG_ARGS(x, y_bar, w_bar)
  const int64_t Kp = round_up(g.K, kLanes<T>), run = g.S * g.C, size = g.R * run * Kp;
  T* const parts = scratch_of<T>(kSlotParts, g.A * g.B * g.chunks * size);
  const int64_t rows = reach(g.P, g.stride, g.R), cols = reach(g.Q, g.stride, g.S);
  parallel_for(g.A * g.B * g.chunks, [&](int64_t index) {
    const Task t = task_of(g, index);
    if constexpr (std::is_same_v<T, float>) {
      const WinogradPair pair{{images_of(g, x, t, g.C), 0}, {images_of(g, y_bar, t, g.K), 0}};
      if (g.winograd) return winograd_wgrad(&pair, 1, parts + index * size);
    }
    const Images<T> padded = dense(scratch_of<T>(kSlotX, t.n * rows * cols * g.C), t.n, rows, cols, g.C);
    pad_images(dense(x.at(t.a, t.b) + t.first * g.H * g.W * g.C, t.n, g.H, g.W, g.C), g.C, g.pad_h, g.pad_w, padded);
    Images<const T> z = dense(y_bar.at(t.a, t.b) + t.first * g.P * g.Q * g.K, t.n, g.P, g.Q, g.K);
    if (Kp != g.K) {
      const Images<T> wide = dense(scratch_of<T>(kSlotZ, t.n * g.P * g.Q * Kp), t.n, g.P, g.Q, Kp);
      pad_images(z, g.K, int64_t(0), int64_t(0), wide);
      z = as_const(wide);
    }
    T* const part = parts + index * size;
    __builtin_memset(part, 0, static_cast<std::size_t>(size) * sizeof(T));
    wgrad_images(as_const(padded), z, g.R, run, g.stride, part);
  });
  parallel_for(g.A * g.B * g.R, [&](int64_t index) {
    const int64_t pair = index / g.R, r = index % g.R;
    merge_parts(parts + pair * g.chunks * size + r * run * Kp, g.chunks, size, Kp, run, g.K,
                w_bar.at(pair / g.B, pair % g.B) + r * run * g.K);
  });
}

HG_KERNEL(conv2d_fprop, fprop)
HG_KERNEL(conv2d_dgrad, dgrad)
HG_KERNEL(conv2d_wgrad, wgrad)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

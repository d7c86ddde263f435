// The residue of a step of momentum SGD, and the step undone by it, on lists of leaves. A task owns a chunk of one leaf's elements.
//
// Each element's index among the floats that its map sends to the same one, in the bits of their number less one, lowest bit first: all
// weights, then all velocities. The first bit is the lowest of a byte. Chunks are searched at once and their bits joined in order.
#include "../registry.h"

// counts: bits of the residue (`packed` holds those that there is room for, then zeros), numbers after the step that are not finite,
// and those that are not the step's, then negative zeros before the step.
HG_SIGNATURE(sgd_residue, "w*=~ v*=~ g*=~ w_next*=~ v_next*=~ lr?*= momentum?*= weight_decay?*= -> packed:u8=B counts:i64=4",
             "lr:float momentum:float weight_decay:float")
// `end` is the place of the first bit behind those of the weights, where the velocities' begin.
HG_SIGNATURE(sgd_undo_weights, "w_next*=~ v_next*=~ lr?*= packed:u8=B -> w*=~ end:i64=", "lr:float")
HG_SIGNATURE(sgd_undo_velocities, "w*=~ g*=~ v_next*=~ momentum?*= weight_decay?*= packed:u8=B begin:i64= -> v*=~",
             "momentum:float weight_decay:float")

#ifdef HG_SIMD
#include "../preimages.h"
#include "leaves.h"

namespace hg::HG_SIMD {
namespace {

constexpr int kCounts = 4;
constexpr int kWordBits = 64;

// The bits that each number needs.
template <class W>
HG_INLINE W widths_of(W numbers) {
  W widths{};
  for (; any(numbers); numbers >>= 1) widths += numbers != 0 ? W{} + 1 : W{};
  return widths;
}

// Bits one after the other, in words. The word that a number begins in must be there, and the next one.
class Writer {
 public:
  explicit Writer(std::uint64_t* to) : begin_(to), to_(to) {}
  HG_INLINE void put(std::uint64_t value, int width) {
    word_ |= value << fill_;
    fill_ += width;
    if (fill_ < kWordBits) return;
    *to_++ = word_;
    fill_ -= kWordBits;
    word_ = fill_ == 0 ? 0 : value >> (width - fill_);
  }
  int64_t finish() {  // returns the number of bits
    *to_ = word_;
    return (to_ - begin_) * kWordBits + fill_;
  }

 private:
  std::uint64_t *begin_, *to_, word_ = 0;
  int fill_ = 0;
};

// `width` bits from place `at` of `count` bytes; those behind them are zeros.
HG_INLINE std::uint64_t read(const unsigned char* bytes, int64_t count, int64_t at, int width) {
  std::uint64_t value = 0;
  if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && at / 8 + 8 <= count && width + at % 8 <= kWordBits) {
    __builtin_memcpy(&value, bytes + at / 8, sizeof value);
    value >>= at % 8;
    return width == kWordBits ? value : value & ((std::uint64_t(1) << width) - 1);
  }
  for (int done = 0; done < width;) {
    const int64_t byte = (at + done) / 8;
    const int skipped = static_cast<int>((at + done) % 8), taken = static_cast<int>(lower(8 - skipped, width - done));
    const std::uint64_t bits = byte < count ? bytes[byte] >> skipped : 0u;
    value |= (bits & ((1u << taken) - 1)) << done;
    done += taken;
  }
  return value;
}

// Of one map in signature S, where its arguments are.
template <class M, class S>
struct Arrays {
  static constexpr auto given = places<S>(M::kGivenNames, "");
  static constexpr auto from = places<S>(M::kFromNames, ""), to = places<S>(M::kToNames, "");
  static constexpr auto field = places<S>(M::kFieldNames, "");
};

// body(k, lanes, full, map, image, what all candidates share) for each vector of a piece.
template <class M, class S, class Body>
HG_INLINE void each_vector(const Call& call, const Piece& piece, const Body& body) {
  using T = typename M::Element;
  using At = Arrays<M, S>;
  const T *given[M::kGiven], *image[1];
  locate(call, At::given, piece, piece.begin, given);
  locate(call, At::to, piece, piece.begin, image);
  const M map = constants_of<M, S>(call, At::field, piece.leaf);
  for_channels<T>(piece.count, [&](int64_t k, int lanes, auto full) {
    constexpr bool F = decltype(full)::value;
    Vec<T> a[M::kGiven], y[1];
    load_all<const T, F>(given, k, lanes, a);
    load_all<const T, F>(image, k, lanes, y);
    body(k, F ? kLanes<T> : lanes, full, map, y[0], map.shared(a));
  });
}

// A piece's bits into words, and its counts.
template <class M, class S>
void pack(const Call& call, const Piece& piece, std::uint64_t* words, int64_t* counts) {
  using T = typename M::Element;
  const T* x[1];
  locate(call, Arrays<M, S>::from, piece, piece.begin, x);
  Writer writer(words);
  Mask<T> infinite{}, foreign{}, negative{};
  each_vector<M, S>(call, piece, [&](int64_t k, int lanes, auto full, const M& map, Vec<T> image, Vec<T> shared) {
    const Vec<T> before = load<T, decltype(full)::value>(x[0] + k, lanes);
    const Preimages<Vec<T>> found = preimages(map, image, shared);
    using Words = Word<Vec<T>>;
    const Words index = same_bits<Words>(number_of(before)) - same_bits<Words>(found.first);
    infinite -= (same_bits<Mask<T>>(image) & Floats<T>::kMagnitude) >= Floats<T>::kInfinity;
    foreign -= map(before, shared) != image;
    negative -= same_bits<Mask<T>>(before) == Floats<T>::kZero;
    if (!any(found.rest)) return;
    const Words widths = widths_of(found.rest);
    if (any(widths > kWordBits / kLanes<T> - 1)) {
      for (int i = 0; i < lanes; ++i) writer.put(index[i], static_cast<int>(widths[i]));
      return;
    }
    std::uint64_t bits = 0;
    int fill = 0;
    for (int i = 0; i < lanes; ++i) {
      bits |= static_cast<std::uint64_t>(index[i]) << fill;
      fill += static_cast<int>(widths[i]);
    }
    writer.put(bits, fill);
  });
  counts[0] = writer.finish();
  for (int i = 1; i < kCounts; ++i) counts[i] = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    counts[1] += infinite[lane];
    counts[2] += foreign[lane];
    counts[3] += negative[lane];
  }
}

template <class T, class S>
void residue(const Call& call) {
  auto* const packed = data_of<unsigned char>(call, find(S::signature.arrays, "packed"), 0);
  auto* const counts = data_of<int64_t>(call, find(S::signature.arrays, "counts"), 0);
  const Chunks chunks = chunks_of<S>(call);
  constexpr int kSpare = 2;  // words of a chunk beyond those that its elements could fill
  const int64_t words = kChunk * static_cast<int64_t>(sizeof(T)) * 8 / kWordBits + kSpare;
  std::uint64_t* const own = scratch_of<std::uint64_t>(kSharedSlots + 1, 2 * chunks.count * words);
  int64_t* const found = scratch_of<int64_t>(kSharedSlots + 2, 2 * chunks.count * kCounts);
  each_chunk<S>(call, chunks, 2, [&](const Piece& piece) {
    const int64_t at = piece.p * chunks.count + piece.chunk;
    (piece.p == 0 ? pack<WeightMap<T>, S> : pack<VelocityMap<T>, S>)(call, piece, own + at * words, found + at * kCounts);
  });
  for (int i = 0; i < kCounts; ++i) counts[i] = 0;
  const int64_t room = HG_DIM(B);
  int64_t bytes = 0;
  std::uint64_t left = 0;  // bits that do not fill a byte yet
  for (int64_t at = 0; at < 2 * chunks.count; ++at) {
    const std::uint64_t* word = own + at * words;
    int64_t bits = found[at * kCounts];
    int fill = static_cast<int>(counts[0] % 8);
    for (; bits > 0; ++word, bits -= kWordBits) {
      const int width = static_cast<int>(lower(bits, kWordBits));
      const std::uint64_t low = left | *word << fill;
      const std::uint64_t high = fill == 0 ? 0 : *word >> (kWordBits - fill);
      int done = 0;  // whole bytes
      for (; 8 * (done + 1) <= fill + width; ++done, ++bytes)
        if (bytes < room) packed[bytes] = static_cast<unsigned char>(done < 8 ? low >> 8 * done : high);
      left = done < 8 ? low >> 8 * done : high >> 8 * (done - 8);
      fill = (fill + width) % 8;
    }
    for (int i = 0; i < kCounts; ++i) counts[i] += found[at * kCounts + i];
  }
  if (counts[0] % 8 != 0 && bytes < room) packed[bytes++] = static_cast<unsigned char>(left);
  for (; bytes < room; ++bytes) packed[bytes] = 0;
}

// The numbers before the step, whose bits begin at place `begin` of the residue; returns the place behind them.
template <class M, class S>
int64_t restore(const Call& call, int64_t begin) {
  using T = typename M::Element;
  const auto* const packed = data_of<const unsigned char>(call, find(S::signature.arrays, "packed"), 0);
  const Chunks chunks = chunks_of<S>(call);
  unsigned char* const widths = scratch_of<unsigned char>(kSharedSlots + 1, chunks.count * kChunk);
  int64_t* const places_of = scratch_of<int64_t>(kSharedSlots + 2, chunks.count + 1);
  each_chunk<S>(call, chunks, 1, [&](const Piece& piece) {  // the first of each number's candidates
    T* x[1];
    locate(call, Arrays<M, S>::from, piece, piece.begin, x);
    unsigned char* const width = widths + piece.chunk * kChunk;
    each_vector<M, S>(call, piece, [&](int64_t k, int lanes, auto full, const M& map, Vec<T> image, Vec<T> shared) {
      const Preimages<Vec<T>> found = preimages(map, image, shared);
      store<T, decltype(full)::value>(x[0] + k, float_of<Vec<T>>(found.first), lanes);
      store_code<T, decltype(full)::value>(width + k, same_bits<Mask<T>>(widths_of(found.rest)), lanes);
    });
    int64_t bits = 0;
    for (int64_t k = 0; k < piece.count; ++k) bits += width[k];
    places_of[piece.chunk + 1] = bits;
  });
  places_of[0] = begin;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) places_of[chunk + 1] += places_of[chunk];
  const int64_t bytes = HG_DIM(B);
  each_chunk<S>(call, chunks, 1, [&](const Piece& piece) {
    T* x[1];
    locate(call, Arrays<M, S>::from, piece, piece.begin, x);
    const unsigned char* const width = widths + piece.chunk * kChunk;
    int64_t at = places_of[piece.chunk];
    if (at == places_of[piece.chunk + 1]) return;
    for (int64_t k = 0; k < piece.count; ++k) {
      if (width[k] == 0) continue;
      const auto index = static_cast<Word<T>>(read(packed, bytes, at, width[k]));
      x[0][k] = float_of<T>(same_bits<Whole<T>>(same_bits<Word<T>>(number_of(x[0][k])) + index));
      at += width[k];
    }
  });
  return places_of[chunks.count];
}

template <class T, class S>
void undo_weights(const Call& call) {
  *data_of<int64_t>(call, find(S::signature.arrays, "end"), 0) = restore<WeightMap<T>, S>(call, 0);
}

template <class T, class S>
void undo_velocities(const Call& call) {
  const int64_t begin = *data_of<const int64_t>(call, find(S::signature.arrays, "begin"), 0);
  if (begin < 0) fail_argument(call, "begin is %lld, expected the place of a bit, 0 or more", static_cast<long long>(begin));
  restore<VelocityMap<T>, S>(call, lower(begin, 8 * HG_DIM(B)));  // all bits from there on are zeros
}

HG_KERNEL(sgd_residue, residue)
HG_KERNEL(sgd_undo_weights, undo_weights)
HG_KERNEL(sgd_undo_velocities, undo_velocities)

}  // namespace
}  // namespace hg::HG_SIMD
#endif

// The residue of a step of momentum SGD, and the step undone by it. A block owns a chunk of one leaf, a thread the bits of four
// neighbouring elements. First all blocks search, then one block adds up where each chunk's bits begin, then all write or read them.
//
// Bits are written by an atomic "or" into words of zeros, each bit by one thread, so that the order does not matter.
#include "../host/sgd_residue.cpp"  // its signatures
#include "../preimages.h"
#include "leaves.h"

namespace hg::cuda {
namespace {

constexpr int kBlock = 4 * kThreads;             // elements of a block
constexpr int64_t kMostBits = int64_t{1} << 62;  // of a residue; behind its bits, zeros are read
constexpr int kCounts = 4;                       // bits, not finite, not the step's, negative zeros

HG_DEVICE int width_of(std::uint64_t rest) { return 64 - __clzll(static_cast<long long>(rest)); }

// Inputs: what the map is given, its images, what it was applied to, its fields. The output takes the latter's place where it is undone.
template <class M>
using MapTable = Table<M, M::kGiven + 2 + M::kFields, 1>;

// What the search leaves for each element and block, from the launch's first block on.
template <class T>
struct Found {
  Word<T>* index;  // null where a step is undone: its output then holds the first candidates
  unsigned char* width;
  int64_t* counts;  // kCounts for each block
};
template <class T>
struct Everything {
  Found<T> found;
  int64_t* begin;  // of each block, the place of its first bit
  int64_t blocks;

  Found<T> from(int64_t block) const {
    return {found.index == nullptr ? nullptr : found.index + block * kBlock, found.width + block * kBlock, found.counts + block * kCounts};
  }
};

template <class M>
__global__ void __launch_bounds__(kThreads) search(const MapTable<M> t, const Found<typename M::Element> found) {
  using T = typename M::Element;
  SharedMemory memory;
  const Place at = place_of(t);
  const M map = constants_of(t, M::kGiven + 2, at.leaf, memory.take<M>(1));
  double* const sums = memory.take<double>(kWarps);
  const T* const* const in = t.in[at.leaf];
  int counts[kCounts] = {};
  HG_NO_UNROLL
  for (int k = static_cast<int>(threadIdx.x); k < kBlock; k += kThreads) {  // neighbouring threads read neighbouring elements
    const int64_t element = static_cast<int64_t>(blockIdx.x) * kBlock + k;
    if (k >= at.count) {
      found.width[element] = 0;
      continue;
    }
    T given[M::kGiven];
    HG_UNROLL
    for (int i = 0; i < M::kGiven; ++i) given[i] = in[i][at.begin + k];
    const T image = in[M::kGiven][at.begin + k], shared = map.shared(given);
    const Preimages<T> own = preimages(map, image, shared);
    const int width = width_of(own.rest);
    found.width[element] = static_cast<unsigned char>(width);
    counts[0] += width;
    if (found.index == nullptr) {
      t.out[at.leaf][0][at.begin + k] = float_of<T>(own.first);
      continue;
    }
    const T before = in[M::kGiven + 1][at.begin + k];
    found.index[element] = same_bits<Word<T>>(number_of(before)) - same_bits<Word<T>>(own.first);
    counts[1] += (same_bits<Whole<T>>(image) & Floats<T>::kMagnitude) >= Floats<T>::kInfinity;
    counts[2] += map(before, shared) != image;
    counts[3] += same_bits<Whole<T>>(before) == Floats<T>::kZero;
  }
  HG_UNROLL
  for (int i = 0; i < kCounts; ++i) {
    const double sum = over_block(counts[i], sums);
    if (threadIdx.x == 0) found.counts[static_cast<int64_t>(blockIdx.x) * kCounts + i] = static_cast<int64_t>(sum);
  }
}

// The sum of the values of the block's threads before the calling one, and of all; `shared` holds kThreads + 1 of them.
HG_DEVICE int64_t before_thread(int64_t value, int64_t* shared, int64_t& all) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  shared[thread + 1] = value;
  if (thread == 0) shared[0] = 0;
  HG_NO_UNROLL
  for (int distance = 1; distance < kThreads; distance *= 2) {
    __syncthreads();
    const int64_t other = thread + 1 > distance ? shared[thread + 1 - distance] : 0;
    __syncthreads();
    shared[thread + 1] += other;
  }
  __syncthreads();
  all = shared[kThreads];
  return shared[thread];
}

// begin[b] = start + the bits of the blocks before b; the totals, with the place behind the last bit, where they are wanted.
__global__ void __launch_bounds__(kThreads)
    add_up(const int64_t* counts, int64_t blocks, const int64_t* start, int64_t* begin, int64_t* totals, int64_t* end) {
  SharedMemory memory;
  int64_t* const shared = memory.take<int64_t>(kThreads + 1);
  const int64_t own = ceil_div(blocks, kThreads), first = lower(own * threadIdx.x, blocks), last = lower(first + own, blocks);
  HG_NO_UNROLL
  for (int i = 0; i < kCounts; ++i) {
    int64_t sum = 0, all = 0;
    for (int64_t block = first; block < last; ++block) sum += counts[block * kCounts + i];
    int64_t at = before_thread(sum, shared, all);
    if (threadIdx.x == 0 && totals != nullptr) totals[i] = all;
    if (i > 0) continue;
    if (start != nullptr) at += lower(higher(*start, int64_t{0}), kMostBits);  // the host cannot see that it is wrong
    for (int64_t block = first; block < last; ++block) {
      begin[block] = at;
      at += counts[block * kCounts];
    }
    if (threadIdx.x == 0 && end != nullptr) *end = all;
  }
}

__global__ void __launch_bounds__(kThreads) clear(unsigned* words, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) words[i] = 0;
}

// The place of the first bit of the calling thread's elements, whose widths it reads.
HG_DEVICE int64_t place_of_bits(const unsigned char* all, const int64_t* begin, int64_t* shared, int (&width)[4]) {
  int64_t sum = 0, total = 0;
  HG_UNROLL
  for (int j = 0; j < 4; ++j) {
    width[j] = all[static_cast<int64_t>(blockIdx.x) * kBlock + 4 * threadIdx.x + j];
    sum += width[j];
  }
  return begin[blockIdx.x] + before_thread(sum, shared, total);
}

template <class T>
__global__ void __launch_bounds__(kThreads) write_bits(const Found<T> found, const int64_t* begin, unsigned* words, int64_t count) {
  SharedMemory memory;
  int width[4];
  int64_t at = place_of_bits(found.width, begin, memory.take<int64_t>(kThreads + 1), width);
  HG_NO_UNROLL
  for (int j = 0; j < 4; ++j) {
    std::uint64_t index = found.index[static_cast<int64_t>(blockIdx.x) * kBlock + 4 * threadIdx.x + j];
    for (int left = width[j]; left > 0;) {
      const int skipped = static_cast<int>(at % 32), taken = lower(32 - skipped, left);
      const unsigned bits = static_cast<unsigned>(index) & (~0u >> (32 - taken));
      if (bits != 0 && at / 32 < count) atomicOr(words + at / 32, bits << skipped);
      index >>= taken;
      left -= taken;
      at += taken;
    }
  }
}

__global__ void __launch_bounds__(kThreads) to_bytes(const unsigned* words, int64_t count, unsigned char* bytes) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) bytes[i] = static_cast<unsigned char>(words[i / 4] >> 8 * (i % 4));
}

template <class M>
__global__ void __launch_bounds__(kThreads)
    read_bits(const MapTable<M> t, const unsigned char* widths, const int64_t* begin, const unsigned char* bytes, int64_t count) {
  using T = typename M::Element;
  SharedMemory memory;
  const Place own = place_of(t);
  int width[4];
  int64_t at = place_of_bits(widths, begin, memory.take<int64_t>(kThreads + 1), width);
  T* const x = t.out[own.leaf][0] + own.begin + 4 * threadIdx.x;
  HG_NO_UNROLL
  for (int j = 0; j < 4; ++j) {
    if (width[j] == 0) continue;  // an element beyond the leaf has none
    std::uint64_t index = 0;
    for (int done = 0; done < width[j];) {
      const int skipped = static_cast<int>(at % 8), taken = lower(8 - skipped, width[j] - done);
      const unsigned bits = at / 8 < count ? bytes[at / 8] >> skipped : 0u;
      index |= static_cast<std::uint64_t>(bits & ((1u << taken) - 1)) << done;
      done += taken;
      at += taken;
    }
    x[j] = float_of<T>(same_bits<Whole<T>>(same_bits<Word<T>>(number_of(x[j])) + static_cast<Word<T>>(index)));
  }
}

template <class M, class S>
struct MapArguments {
  static constexpr auto given = places<S>(M::kGivenNames, "");
  static constexpr auto to = places<S>(M::kToNames, ""), from = places<S>(M::kFromNames, "");
  static constexpr auto field = places<S>(M::kFieldNames, "");
};

// body(table, block) for each launch over the leaves; `block` is its first one. Returns the block behind the last.
template <class M, class S, bool kUndone, class Body>
int64_t each_launch(const Call& call, int64_t block, const Body& body) {
  using At = MapArguments<M, S>;
  constexpr Places<1> kNone{{-1}};
  for (int first = 0; first < call.length; first += MapTable<M>::kLeaves) {
    const Joined in(At::given, At::to, kUndone ? kNone : At::from, At::field);
    const MapTable<M> t = table_of<M, S>(call, first, in.of, kUndone ? At::from : kNone, 1);
    body(t, block);
    block += t.range.first_block[t.range.count];
  }
  return block;
}

template <class T, class S>
Everything<T> room_for(const Call& call, Launch& launch, int maps, bool indices) {
  int64_t blocks = 0;
  for (int i = 0; i < call.length; ++i) blocks += maps * ceil_div(leaf_size<S>(call, i), kBlock);
  Everything<T> all{{nullptr, nullptr, nullptr}, nullptr, blocks};
  if (indices) all.found.index = launch.template scratch<Word<T>>(blocks * kBlock);
  all.found.width = launch.template scratch<unsigned char>(blocks * kBlock);
  all.found.counts = launch.template scratch<int64_t>(blocks * kCounts);
  all.begin = launch.template scratch<int64_t>(blocks);
  return all;
}

template <class M>
constexpr std::size_t kSearchShared = shared_size(sizeof(M)) + shared_size(kWarps * sizeof(double));
constexpr std::size_t kSumsShared = shared_size((kThreads + 1) * sizeof(int64_t));

template <class M, class S, bool kUndone>
int64_t search_all(const Call& call, const Launch& launch, const Everything<typename M::Element>& all, int64_t block) {
  return each_launch<M, S, kUndone>(call, block, [&](const MapTable<M>& t, int64_t from) {
    launch("search", search<M>, t.range.first_block[t.range.count], kThreads, kSearchShared<M>, t, all.from(from));
  });
}

template <class T, class S>
void residue(const Call& call) {
  auto* const packed = data_of<unsigned char>(call, find(S::signature.arrays, "packed"), 0);
  auto* const counts = data_of<int64_t>(call, find(S::signature.arrays, "counts"), 0);
  const int64_t bytes = HG_DIM(B), words = ceil_div(bytes, 4);
  Launch launch(call);
  const Everything<T> all = room_for<T, S>(call, launch, 2, true);
  unsigned* const bits = launch.template scratch<unsigned>(words);
  search_all<VelocityMap<T>, S, false>(call, launch, all, search_all<WeightMap<T>, S, false>(call, launch, all, 0));
  launch("add_up", add_up, 1, kThreads, kSumsShared, static_cast<const int64_t*>(all.found.counts), all.blocks,
         static_cast<const int64_t*>(nullptr), all.begin, counts, static_cast<int64_t*>(nullptr));
  launch("clear", clear, ceil_div(words, kThreads), kThreads, 0, bits, words);
  launch("write_bits", write_bits<T>, all.blocks, kThreads, kSumsShared, all.found, static_cast<const int64_t*>(all.begin), bits, words);
  launch("to_bytes", to_bytes, ceil_div(bytes, kThreads), kThreads, 0, static_cast<const unsigned*>(bits), bytes, packed);
}

template <class M, class S>
void restore(const Call& call, const int64_t* start, int64_t* end) {
  using T = typename M::Element;
  const auto* const packed = data_of<const unsigned char>(call, find(S::signature.arrays, "packed"), 0);
  Launch launch(call);
  const Everything<T> all = room_for<T, S>(call, launch, 1, false);
  search_all<M, S, true>(call, launch, all, 0);
  launch("add_up", add_up, 1, kThreads, kSumsShared, static_cast<const int64_t*>(all.found.counts), all.blocks, start, all.begin,
         static_cast<int64_t*>(nullptr), end);
  each_launch<M, S, true>(call, 0, [&](const MapTable<M>& t, int64_t from) {
    launch("read_bits", read_bits<M>, t.range.first_block[t.range.count], kThreads, kSumsShared, t,
           static_cast<const unsigned char*>(all.from(from).width), static_cast<const int64_t*>(all.begin + from), packed, HG_DIM(B));
  });
}

template <class T, class S>
void undo_weights(const Call& call) {
  restore<WeightMap<T>, S>(call, nullptr, data_of<int64_t>(call, find(S::signature.arrays, "end"), 0));
}

template <class T, class S>
void undo_velocities(const Call& call) {
  restore<VelocityMap<T>, S>(call, data_of<const int64_t>(call, find(S::signature.arrays, "begin"), 0), nullptr);
}

HG_KERNEL(sgd_residue, residue)
HG_KERNEL(sgd_undo_weights, undo_weights)
HG_KERNEL(sgd_undo_velocities, undo_velocities)

}  // namespace
}  // namespace hg::cuda

// Inner loops in the form of NumPy's, for what NumPy has no such loop for: element i of operand k lies at operands[k] + i * strides[k].
#pragma once
#include <cfenv>
#include <cstdint>

namespace hg {

using Inner = void (*)(char** operands, const std::intptr_t* length, const std::intptr_t* strides, void* data);

// --- conversions of elements to floating-point numbers ---

template <class From, class To>
void convert(char** operands, const std::intptr_t* length, const std::intptr_t* strides, void*) {
  const char* from = operands[0];
  char* to = operands[1];
  if (strides[0] == sizeof(From) && strides[1] == sizeof(To)) {  // with vectors
    const From* const in = reinterpret_cast<const From*>(from);
    To* const out = reinterpret_cast<To*>(to);
    for (std::intptr_t i = 0; i < *length; ++i) out[i] = static_cast<To>(in[i]);
    return;
  }
  for (std::intptr_t i = 0; i < *length; ++i, from += strides[0], to += strides[1])
    *reinterpret_cast<To*>(to) = static_cast<To>(*reinterpret_cast<const From*>(from));
}
template <class To>
Inner conversion_to(char from) {
  switch (from) {
    case '?':
      return convert<unsigned char, To>;
    case 'i':
      return convert<std::int32_t, To>;
    case 'l':
      return convert<std::int64_t, To>;
    case 'f':
      return convert<float, To>;
    case 'd':
      return convert<double, To>;
    default:
      return nullptr;
  }
}

// --- elements of rows by their numbers: operands x, index, out ---

struct Row {
  std::intptr_t size, step;  // elements of the row, and bytes between them
};

// The place of a row's element; -1 where there is none. Then the loop raises a floating-point exception, after which it is done again.
inline std::intptr_t place_in(const Row& row, const char* index) {
  const std::int64_t given = *reinterpret_cast<const std::int64_t*>(index), place = given < 0 ? given + row.size : given;
  if (place >= 0 && place < row.size) return place * row.step;
  std::feraiseexcept(FE_INVALID);
  return -1;
}
template <class T>
void pick(char** operands, const std::intptr_t* length, const std::intptr_t* strides, void* data) {  // x is a row, out an element of it
  for (std::intptr_t i = 0; i < *length; ++i) {
    const std::intptr_t at = place_in(*static_cast<const Row*>(data), operands[1] + i * strides[1]);
    if (at >= 0) *reinterpret_cast<T*>(operands[2] + i * strides[2]) = *reinterpret_cast<const T*>(operands[0] + i * strides[0] + at);
  }
}
template <class T>
void place(char** operands, const std::intptr_t* length, const std::intptr_t* strides, void* data) {  // out is a row of zeros but for x
  const Row& row = *static_cast<const Row*>(data);
  for (std::intptr_t i = 0; i < *length; ++i) {
    char* const to = operands[2] + i * strides[2];
    for (std::intptr_t k = 0; k < row.size; ++k) *reinterpret_cast<T*>(to + k * row.step) = T(0);
    const std::intptr_t at = place_in(row, operands[1] + i * strides[1]);
    if (at >= 0) *reinterpret_cast<T*>(to + at) = *reinterpret_cast<const T*>(operands[0] + i * strides[0]);
  }
}

}  // namespace hg

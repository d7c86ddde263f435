// Errors and the checks that make a wrong call an exception instead of a wrong read.
// Nothing here is inline: sources compiled for several instruction sets must not share inline code.
#pragma once
#include <stdexcept>
#include <string>

#include "view.h"

namespace hg {

// What is wrong decides the Python class: shapes, element types, or anything else.
struct ShapeMismatch : std::invalid_argument {
  explicit ShapeMismatch(const std::string& message) : std::invalid_argument(message) {}
};
struct DTypeMismatch : std::invalid_argument {
  explicit DTypeMismatch(const std::string& message) : std::invalid_argument(message) {}
};
struct BadArgument : std::invalid_argument {
  explicit BadArgument(const std::string& message) : std::invalid_argument(message) {}
};

// Fills call.dims and call.dtype from the arrays, and throws unless every array fits the signature.
void check_arrays(Call& call);

// Throws `kernel: <message>`; printf format.
[[noreturn]] void fail_shape(const Call& call, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fail_argument(const Call& call, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The integer attribute at `index`; throws unless it is whole and lowest <= value <= highest.
std::int64_t integer_attribute(const Call& call, int index, std::int64_t lowest, std::int64_t highest);

// The attribute `precision` at `index`: 0 float32, 1 tf32, 2 three tf32 products. Host kernels only check it.
std::int64_t precision_attribute(const Call& call, int index);

}  // namespace hg

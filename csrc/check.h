// Errors and the checks that make a wrong call an exception instead of a wrong read.
// Nothing here is inline: sources compiled for several instruction sets must not share inline code.
#pragma once
#include <stdexcept>
#include <string>

#include "view.h"

namespace hg {

struct Argument;

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

// Reads the call's element type and its axes off the arrays that are there; axes that are known (not -1) stay. Throws where
// an array has another number of axes or another element type than the signature says, or an attribute is out of bounds.
void read_axes(Call& call);

// Sets dtype, ndim and shape of `view` as the axes say. Throws where one of them is unknown.
void shape_output(const Call& call, const Argument& argument, int element, View& view);

// Throws unless every array has the call's axes and the layout that the signature asks for and, if `overlaps`, no output
// shares memory with another array.
void check_arrays(const Call& call, bool overlaps);

// Throws unless a filter, axes R and S, fits once into padded images of this size.
void check_filter(const Call& call, std::int64_t height, std::int64_t width);

// Throws `kernel: <message>`; printf format.
[[noreturn]] void fail_shape(const Call& call, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fail_argument(const Call& call, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace hg

#include "check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "table.h"

namespace hg {
namespace {

std::string format_message(const Call& call, const char* format, std::va_list values) {
  char text[512];
  std::vsnprintf(text, sizeof text, format, values);
  return std::string(call.signature->name) + ": " + text;
}

std::size_t item_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::u8:
      return 1;
    default:
      return 8;
  }
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::u8:
      return "uint8";
    default:
      return "int64";
  }
}

std::string shape_text(const View& view) {
  std::string text = "(";
  for (int i = 0; i < view.ndim; ++i) text += (i ? ", " : "") + std::to_string(view.shape[i]);
  return text + (view.ndim == 1 ? ",)" : ")");
}

bool is_absent(const View& view) { return view.ndim == 1 && view.shape[0] == 0; }

std::int64_t axis_size(const Call& call, char axis) {
  if (axis >= '0' && axis <= '9') return axis - '0';
  return call.dims[static_cast<int>(axis)];
}

std::string expected_text(const Call& call, const Argument& argument) {
  std::string letters = "(", sizes = "(";
  for (std::size_t i = 0; i < argument.axes.size(); ++i) {
    const char axis = argument.axes[i];
    letters += i ? ", " : "";
    letters += axis == 'h' ? "H//2" : axis == 'w' ? "W//2" : axis == 'g' ? "9*C" : std::string(1, axis);
    const std::int64_t size = axis_size(call, axis);
    sizes += (i ? ", " : "") + (size < 0 ? std::string("?") : std::to_string(size));
  }
  return letters + ") = " + sizes + ")";
}

struct Span {  // bytes an array touches
  std::uintptr_t first, last;
};

Span span_of(const View& view) {
  std::uintptr_t first = reinterpret_cast<std::uintptr_t>(view.data);
  std::uintptr_t last = first + item_bytes(view.dtype);
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] == 0) return {0, 0};
    const std::int64_t reach = (view.shape[i] - 1) * view.stride[i];
    (reach < 0 ? first : last) += static_cast<std::uintptr_t>(reach);
  }
  return {first, last};
}

void check_layout(const Call& call, const View& view, const Argument& argument) {
  const std::int64_t item = static_cast<std::int64_t>(item_bytes(view.dtype));
  bool empty = false, aligned = reinterpret_cast<std::uintptr_t>(view.data) % item_bytes(view.dtype) == 0;
  for (int i = 0; i < view.ndim; ++i) {
    empty = empty || view.shape[i] == 0;
    aligned = aligned && (view.shape[i] <= 1 || view.stride[i] % item == 0);
  }
  if (empty) return;
  if (!aligned)
    fail_shape(call, "%s has elements that are not aligned, expected multiples of %d bytes; copy it first",
               argument.name.c_str(), static_cast<int>(item));
  std::int64_t expected = item;
  for (int i = view.ndim - 1; i >= (argument.output ? 0 : argument.lead); --i) {
    if (view.shape[i] > 1 && view.stride[i] != expected)
      fail_shape(call, "%s has a stride of %lld bytes on axis %d, expected %lld because %s; copy it first",
                 argument.name.c_str(), static_cast<long long>(view.stride[i]), i, static_cast<long long>(expected),
                 argument.output ? "outputs are C-contiguous" : "inner axes are C-contiguous");
    expected *= view.shape[i];
  }
}

}  // namespace

void fail_shape(const Call& call, const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  const std::string message = format_message(call, format, values);
  va_end(values);
  throw ShapeMismatch(message);
}

void fail_argument(const Call& call, const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  const std::string message = format_message(call, format, values);
  va_end(values);
  throw BadArgument(message);
}

std::int64_t integer_attribute(const Call& call, int index, std::int64_t lowest, std::int64_t highest) {
  const double value = call.attributes[index];
  if (!(value >= static_cast<double>(lowest) && value <= static_cast<double>(highest)) || value != std::floor(value))
    fail_argument(call, "attribute %s is %.17g, expected an integer from %lld to %lld",
                  kernel_of(call.signature).attributes[static_cast<std::size_t>(index)].name.c_str(), value,
                  static_cast<long long>(lowest), static_cast<long long>(highest));
  return static_cast<std::int64_t>(value);
}

std::int64_t precision_attribute(const Call& call, int index) { return integer_attribute(call, index, 0, 2); }

void check_arrays(Call& call) {
  const Kernel& kernel = kernel_of(call.signature);
  for (std::int64_t& size : call.dims) size = -1;
  bool typed = false;
  const std::size_t n = kernel.arguments.size();
  // Pass 1: element types, and the sizes of the capital letters.
  for (std::size_t i = 0; i < n; ++i) {
    const Argument& argument = kernel.arguments[i];
    const View& view = call.arrays[i];
    if (is_absent(view) && argument.optional) continue;
    if (argument.is_float) {
      if (view.dtype != DType::f32 && view.dtype != DType::f64)
        throw DTypeMismatch(std::string(kernel.signature->name) + ": " + argument.name + " has dtype " +
                            dtype_name(view.dtype) + ", expected float32 or float64");
      if (typed && view.dtype != call.dtype)
        throw DTypeMismatch(std::string(kernel.signature->name) + ": " + argument.name + " has dtype " +
                            dtype_name(view.dtype) + ", expected " + dtype_name(call.dtype) +
                            " because the arrays before it have it; convert one of them");
      call.dtype = view.dtype;
      typed = true;
    } else if (view.dtype != argument.dtype) {
      throw DTypeMismatch(std::string(kernel.signature->name) + ": " + argument.name + " has dtype " +
                          dtype_name(view.dtype) + ", expected " + dtype_name(argument.dtype));
    }
    if (view.ndim != static_cast<int>(argument.axes.size()))
      fail_shape(call, "%s has shape %s, expected %d axes %s", argument.name.c_str(), shape_text(view).c_str(),
                 static_cast<int>(argument.axes.size()), argument.axes.c_str());
    for (int d = 0; d < view.ndim; ++d) {
      const char axis = argument.axes[static_cast<std::size_t>(d)];
      if (axis >= 'A' && axis <= 'Z' && call.dims[static_cast<int>(axis)] < 0)
        call.dims[static_cast<int>(axis)] = view.shape[d];
    }
  }
  const auto derived = [&](char axis, char from, std::int64_t times, std::int64_t divisor) {
    const std::int64_t size = call.dims[static_cast<int>(from)];
    call.dims[static_cast<int>(axis)] = size < 0 ? -1 : size * times / divisor;
  };
  derived('h', 'H', 1, 2);
  derived('w', 'W', 1, 2);
  derived('g', 'C', 9, 1);
  // Pass 2: every axis, the memory layout, and that no output shares memory with another array.
  for (std::size_t i = 0; i < n; ++i) {
    const Argument& argument = kernel.arguments[i];
    const View& view = call.arrays[i];
    if (is_absent(view) && argument.optional) continue;
    for (int d = 0; d < view.ndim; ++d)
      if (view.shape[d] != axis_size(call, argument.axes[static_cast<std::size_t>(d)]))
        fail_shape(call, "%s has shape %s, expected %s", argument.name.c_str(), shape_text(view).c_str(),
                   expected_text(call, argument).c_str());
    check_layout(call, view, argument);
  }
  for (std::size_t i = static_cast<std::size_t>(kernel.n_inputs); i < n; ++i) {
    const Span out = span_of(call.arrays[i]);
    for (std::size_t j = 0; j < i; ++j) {
      const Span other = span_of(call.arrays[j]);
      if (out.first < other.last && other.first < out.last)
        fail_argument(call, "output %s shares memory with %s, expected separate arrays; allocate it",
                      kernel.arguments[i].name.c_str(), kernel.arguments[j].name.c_str());
    }
  }
}

}  // namespace hg

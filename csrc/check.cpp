#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <vector>

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

// An array of the call, and which one it is.
struct Entry {
  const Argument* argument;
  int element;
  const View* view;
  bool given() const { return !(argument->optional && is_absent(*view)); }
  int own_axes() const { return static_cast<int>(argument->axes.size()); }
  std::string name() const { return label(*argument, element); }
};

std::vector<Entry> entries_of(const Call& call, const Kernel& kernel) {
  std::vector<Entry> entries;
  entries.reserve(static_cast<std::size_t>(call.n_arrays));
  const View* view = call.arrays;
  for (const Argument& argument : kernel.arguments)
    for (int i = 0; i < (argument.list ? call.length : 1); ++i) entries.push_back({&argument, i, view++});
  return entries;
}

struct Span {  // bytes an array touches
  std::uintptr_t first, last;
  const Entry* entry;
};

Span span_of(const Entry& entry) {
  const View& view = *entry.view;
  std::uintptr_t first = reinterpret_cast<std::uintptr_t>(view.data);
  std::uintptr_t last = first + item_bytes(view.dtype);
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] == 0) return {0, 0, nullptr};
    const std::int64_t reach = (view.shape[i] - 1) * view.stride[i];
    (reach < 0 ? first : last) += static_cast<std::uintptr_t>(reach);
  }
  return {first, last, &entry};
}

void check_layout(const Call& call, const Entry& entry) {
  const View& view = *entry.view;
  const Argument& argument = *entry.argument;
  const std::int64_t item = static_cast<std::int64_t>(item_bytes(view.dtype));
  bool empty = false, aligned = reinterpret_cast<std::uintptr_t>(view.data) % item_bytes(view.dtype) == 0;
  for (int i = 0; i < view.ndim; ++i) {
    empty = empty || view.shape[i] == 0;
    aligned = aligned && (view.shape[i] <= 1 || view.stride[i] % item == 0);
  }
  if (empty) return;
  if (!aligned)
    fail_shape(call, "%s has elements that are not aligned, expected multiples of %d bytes; copy it first", entry.name().c_str(),
               static_cast<int>(item));
  std::int64_t expected = item;
  for (int i = view.ndim - 1; i >= (argument.output ? 0 : argument.lead); --i) {
    if (view.shape[i] > 1 && view.stride[i] != expected)
      fail_shape(call, "%s has a stride of %lld bytes on axis %d, expected %lld because %s; copy it first", entry.name().c_str(),
                 static_cast<long long>(view.stride[i]), i, static_cast<long long>(expected),
                 argument.output ? "outputs are C-contiguous" : "inner axes are C-contiguous");
    expected *= view.shape[i];
  }
}

void check_dtype(Call& call, const Entry& entry, bool& typed) {
  const Argument& argument = *entry.argument;
  const DType dtype = entry.view->dtype;
  const auto fail = [&](const std::string& expected) {
    throw DTypeMismatch(std::string(call.signature->name) + ": " + entry.name() + " has dtype " + dtype_name(dtype) + ", expected " +
                        expected);
  };
  if (!argument.is_float) {
    if (dtype != argument.dtype) fail(dtype_name(argument.dtype));
    return;
  }
  if (dtype != DType::f32 && dtype != DType::f64) fail("float32 or float64");
  if (typed && dtype != call.dtype)
    fail(std::string(dtype_name(call.dtype)) + " because the arrays before it have it; convert one of them");
  call.dtype = dtype;
  typed = true;
}

// `leaf` is the first array given for the same element of a list with `~`.
void check_leaf(const Call& call, const Entry& entry, const Entry& leaf) {
  const int own = entry.own_axes(), other = leaf.own_axes();
  bool same = entry.view->ndim - own == leaf.view->ndim - other;
  for (int d = own; same && d < entry.view->ndim; ++d) same = entry.view->shape[d] == leaf.view->shape[d - own + other];
  if (!same)
    fail_shape(call, "%s has shape %s, expected the axes of %s, which has shape %s%s", entry.name().c_str(),
               shape_text(*entry.view).c_str(), leaf.name().c_str(), shape_text(*leaf.view).c_str(),
               own > other ? ", after the directions" : "");
}

// No output shares memory with another array.
void check_overlaps(const Call& call, const std::vector<Entry>& entries) {
  std::vector<Span> spans;
  spans.reserve(entries.size());
  for (const Entry& entry : entries) {
    const Span span = span_of(entry);
    if (span.entry != nullptr) spans.push_back(span);
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.first < b.first; });
  const Span* any = nullptr;     // of the spans before, the one that reaches farthest
  const Span* output = nullptr;  // of the outputs among them
  for (const Span& span : spans) {
    const bool written = span.entry->argument->output;
    const Span* const other = written ? any : output;
    if (other != nullptr && span.first < other->last)
      fail_argument(call, "output %s shares memory with %s, expected separate arrays; allocate it",
                    (written ? span : *other).entry->name().c_str(), (written ? *other : span).entry->name().c_str());
    if (any == nullptr || span.last > any->last) any = &span;
    if (written && (output == nullptr || span.last > output->last)) output = &span;
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
                  kernel_of(call.signature).attributes[static_cast<std::size_t>(index)].name.c_str(), value, static_cast<long long>(lowest),
                  static_cast<long long>(highest));
  return static_cast<std::int64_t>(value);
}

std::int64_t precision_attribute(const Call& call, int index) { return integer_attribute(call, index, 0, 2); }

void check_arrays(Call& call) {
  const Kernel& kernel = kernel_of(call.signature);
  for (std::int64_t& size : call.dims) size = -1;
  call.dims['n'] = call.length;
  bool typed = false;
  const std::vector<Entry> entries = entries_of(call, kernel);
  std::vector<const Entry*> leaves(static_cast<std::size_t>(call.length), nullptr);
  // Pass 1: element types, and the sizes of the capital letters.
  for (const Entry& entry : entries) {
    const Argument& argument = *entry.argument;
    const View& view = *entry.view;
    if (!entry.given()) continue;
    check_dtype(call, entry, typed);
    if (argument.leaf ? view.ndim < entry.own_axes() : view.ndim != entry.own_axes())
      fail_shape(call, "%s has shape %s, expected %s%d axes %s", entry.name().c_str(), shape_text(view).c_str(),
                 argument.leaf ? "at least " : "", entry.own_axes(), argument.axes.c_str());
    for (int d = 0; d < entry.own_axes(); ++d) {
      const char axis = argument.axes[static_cast<std::size_t>(d)];
      if (axis >= 'A' && axis <= 'Z' && call.dims[static_cast<int>(axis)] < 0) call.dims[static_cast<int>(axis)] = view.shape[d];
    }
    if (argument.leaf) {
      const Entry*& leaf = leaves[static_cast<std::size_t>(entry.element)];
      if (leaf == nullptr) leaf = &entry;
      check_leaf(call, entry, *leaf);
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
  for (const Entry& entry : entries) {
    if (!entry.given()) continue;
    for (int d = 0; d < entry.own_axes(); ++d)
      if (entry.view->shape[d] != axis_size(call, entry.argument->axes[static_cast<std::size_t>(d)]))
        fail_shape(call, "%s has shape %s, expected %s", entry.name().c_str(), shape_text(*entry.view).c_str(),
                   expected_text(call, *entry.argument).c_str());
    check_layout(call, entry);
  }
  check_overlaps(call, entries);
}

}  // namespace hg

#include "check.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
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

std::int64_t axis_size(const Call& call, char axis) { return axis >= '0' && axis <= '9' ? axis - '0' : call.dims[static_cast<int>(axis)]; }

// "(P, Q) = (3, 4), where P = H/2"
std::string expected_text(const Call& call, const Argument& argument) {
  std::string letters, sizes, formulas;
  for (const char axis : argument.axes) {
    const std::string comma = letters.empty() ? "" : ", ";
    const std::int64_t size = axis_size(call, axis);
    letters += comma + axis;
    sizes += comma + (size < 0 ? "?" : std::to_string(size));
    for (const Derived& derived : call.kernel->derived)
      if (derived.axis == axis) formulas += (formulas.empty() ? ", where " : " and ") + (axis + (" = " + derived.formula));
  }
  return "(" + letters + ") = (" + sizes + ")" + formulas;
}

// An array of the call, and which one it is.
struct Entry {
  const Argument* argument;
  int element;
  const View* view;
  int own_axes() const { return static_cast<int>(argument->axes.size()); }
  std::string name() const { return label(*argument, element); }
};

// body(entry) for every array that is not absent.
template <class Body>
void each_entry(const Call& call, const Body& body) {
  const View* view = call.arrays;
  for (const Argument& argument : call.kernel->arguments)
    for (int i = 0; i < (argument.list ? call.length : 1); ++i, ++view)
      if (view->ndim >= 0)
        body(Entry{&argument, i, view});
      else if (!argument.optional && !argument.output)  // those may be about to be allocated
        fail_argument(call, "%s is missing, expected an array; pass it", label(argument, i).c_str());
}

struct Span {  // bytes an array touches
  std::uintptr_t first, last;
  Entry entry;
};

Span span_of(const Entry& entry) {
  const View& view = *entry.view;
  std::uintptr_t first = reinterpret_cast<std::uintptr_t>(view.data);
  std::uintptr_t last = first + item_bytes(view.dtype);
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] == 0) return {0, 0, entry};
    const std::int64_t reach = (view.shape[i] - 1) * view.stride[i];
    (reach < 0 ? first : last) += static_cast<std::uintptr_t>(reach);
  }
  return {first, last, entry};
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

void check_dtype(Call& call, const Entry& entry) {
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
  if (call.typed && dtype != call.dtype)
    fail(std::string(dtype_name(call.dtype)) + " because the arrays before it have it; convert one of them");
  call.dtype = dtype;
  call.typed = true;
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

void check_overlaps(const Call& call) {
  std::vector<Span> spans;
  spans.reserve(static_cast<std::size_t>(call.n_arrays));
  each_entry(call, [&](const Entry& entry) {
    const Span span = span_of(entry);
    if (span.last > span.first) spans.push_back(span);
  });
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.first < b.first; });
  const Span* any = nullptr;     // of the spans before, the one that reaches farthest
  const Span* output = nullptr;  // of the outputs among them
  for (const Span& span : spans) {
    const bool written = span.entry.argument->output;
    const Span* const other = written ? any : output;
    if (other != nullptr && span.first < other->last)
      fail_argument(call, "output %s shares memory with %s, expected separate arrays; allocate it",
                    (written ? span : *other).entry.name().c_str(), (written ? *other : span).entry.name().c_str());
    if (any == nullptr || span.last > any->last) any = &span;
    if (written && (output == nullptr || span.last > output->last)) output = &span;
  }
}

void check_attributes(const Call& call) {
  for (std::size_t i = 0; i < call.kernel->attributes.size(); ++i) {
    const Attribute& attribute = call.kernel->attributes[i];
    const double value = call.attributes[i];
    if (value >= attribute.lowest && value <= attribute.highest && !(attribute.integer && value != std::floor(value))) continue;
    if (attribute.integer)
      fail_argument(call, "attribute %s is %.17g, expected an integer from %.0f to %.0f", attribute.name.c_str(), value, attribute.lowest,
                    attribute.highest);
    if (attribute.lowest >= 0 || value == value)  // an unbounded one may be NaN
      fail_argument(call, "attribute %s is %g, expected a number >= %g", attribute.name.c_str(), value, attribute.lowest);
  }
}

// The value of a derived axis, at least 0: sums of products of axes, attributes, whole numbers and brackets.
class Formula {
 public:
  Formula(const Call& call, const Derived& derived) : call_(call), at_(derived.formula.c_str()) {}
  std::int64_t value() {  // -1 where an axis in it is unknown
    const std::int64_t value = sum();
    if (*at_ != 0) throw std::logic_error(std::string(call_.signature->name) + ": bad signature at " + at_);
    return unknown_ ? -1 : std::max<std::int64_t>(0, value);
  }

 private:
  std::int64_t sum() {
    std::int64_t left = product();
    while (*at_ == '+' || *at_ == '-') left += *at_++ == '+' ? product() : -product();
    return left;
  }
  std::int64_t product() {
    std::int64_t left = atom();
    while (*at_ == '*' || *at_ == '/') {
      const bool times = *at_++ == '*';
      const std::int64_t right = atom(), divisor = std::max<std::int64_t>(1, right);
      left = times ? left * right : left / divisor - (left % divisor < 0);  // rounded down
    }
    return left;
  }
  std::int64_t atom() {
    if (*at_ == '(') {
      ++at_;
      const std::int64_t inner = sum();
      ++at_;
      return inner;
    }
    const char* const word = at_;
    while (std::isalnum(static_cast<unsigned char>(*at_)) != 0 || *at_ == '_') ++at_;
    if (std::isdigit(static_cast<unsigned char>(*word)) != 0) return std::atoll(word);
    for (std::size_t i = 0; i < call_.kernel->attributes.size(); ++i)
      if (call_.kernel->attributes[i].name.compare(0, std::string::npos, word, static_cast<std::size_t>(at_ - word)) == 0)
        return static_cast<std::int64_t>(call_.attributes[i]);
    const std::int64_t size = call_.dims[static_cast<int>(*word)];
    unknown_ = unknown_ || size < 0;
    return size;
  }

  const Call& call_;
  const char* at_;
  bool unknown_ = false;
};

// The first array that is there of element i of the lists with `~`.
Entry leaf_of(const Call& call, int element) {
  for (std::size_t a = 0; a < call.kernel->arguments.size(); ++a) {
    const Argument& argument = call.kernel->arguments[a];
    if (!argument.leaf) continue;
    const View& view = call.arrays[call.first[a] + element];
    if (view.ndim >= 0) return {&argument, element, &view};
  }
  return {nullptr, element, nullptr};
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

void check_filter(const Call& call, std::int64_t height, std::int64_t width) {
  const std::int64_t R = call.dims['R'], S = call.dims['S'];
  if (R < 1 || S < 1 || R > height || S > width)
    fail_shape(call, "filter is %lld x %lld, expected 1 x 1 to %lld x %lld, the size of the padded images", static_cast<long long>(R),
               static_cast<long long>(S), static_cast<long long>(height), static_cast<long long>(width));
}

void read_axes(Call& call) {
  check_attributes(call);
  call.dims['n'] = call.length;
  each_entry(call, [&](const Entry& entry) {
    const Argument& argument = *entry.argument;
    const View& view = *entry.view;
    check_dtype(call, entry);
    if (argument.leaf ? view.ndim < entry.own_axes() : view.ndim != entry.own_axes())
      fail_shape(call, "%s has shape %s, expected %s%d axes %s", entry.name().c_str(), shape_text(view).c_str(),
                 argument.leaf ? "at least " : "", entry.own_axes(), argument.axes.c_str());
    for (int d = 0; d < entry.own_axes(); ++d) {
      const char axis = argument.axes[static_cast<std::size_t>(d)];
      std::int64_t& size = call.dims[static_cast<int>(axis)];
      if (axis >= 'A' && axis <= 'Z' && size < 0) size = view.shape[d];
    }
  });
  for (const Derived& derived : call.kernel->derived) {
    const std::int64_t size = Formula(call, derived).value();
    if (size >= 0) call.dims[static_cast<int>(derived.axis)] = size;
  }
}

void shape_output(const Call& call, const Argument& argument, int element, View& view) {
  const std::string name = label(argument, element);
  const char* const remedy = "expected one that other arguments give; pass the array";
  if (argument.is_float && !call.typed) fail_argument(call, "%s has no element type, %s", name.c_str(), remedy);
  view.dtype = argument.is_float ? call.dtype : argument.dtype;
  view.ndim = static_cast<int>(argument.axes.size());
  for (int d = 0; d < view.ndim; ++d) {
    const char axis = argument.axes[static_cast<std::size_t>(d)];
    view.shape[d] = axis_size(call, axis);
    if (view.shape[d] < 0) fail_shape(call, "%s has no size on axis %c, %s, or %c", name.c_str(), axis, remedy, axis);
  }
  if (!argument.leaf) return;
  const Entry leaf = leaf_of(call, element);
  if (leaf.view == nullptr) fail_shape(call, "%s has no axes, %s", name.c_str(), remedy);
  for (int d = leaf.own_axes(); d < leaf.view->ndim; ++d) view.shape[view.ndim++] = leaf.view->shape[d];
}

void check_arrays(const Call& call, bool overlaps) {
  each_entry(call, [&](const Entry& entry) {
    for (int d = 0; d < entry.own_axes(); ++d)
      if (entry.view->shape[d] != axis_size(call, entry.argument->axes[static_cast<std::size_t>(d)]))
        fail_shape(call, "%s has shape %s, expected %s", entry.name().c_str(), shape_text(*entry.view).c_str(),
                   expected_text(call, *entry.argument).c_str());
    if (entry.argument->leaf) check_leaf(call, entry, leaf_of(call, entry.element));
    check_layout(call, entry);
  });
  if (overlaps) check_overlaps(call);
}

}  // namespace hg

// Calls of kernels made of Python's arguments.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "table.h"

namespace hg {
namespace py = pybind11;

// Set by the Python package, so that errors arrive as its own classes.
struct ErrorTypes {
  PyObject* shape = PyExc_ValueError;
  PyObject* dtype = PyExc_TypeError;
  PyObject* argument = PyExc_ValueError;
};
inline ErrorTypes error_types;

inline std::string type_of(py::handle object) { return std::string(py::str(py::type::of(object).attr("__name__"))); }

// Names an array in messages; costs nothing where nothing is wrong.
struct Where {
  const char* kernel;
  const Argument& argument;
  int element;
  std::string operator+(const std::string& text) const { return std::string(kernel) + ": " + label(argument, element) + text; }
};

// Reads the element type from its kind ('f', 'u', 'i') and size; `name()` is for the message.
template <class Name>
DType dtype_of(const Where& where, char kind, py::ssize_t size, const Name& name) {
  if (kind == 'f' && size == 4) return DType::f32;
  if (kind == 'f' && size == 8) return DType::f64;
  if (kind == 'u' && size == 1) return DType::u8;
  if (kind == 'i' && size == 8) return DType::i64;
  throw DTypeMismatch(where + (" has dtype " + name() + ", expected float32, float64, uint8 or int64"));
}

inline void check_axes(const Where& where, py::ssize_t ndim) {
  if (ndim > kMaxDims)
    throw ShapeMismatch(where + (" has " + std::to_string(ndim) + " axes, expected at most " + std::to_string(kMaxDims)));
}

#if defined(HG_CUDA_MODULE)
// An array on the device, from its __cuda_array_interface__.
inline View view_of(const Where& where, py::handle object) {
  View view{};
  const py::object given = py::getattr(object, "__cuda_array_interface__", py::none());
  if (given.is_none())
    throw DTypeMismatch(where + (" is a " + type_of(object) + ", expected a CuPy array or another with __cuda_array_interface__"));
  const auto interface = py::reinterpret_borrow<py::dict>(given);
  const std::string type = py::str(interface["typestr"]);
  view.dtype = dtype_of(where, type.size() < 3 || type[0] == '>' ? '?' : type[1], type.size() < 3 ? 0 : std::stoi(type.substr(2)),
                        [&] { return type; });
  const auto shape = py::reinterpret_borrow<py::tuple>(interface["shape"]);
  check_axes(where, static_cast<py::ssize_t>(shape.size()));
  view.ndim = static_cast<int>(shape.size());
  const py::object strides = interface.contains("strides") ? py::object(interface["strides"]) : py::none();
  std::int64_t stride = view.dtype == DType::f32 ? 4 : view.dtype == DType::u8 ? 1 : 8;
  for (int i = view.ndim - 1; i >= 0; --i) {
    const auto axis = static_cast<std::size_t>(i);
    view.shape[i] = shape[axis].cast<std::int64_t>();
    view.stride[i] = strides.is_none() ? stride : py::reinterpret_borrow<py::tuple>(strides)[axis].cast<std::int64_t>();
    stride *= view.shape[i];
  }
  const auto data = py::reinterpret_borrow<py::tuple>(interface["data"]);
  if (where.argument.output && data[1].cast<bool>()) throw BadArgument(where + " is read-only, expected a writeable output");
  view.data = reinterpret_cast<void*>(data[0].cast<std::uintptr_t>());
  return view;
}
#else
inline View view_of(const Where& where, py::handle object) {
  if (!py::isinstance<py::array>(object)) throw DTypeMismatch(where + (" is a " + type_of(object) + ", expected a NumPy array"));
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  View view{};
  const auto name = [&] { return std::string(py::str(dtype)); };
  view.dtype = dtype_of(where, dtype.kind(), dtype.itemsize(), name);
  const char order = dtype.byteorder();  // '=' and '|' are this machine's
  if (order != '=' && order != '|' && !dtype.attr("isnative").cast<bool>())
    throw DTypeMismatch(where + (" has dtype " + name() + ", expected this machine's byte order; convert it with astype"));
  check_axes(where, array.ndim());
  if (where.argument.output && !array.writeable()) throw BadArgument(where + " is read-only, expected a writeable output");
  view.ndim = static_cast<int>(array.ndim());
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = array.shape(i);
    view.stride[i] = array.strides(i);
  }
  view.data = const_cast<void*>(array.data());
  return view;
}
#endif

// A kernel with the names of its arguments and attributes as Python's strings, kept for the life of the module.
struct Named {
  const Kernel* kernel;
  std::vector<PyObject*> arguments, attributes;
};
inline const Named& named(const std::string& name) {
  static std::unordered_map<std::string, Named> known;
  const auto found = known.find(name);
  if (found != known.end()) return found->second;
  const auto entry = kernels().find(name);
  if (entry == kernels().end()) throw BadArgument("run: kernel is '" + name + "', expected one of kernels()");
  Named made{&entry->second, {}, {}};
  for (const Argument& argument : entry->second.arguments) made.arguments.push_back(PyUnicode_InternFromString(argument.name.c_str()));
  for (const Attribute& attribute : entry->second.attributes) made.attributes.push_back(PyUnicode_InternFromString(attribute.name.c_str()));
  return known.emplace(name, std::move(made)).first->second;
}

// A call being made of Python's arguments. Arrays are held until it ends: another thread could change a list.
class Prepared {
 public:
  Prepared(const std::string& name, const py::dict& arguments, const py::object& empty)
      : named_(named(name)), kernel_(*named_.kernel), given_(arguments) {
    call.signature = kernel_.signature;
    call.kernel = &kernel_;
    for (std::int64_t& size : call.dims) size = -1;
    take_arrays();
    take_attributes();
    if (used_ != given_.size()) take_axes();
    read_axes(call);
    for (const Wanted& output : wanted_) allocate(output, empty);
    check_arrays(call, written_);
  }

  // The outputs by name: arrays, lists of arrays, None for those that were not asked for.
  py::dict outputs() const {
    py::dict result;
    for (std::size_t a = 0; a < kernel_.arguments.size(); ++a) {
      const Argument& argument = kernel_.arguments[a];
      if (!argument.output) continue;
      const py::object* const first = keep_.data() + call.first[a];
      if (argument.list) {
        py::list rows;
        for (int i = 0; i < call.length; ++i) rows.append(first[i]);
        result[named_.arguments[a]] = rows;
      } else {
        result[named_.arguments[a]] = *first;
      }
    }
    return result;
  }

  void launch() const { kernel_.launchers[chosen_level()](call); }

  // What the call has of this array, more than once where it is given under several names.
  std::vector<View*> views_of(py::handle array) {
    std::vector<View*> found;
    for (std::size_t i = 0; i < keep_.size(); ++i)
      if (keep_[i].is(array)) found.push_back(&views_[i]);
    return found;
  }
  void let_go() { keep_.clear(); }  // of the arrays; then only `launch` may be called, with views that the caller fills in
  double& attribute(const std::string& name) { return call.attributes[hg::find(call.signature->attributes, name.c_str())]; }

  Call call{};

 private:
  struct Wanted {
    const Argument* argument;
    int element;
    std::size_t at;
  };

  [[noreturn]] void refuse(const std::string& text) const { throw BadArgument(std::string(kernel_.signature->name) + ": " + text); }

  PyObject* find(PyObject* name) {  // borrowed; null where it is left out
    PyObject* const object = PyDict_GetItemWithError(given_.ptr(), name);
    used_ += object != nullptr;
    return object;
  }

  // Whether it stands for all arrays of a list: a word that take() knows, or the number that is an attribute of the same name.
  static bool is_no_list(PyObject* object) {
    return object == nullptr || object == Py_None || PyBool_Check(object) || PyFloat_Check(object) || PyLong_Check(object);
  }

  void take_arrays() {
    const std::size_t n = kernel_.arguments.size();
    std::vector<PyObject*> objects(n);
    const Argument* longest = nullptr;
    for (std::size_t a = 0; a < n; ++a) {
      const Argument& argument = kernel_.arguments[a];
      objects[a] = find(named_.arguments[a]);
      if (!argument.list || is_no_list(objects[a])) continue;
      if (!PyList_Check(objects[a]) && !PyTuple_Check(objects[a]))
        refuse(argument.name + " is a " + type_of(objects[a]) + ", expected a list of arrays; pass one array for each leaf");
      const int length = static_cast<int>(PySequence_Fast_GET_SIZE(objects[a]));
      if (longest != nullptr && length != call.length)
        refuse(argument.name + " has " + std::to_string(length) + " arrays, expected " + std::to_string(call.length) + " as " +
               longest->name);
      call.length = length;
      longest = &argument;
    }
    first_ = first_arrays(kernel_, call.length);
    const auto total = static_cast<std::size_t>(first_.back());
    views_.resize(total);
    keep_.reserve(total);
    for (std::size_t a = 0; a < n; ++a) {
      const Argument& argument = kernel_.arguments[a];
      if (!argument.list)
        take(argument, 0, objects[a]);
      else
        for (int i = 0; i < call.length; ++i)
          take(argument, i, !is_no_list(objects[a]) ? PySequence_Fast_GET_ITEM(objects[a], i) : argument.output ? objects[a] : nullptr);
    }
    call.arrays = views_.data();
    call.n_arrays = static_cast<int>(total);
    call.first = first_.data();
  }

  // Of an output, nothing and True ask for a new array, None and False for none.
  void take(const Argument& argument, int element, PyObject* object) {
    View& view = views_[keep_.size()];
    view.ndim = -1;
    keep_.push_back(py::none());
    if (argument.output ? object == nullptr || object == Py_True : object == nullptr || object == Py_None) {
      if (argument.output) wanted_.push_back({&argument, element, keep_.size() - 1});
      return;
    }
    if (argument.output && (object == Py_None || object == Py_False)) {
      if (!argument.optional) refuse(label(argument, element) + " is not wanted, expected an output because it is always computed");
      return;
    }
    view = view_of({kernel_.signature->name, argument, element}, object);
    keep_.back() = py::reinterpret_borrow<py::object>(object);
    written_ = written_ || argument.output;
  }

  void take_attributes() {
    for (std::size_t i = 0; i < kernel_.attributes.size(); ++i) {
      const Attribute& attribute = kernel_.attributes[i];
      PyObject* const value = find(named_.attributes[i]);
      const bool is_argument = hg::find(kernel_.signature->arrays, attribute.name.c_str()) >= 0;  // a number, or a list of arrays
      used_ -= is_argument && value != nullptr;
      if (is_argument && value != nullptr && !is_no_list(value)) continue;
      if (value == nullptr) refuse("attribute " + attribute.name + " is missing, expected a number; pass it");
      call.attributes[i] = attribute.integer ? static_cast<double>(PyLong_AsLongLong(value)) : PyFloat_AsDouble(value);
      if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        refuse("attribute " + attribute.name + " is " + std::string(py::repr(value)) + ", expected " +
               (attribute.integer ? "an integer" : "a number"));
      }
    }
  }

  // What is left: the sizes of axes, by their letter.
  void take_axes() {
    for (const auto& item : given_) {
      const std::string key = py::str(item.first);
      bool known = false;
      for (const Argument& argument : kernel_.arguments) known = known || argument.name == key;
      for (const Attribute& attribute : kernel_.attributes) known = known || attribute.name == key;
      if (known) continue;
      if (key.size() != 1 || key[0] < 'A' || key[0] > 'Z' || !has_axis(*kernel_.signature, key[0]))
        refuse("argument " + key + " is not known, expected one of " + kernel_.signature->arrays + " " + kernel_.signature->attributes);
      const long long size = PyLong_AsLongLong(item.second.ptr());
      if (PyErr_Occurred() != nullptr) PyErr_Clear();
      if (size < 0) refuse("axis " + key + " is " + std::string(py::repr(item.second)) + ", expected a size >= 0");
      call.dims[static_cast<int>(key[0])] = size;
    }
  }

  void allocate(const Wanted& output, const py::object& empty) {
    static const py::object* const dtypes =
        new py::object[4]{py::dtype("float32"), py::dtype("float64"), py::dtype("uint8"), py::dtype("int64")};
    View& view = views_[output.at];
    shape_output(call, *output.argument, output.element, view);
    py::tuple shape(static_cast<std::size_t>(view.ndim));
    for (int i = 0; i < view.ndim; ++i) PyTuple_SET_ITEM(shape.ptr(), i, PyLong_FromLongLong(view.shape[i]));
    keep_[output.at] = empty(shape, dtypes[static_cast<int>(view.dtype)]);
    view = view_of({kernel_.signature->name, *output.argument, output.element}, keep_[output.at]);
  }

  const Named& named_;
  const Kernel& kernel_;
  const py::dict& given_;
  std::vector<py::object> keep_;  // of every array, None where it is absent
  std::vector<View> views_;
  std::vector<int> first_;
  std::vector<Wanted> wanted_;
  std::size_t used_ = 0;  // entries of given_
  bool written_ = false;  // whether an output is the caller's own array
};

}  // namespace hg

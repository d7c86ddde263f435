// What a replay does with the arguments of a call.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"

namespace hg {
namespace py = pybind11;

// What a replay needs of leaves to be the same: their kinds, element types, shapes and strides. Arrays, and those of Tensors without
// tangents and node, are appended to `arguments`; of every other leaf `other(leaf, arguments)` says what is needed, in the list that comes
// second.
inline py::tuple describe(const py::list& leaves, const py::handle& tensor, py::list& arguments, const py::function& other) {
  static PyObject* const value_name = PyUnicode_InternFromString("value");
  static PyObject* const node_name = PyUnicode_InternFromString("node");
  static PyObject* const dot_name = PyUnicode_InternFromString("_dot");
  std::string text;
  py::list others;
  const auto add = [&](std::intptr_t number) { text.append(reinterpret_cast<const char*>(&number), sizeof number); };
  for (const py::handle leaf : leaves) {
    py::object array = py::reinterpret_borrow<py::object>(leaf);
    const bool is_tensor = reinterpret_cast<PyObject*>(Py_TYPE(leaf.ptr())) == tensor.ptr();
    if (is_tensor) {
      const bool plain = py::getattr(leaf, node_name).is_none() && py::getattr(leaf, dot_name).is_none();
      array = plain ? py::object(py::getattr(leaf, value_name)) : py::object(py::none());
    }
    char kind = ' ';
    if (py::detail::npy_api::get().PyArray_Type_ == Py_TYPE(array.ptr())) {
      const py::dtype dtype = py::reinterpret_borrow<py::array>(array).dtype();
      if (dtype.byteorder() == '=' || dtype.byteorder() == '|') kind = dtype.kind();
    }
    if (kind != 'f' && kind != 'i' && kind != 'u' && kind != 'b') {
      add(-1);
      others.append(other(leaf, arguments));
      continue;
    }
    const auto found = py::reinterpret_borrow<py::array>(array);
    add(is_tensor);
    add(found.dtype().char_());
    add(found.ndim());
    for (py::ssize_t i = 0; i < found.ndim(); ++i) add(found.shape(i));
    for (py::ssize_t i = 0; i < found.ndim(); ++i) add(found.strides(i));
    arguments.append(array);
  }
  return py::make_tuple(py::bytes(text), others);
}

// Copies the bytes of the arguments at these places to the targets, which have as many.
inline void copy_arguments(const py::list& targets, const py::sequence& arguments, const std::vector<std::size_t>& places) {
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto to = py::reinterpret_borrow<py::array>(targets[i]), from = py::reinterpret_borrow<py::array>(arguments[places[i]]);
    if (!py::isinstance<py::array>(from) || from.nbytes() != to.nbytes())
      throw BadArgument("program: argument " + std::to_string(places[i]) + " is unlike that of the recording");
    std::memcpy(const_cast<void*>(to.data()), from.data(), static_cast<std::size_t>(to.nbytes()));
  }
}

}  // namespace hg

// The only file that knows Python: module `_host`, with run, kernels, device_count, build_info and thread control.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "table.h"
#include "threads.h"

#ifndef HG_CUDA_STATUS
#define HG_CUDA_STATUS "unknown"
#endif
#ifndef HG_VERSION
#define HG_VERSION "unknown"
#endif

namespace py = pybind11;

namespace {

// Set by the Python package, so that errors arrive as its own classes.
struct ErrorTypes {
  PyObject* shape = PyExc_ValueError;
  PyObject* dtype = PyExc_TypeError;
  PyObject* argument = PyExc_ValueError;
};
ErrorTypes error_types;

hg::View view_of(const std::string& kernel, const hg::Argument& argument, py::handle object) {
  const std::string where = kernel + ": " + argument.name;
  if (!py::isinstance<py::array>(object))
    throw hg::DTypeMismatch(where + " is a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                            ", expected a NumPy array");
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  hg::View view{};
  const char kind = dtype.kind();
  const auto size = dtype.itemsize();
  if (kind == 'f' && size == 4)
    view.dtype = hg::DType::f32;
  else if (kind == 'f' && size == 8)
    view.dtype = hg::DType::f64;
  else if (kind == 'u' && size == 1)
    view.dtype = hg::DType::u8;
  else if (kind == 'i' && size == 8)
    view.dtype = hg::DType::i64;
  else
    throw hg::DTypeMismatch(where + " has dtype " + std::string(py::str(dtype)) +
                            ", expected float32, float64, uint8 or int64");
  if (size > 1 && !dtype.attr("isnative").cast<bool>())
    throw hg::DTypeMismatch(where + " has dtype " + std::string(py::str(dtype)) +
                            ", expected this machine's byte order; convert it with astype");
  if (array.ndim() > hg::kMaxDims)
    throw hg::ShapeMismatch(where + " has " + std::to_string(array.ndim()) + " axes, expected at most " +
                            std::to_string(hg::kMaxDims));
  if (argument.output && !array.writeable())
    throw hg::BadArgument(where + " is read-only, expected a writeable output");
  view.ndim = static_cast<int>(array.ndim());
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = array.shape(i);
    view.stride[i] = array.strides(i);
  }
  view.data = const_cast<void*>(array.data());
  return view;
}

void run(const std::string& name, const py::sequence& arrays, const py::dict& attributes, std::uintptr_t stream) {
  const auto found = hg::kernels().find(name);
  if (found == hg::kernels().end()) throw hg::BadArgument("run: kernel is '" + name + "', expected one of kernels()");
  const hg::Kernel& kernel = found->second;
  if (stream != 0) throw hg::BadArgument(name + ": stream is not 0, expected 0 because this is the host backend");
  const std::size_t n = kernel.arguments.size();
  if (arrays.size() != n)
    throw hg::BadArgument(name + ": arrays has " + std::to_string(arrays.size()) + " entries, expected " +
                          std::to_string(kernel.n_inputs) + " inputs and " +
                          std::to_string(n - static_cast<std::size_t>(kernel.n_inputs)) + " outputs");
  std::vector<py::object> keep(n);
  std::vector<hg::View> views(n);
  for (std::size_t i = 0; i < n; ++i) {
    keep[i] = arrays[i];  // held for the whole call: another thread could change the sequence
    views[i] = view_of(name, kernel.arguments[i], keep[i]);
  }
  hg::Call call{};
  call.signature = kernel.signature;
  call.arrays = views.data();
  call.n_arrays = static_cast<int>(n);
  std::size_t used = 0;
  for (std::size_t i = 0; i < kernel.attributes.size(); ++i) {
    const hg::Attribute& attribute = kernel.attributes[i];
    const py::str key(attribute.name);
    if (!attributes.contains(key)) throw hg::BadArgument(name + ": attribute " + attribute.name + " is missing");
    const py::object value = attributes[key];
    double number =
        attribute.integer ? static_cast<double>(PyLong_AsLongLong(value.ptr())) : PyFloat_AsDouble(value.ptr());
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw hg::BadArgument(name + ": attribute " + attribute.name + " is " + std::string(py::repr(value)) +
                            ", expected " + (attribute.integer ? "an integer" : "a number"));
    }
    call.attributes[i] = number;
    ++used;
  }
  if (attributes.size() != used)
    for (const auto& item : attributes) {
      bool known = false;
      for (const hg::Attribute& attribute : kernel.attributes)
        known = known || attribute.name == std::string(py::str(item.first));
      if (!known) throw hg::BadArgument(name + ": attribute " + std::string(py::str(item.first)) + " is not known");
    }
  const py::gil_scoped_release release;
  hg::check_arrays(call);
  kernel.launchers[hg::chosen_level()](call);
}

py::dict kernels() {
  py::dict table;
  for (const auto& entry : hg::kernels()) {
    py::list inputs, outputs, attributes;
    for (const hg::Argument& argument : entry.second.arguments)
      (argument.output ? outputs : inputs).append(argument.name);
    for (const hg::Attribute& attribute : entry.second.attributes) attributes.append(attribute.name);
    table[py::str(entry.first)] = py::make_tuple(py::tuple(inputs), py::tuple(outputs), py::tuple(attributes));
  }
  return table;
}

py::tuple names_of(const std::vector<hg::Level>& levels) {
  py::list names;
  for (const hg::Level level : levels) names.append(hg::level_name(level));
  return py::tuple(names);
}

py::dict build_info() {
  py::dict info;
  info["version"] = HG_VERSION;
#if defined(__clang__)
  info["compiler"] = "Clang " __clang_version__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
  info["simd_compiled"] = names_of(hg::compiled_levels());
  info["simd_supported"] = names_of(hg::supported_levels());
  info["simd"] = hg::level_name(hg::chosen_level());
  info["threads"] = hg::thread_count();
  info["cuda"] = HG_CUDA_STATUS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host kernels of hypergrad. Private: use the functions of hypergrad instead.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const hg::ShapeMismatch& error) {
      PyErr_SetString(error_types.shape, error.what());
    } catch (const hg::DTypeMismatch& error) {
      PyErr_SetString(error_types.dtype, error.what());
    } catch (const hg::BadArgument& error) {
      PyErr_SetString(error_types.argument, error.what());
    }
  });
  try {  // a wrong environment variable is reported at import, not in the middle of a run
    hg::chosen_level();
    hg::thread_count();
  } catch (const hg::BadArgument& error) {
    throw py::import_error(error.what());
  }
  m.def("run", &run, py::arg("name"), py::arg("arrays"), py::arg("attributes"), py::arg("stream") = 0,
        "Runs a kernel on its inputs, then outputs; an optional array is absent where it is 1-d and empty.");
  m.def("kernels", &kernels, "Names of all kernels with the names of their inputs, outputs and attributes.");
  m.def("device_count", [] { return 0; }, "CUDA devices this module can use: none.");
  m.def("build_info", &build_info, "Compiler, instruction sets and why CUDA is or is not there.");
  m.def("threads", &hg::thread_count, "Threads that kernels use.");
  m.def("set_threads", &hg::set_thread_count, py::arg("n"), "Sets the number of threads; results keep their bits.");
  m.def("set_simd", &hg::choose_level, py::arg("level"),
        "Chooses an instruction set of build_info()['simd_supported'].");
  m.def(
      "set_error_types",
      [](const py::object& shape, const py::object& dtype, const py::object& argument) {
        error_types = {shape.ptr(), dtype.ptr(), argument.ptr()};
        for (const py::object& type : {shape, dtype, argument}) type.inc_ref();  // kept for the life of the module
      },
      py::arg("shape"), py::arg("dtype"), py::arg("argument"), "Sets the exception classes that run() raises.");
}

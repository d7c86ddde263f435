// The only file that knows Python: modules `_host`, `_cuda` (HG_CUDA_MODULE) and `_emulated` (HG_EMULATED_MODULE), with
// run, kernels, device_count and build_info; `_host` has thread control, `_emulated` the order of threads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "table.h"

#if defined(HG_CUDA_MODULE)
#include "cuda/device.h"
#define HG_MODULE _cuda
#elif defined(HG_EMULATED_MODULE)
#include "emulator/emulator.h"
#define HG_MODULE _emulated
#else
#include "threads.h"
#define HG_MODULE _host
#endif

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

// Names an array in messages; costs nothing where nothing is wrong.
struct Where {
  const std::string& kernel;
  const hg::Argument& argument;
  int element;
  std::string operator+(const std::string& text) const { return kernel + ": " + hg::label(argument, element) + text; }
};

// Reads the element type from its kind ('f', 'u', 'i') and size; `name()` is for the message.
template <class Name>
hg::DType dtype_of(const Where& where, char kind, py::ssize_t size, const Name& name) {
  if (kind == 'f' && size == 4) return hg::DType::f32;
  if (kind == 'f' && size == 8) return hg::DType::f64;
  if (kind == 'u' && size == 1) return hg::DType::u8;
  if (kind == 'i' && size == 8) return hg::DType::i64;
  throw hg::DTypeMismatch(where + (" has dtype " + name() + ", expected float32, float64, uint8 or int64"));
}

void check_axes(const Where& where, py::ssize_t ndim) {
  if (ndim > hg::kMaxDims)
    throw hg::ShapeMismatch(where + (" has " + std::to_string(ndim) + " axes, expected at most " + std::to_string(hg::kMaxDims)));
}

#if defined(HG_CUDA_MODULE)
// An array on the device, from its __cuda_array_interface__; None is an absent argument.
hg::View view_of(const Where& where, py::handle object) {
  hg::View view{};
  if (object.is_none()) {
    view.ndim = 1;
    return view;
  }
  const py::object given = py::getattr(object, "__cuda_array_interface__", py::none());
  if (given.is_none())
    throw hg::DTypeMismatch(where + (" is a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                                     ", expected a CuPy array or another with __cuda_array_interface__"));
  const auto interface = py::reinterpret_borrow<py::dict>(given);
  const std::string type = py::str(interface["typestr"]);
  view.dtype = dtype_of(where, type.size() < 3 || type[0] == '>' ? '?' : type[1], type.size() < 3 ? 0 : std::stoi(type.substr(2)),
                        [&] { return type; });
  const auto shape = py::reinterpret_borrow<py::tuple>(interface["shape"]);
  check_axes(where, static_cast<py::ssize_t>(shape.size()));
  view.ndim = static_cast<int>(shape.size());
  const py::object strides = interface.contains("strides") ? py::object(interface["strides"]) : py::none();
  std::int64_t stride = view.dtype == hg::DType::f32 ? 4 : view.dtype == hg::DType::u8 ? 1 : 8;
  for (int i = view.ndim - 1; i >= 0; --i) {
    const auto axis = static_cast<std::size_t>(i);
    view.shape[i] = shape[axis].cast<std::int64_t>();
    view.stride[i] = strides.is_none() ? stride : py::reinterpret_borrow<py::tuple>(strides)[axis].cast<std::int64_t>();
    stride *= view.shape[i];
  }
  const auto data = py::reinterpret_borrow<py::tuple>(interface["data"]);
  if (where.argument.output && data[1].cast<bool>()) throw hg::BadArgument(where + " is read-only, expected a writeable output");
  view.data = reinterpret_cast<void*>(data[0].cast<std::uintptr_t>());
  return view;
}
#else
hg::View view_of(const Where& where, py::handle object) {
  if (!py::isinstance<py::array>(object))
    throw hg::DTypeMismatch(where + (" is a " + std::string(py::str(py::type::of(object).attr("__name__"))) + ", expected a NumPy array"));
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  hg::View view{};
  const auto name = [&] { return std::string(py::str(dtype)); };
  view.dtype = dtype_of(where, dtype.kind(), dtype.itemsize(), name);
  const char order = dtype.byteorder();  // '=' and '|' are this machine's
  if (order != '=' && order != '|' && !dtype.attr("isnative").cast<bool>())
    throw hg::DTypeMismatch(where + (" has dtype " + name() + ", expected this machine's byte order; convert it with astype"));
  check_axes(where, array.ndim());
  if (where.argument.output && !array.writeable()) throw hg::BadArgument(where + " is read-only, expected a writeable output");
  view.ndim = static_cast<int>(array.ndim());
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = array.shape(i);
    view.stride[i] = array.strides(i);
  }
  view.data = const_cast<void*>(array.data());
  return view;
}
#endif

// A call and what it borrows.
struct Prepared {
  const hg::Kernel* kernel;
  std::vector<py::object> keep;  // held for the whole call: another thread could change the sequence
  std::vector<hg::View> views;
  hg::Layout layout;
  hg::Call call;
};

void prepare(const std::string& name, const py::sequence& arrays, const py::dict& attributes, Prepared& prepared) {
  const auto found = hg::kernels().find(name);
  if (found == hg::kernels().end()) throw hg::BadArgument("run: kernel is '" + name + "', expected one of kernels()");
  const hg::Kernel& kernel = found->second;
  const std::size_t n = arrays.size();
  prepared.layout = hg::layout_of(kernel, n);
  std::vector<py::object>& keep = prepared.keep;
  std::vector<hg::View>& views = prepared.views;
  keep.reserve(n);
  views.reserve(n);
  for (const hg::Argument& argument : kernel.arguments)
    for (int i = 0; i < (argument.list ? prepared.layout.length : 1); ++i) {
      keep.push_back(arrays[keep.size()]);
      views.push_back(view_of({name, argument, i}, keep.back()));
    }
  prepared.kernel = &kernel;
  hg::Call& call = prepared.call;
  call = hg::Call{};
  call.signature = kernel.signature;
  call.arrays = views.data();
  call.n_arrays = static_cast<int>(n);
  call.length = prepared.layout.length;
  call.first = prepared.layout.first.data();
  std::size_t used = 0;
  for (std::size_t i = 0; i < kernel.attributes.size(); ++i) {
    const hg::Attribute& attribute = kernel.attributes[i];
    const py::str key(attribute.name);
    if (!attributes.contains(key)) throw hg::BadArgument(name + ": attribute " + attribute.name + " is missing");
    const py::object value = attributes[key];
    double number = attribute.integer ? static_cast<double>(PyLong_AsLongLong(value.ptr())) : PyFloat_AsDouble(value.ptr());
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw hg::BadArgument(name + ": attribute " + attribute.name + " is " + std::string(py::repr(value)) + ", expected " +
                            (attribute.integer ? "an integer" : "a number"));
    }
    call.attributes[i] = number;
    ++used;
  }
  if (attributes.size() != used)
    for (const auto& item : attributes) {
      bool known = false;
      for (const hg::Attribute& attribute : kernel.attributes) known = known || attribute.name == std::string(py::str(item.first));
      if (!known) throw hg::BadArgument(name + ": attribute " + std::string(py::str(item.first)) + " is not known");
    }
  hg::check_arrays(call);
}

#if defined(HG_CUDA_MODULE) || defined(HG_EMULATED_MODULE)
std::size_t scratch_of(Prepared& prepared) {
  std::size_t needed = 0;
  prepared.call.needed = &needed;
  prepared.kernel->launchers[hg::chosen_level()](prepared.call);
  prepared.call.needed = nullptr;
  return needed;
}

std::size_t scratch_bytes(const std::string& name, const py::sequence& arrays, const py::dict& attributes) {
  Prepared prepared;
  prepare(name, arrays, attributes, prepared);
  return scratch_of(prepared);
}

// `allocate(bytes)` gives the call's scratch, an array of uint8 that is released when the kernels have been queued: as
// with CuPy's pool, whoever gets the memory next uses it on the same stream.
void run(const std::string& name, const py::sequence& arrays, const py::dict& attributes, std::uintptr_t stream,
         const py::function& allocate) {
#if defined(HG_CUDA_MODULE)
  hg::cuda::check_device(name);
#else
  if (stream != 0) throw hg::BadArgument(name + ": stream is not 0, expected 0 because this is the emulator");
#endif
  Prepared prepared;
  prepare(name, arrays, attributes, prepared);
  prepared.call.stream = reinterpret_cast<void*>(stream);
  const std::size_t needed = scratch_of(prepared);
  py::object memory;
  if (needed > 0) {
    memory = allocate(needed);
    const hg::Argument scratch{"scratch", "s", 0, false, false, false, true, false, hg::DType::u8};
    const hg::View view = view_of({name, scratch, 0}, memory);
    if (view.ndim != 1 || view.dtype != hg::DType::u8 || view.shape[0] < static_cast<std::int64_t>(needed))
      throw hg::BadArgument(name + ": allocate gave no " + std::to_string(needed) + " bytes of uint8");
    prepared.call.scratch = view.data;
    prepared.call.scratch_bytes = needed;
  }
  const py::gil_scoped_release release;
  prepared.kernel->launchers[hg::chosen_level()](prepared.call);
}
#else
void run(const std::string& name, const py::sequence& arrays, const py::dict& attributes, std::uintptr_t stream) {
  if (stream != 0) throw hg::BadArgument(name + ": stream is not 0, expected 0 because this is the host backend");
  Prepared prepared;
  prepare(name, arrays, attributes, prepared);
  const py::gil_scoped_release release;
  prepared.kernel->launchers[hg::chosen_level()](prepared.call);
}
#endif

py::dict kernels() {
  py::dict table;
  for (const auto& entry : hg::kernels()) {
    py::list inputs, outputs, attributes;
    for (const hg::Argument& argument : entry.second.arguments) (argument.output ? outputs : inputs).append(argument.name);
    for (const hg::Attribute& attribute : entry.second.attributes) attributes.append(attribute.name);
    table[py::str(entry.first)] = py::make_tuple(py::tuple(inputs), py::tuple(outputs), py::tuple(attributes));
  }
  return table;
}

#if !defined(HG_CUDA_MODULE) && !defined(HG_EMULATED_MODULE)
py::tuple names_of(const std::vector<hg::Level>& levels) {
  py::list names;
  for (const hg::Level level : levels) names.append(hg::level_name(level));
  return py::tuple(names);
}

#endif

py::dict build_info() {
  py::dict info;
  info["version"] = HG_VERSION;
#if defined(__clang__)
  info["compiler"] = "Clang " __clang_version__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
#if defined(HG_CUDA_MODULE)
  info["cuda"] = HG_CUDA_STATUS ", " + hg::cuda::versions();
#elif defined(HG_EMULATED_MODULE)
  info["order"] = hg::emulator::order();
#else
  info["simd_compiled"] = names_of(hg::compiled_levels());
  info["simd_supported"] = names_of(hg::supported_levels());
  info["simd"] = hg::level_name(hg::chosen_level());
  info["threads"] = hg::thread_count();
  info["cuda"] = HG_CUDA_STATUS;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(HG_MODULE, m) {
  m.doc() = "Kernels of hypergrad. Private: use the functions of hypergrad instead.";
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
  m.def("kernels", &kernels, "Names of all kernels with the names of their inputs, outputs and attributes.");
  m.def("build_info", &build_info, "Compiler, instruction sets and why CUDA is or is not there.");
#if defined(HG_CUDA_MODULE) || defined(HG_EMULATED_MODULE)
  m.def("run", &run, py::arg("name"), py::arg("arrays"), py::arg("attributes"), py::arg("stream"), py::arg("allocate"),
        "Queues a kernel on its inputs, then outputs; `allocate(bytes)` gives its scratch.");
  m.def("scratch_bytes", &scratch_bytes, py::arg("name"), py::arg("arrays"), py::arg("attributes"),
        "Bytes that `run` asks `allocate` for.");
#endif
#if defined(HG_CUDA_MODULE)
  m.def("device_count", &hg::cuda::device_count, "CUDA devices this module can use; 0 without a driver.");
#elif defined(HG_EMULATED_MODULE)
  m.def("device_count", [] { return 0; }, "CUDA devices this module can use: none.");
  m.def("set_order", &hg::emulator::set_order, py::arg("order"), "Sets the order of threads and blocks: forward, reverse or shuffle:SEED.");
#else
  try {  // a wrong environment variable is reported at import, not in the middle of a run
    const char* const level = std::getenv("HYPERGRAD_SIMD");  // of host kernels: others have one level only
    if (level != nullptr && level[0] != '\0') hg::choose_level(level);
    hg::thread_count();
  } catch (const hg::BadArgument& error) {
    throw py::import_error(error.what());
  }
  m.def("run", &run, py::arg("name"), py::arg("arrays"), py::arg("attributes"), py::arg("stream") = 0,
        "Runs a kernel on its inputs, then outputs; an optional array is absent where it is 1-d and empty.");
  m.def("device_count", [] { return 0; }, "CUDA devices this module can use: none.");
  m.def("threads", &hg::thread_count, "Threads that kernels use.");
  m.def("set_threads", &hg::set_thread_count, py::arg("n"), "Sets the number of threads; results keep their bits.");
  m.def("set_simd", &hg::choose_level, py::arg("level"), "Chooses an instruction set of build_info()['simd_supported'].");
#endif
  m.def(
      "set_error_types",
      [](const py::object& shape, const py::object& dtype, const py::object& argument) {
        error_types = {shape.ptr(), dtype.ptr(), argument.ptr()};
        for (const py::object& type : {shape, dtype, argument}) type.inc_ref();  // kept for the life of the module
      },
      py::arg("shape"), py::arg("dtype"), py::arg("argument"), "Sets the exception classes that run() raises.");
}

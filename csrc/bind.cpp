// The only file beside allocator.h that knows Python: modules `_host`, `_cuda` (HG_CUDA_MODULE) and `_emulated` (HG_EMULATED_MODULE), with
// run, kernels, device_count and build_info; `_host` has thread control, `_emulated` the order of threads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <unordered_map>
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
#include "allocator.h"
#include "digest.h"
#include "threads.h"
#define HG_MODULE _host
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

std::string type_of(py::handle object) { return std::string(py::str(py::type::of(object).attr("__name__"))); }

// Names an array in messages; costs nothing where nothing is wrong.
struct Where {
  const char* kernel;
  const hg::Argument& argument;
  int element;
  std::string operator+(const std::string& text) const { return std::string(kernel) + ": " + hg::label(argument, element) + text; }
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
// An array on the device, from its __cuda_array_interface__.
hg::View view_of(const Where& where, py::handle object) {
  hg::View view{};
  const py::object given = py::getattr(object, "__cuda_array_interface__", py::none());
  if (given.is_none())
    throw hg::DTypeMismatch(where + (" is a " + type_of(object) + ", expected a CuPy array or another with __cuda_array_interface__"));
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
  if (!py::isinstance<py::array>(object)) throw hg::DTypeMismatch(where + (" is a " + type_of(object) + ", expected a NumPy array"));
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

// A kernel with the names of its arguments and attributes as Python's strings, kept for the life of the module.
struct Named {
  const hg::Kernel* kernel;
  std::vector<PyObject*> arguments, attributes;
};
const Named& named(const std::string& name) {
  static std::unordered_map<std::string, Named> known;
  const auto found = known.find(name);
  if (found != known.end()) return found->second;
  const auto entry = hg::kernels().find(name);
  if (entry == hg::kernels().end()) throw hg::BadArgument("run: kernel is '" + name + "', expected one of kernels()");
  Named made{&entry->second, {}, {}};
  for (const hg::Argument& argument : entry->second.arguments) made.arguments.push_back(PyUnicode_InternFromString(argument.name.c_str()));
  for (const hg::Attribute& attribute : entry->second.attributes)
    made.attributes.push_back(PyUnicode_InternFromString(attribute.name.c_str()));
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
    hg::read_axes(call);
    for (const Wanted& output : wanted_) allocate(output, empty);
    hg::check_arrays(call, written_);
  }

  // The outputs by name: arrays, lists of arrays, None for those that were not asked for.
  py::dict outputs() const {
    py::dict result;
    for (std::size_t a = 0; a < kernel_.arguments.size(); ++a) {
      const hg::Argument& argument = kernel_.arguments[a];
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

  void launch() const { kernel_.launchers[hg::chosen_level()](call); }

  hg::Call call{};

 private:
  struct Wanted {
    const hg::Argument* argument;
    int element;
    std::size_t at;
  };

  [[noreturn]] void refuse(const std::string& text) const { throw hg::BadArgument(std::string(kernel_.signature->name) + ": " + text); }

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
    const hg::Argument* longest = nullptr;
    for (std::size_t a = 0; a < n; ++a) {
      const hg::Argument& argument = kernel_.arguments[a];
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
    first_ = hg::first_arrays(kernel_, call.length);
    const auto total = static_cast<std::size_t>(first_.back());
    views_.resize(total);
    keep_.reserve(total);
    for (std::size_t a = 0; a < n; ++a) {
      const hg::Argument& argument = kernel_.arguments[a];
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
  void take(const hg::Argument& argument, int element, PyObject* object) {
    hg::View& view = views_[keep_.size()];
    view.ndim = -1;
    keep_.push_back(py::none());
    if (argument.output ? object == nullptr || object == Py_True : object == nullptr || object == Py_None) {
      if (argument.output) wanted_.push_back({&argument, element, keep_.size() - 1});
      return;
    }
    if (argument.output && (object == Py_None || object == Py_False)) {
      if (!argument.optional) refuse(hg::label(argument, element) + " is not wanted, expected an output because it is always computed");
      return;
    }
    view = view_of({kernel_.signature->name, argument, element}, object);
    keep_.back() = py::reinterpret_borrow<py::object>(object);
    written_ = written_ || argument.output;
  }

  void take_attributes() {
    for (std::size_t i = 0; i < kernel_.attributes.size(); ++i) {
      const hg::Attribute& attribute = kernel_.attributes[i];
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
      for (const hg::Argument& argument : kernel_.arguments) known = known || argument.name == key;
      for (const hg::Attribute& attribute : kernel_.attributes) known = known || attribute.name == key;
      if (known) continue;
      if (key.size() != 1 || key[0] < 'A' || key[0] > 'Z' || !hg::has_axis(*kernel_.signature, key[0]))
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
    hg::View& view = views_[output.at];
    hg::shape_output(call, *output.argument, output.element, view);
    py::tuple shape(static_cast<std::size_t>(view.ndim));
    for (int i = 0; i < view.ndim; ++i) PyTuple_SET_ITEM(shape.ptr(), i, PyLong_FromLongLong(view.shape[i]));
    keep_[output.at] = empty(shape, dtypes[static_cast<int>(view.dtype)]);
    view = view_of({kernel_.signature->name, *output.argument, output.element}, keep_[output.at]);
  }

  const Named& named_;
  const hg::Kernel& kernel_;
  const py::dict& given_;
  std::vector<py::object> keep_;  // of every array, None where it is absent
  std::vector<hg::View> views_;
  std::vector<int> first_;
  std::vector<Wanted> wanted_;
  std::size_t used_ = 0;  // entries of given_
  bool written_ = false;  // whether an output is the caller's own array
};

#if defined(HG_CUDA_MODULE) || defined(HG_EMULATED_MODULE)
struct Needed {
  std::size_t scratch = 0, tickets = 0;
};
Needed needed_by(Prepared& prepared) {
  Needed needed;
  prepared.call.needed = &needed.scratch;
  prepared.call.tickets_needed = &needed.tickets;
  prepared.launch();
  prepared.call.needed = prepared.call.tickets_needed = nullptr;
  return needed;
}

// At least n bytes of uint8, made by `make(n)`, which `memory` keeps alive.
void* bytes_of(const std::string& name, const char* what, const py::function& make, std::size_t n, py::object& memory) {
  memory = make(n);
  static const hg::Argument argument{"scratch", "s", 0, false, false, false, true, false, hg::DType::u8};
  const hg::View view = view_of({name.c_str(), argument, 0}, memory);
  if (view.ndim != 1 || view.dtype != hg::DType::u8 || view.shape[0] < static_cast<std::int64_t>(n))
    throw hg::BadArgument(name + ": " + what + " gave no " + std::to_string(n) + " bytes of uint8");
  return view.data;
}

std::size_t scratch_bytes(const std::string& name, const py::dict& arguments) {
  Prepared prepared(name, arguments, py::none());
  return needed_by(prepared).scratch;
}

// `scratch(bytes)` gives the call's scratch, an array of uint8. It is released when the kernels have been queued: CuPy's
// pool hands the memory out again on the same stream only. `tickets(bytes)` gives zeros, which every kernel leaves as zeros; so calls of
// one stream may share them.
py::dict run(const std::string& name, const py::dict& arguments, const py::object& empty, const py::function& scratch,
             const py::function& tickets, std::uintptr_t stream) {
#if defined(HG_CUDA_MODULE)
  hg::cuda::check_device(name);
#endif
  Prepared prepared(name, arguments, empty);
  prepared.call.stream = reinterpret_cast<void*>(stream);
  const Needed needed = needed_by(prepared);
  py::object memory, counters;
  if (needed.scratch > 0) {
    prepared.call.scratch = bytes_of(name, "scratch", scratch, needed.scratch, memory);
    prepared.call.scratch_bytes = needed.scratch;
  }
  if (needed.tickets > 0) {
    prepared.call.tickets = static_cast<unsigned*>(bytes_of(name, "tickets", tickets, needed.tickets * sizeof(unsigned), counters));
    prepared.call.n_tickets = needed.tickets;
  }
  {
    const py::gil_scoped_release release;
    prepared.launch();
  }
  return prepared.outputs();
}
#else
py::dict run(const std::string& name, const py::dict& arguments, const py::object& empty) {
  const Prepared prepared(name, arguments, empty);
  {
    const py::gil_scoped_release release;
    prepared.launch();
  }
  return prepared.outputs();
}
#endif

// Of every kernel: the axes of its inputs and outputs by name, "*" before those of lists, and the names of its attributes.
py::dict kernels() {
  py::dict table;
  for (const auto& entry : hg::kernels()) {
    py::dict inputs, outputs;
    py::list attributes;
    for (const hg::Argument& argument : entry.second.arguments)
      (argument.output ? outputs : inputs)[py::str(argument.name)] =
          (argument.list ? "*" : "") + argument.axes + (argument.leaf ? "~" : "");
    for (const hg::Attribute& attribute : entry.second.attributes) attributes.append(attribute.name);
    table[py::str(entry.first)] = py::make_tuple(inputs, outputs, py::tuple(attributes));
  }
  return table;
}

#if !defined(HG_CUDA_MODULE) && !defined(HG_EMULATED_MODULE)
py::tuple names_of(const std::vector<hg::Level>& levels) {
  py::list names;
  for (const hg::Level level : levels) names.append(hg::level_name(level));
  return py::tuple(names);
}

constexpr std::size_t kPiece = std::size_t(1) << 18;  // bytes

// The digest of the digests of pieces, which the threads share.
std::uint64_t digest(const py::array& x) {
  struct Pieces {
    const char* data;
    std::size_t bytes;
    std::vector<std::uint64_t> found;
  };
  if ((x.flags() & py::array::c_style) == 0) throw hg::BadArgument("digest: x has gaps, expected elements side by side; copy it");
  const auto bytes = static_cast<std::size_t>(x.nbytes());
  Pieces pieces{static_cast<const char*>(x.data()), bytes, std::vector<std::uint64_t>(bytes / kPiece + 1)};
  const auto one = [](const void* context, std::int64_t index) {
    Pieces& all = *static_cast<Pieces*>(const_cast<void*>(context));
    const std::size_t begin = static_cast<std::size_t>(index) * kPiece;
    all.found[static_cast<std::size_t>(index)] = hg::digest(all.data + begin, std::min(kPiece, all.bytes - begin));
  };
  if (pieces.found.size() == 1) {
    one(&pieces, 0);
    return pieces.found[0];
  }
  const py::gil_scoped_release release;
  hg::run_tasks(static_cast<std::int64_t>(pieces.found.size()), one, &pieces);
  return hg::digest(pieces.found.data(), pieces.found.size() * sizeof(std::uint64_t));
}
#endif

#if defined(HG_EMULATED_MODULE)
py::list recorded_launches() {
  py::list out;
  for (const hg::emulator::Launched& a : hg::emulator::recorded_launches())
    out.append(py::make_tuple(a.kernel, a.blocks, a.threads, a.shared_bytes));
  return out;
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
  m.def("run", &run, py::arg("name"), py::arg("arguments"), py::arg("empty"), py::arg("scratch"), py::arg("tickets"), py::arg("stream") = 0,
        "Queues a kernel, as the host's; `scratch(bytes)` gives its scratch, `tickets(bytes)` zeros.");
  m.def("scratch_bytes", &scratch_bytes, py::arg("name"), py::arg("arguments"), "Bytes of scratch of a call with all its outputs.");
#endif
#if defined(HG_CUDA_MODULE)
  m.def("device_count", &hg::cuda::device_count, "CUDA devices this module can use; 0 without a driver.");
#elif defined(HG_EMULATED_MODULE)
  m.def("device_count", [] { return 0; }, "CUDA devices this module can use: none.");
  m.def("set_order", &hg::emulator::set_order, py::arg("order"), "Sets the order of threads and blocks: forward, reverse or shuffle:SEED.");
  m.def("record_launches", &hg::emulator::record_launches, py::arg("run") = true, "Writes launches down, and runs them where `run`.");
  m.def("recorded_launches", &recorded_launches, "Launches since, as (kernel, blocks, threads, bytes of shared memory).");
#else
  try {  // a wrong environment variable is reported at import, not in the middle of a run
    const char* const level = std::getenv("HYPERGRAD_SIMD");  // of host kernels: others have one level only
    if (level != nullptr && level[0] != '\0') hg::choose_level(level);
    hg::thread_count();
  } catch (const hg::BadArgument& error) {
    throw py::import_error(error.what());
  }
  m.def("run", &run, py::arg("name"), py::arg("arguments"), py::arg("empty"),
        "Runs a kernel on arguments by name; returns its outputs by name, those not given made by `empty(shape, dtype)`.");
  m.def("device_count", [] { return 0; }, "CUDA devices this module can use: none.");
  m.def("empty", &hg::empty_array, py::arg("shape"), py::arg("dtype"), "An uninitialised array whose memory is kept for the next one.");
  m.def("digest", &digest, py::arg("x"), "A number of 64 bits that changes with any element of a contiguous array.");
  m.def("use_memory", &hg::use_memory, "Lets NumPy's arrays keep their memory for the next ones, in the calling context.");
  m.def("memory_use", &hg::sizes_of_memory, "Bytes of such arrays in use, kept, and the most in use so far.");
  m.def("release_memory", &hg::release_memory, "Gives the memory that is kept back to the system.");
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

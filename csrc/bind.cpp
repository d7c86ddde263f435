// The modules `_host`, `_cuda` (HG_CUDA_MODULE) and `_emulated` (HG_EMULATED_MODULE), with run, kernels, device_count and build_info;
// `_host` has thread control, `_emulated` the order of threads. Beside this file prepared.h, replay.h, stretch.h and allocator.h know
// Python.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "prepared.h"

#if defined(HG_CUDA_MODULE)
#include "cuda/device.h"
#define HG_MODULE _cuda
#elif defined(HG_EMULATED_MODULE)
#include "emulator/emulator.h"
#define HG_MODULE _emulated
#else
#include "allocator.h"
#include "digest.h"
#include "replay.h"
#include "stretch.h"
#include "threads.h"
#define HG_MODULE _host
#endif

namespace py = pybind11;
using hg::error_types;
using hg::Prepared;

namespace {

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
  const hg::View view = hg::view_of({name.c_str(), argument, 0}, memory);
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

void add_stretch(py::module_& m) {
  using hg::Stretch;
  const py::handle known = py::detail::get_type_handle(typeid(Stretch), false);  // where this file was loaded under another name before
  if (known) {
    m.attr("Stretch") = known;
    return;
  }
  py::class_<Stretch>(m, "Stretch", py::module_local(), "A stretch of a program's instructions that runs without Python; see stretch.h.")
      .def(py::init<>())
      .def("expect", &Stretch::expect, py::arg("number"), py::arg("shape"), py::arg("strides"), py::arg("dtype"), py::arg("make"))
      .def("add_ufunc", &Stretch::add_ufunc, py::arg("ufunc"), py::arg("index"), py::arg("operands"), py::arg("shape"), py::arg("split"))
      .def("add_conversion", &Stretch::add_conversion, py::arg("types"), py::arg("operands"), py::arg("shape"), py::arg("again"))
      .def("add_row_loop", &Stretch::add_row_loop, py::arg("places"), py::arg("operands"), py::arg("shape"), py::arg("size"),
           py::arg("step"), py::arg("again"))
      .def("add_reduction", &Stretch::add_reduction, py::arg("ufunc"), py::arg("index"), py::arg("source"), py::arg("target"),
           py::arg("shape"), py::arg("start"), py::arg("again"))
      .def("add_kernel", &Stretch::add_kernel, py::arg("name"), py::arg("arguments"), py::arg("moving"), py::arg("numbers"))
      .def("add_guard", &Stretch::add_guard, py::arg("number"), py::arg("at"), py::arg("answer"))
      .def("let_go", &Stretch::let_go, py::arg("numbers"), "Registers that a run clears in the end.")
      .def("begin", &Stretch::begin, py::arg("registers"), py::arg("empty"))
      .def("run", &Stretch::run, py::arg("first"), py::arg("last"), "Whether all guards had their answers.")
      .def("end", &Stretch::end, py::arg("registers"))
      .def("__call__", &Stretch::call, py::arg("registers"), py::arg("empty"), "`begin`, `run` and `end`.")
      .def("__len__", &Stretch::size);
}

constexpr std::size_t kPiece = std::size_t(1) << 16;  // bytes

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
  m.def("describe", &hg::describe, py::arg("leaves"), py::arg("tensor"), py::arg("arguments"), py::arg("other"),
        "What a replay needs of leaves to be the same, as (bytes, list).");
  m.def("copy_arguments", &hg::copy_arguments, py::arg("targets"), py::arg("arguments"), py::arg("places"),
        "Copies the bytes of the arguments at these places to the targets.");
  add_stretch(m);
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

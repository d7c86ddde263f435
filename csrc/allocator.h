// memory.h as the allocator of NumPy's arrays.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>

#include "memory.h"

namespace hg {
namespace py = pybind11;

// NumPy's allocators of array data (NEP 49): its structure, and its functions by their fixed places in NumPy's table.
struct Handler {
  char name[127];
  std::uint8_t version;
  struct {
    void* context;
    void* (*malloc)(void*, std::size_t);
    void* (*calloc)(void*, std::size_t, std::size_t);
    void* (*realloc)(void*, void*, std::size_t);
    void (*free)(void*, void*, std::size_t);
  } allocator;
};
inline Handler handler{"hypergrad",
                       1,
                       {nullptr, [](void*, std::size_t bytes) { return take_memory(bytes); },
                        [](void*, std::size_t n, std::size_t size) -> void* {
                          if (size != 0 && n > SIZE_MAX / size) return nullptr;
                          void* const block = take_memory(n * size);
                          if (block != nullptr) std::memset(block, 0, n * size);
                          return block;
                        },
                        [](void*, void* block, std::size_t bytes) { return resize_memory(block, bytes); },
                        [](void*, void* block, std::size_t) { give_memory(block); }}};

// Sets NumPy's allocator in the calling context (contextvars), returns the one before.
inline py::object exchange_allocator(PyObject* allocator) {
  static void** const table = [] {
    const char* const module = py::hasattr(py::module_::import("numpy"), "_core") ? "numpy._core.multiarray" : "numpy.core.multiarray";
    return static_cast<void**>(PyCapsule_GetPointer(py::module_::import(module).attr("_ARRAY_API").ptr(), nullptr));
  }();
  PyObject* const before = reinterpret_cast<PyObject* (*)(PyObject*)>(table[304])(allocator);  // PyDataMem_SetHandler
  if (before == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(before);
}
inline PyObject* our_allocator() {
  static PyObject* const capsule = PyCapsule_New(&handler, "mem_handler", nullptr);
  return capsule;
}

// NumPy's arrays take their memory from ours from now on, in the calling context.
inline void use_memory() { exchange_allocator(our_allocator()); }

// An uninitialised array whose memory is ours.
inline py::object empty_array(const py::object& shape, const py::object& dtype) {
  static const py::object* const make = new py::object(py::module_::import("numpy").attr("empty"));
  struct Meanwhile {
    py::object before = exchange_allocator(our_allocator());
    ~Meanwhile() { exchange_allocator(before.ptr()); }
  } meanwhile;
  return (*make)(shape, dtype);
}

inline py::dict sizes_of_memory() {
  const MemoryUse use = memory_use();
  py::dict sizes;
  sizes["used"] = use.used;
  sizes["kept"] = use.kept;
  sizes["most"] = use.most;
  return sizes;
}

}  // namespace hg

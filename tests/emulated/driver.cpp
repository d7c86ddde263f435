// Runs recorded kernel calls on emulated threads without Python, so that sanitizers see nothing but the kernels.
//   driver CALLS OUTPUTS ORDER...
// CALLS is what toolchain.py writes. Each array lies in a heap block of exactly its size, outputs and scratch start as
// NaN. Every call runs in every order; the outputs must have the same bits, and those of the first order are written.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "emulator/emulator.h"
#include "table.h"

namespace {

std::FILE* open_file(const char* path, const char* mode) {
  std::FILE* file = std::fopen(path, mode);
  if (file == nullptr) {
    std::perror(path);
    std::exit(2);
  }
  return file;
}

template <class T>
T read(std::FILE* file) {
  T value;
  if (std::fread(&value, sizeof value, 1, file) != 1) {
    std::fprintf(stderr, "driver: the file of calls ends early\n");
    std::exit(2);
  }
  return value;
}

struct Array {
  hg::View view;
  std::vector<std::int64_t> header;
  std::size_t bytes;
  std::unique_ptr<unsigned char[]> input;  // null for outputs
  bool output;
};

std::string name_of(std::FILE* file) {
  std::string name(static_cast<std::size_t>(read<std::int64_t>(file)), ' ');
  if (std::fread(&name[0], 1, name.size(), file) != name.size()) std::exit(2);
  return name;
}

Array array_of(std::FILE* file, bool output) {
  Array array{};
  array.output = output;
  array.view.dtype = static_cast<hg::DType>(read<std::int64_t>(file));
  array.view.ndim = static_cast<int>(read<std::int64_t>(file));
  for (int i = 0; i < array.view.ndim; ++i) array.view.shape[i] = read<std::int64_t>(file);
  for (int i = 0; i < array.view.ndim; ++i) array.view.stride[i] = read<std::int64_t>(file);
  array.bytes = static_cast<std::size_t>(read<std::int64_t>(file));
  if (output || array.view.ndim < 0) return array;
  array.input.reset(new unsigned char[array.bytes]);
  if (std::fread(array.input.get(), 1, array.bytes, file) != array.bytes) std::exit(2);
  array.view.data = array.input.get();
  return array;
}

std::unique_ptr<unsigned char[]> poisoned(std::size_t bytes) {
  std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes]);
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: driver CALLS OUTPUTS ORDER...\n");
    return 2;
  }
  std::FILE* const calls = open_file(argv[1], "rb");
  std::FILE* const results = open_file(argv[2], "wb");
  int different = 0;
  for (std::int64_t left = read<std::int64_t>(calls); left > 0; --left) {
    const std::string name = name_of(calls);
    const auto found = hg::kernels().find(name);
    if (found == hg::kernels().end()) {
      std::fprintf(stderr, "driver: no kernel %s\n", name.c_str());
      return 2;
    }
    const hg::Kernel& kernel = found->second;
    std::vector<Array> arrays;
    hg::Call call{};
    call.length = static_cast<int>(read<std::int64_t>(calls));
    for (const hg::Argument& argument : kernel.arguments)
      for (int i = 0; i < (argument.list ? call.length : 1); ++i) arrays.push_back(array_of(calls, argument.output));
    const std::vector<int> first_arrays = hg::first_arrays(kernel, call.length);
    call.signature = kernel.signature;
    call.kernel = &kernel;
    call.first = first_arrays.data();
    for (std::int64_t& size : call.dims) size = -1;
    for (std::size_t i = 0; i < kernel.attributes.size(); ++i) call.attributes[i] = read<double>(calls);

    std::vector<std::unique_ptr<unsigned char[]>> first;
    for (int order = 3; order < argc; ++order) {
      hg::emulator::set_order(argv[order]);
      std::vector<std::unique_ptr<unsigned char[]>> outputs;
      std::vector<hg::View> views;
      for (Array& array : arrays) {
        if (array.output) {
          outputs.push_back(poisoned(array.bytes));
          array.view.data = outputs.back().get();
        }
        views.push_back(array.view);
      }
      call.arrays = views.data();
      call.n_arrays = static_cast<int>(views.size());
      hg::read_axes(call);
      hg::check_arrays(call, true);
      std::size_t needed = 0, tickets_needed = 0;
      call.needed = &needed;
      call.tickets_needed = &tickets_needed;
      kernel.launchers[hg::kBaseline](call);
      call.needed = nullptr;
      const std::unique_ptr<unsigned[]> tickets(new unsigned[tickets_needed]());
      call.tickets = tickets.get();
      call.n_tickets = tickets_needed;
      const auto scratch = poisoned(needed);
      call.scratch = scratch.get();
      call.scratch_bytes = needed;
      kernel.launchers[hg::kBaseline](call);
      std::size_t i = 0;
      for (const Array& array : arrays) {
        if (!array.output) continue;
        if (order == 3)
          std::fwrite(outputs[i].get(), 1, array.bytes, results);
        else if (std::memcmp(outputs[i].get(), first[i].get(), array.bytes) != 0)
          ++different;
        ++i;
      }
      if (order == 3) first = std::move(outputs);
    }
  }
  std::fclose(calls);
  std::fclose(results);
  if (different > 0) std::fprintf(stderr, "driver: %d outputs depend on the order of threads\n", different);
  return different > 0 ? 1 : 0;
}

// Reading side of the kernel table: used by the binding, not by kernels.
#pragma once
#include <array>
#include <map>
#include <string>
#include <vector>

#include "registry.h"

namespace hg {

struct Argument {
  std::string name;
  std::string axes;  // one character per axis, without `~`
  int lead;          // axes before `|`: free strides
  bool optional;
  bool list;
  bool leaf;  // ends in `~`
  bool output;
  bool is_float;
  DType dtype;  // where not is_float
};

struct Attribute {
  std::string name;
  bool integer;
};

struct Kernel {
  const Signature* signature;
  std::vector<Argument> arguments;  // inputs, then outputs
  int n_inputs;
  std::vector<Attribute> attributes;
  std::array<Launcher, kLevels> launchers;
};

std::map<std::string, Kernel>& kernels();
const Kernel& kernel_of(const Signature* signature);

// Where the arrays of a call stand.
struct Layout {
  int length;              // of every list
  std::vector<int> first;  // of each argument, the index of its first array; then the number of arrays
};
Layout layout_of(const Kernel& kernel, std::size_t n_arrays);  // throws BadArgument for a wrong number
std::string label(const Argument& argument, int element);      // "w", of a list "w[3]"

const char* level_name(Level level);
std::vector<Level> compiled_levels();   // levels with kernels in this build
std::vector<Level> supported_levels();  // of those, the ones this CPU runs
Level chosen_level();                   // the highest supported one, until another is chosen
void choose_level(const std::string& name);

}  // namespace hg

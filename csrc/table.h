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
  std::string axes;  // one character per axis
  int lead;          // axes before `|`: free strides
  bool optional;
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

const char* level_name(Level level);
std::vector<Level> compiled_levels();   // levels with kernels in this build
std::vector<Level> supported_levels();  // of those, the ones this CPU runs
Level chosen_level();                   // HYPERGRAD_SIMD, else the highest supported
void choose_level(const std::string& name);

}  // namespace hg

// The kernel table as the binding and the checks read it: signatures, parsed when kernels register.
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
  double lowest, highest;
};

struct Derived {  // an axis that follows from others
  char axis;
  std::string formula;
};

struct Kernel {
  const Signature* signature;
  std::vector<Argument> arguments;  // inputs, then outputs
  std::vector<Attribute> attributes;
  std::vector<Derived> derived;
  std::array<Launcher, kLevels> launchers;
};

std::map<std::string, Kernel>& kernels();
std::vector<int> first_arrays(const Kernel& kernel, int length);  // of each argument; then the number of arrays
std::string label(const Argument& argument, int element);         // "w", of a list "w[3]"

}  // namespace hg

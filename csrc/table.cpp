#include "table.h"

#include <cstdlib>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace hg {
namespace {

[[noreturn]] void refuse(const char* kernel, const std::string& text) {
  throw std::logic_error(std::string(kernel) + ": bad signature at " + text);
}

Argument parse_argument(const std::string& text, bool output, const char* kernel) {
  Argument argument{"", "", 0, false, false, false, output, true, DType::f32};
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) refuse(kernel, text);
  std::string name = text.substr(0, equals);
  const std::size_t colon = name.find(':');
  if (colon != std::string::npos) {
    argument.is_float = false;
    argument.dtype = name.substr(colon + 1) == "u8" ? DType::u8 : DType::i64;
    name.resize(colon);
  }
  if ((argument.list = name.back() == '*')) name.pop_back();
  if ((argument.optional = name.back() == '?')) name.pop_back();
  argument.name = name;
  for (const char axis : text.substr(equals + 1)) {
    if (argument.leaf) refuse(kernel, text);  // `~` is the last axis
    if (axis == '|')
      argument.lead = static_cast<int>(argument.axes.size());
    else if (axis == '~')
      argument.leaf = true;
    else
      argument.axes.push_back(axis);
  }
  if ((argument.leaf && !argument.list) || argument.axes.size() > kMaxDims) refuse(kernel, text);
  return argument;
}

Attribute parse_attribute(const std::string& text) {  // "lr:float", "eps:float>=0", "size:1..16"
  const std::size_t colon = text.find(':'), dots = text.find("..");
  const double unbounded = std::numeric_limits<double>::infinity();
  if (dots != std::string::npos)
    return {text.substr(0, colon), true, std::atof(text.c_str() + colon + 1), std::atof(text.c_str() + dots + 2)};
  const std::size_t least = text.find(">=");
  return {text.substr(0, colon), false, least == std::string::npos ? -unbounded : std::atof(text.c_str() + least + 2), unbounded};
}

Kernel parse(const Signature* signature) {
  Kernel kernel{signature, {}, {}, {}, {}};
  bool output = false;
  std::istringstream words(signature->arrays), attributes(signature->attributes), formulas(signature->derived);
  for (std::string word; words >> word;) {
    if (word == "->") {
      output = true;
      continue;
    }
    kernel.arguments.push_back(parse_argument(word, output, signature->name));
  }
  for (std::string word; attributes >> word;) kernel.attributes.push_back(parse_attribute(word));
  for (std::string word; formulas >> word;) kernel.derived.push_back({word[0], word.substr(2)});
  if (kernel.arguments.size() > kMaxArguments || kernel.attributes.size() > kMaxAttributes)
    throw std::logic_error(std::string(signature->name) + ": too many arguments");
  return kernel;
}

}  // namespace

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> table;
  return table;
}

Register::Register(const Signature* signature, Level level, Launcher launcher) {
  auto found = kernels().find(signature->name);
  if (found == kernels().end()) found = kernels().emplace(signature->name, parse(signature)).first;
  Launcher& slot = found->second.launchers[level];
  if (slot != nullptr) throw std::logic_error(std::string("kernel registered twice: ") + signature->name);
  slot = launcher;
}

std::vector<int> first_arrays(const Kernel& kernel, int length) {
  std::vector<int> first{0};
  for (const Argument& argument : kernel.arguments) first.push_back(first.back() + (argument.list ? length : 1));
  return first;
}

std::string label(const Argument& argument, int element) {
  return argument.list ? argument.name + "[" + std::to_string(element) + "]" : argument.name;
}

}  // namespace hg

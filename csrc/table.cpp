#include "table.h"

#include <cctype>
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

// Sums of products of axes, attributes, whole numbers and brackets.
class FormulaParser {
 public:
  FormulaParser(const Kernel& kernel, const std::string& text) : kernel_(kernel), derived_{text[0], text.substr(2), {}} {
    at_ = derived_.formula.c_str();
    sum();
    if (*at_ != 0) refuse(kernel.signature->name, at_);
  }
  Derived result() const { return derived_; }

 private:
  void push(char what, std::int64_t value = 0) { derived_.steps.push_back({what, value}); }
  void sum() {
    product();
    while (*at_ == '+' || *at_ == '-') {
      const char what = *at_++;
      product();
      push(what);
    }
  }
  void product() {
    atom();
    while (*at_ == '*' || *at_ == '/') {
      const char what = *at_++;
      atom();
      push(what);
    }
  }
  void atom() {
    if (*at_ == '(') {
      ++at_;
      sum();
      ++at_;
      return;
    }
    std::string word;
    while (std::isalnum(static_cast<unsigned char>(*at_)) != 0 || *at_ == '_') word += *at_++;
    const int attribute = find(kernel_.signature->attributes, word.c_str());
    if (word.empty())
      refuse(kernel_.signature->name, at_);
    else if (std::isdigit(static_cast<unsigned char>(word[0])) != 0)
      push('n', std::atoll(word.c_str()));
    else if (attribute >= 0)
      push('v', attribute);
    else
      push('a', word[0]);
  }

  const Kernel& kernel_;
  Derived derived_;
  const char* at_;
};

Kernel parse(const Signature* signature) {
  Kernel kernel{signature, {}, false, {}, {}, {}};
  bool output = false;
  std::istringstream words(signature->arrays), attributes(signature->attributes), formulas(signature->derived);
  for (std::string word; words >> word;) {
    if (word == "->") {
      output = true;
      continue;
    }
    kernel.arguments.push_back(parse_argument(word, output, signature->name));
    kernel.lists = kernel.lists || kernel.arguments.back().list;
  }
  for (std::string word; attributes >> word;) kernel.attributes.push_back(parse_attribute(word));
  for (std::string word; formulas >> word;) kernel.derived.push_back(FormulaParser(kernel, word).result());
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

const Kernel& kernel_of(const Signature* signature) { return kernels().at(signature->name); }

std::vector<int> first_arrays(const Kernel& kernel, int length) {
  std::vector<int> first{0};
  for (const Argument& argument : kernel.arguments) first.push_back(first.back() + (argument.list ? length : 1));
  return first;
}

std::string label(const Argument& argument, int element) {
  return argument.list ? argument.name + "[" + std::to_string(element) + "]" : argument.name;
}

}  // namespace hg

#include "table.h"

#include <sstream>
#include <stdexcept>

#include "check.h"

namespace hg {
namespace {

Argument parse_argument(const std::string& text, bool output, const char* kernel) {
  Argument argument{"", "", 0, false, false, false, output, true, DType::f32};
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) throw std::logic_error(std::string(kernel) + ": bad signature at " + text);
  std::string name = text.substr(0, equals);
  const std::string axes = text.substr(equals + 1);
  const std::size_t colon = name.find(':');
  if (colon != std::string::npos) {
    const std::string type = name.substr(colon + 1);
    argument.is_float = false;
    argument.dtype = type == "u8" ? DType::u8 : DType::i64;
    name = name.substr(0, colon);
  }
  if (name.back() == '*') {
    argument.list = true;
    name.pop_back();
  }
  if (name.back() == '?') {
    argument.optional = true;
    name.pop_back();
  }
  argument.name = name;
  const std::size_t bar = axes.find('|');
  argument.lead = bar == std::string::npos ? 0 : static_cast<int>(bar);
  for (const char axis : axes) {
    if (argument.leaf) throw std::logic_error(std::string(kernel) + ": `~` is not the last axis at " + text);
    if (axis == '~')
      argument.leaf = true;
    else if (axis != '|')
      argument.axes.push_back(axis);
  }
  if (argument.leaf && !argument.list) throw std::logic_error(std::string(kernel) + ": `~` without a list at " + text);
  if (argument.axes.size() > kMaxDims) throw std::logic_error(std::string(kernel) + ": too many axes at " + text);
  return argument;
}

Kernel parse(const Signature* signature) {
  Kernel kernel{signature, {}, 0, {}, {}};
  bool output = false;
  std::istringstream words(signature->arrays);
  for (std::string word; words >> word;) {
    if (word == "->") {
      output = true;
      continue;
    }
    kernel.arguments.push_back(parse_argument(word, output, signature->name));
    if (!output) ++kernel.n_inputs;
  }
  std::istringstream attributes(signature->attributes);
  for (std::string word; attributes >> word;) {
    const std::size_t colon = word.find(':');
    kernel.attributes.push_back({word.substr(0, colon), word.substr(colon + 1) == "int"});
  }
  if (kernel.arguments.size() > kMaxArguments || kernel.attributes.size() > kMaxAttributes)
    throw std::logic_error(std::string(signature->name) + ": too many arguments");
  return kernel;
}

bool cpu_runs(Level level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (level == kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level == kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#endif
  return level == kBaseline;
}

Level level_from(const std::string& name) {
  std::string known;
  for (const Level level : supported_levels()) {
    if (name == level_name(level)) return level;
    known += std::string(known.empty() ? "" : ", ") + level_name(level);
  }
  throw BadArgument("HYPERGRAD_SIMD: level is '" + name + "', expected one of " + known +
                    " because only these are compiled in and run on this CPU; unset it to take the best");
}

Level& level_slot() {
  static Level level = supported_levels().back();
  return level;
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

Layout layout_of(const Kernel& kernel, std::size_t n_arrays) {
  std::size_t lists = 0, outputs = 0, listed_outputs = 0;
  for (const Argument& argument : kernel.arguments) {
    lists += argument.list;
    outputs += argument.output;
    listed_outputs += argument.output && argument.list;
  }
  const std::size_t all = kernel.arguments.size(), singles = all - lists;
  if (n_arrays < singles || (lists == 0 ? n_arrays != singles : (n_arrays - singles) % lists != 0)) {
    const auto per_element = [](std::size_t listed) {
      return listed == 0 ? std::string() : " and " + std::to_string(listed) + " for each element of the lists";
    };
    const std::size_t single_outputs = outputs - listed_outputs, single_inputs = singles - single_outputs;
    throw BadArgument(std::string(kernel.signature->name) + ": arrays has " + std::to_string(n_arrays) + " entries, expected " +
                      std::to_string(single_inputs) + " inputs" + per_element(lists - listed_outputs) + ", then " +
                      std::to_string(single_outputs) + " outputs" + per_element(listed_outputs));
  }
  Layout layout{lists == 0 ? 0 : static_cast<int>((n_arrays - singles) / lists), {0}};
  for (const Argument& argument : kernel.arguments) layout.first.push_back(layout.first.back() + (argument.list ? layout.length : 1));
  return layout;
}

std::string label(const Argument& argument, int element) {
  return argument.list ? argument.name + "[" + std::to_string(element) + "]" : argument.name;
}

const char* level_name(Level level) { return level == kAvx512 ? "avx512" : level == kAvx2 ? "avx2" : "baseline"; }

std::vector<Level> compiled_levels() {
  std::vector<Level> levels;
  for (const Level level : {kBaseline, kAvx2, kAvx512}) {
    bool complete = !kernels().empty();
    for (const auto& entry : kernels()) complete = complete && entry.second.launchers[level] != nullptr;
    if (complete) levels.push_back(level);
  }
  return levels;
}

std::vector<Level> supported_levels() {
  std::vector<Level> levels;
  for (const Level level : compiled_levels())
    if (cpu_runs(level)) levels.push_back(level);
  return levels;
}

Level chosen_level() { return level_slot(); }

void choose_level(const std::string& name) { level_slot() = level_from(name); }

}  // namespace hg

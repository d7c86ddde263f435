#include "levels.h"

#include "check.h"
#include "table.h"

namespace hg {
namespace {

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

Level& level_slot() {
  static Level level = supported_levels().back();
  return level;
}

}  // namespace

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

void choose_level(const std::string& name) {
  std::string known;
  for (const Level level : supported_levels()) {
    if (name == level_name(level)) {
      level_slot() = level;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + level_name(level);
  }
  throw BadArgument("HYPERGRAD_SIMD: level is '" + name + "', expected one of " + known +
                    " because only these are compiled in and run on this CPU; unset it to take the best");
}

}  // namespace hg

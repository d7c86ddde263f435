// Instruction sets that a kernel may be compiled for, and the choice among them.
#pragma once
#include <string>
#include <vector>

namespace hg {

enum Level : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kLevels = 3 };  // in rising order

const char* level_name(Level level);
std::vector<Level> compiled_levels();   // for which every kernel is compiled
std::vector<Level> supported_levels();  // of those, the ones this CPU runs
Level chosen_level();                   // the highest supported one, until another is chosen
void choose_level(const std::string& name);

}  // namespace hg

// How compressed-tensors names modules in targets and ignore lists: a full name, "Linear" (every
// linear layer), or "re:" and a regular expression that must match from the beginning of the name
// (Python's re.match). Patterns come from a file: matching is bounded, a pattern that needs too
// many steps is an error and not a hang.
#pragma once
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

namespace lathe {

class ModulePatterns {
 public:
  ModulePatterns();
  ~ModulePatterns();
  ModulePatterns(ModulePatterns&& other) noexcept;
  ModulePatterns& operator=(ModulePatterns&& other) noexcept;

  // Throws kCorruptData when an expression does not compile or is too long, naming `what`.
  void add(const std::string& pattern, const std::string& what);

  // Whether a pattern matches any of the spellings of one linear module's name. Throws kCorruptData
  // when the matching limit is reached.
  bool matches(const std::vector<std::string>& spellings) const;

 private:
  struct Regex;
  std::unordered_set<std::string> names_;
  bool every_linear_ = false;
  std::vector<Regex> expressions_;
};

}  // namespace lathe

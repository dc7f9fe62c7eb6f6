#define PCRE2_CODE_UNIT_WIDTH 8
#include "formats/module_pattern.h"

#include <pcre2.h>

#include <utility>

#include "base/error.h"

namespace lathe {
namespace {

constexpr std::size_t kMaxPatternBytes = 4096;
constexpr uint32_t kMatchLimit = 1'000'000;  // backtracking steps; a sane pattern takes hundreds
constexpr uint32_t kHeapLimitKib = 16 << 10;

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};

}  // namespace

struct ModulePatterns::Regex {
  std::string pattern;
  std::string what;
  std::unique_ptr<pcre2_code, Deleter<pcre2_code_free_8>> code;
  std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free_8>> match;
  std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free_8>> limits;
};

ModulePatterns::ModulePatterns() = default;
ModulePatterns::~ModulePatterns() = default;
ModulePatterns::ModulePatterns(ModulePatterns&& other) noexcept = default;
ModulePatterns& ModulePatterns::operator=(ModulePatterns&& other) noexcept = default;

void ModulePatterns::add(const std::string& pattern, const std::string& what) {
  if (pattern.size() > kMaxPatternBytes) {
    fail(ErrorCode::kCorruptData, what, ": a module pattern of ", pattern.size(), " bytes");
  }
  if (pattern.rfind("re:", 0) != 0) {
    every_linear_ = every_linear_ || pattern == "Linear";
    names_.insert(pattern);
    return;
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.pattern = pattern;
  regex.what = what;
  regex.code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data() + 3),
                                 pattern.size() - 3, PCRE2_ANCHORED | PCRE2_UTF, &error, &offset,
                                 nullptr));
  if (regex.code == nullptr) {
    unsigned char message[120] = {};
    pcre2_get_error_message(error, message, sizeof message);
    fail(ErrorCode::kCorruptData, what, ": module pattern '", pattern.substr(0, 80),
         "': ", reinterpret_cast<const char*>(message), " at character ", offset);
  }
  regex.match.reset(pcre2_match_data_create_from_pattern(regex.code.get(), nullptr));
  regex.limits.reset(pcre2_match_context_create(nullptr));
  if (regex.match == nullptr || regex.limits == nullptr) {
    fail(ErrorCode::kOutOfMemory, what, ": no memory for a module pattern");
  }
  pcre2_set_match_limit(regex.limits.get(), kMatchLimit);
  pcre2_set_heap_limit(regex.limits.get(), kHeapLimitKib);
  expressions_.push_back(std::move(regex));
}

bool ModulePatterns::matches(const std::vector<std::string>& spellings) const {
  if (every_linear_) return true;
  for (const std::string& name : spellings) {
    if (names_.count(name) != 0) return true;
    for (const Regex& regex : expressions_) {
      const int result = pcre2_match(regex.code.get(), reinterpret_cast<PCRE2_SPTR>(name.data()),
                                     name.size(), 0, 0, regex.match.get(), regex.limits.get());
      if (result >= 0) return true;
      if (result != PCRE2_ERROR_NOMATCH) {
        fail(ErrorCode::kCorruptData, regex.what, ": module pattern '", regex.pattern.substr(0, 80),
             "' takes too many steps on '", name, "'");
      }
    }
  }
  return false;
}

}  // namespace lathe

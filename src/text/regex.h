// A regular expression over valid UTF-8, by PCRE2 with its Unicode properties and JIT compiler.
// tokenizer.json writes patterns for Oniguruma; the patterns that published tokenizers use mean the
// same in both, but for \s (see regex.cpp). PCRE2 10.42 knows Unicode 14: letters added since are
// not \p{L} here.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace lathe {

class Regex {
 public:
  // Throws kUnsupported when the pattern does not compile or uses Oniguruma's class intersection.
  explicit Regex(const std::string& pattern, bool literal = false);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Searches one text from left to right. A scanner borrows the Regex and the text; it belongs to
  // one thread, while one Regex may serve many scanners at once.
  class Scanner {
   public:
    Scanner(const Regex& regex, std::string_view text);
    ~Scanner();
    Scanner(const Scanner&) = delete;
    Scanner& operator=(const Scanner&) = delete;
    // The next non-empty match as [begin, end); false when there is none. Throws kUnsupported when
    // the pattern backtracks beyond the limit.
    bool next(size_t& begin, size_t& end);

   private:
    struct State;
    std::unique_ptr<State> state_;
  };

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace lathe

// Lines from the user: edited, with history, on a terminal; plain otherwise.
#pragma once
#include <optional>
#include <string>

namespace lathe {

class LineReader {
 public:
  // Loads the history of earlier sessions, when there is a terminal.
  LineReader();
  ~LineReader();  // saves it
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  bool interactive() const { return interactive_; }
  // Without the newline; a line that ends with a backslash goes on in the next one. nullopt: the
  // end.
  std::optional<std::string> read(const std::string& prompt);

 private:
  std::optional<std::string> read_one(const std::string& prompt);
  bool interactive_;
  std::string history_file_;
};

}  // namespace lathe

#include "cli/help.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string_view>

namespace lathe {
namespace {

constexpr int64_t kNameColumns = 28;

// Of the terminal that reads along, within what is readable; 100 for a pipe or a file.
int64_t page_width() {
  struct winsize size {};
  const bool known =
      isatty(STDOUT_FILENO) != 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? std::clamp<int64_t>(size.ws_col, 60, 100) : 100;
}

class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() : width_(page_width()) { column_width(kNameColumns); }

  // "[brackets]" is how CLI11 says that an argument may be left out; here REQUIRED says the rest.
  std::string make_option_opts(const CLI::Option* option) const override {
    std::string text;
    if (option->get_type_size() != 0) {
      if (!option->get_type_name().empty()) text += " " + option->get_type_name();
      if (!option->get_default_str().empty()) text += "=" + default_of(*option);
    }
    if (option->get_required()) text += " REQUIRED";
    return text;
  }

  // CLI11 writes "--no-x{false}" for a flag that clears.
  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    std::string name = CLI::Formatter::make_option_name(option, is_positional);
    for (std::size_t at = name.find('{'); at != std::string::npos; at = name.find('{')) {
      name.erase(at, name.find('}', at) - at + 1);
    }
    return name;
  }

  // The lines of a description behind the first are indented by CLI11.
  std::string make_option_desc(const CLI::Option* option) const override {
    return wrap(option->get_description(), width_ - kNameColumns);
  }

  std::string make_footer(const CLI::App* app) const override {
    return app->get_footer().empty() ? "" : wrap(app->get_footer(), width_) + "\n";
  }

 private:
  // A list's default as it is typed: "[1024,2048]" is 1024,2048, or with blanks where a FILE... is.
  static std::string default_of(const CLI::Option& option) {
    std::string text = option.get_default_str();
    if (text.size() < 2 || text.front() != '[' || text.back() != ']') return text;
    text = text.substr(1, text.size() - 2);
    if (option.get_delimiter() == '\0') std::replace(text.begin(), text.end(), ',', ' ');
    return text;
  }

  int64_t width_;
};

}  // namespace

std::string wrap(const std::string& text, int64_t width) {
  const auto limit = static_cast<std::size_t>(std::max<int64_t>(width, 1));
  std::string wrapped;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    while (line.size() > limit && line.front() != ' ') {
      std::size_t blank = line.rfind(' ', limit);
      if (blank == std::string::npos) blank = line.find(' ', limit);
      if (blank == std::string::npos) break;
      wrapped += line.substr(0, blank) + "\n";
      line.erase(0, line.find_first_not_of(' ', blank));
    }
    wrapped += line;
    if (end < text.size()) wrapped += "\n";
    begin = end + 1;
  }
  return wrapped;
}

std::string usage_problem(const CLI::ParseError& error) {
  const std::string text = error.what();
  const auto behind = [&text](std::string_view prefix) -> std::optional<std::string> {
    if (text.rfind(prefix, 0) != 0) return std::nullopt;
    return text.substr(prefix.size());
  };
  if (text == "A subcommand is required") return "give a command";
  if (const auto pair = behind("Could not convert: ")) {  // FLAG = VALUE
    const std::size_t sign = pair->find(" = ");
    if (sign == std::string::npos) return text;
    return pair->substr(0, sign) + " " + pair->substr(sign + 3) +
           ": not a number of the right kind and size";
  }
  for (const char* prefix : {"The following argument was not expected: ",
                             "The following arguments were not expected: "}) {
    const auto words = behind(prefix);
    if (!words) continue;
    const std::size_t flag = (" " + *words).find(" -");
    if (flag == std::string::npos)
      return "too many arguments; a text of several words needs quotes";
    return "there is no flag " + words->substr(flag, words->find(' ', flag) - flag);
  }
  return text;
}

std::shared_ptr<CLI::FormatterBase> make_help_formatter() {
  return std::make_shared<HelpFormatter>();
}

}  // namespace lathe

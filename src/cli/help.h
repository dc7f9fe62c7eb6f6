// What CLI11 says to users, in our form: the pages of --help, and what is wrong with a command
// line.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>

namespace lathe {

// Breaks lines of `text` that are longer than `width` at blanks, keeping the line breaks that are
// there. Lines that begin with a blank (examples, lists) and words longer than `width` stay whole.
std::string wrap(const std::string& text, int64_t width);

// The pages, with long lines broken at the width of the terminal. For main's App; its commands
// inherit it.
std::shared_ptr<CLI::FormatterBase> make_help_formatter();

// One line: the flag or argument first, then what is wrong with it.
std::string usage_problem(const CLI::ParseError& error);

}  // namespace lathe

// Cuts a template into text and the tokens inside {{ }} and {% %}, with Jinja's white-space control
// as transformers sets it: trim_blocks (a newline behind a block tag goes), lstrip_blocks (blanks
// between the start of a line and a block tag go), no newline kept at the end of the template.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lathe::jinja {

struct Token {
  enum class Kind {
    kText,           // between tags, white space already cut
    kVariableBegin,  // {{
    kVariableEnd,
    kBlockBegin,  // {%
    kBlockEnd,
    kName,
    kString,  // text has its escapes resolved
    kInteger,
    kFloat,
    kOperator,  // text is the operator itself
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text = "";
  int64_t integer = 0;
  double number = 0;
  int line = 1;
};

// The tokens, with one kEnd at the end. Comments and raw tags are gone. Throws kCorruptData naming
// the line for what is not a template.
std::vector<Token> tokenize_template(std::string_view source);

}  // namespace lathe::jinja

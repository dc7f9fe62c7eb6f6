// The values of JSON schema's "format" as patterns. Where a standard allows more than a pattern
// tells apart, the pattern is the narrower one: what is generated is always valid.
#include <algorithm>
#include <iterator>
#include <string>

#include "base/error.h"
#include "grammar/pattern.h"
#include "grammar/schema_keywords.h"

namespace lathe {
namespace {

// RFC 3339, with the lengths of the months; 29 February in leap years only.
constexpr const char* kDate =
    "((000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-"
    "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
    "02-(0[1-9]|1[0-9]|2[0-8]))"
    "|(([0-9][0-9](0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29))";
constexpr const char* kTime =
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?"
    "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
constexpr const char* kByte = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
constexpr const char* kLabel = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?";

std::string ipv6() {
  const std::string h = "[0-9a-fA-F]{1,4}";
  std::string out = "(" + h + ":){7}" + h;
  // a groups, "::", b groups; at most seven in all.
  for (int a = 0; a <= 7; ++a) {
    const int b = 7 - a;
    std::string part = a == 0 ? "::" : "(" + h + ":){" + std::to_string(a) + "}:";
    if (b > 0) part += "(" + h + "(:" + h + "){0," + std::to_string(b - 1) + "})?";
    out += "|" + part;
  }
  return "(" + out + ")";
}

std::string hostname() {
  const std::string label = kLabel;
  return label + "(\\." + label + "){0,5}";
}

struct Format {
  const char* name;
  std::string (*pattern)();
};
const Format kFormats[] = {
    {"date", [] { return std::string(kDate); }},
    {"time", [] { return std::string(kTime); }},
    {"date-time", [] { return std::string(kDate) + "T" + kTime; }},
    {"duration",
     [] {
       return std::string(
           "P([0-9]{1,4}W|([0-9]{1,4}D|[0-9]{1,4}M([0-9]{1,4}D)?|"
           "[0-9]{1,4}Y([0-9]{1,4}M([0-9]{1,4}D)?)?)(T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|"
           "[0-9]{1,4}M([0-9]{1,4}S)?|[0-9]{1,4}S))?|"
           "T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|[0-9]{1,4}M([0-9]{1,4}S)?|[0-9]{1,4}S))");
     }},
    {"uuid",
     [] {
       return std::string(
           "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-"
           "[0-9a-fA-F]{12}");
     }},
    {"email",
     [] {
       // Without bounds on the parts: the automaton stays small.
       return std::string(
           "[a-zA-Z0-9_%+-]+(\\.[a-zA-Z0-9_%+-]+)*@"
           "[a-zA-Z0-9]+([.-][a-zA-Z0-9]+)*\\.[a-zA-Z]{2,12}");
     }},
    {"hostname", hostname},
    {"ipv4", [] { return "(" + std::string(kByte) + "\\.){3}" + kByte; }},
    {"ipv6", ipv6},
    {"uri",
     [] {
       return std::string(
           "[a-zA-Z][a-zA-Z0-9+.-]*://[a-zA-Z0-9]+([.-][a-zA-Z0-9]+)*"
           "(:[0-9]{1,4})?(/[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?"
           "(\\?[a-zA-Z0-9._~!$&'()*+,;=:@/?-]*)?(#[a-zA-Z0-9._~!$&'()*+,;=:@/?-]*)?");
     }},
};

// About the size of numbers or the use of a string, not about its characters.
constexpr const char* kSilent[] = {"int32",  "int64",    "uint32", "uint64", "float",
                                   "double", "password", "binary", "byte"};

}  // namespace

std::optional<Dfa> strings_of_format(std::string_view format) {
  for (const Format& known : kFormats) {
    if (format == known.name) return compile_whole_pattern(known.pattern());
  }
  if (std::find(std::begin(kSilent), std::end(kSilent), format) != std::end(kSilent)) {
    return std::nullopt;
  }
  std::string names;
  for (const Format& known : kFormats) names += std::string(names.empty() ? "" : ", ") + known.name;
  fail(ErrorCode::kUnsupported, "format '", format.substr(0, 40), "' is not supported; known are ",
       names, "; or use pattern");
}

}  // namespace lathe

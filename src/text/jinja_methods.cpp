// Methods of strings, lists and dicts.
#include <algorithm>
#include <array>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace lathe::jinja {
namespace {

constexpr std::array<std::string_view, 39> kStringMethods = {
    "strip",    "lstrip",   "rstrip",    "split",      "rsplit",       "splitlines",   "startswith",
    "endswith", "replace",  "upper",     "lower",      "title",        "capitalize",   "find",
    "rfind",    "index",    "count",     "join",       "removeprefix", "removesuffix", "isdigit",
    "isalpha",  "isalnum",  "isspace",   "isupper",    "islower",      "isnumeric",    "isdecimal",
    "isascii",  "zfill",    "partition", "rpartition", "center",       "ljust",        "rjust",
    "casefold", "swapcase", "encode",    "format"};
constexpr std::array<std::string_view, 5> kDictMethods = {"items", "keys", "values", "get", "copy"};
constexpr std::array<std::string_view, 3> kListMethods = {"index", "count", "copy"};

class StringMethods {
 public:
  StringMethods(Interpreter& interpreter, const std::string& text, std::string_view name,
                const Arguments& arguments)
      : budget_(interpreter.budget()), text_(text), name_(name), arguments_(arguments) {}

  Value call() {
    budget_.steps(text_.size() / 16 + 1);
    if (name_ == "strip" || name_ == "lstrip" || name_ == "rstrip") {
      const Parameters p(arguments_, name_, {"chars"});
      const std::string* characters = p.text(0);
      if (characters != nullptr) budget_.steps(characters->size());
      return made(strip(text_, name_ != "rstrip", name_ != "lstrip", characters));
    }
    if (name_ == "split" || name_ == "rsplit") return split_parts();
    if (name_ == "splitlines") {
      const Parameters p(arguments_, name_, {"keepends"});
      return list(split_lines(text_, p.boolean(0, false)));
    }
    if (name_ == "startswith" || name_ == "endswith") return has_affix();
    if (name_ == "replace") return replaced();
    if (name_ == "find" || name_ == "rfind" || name_ == "index") return position();
    if (name_ == "count") {
      const std::string needle = one_text("sub");
      return needle.empty() ? count_codepoints(text_) + 1 : occurrences(needle);
    }
    if (name_ == "join") {
      const Parameters p(arguments_, name_, {"iterable"});
      return joined(iterate(p.required(0), budget_));
    }
    if (name_ == "removeprefix" || name_ == "removesuffix") return without_affix();
    if (name_ == "partition" || name_ == "rpartition") return partitioned();
    if (name_ == "center" || name_ == "ljust" || name_ == "rjust" || name_ == "zfill")
      return padded();
    if (name_ == "encode" || name_ == "format" || name_ == "swapcase") {
      fail(ErrorCode::kUnsupported, "chat template: str.", name_, "() is not supported");
    }
    const Parameters none(arguments_, name_, {});
    if (name_ == "upper") return made(upper(text_));
    if (name_ == "lower" || name_ == "casefold") return made(lower(text_));
    if (name_ == "title") return made(title(text_));
    if (name_ == "capitalize") return made(capitalize(text_));
    return all_of_kind(text_, name_);
  }

 private:
  Value made(std::string_view text) {
    budget_.bytes(text.size());
    return Value(text);
  }

  Value list(const std::vector<std::string_view>& parts, bool is_tuple = false) {
    std::vector<Value> items;
    for (const std::string_view part : parts) items.push_back(made(part));
    budget_.steps(items.size());
    return make_list(std::move(items), budget_, is_tuple);
  }

  std::string one_text(std::string_view parameter) {
    const Parameters p(arguments_, name_, {parameter});
    p.required(0);
    const std::string* text = p.text(0);
    if (text == nullptr) template_error(name_, "(): '", parameter, "' is None");
    budget_.steps(text->size() / 16);
    return *text;
  }

  Value split_parts() {
    const Parameters p(arguments_, name_, {"sep", "maxsplit"});
    const std::string* separator = p.text(0);
    if (separator != nullptr && separator->empty()) template_error("empty separator");
    return list(split(text_, separator, p.integer(1, -1), name_ == "rsplit"));
  }

  Value has_affix() {
    const Parameters p(arguments_, name_, {"prefix"});
    const Value& affix = p.required(0);
    std::vector<Value> choices = {affix};
    if (affix.is_list() && affix.list().is_tuple) choices = iterate(affix, budget_);
    for (const Value& choice : choices) {
      if (!choice.is_string()) {
        template_error(name_, " first arg must be str or a tuple of str, not ", choice.type_name());
      }
      budget_.steps(1);
      const std::string_view text = text_;
      if (name_ == "startswith" ? text.starts_with(choice.text()) : text.ends_with(choice.text())) {
        return true;
      }
    }
    return false;
  }

  Value replaced() {
    const Parameters p(arguments_, name_, {"old", "new", "count"});
    p.required(0);
    p.required(1);
    const std::string* old = p.text(0);
    const std::string* with = p.text(1);
    if (old == nullptr || with == nullptr) template_error("replace() argument must be str");
    return Value(replace_text(text_, *old, *with, p.integer(2, -1), budget_));
  }

  Value position() {
    const std::string needle = one_text("sub");
    const size_t found = name_ == "rfind" ? text_.rfind(needle) : text_.find(needle);
    if (found != std::string::npos)
      return count_codepoints(std::string_view(text_).substr(0, found));
    if (name_ == "index") template_error("substring not found");
    return -1;
  }

  int64_t occurrences(const std::string& needle) {
    int64_t count = 0;
    for (size_t at = 0; (at = text_.find(needle, at)) != std::string::npos; at += needle.size())
      ++count;
    return count;
  }

  Value joined(const std::vector<Value>& items) {
    std::string out;
    for (size_t i = 0; i < items.size(); ++i) {
      if (!items[i].is_string()) {
        template_error("sequence item ", i, ": expected str instance, ", items[i].type_name(),
                       " found");
      }
      budget_.bytes(items[i].text().size() + text_.size());
      if (i > 0) out += text_;
      out += items[i].text();
    }
    return Value(std::move(out));
  }

  Value without_affix() {
    const std::string affix = one_text("prefix");
    std::string_view text = text_;
    if (name_ == "removeprefix" && text.starts_with(affix)) text.remove_prefix(affix.size());
    if (name_ == "removesuffix" && text.ends_with(affix)) text.remove_suffix(affix.size());
    return made(text);
  }

  Value partitioned() {
    const std::string separator = one_text("sep");
    if (separator.empty()) template_error("empty separator");
    const bool from_right = name_ == "rpartition";
    const std::string_view text = text_;
    const size_t found = from_right ? text.rfind(separator) : text.find(separator);
    if (found == std::string_view::npos) {
      return from_right ? list({"", "", text}, true) : list({text, "", ""}, true);
    }
    return list({text.substr(0, found), separator, text.substr(found + separator.size())}, true);
  }

  Value padded() {
    const Parameters p(arguments_, name_, {"width", "fillchar"});
    p.required(0);
    const int64_t missing = std::max<int64_t>(0, p.integer(0, 0) - count_codepoints(text_));
    const std::string* fill = p.text(1);
    if (fill != nullptr && fill->size() != 1)
      template_error("the fill character must be one character");
    budget_.bytes(static_cast<size_t>(missing));
    const char c = name_ == "zfill" ? '0' : fill != nullptr ? (*fill)[0] : ' ';
    // Python centres with the extra blank on the left when the width is odd.
    const int64_t width = missing + count_codepoints(text_);
    const int64_t left = name_ == "ljust"    ? 0
                         : name_ == "center" ? missing / 2 + (missing & width & 1)
                                             : missing;
    const bool sign = name_ == "zfill" && (text_.starts_with('-') || text_.starts_with('+'));
    std::string out = sign ? text_.substr(0, 1) : "";
    out.append(static_cast<size_t>(left), c).append(text_, sign ? 1 : 0);
    return made(out.append(static_cast<size_t>(missing - left), c));
  }

  Budget& budget_;
  const std::string& text_;
  std::string_view name_;
  const Arguments& arguments_;
};

Value call_dict_method(Interpreter& interpreter, const Value& self, std::string_view name,
                       const Arguments& arguments) {
  Budget& budget = interpreter.budget();
  const Dict& dict = self.dict();
  if (name == "get") {
    const Parameters p(arguments, name, {"key", "default"});
    const Value* found = dict.find(p.required(0), budget);
    return found != nullptr ? *found : p[1] != nullptr ? *p[1] : Value(None{});
  }
  const Parameters nothing(arguments, name, {});
  if (name == "copy") return self;
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    items.push_back(name == "keys"     ? key
                    : name == "values" ? value
                                       : make_list({key, value}, budget, true));
  }
  return make_list(std::move(items), budget);
}

Value call_list_method(Interpreter& interpreter, const Value& self, std::string_view name,
                       const Arguments& arguments) {
  if (name == "copy") return self;
  const Parameters p(arguments, name, {"value"});
  const Value& wanted = p.required(0);
  int64_t count = 0;
  const auto& items = self.list().items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!equal(items[i], wanted, interpreter.budget())) continue;
    if (name == "index") return static_cast<int64_t>(i);
    ++count;
  }
  if (name == "index") template_error("value is not in list");
  return count;
}

}  // namespace

std::string replace_text(const std::string& text, const std::string& from, const std::string& to,
                         int64_t count, Budget& budget) {
  std::string out;
  size_t done = 0;
  if (from.empty()) {  // before each character and at the end
    budget.bytes(text.size() * (1 + to.size()) + to.size());
    for (; count != 0; --count) {
      out += to;
      if (done == text.size()) return out;
      const size_t next = done + codepoint_offset(std::string_view(text).substr(done), 1);
      out.append(text, done, next - done);
      done = next;
    }
    return out.append(text, done);
  }
  for (; count != 0; --count) {
    const size_t found = text.find(from, done);
    if (found == std::string::npos) break;
    budget.steps(1);
    budget.bytes(found - done + to.size());
    out.append(text, done, found - done).append(to);
    done = found + from.size();
  }
  budget.bytes(text.size() - done);
  return out.append(text, done);
}

bool has_method(const Value& value, std::string_view name) {
  const auto has = [&](const auto& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  return value.is_string() ? has(kStringMethods)
         : value.is_dict() ? has(kDictMethods)
                           : value.is_list() && has(kListMethods);
}

Value call_method(Interpreter& interpreter, const Value& self, std::string_view name,
                  const Arguments& arguments) {
  if (self.is_string()) return StringMethods(interpreter, self.text(), name, arguments).call();
  if (self.is_dict()) return call_dict_method(interpreter, self, name, arguments);
  return call_list_method(interpreter, self, name, arguments);
}

}  // namespace lathe::jinja

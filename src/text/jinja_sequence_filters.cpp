// Filters on lists, dicts and strings as sequences.
#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "text/jinja_filters.h"
#include "text/jinja_text.h"

namespace lathe::jinja {
namespace {

// "a.b.0" from value, as the attribute arguments of filters name it.
Value dig(const FilterCall& call, Value value, const Value& path) {
  if (path.is_integer()) return call.interpreter.item(value, path);
  if (!path.is_string()) template_error(call.name, "(): the attribute is a ", path.type_name());
  for (const std::string_view part : [&] {
         static const std::string dot = ".";
         return split(path.text(), &dot, -1, false);
       }()) {
    int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == part.data() + part.size();
    value = call.interpreter.item(value, is_index ? Value(index) : Value(part));
  }
  return value;
}

Value filter_length(const FilterCall& call) {
  const Parameters none = call.parameters({});
  if (call.value.is_undefined()) return 0;
  if (call.value.is_string()) {
    call.budget.steps(call.value.text().size() / 64);
    return count_codepoints(call.value.text());
  }
  if (call.value.is_list()) return call.value.list().items.size();
  if (call.value.is_dict()) return call.value.dict().items.size();
  template_error("object of type '", call.value.type_name(), "' has no len()");
}

Value filter_list(const FilterCall& call) {
  return make_list(iterate(call.value, call.budget), call.budget);
}

Value filter_items(const FilterCall& call) {
  if (call.value.is_undefined()) return make_list({}, call.budget);
  if (!call.value.is_dict()) template_error("Can only get item pairs from a mapping.");
  return call_method(call.interpreter, call.value, "items", {});
}

Value filter_first_last(const FilterCall& call) {
  const std::vector<Value> items = iterate(call.value, call.budget);
  if (items.empty()) {
    return Value::undefined(str("No ", call.name, " item, sequence was empty."));
  }
  return call.name == "first" ? items.front() : items.back();
}

Value filter_default(const FilterCall& call) {
  const Parameters p = call.parameters({"default_value", "boolean"});
  const bool missing = call.value.is_undefined() || (p.boolean(1, false) && !call.value.truthy());
  return missing ? (p[0] != nullptr ? *p[0] : Value("")) : call.value;
}

Value filter_join(const FilterCall& call) {
  const Parameters p = call.parameters({"d", "attribute"});
  const std::string separator = p[0] != nullptr ? to_text(*p[0], call.budget) : "";
  std::string out;
  bool first = true;
  for (const Value& item : iterate(call.value, call.budget)) {
    if (!first) out += separator;
    call.budget.bytes(separator.size());
    out += to_text(p[1] != nullptr ? dig(call, item, *p[1]) : item, call.budget);
    first = false;
  }
  return Value(std::move(out));
}

Value filter_reverse(const FilterCall& call) {
  std::vector<Value> items = iterate(call.value, call.budget);
  std::reverse(items.begin(), items.end());
  if (!call.value.is_string()) return make_list(std::move(items), call.budget);
  std::string text;
  for (const Value& item : items) text += item.text();
  return made_text(std::move(text), call.budget);
}

// What sorting and uniqueness look at: an attribute, and the lower case of text unless told
// otherwise.
Value sort_key(const FilterCall& call, const Value& item, const Value* attribute,
               bool case_sensitive) {
  Value key = attribute != nullptr && !attribute->is_none() ? dig(call, item, *attribute) : item;
  if (case_sensitive || !key.is_string()) return key;
  return made_text(lower(key.text()), call.budget);
}

struct Keyed {
  Value key;
  Value item;
};

void sort_keyed(std::vector<Keyed>& items, bool reverse, Budget& budget) {
  // A merge sort that may be left by an exception in the middle: the comparison throws on mixed
  // types.
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? compare(b.key, a.key, "<", budget) == -1
                   : compare(a.key, b.key, "<", budget) == -1;
  });
}

Value filter_sort(const FilterCall& call) {
  const Parameters p = call.parameters({"reverse", "case_sensitive", "attribute"});
  std::vector<Keyed> keyed;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = sort_key(call, item, p[2], p.boolean(1, false));
    keyed.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(keyed, p.boolean(0, false), call.budget);
  std::vector<Value> items;
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return make_list(std::move(items), call.budget);
}

Value filter_dictsort(const FilterCall& call) {
  const Parameters p = call.parameters({"case_sensitive", "by", "reverse"});
  if (!call.value.is_dict()) template_error("dictsort needs a mapping");
  const bool by_value = p.text(1) != nullptr && *p.text(1) == "value";
  std::vector<Keyed> keyed;
  for (const auto& [key, value] : call.value.dict().items) {
    keyed.push_back({sort_key(call, by_value ? value : key, nullptr, p.boolean(0, false)),
                     make_list({key, value}, call.budget, true)});
  }
  sort_keyed(keyed, p.boolean(2, false), call.budget);
  std::vector<Value> items;
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return make_list(std::move(items), call.budget);
}

Value filter_unique(const FilterCall& call) {
  const Parameters p = call.parameters({"case_sensitive", "attribute"});
  std::vector<Value> seen, items;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = sort_key(call, item, p[1], p.boolean(0, false));
    const auto is_same = [&](const Value& other) { return equal(key, other, call.budget); };
    if (std::any_of(seen.begin(), seen.end(), is_same)) continue;
    seen.push_back(std::move(key));
    items.push_back(std::move(item));
  }
  return make_list(std::move(items), call.budget);
}

Value filter_extreme(const FilterCall& call) {
  const Parameters p = call.parameters({"case_sensitive", "attribute"});
  Value best, best_key;
  const int wanted = call.name == "min" ? -1 : 1;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = sort_key(call, item, p[1], p.boolean(0, false));
    if (best_key.is_undefined() || compare(key, best_key, "<", call.budget) == wanted) {
      best_key = std::move(key);
      best = std::move(item);
    }
  }
  return best;
}

Value filter_sum(const FilterCall& call) {
  const Parameters p = call.parameters({"attribute", "start"});
  Value sum = p[1] != nullptr ? *p[1] : Value(0);
  for (const Value& item : iterate(call.value, call.budget)) {
    const bool has_attribute = p[0] != nullptr && !p[0]->is_none();
    sum = binary_operation("+", sum, has_attribute ? dig(call, item, *p[0]) : item, call.budget);
  }
  return sum;
}

Value filter_batch(const FilterCall& call) {
  const Parameters p = call.parameters({"linecount", "fill_with"});
  const int64_t count = p.integer(0, 0);
  if (count < 1) template_error("batch() needs a positive count");
  std::vector<Value> batches, batch;
  for (Value& item : iterate(call.value, call.budget)) {
    batch.push_back(std::move(item));
    if (std::ssize(batch) < count) continue;
    batches.push_back(make_list(std::move(batch), call.budget));
    batch.clear();
  }
  if (!batch.empty()) {
    if (p[1] != nullptr && !p[1]->is_none()) {
      call.budget.bytes(static_cast<size_t>(std::min<int64_t>(count, int64_t{1} << 40)) *
                        sizeof(Value));
      batch.resize(static_cast<size_t>(count), *p[1]);
    }
    batches.push_back(make_list(std::move(batch), call.budget));
  }
  return make_list(std::move(batches), call.budget);
}

// map(attribute="a", default=b) or map("filter", arguments...).
Value filter_map(const FilterCall& call) {
  std::vector<Value> items = iterate(call.value, call.budget);
  const auto& positional = call.arguments.positional;
  if (positional.empty()) {
    const Parameters p = call.parameters({"attribute", "default"});
    for (Value& item : items) {
      item = dig(call, std::move(item), p.required(0));
      if (item.is_undefined() && p[1] != nullptr) item = *p[1];
    }
    return make_list(std::move(items), call.budget);
  }
  if (!positional[0].is_string()) template_error("map requires a filter argument");
  const Arguments rest{{positional.begin() + 1, positional.end()}, call.arguments.named};
  for (Value& item : items) item = call.interpreter.apply_filter(positional[0].text(), item, rest);
  return make_list(std::move(items), call.budget);
}

// select, reject ([test, arguments...]); selectattr, rejectattr (attribute [, test, arguments...]).
Value filter_select(const FilterCall& call) {
  const bool by_attribute = call.name.ends_with("attr");
  const bool wanted = call.name.starts_with("select");
  const auto& positional = call.arguments.positional;
  const size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && positional.empty()) template_error(call.name, " needs an attribute");
  Arguments rest{{}, call.arguments.named};
  if (positional.size() > test_at) {
    if (!positional[test_at].is_string()) template_error(call.name, " needs the name of a test");
    rest.positional.assign(positional.begin() + static_cast<std::ptrdiff_t>(test_at) + 1,
                           positional.end());
  }
  std::vector<Value> kept;
  for (Value& item : iterate(call.value, call.budget)) {
    const Value tested = by_attribute ? dig(call, item, positional[0]) : item;
    const bool holds = positional.size() > test_at
                           ? call.interpreter.apply_test(positional[test_at].text(), tested, rest)
                           : tested.truthy();
    if (holds == wanted) kept.push_back(std::move(item));
  }
  return make_list(std::move(kept), call.budget);
}

Value filter_attr(const FilterCall& call) {
  const Parameters p = call.parameters({"name"});
  p.required(0);
  const std::string* name = p.text(0);
  return name == nullptr ? Value() : call.interpreter.attribute(call.value, *name);
}

Value filter_groupby(const FilterCall& call) {
  const Parameters p = call.parameters({"attribute", "default", "case_sensitive"});
  std::vector<Keyed> keyed;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = dig(call, item, p.required(0));
    if (key.is_undefined() && p[1] != nullptr) key = *p[1];
    keyed.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(keyed, false, call.budget);
  std::vector<Value> groups, members;
  for (size_t i = 0; i < keyed.size(); ++i) {
    members.push_back(keyed[i].item);
    if (i + 1 < keyed.size() && equal(keyed[i].key, keyed[i + 1].key, call.budget)) continue;
    groups.push_back(
        make_list({keyed[i].key, make_list(std::move(members), call.budget)}, call.budget, true));
    members.clear();
  }
  return make_list(std::move(groups), call.budget);
}

const std::unordered_map<std::string_view, Filter>& sequence_filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"length", filter_length},     {"count", filter_length},     {"list", filter_list},
      {"items", filter_items},       {"first", filter_first_last}, {"last", filter_first_last},
      {"default", filter_default},   {"d", filter_default},        {"join", filter_join},
      {"reverse", filter_reverse},   {"sort", filter_sort},        {"dictsort", filter_dictsort},
      {"unique", filter_unique},     {"min", filter_extreme},      {"max", filter_extreme},
      {"sum", filter_sum},           {"batch", filter_batch},      {"map", filter_map},
      {"select", filter_select},     {"reject", filter_select},    {"selectattr", filter_select},
      {"rejectattr", filter_select}, {"attr", filter_attr},        {"groupby", filter_groupby},
  };
  return table;
}

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  const auto found = sequence_filters().find(name);
  return found == sequence_filters().end() ? nullptr : found->second;
}

}  // namespace lathe::jinja

#include "text/tokenizer_json.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "text/split_patterns.h"
#include "text/token_table.h"
#include "text/tokenizer_document.h"

namespace lathe {
namespace {

using Node = TokenizerDocument::Node;

constexpr int kMaxDepth = 32;

[[noreturn]] void corrupt(const std::string& where, std::string_view what) {
  fail(ErrorCode::kCorruptData, "tokenizer.json: ", where, ": ", what);
}

[[noreturn]] void unsupported(const std::string& where, const std::string& what) {
  fail(ErrorCode::kUnsupported, "tokenizer.json: ", where, ": '", what.substr(0, 100),
       "' is not supported");
}

Node parse(std::string_view text, const char* what) {
  const auto limit_depth = [](int depth, Node::parse_event_t event, Node&) {
    const bool opens =
        event == Node::parse_event_t::array_start || event == Node::parse_event_t::object_start;
    if (opens && depth >= kMaxDepth) throw Error(ErrorCode::kCorruptData, "nested too deep");
    return true;
  };
  try {
    return Node::parse(text.begin(), text.end(), limit_depth);
  } catch (const Error& error) {
    fail(ErrorCode::kCorruptData, what, ": ", error.what());
  } catch (const Node::exception& error) {
    fail(ErrorCode::kCorruptData, what,
         ": not valid JSON: ", std::string(error.what()).substr(0, 200));
  }
}

// The member, or null where there is none.
const Node& member(const Node& object, const char* key) {
  static const Node null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

const std::string& string_member(const Node& object, const char* key, const std::string& where) {
  const Node& value = member(object, key);
  if (!value.is_string()) corrupt(where + "." + key, "a string is missing");
  return value.get_ref<const std::string&>();
}

std::string string_or(const Node& object, const char* key, const std::string& where,
                      const std::string& otherwise) {
  return member(object, key).is_null() ? otherwise : string_member(object, key, where);
}

bool bool_or(const Node& object, const char* key, const std::string& where, bool otherwise) {
  const Node& value = member(object, key);
  if (value.is_null()) return otherwise;
  if (!value.is_boolean()) corrupt(where + "." + key, "neither true nor false");
  return value.get<bool>();
}

// An id that has a place in a vocabulary of about `num_entries`: a hole or two is fine, a table of
// four billion entries because one token says so is not.
int32_t checked_id(int64_t id, const std::string& where, size_t num_entries) {
  if (id < 0 || id >= static_cast<int64_t>(2 * num_entries) + 65536) {
    corrupt(where, "token id " + std::to_string(id) + " is out of range");
  }
  return static_cast<int32_t>(id);
}

void set_token(TokenizerSpec& spec, int32_t id, std::string text) {
  if (id >= std::ssize(spec.tokens)) {
    spec.tokens.resize(id + 1);
    spec.in_model.resize(id + 1);
  }
  spec.tokens[id] = std::move(text);
}

struct Pattern {
  std::string text;
  bool literal;
};

Pattern parse_pattern(const Node& step, const std::string& where) {
  const Node& pattern = member(step, "pattern");
  if (!member(pattern, "String").is_null()) return {string_member(pattern, "String", where), true};
  return {string_member(pattern, "Regex", where + ".pattern"), false};
}

// Calls visit(step, where) for the object itself or, if it is a Sequence, for each of its members.
template <typename Visit>
void for_each_step(const Node& node, const char* list_key, const std::string& where,
                   const Visit& visit) {
  if (node.is_null()) return;
  if (!node.is_object()) corrupt(where, "not an object");
  if (string_member(node, "type", where) != "Sequence") return visit(node, where);
  const Node& list = member(node, list_key);
  if (!list.is_array()) corrupt(where + "." + list_key, "not a list");
  for (size_t i = 0; i < list.size(); ++i) {
    for_each_step(list[i], list_key, where + "[" + std::to_string(i) + "]", visit);
  }
}

void parse_normalizer(const Node& root, TokenizerSpec& spec) {
  using Kind = NormalizerStep::Kind;
  for_each_step(root, "normalizers", "normalizer", [&](const Node& step, const std::string& where) {
    const std::string& type = string_member(step, "type", where);
    NormalizerStep out;
    if (type == "NFC") {
      out.kind = Kind::kNfc;
    } else if (type == "NFD") {
      out.kind = Kind::kNfd;
    } else if (type == "NFKC") {
      out.kind = Kind::kNfkc;
    } else if (type == "NFKD") {
      out.kind = Kind::kNfkd;
    } else if (type == "Lowercase") {
      out.kind = Kind::kLowercase;
    } else if (type == "Prepend") {
      out.kind = Kind::kPrepend;
      out.content = string_member(step, "prepend", where);
    } else if (type == "Replace") {
      const Pattern pattern = parse_pattern(step, where);
      out.kind = pattern.literal ? Kind::kReplace : Kind::kReplaceRegex;
      out.pattern = pattern.text;
      out.content = string_member(step, "content", where);
    } else if (type == "Strip") {
      out.kind = Kind::kStrip;
      out.left = bool_or(step, "strip_left", where, true);
      out.right = bool_or(step, "strip_right", where, true);
    } else {
      unsupported(where, type);
    }
    spec.normalizer.push_back(std::move(out));
  });
}

SplitBehavior parse_behavior(const Node& step, const std::string& where) {
  const std::string& name = string_member(step, "behavior", where);
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  corrupt(where + ".behavior", "unknown behaviour");
}

PreTokenizerStep parse_metaspace(const Node& step, const std::string& where) {
  using Prepend = PreTokenizerStep::Prepend;
  PreTokenizerStep out{.kind = PreTokenizerStep::Kind::kMetaspace};
  out.pattern = string_or(step, "replacement", where, "\xE2\x96\x81");
  if (out.pattern.empty()) corrupt(where + ".replacement", "empty");
  const bool add_prefix = bool_or(step, "add_prefix_space", where, true);  // before 0.15
  const std::string scheme =
      string_or(step, "prepend_scheme", where, add_prefix ? "always" : "never");
  out.prepend = scheme == "always"  ? Prepend::kAlways
                : scheme == "first" ? Prepend::kFirst
                                    : Prepend::kNever;
  out.split = bool_or(step, "split", where, true);
  return out;
}

void parse_pre_tokenizer(const Node& root, TokenizerSpec& spec) {
  using Kind = PreTokenizerStep::Kind;
  auto& steps = spec.pre_tokenizer;
  for_each_step(
      root, "pretokenizers", "pre_tokenizer", [&](const Node& step, const std::string& where) {
        if (spec.byte_level) corrupt(where, "a step behind ByteLevel");
        const std::string& type = string_member(step, "type", where);
        if (type == "Split") {
          const Pattern pattern = parse_pattern(step, where);
          // An empty pattern never matches here, as in the original.
          steps.push_back({.pattern = pattern.text,
                           .literal = pattern.literal,
                           .invert = bool_or(step, "invert", where, false),
                           .behavior = parse_behavior(step, where)});
        } else if (type == "ByteLevel") {
          spec.byte_level = true;
          if (bool_or(step, "add_prefix_space", where, true)) {
            steps.push_back({.kind = Kind::kPrefixSpace});
          }
          if (bool_or(step, "use_regex", where, true)) {
            steps.push_back({.pattern = std::string(kGpt2Split)});
          }
        } else if (type == "Digits") {
          const bool single = bool_or(step, "individual_digits", where, false);
          steps.push_back({.pattern = single ? "\\p{N}" : "\\p{N}+"});
        } else if (type == "Metaspace") {
          steps.push_back(parse_metaspace(step, where));
        } else if (type == "Whitespace") {
          steps.push_back(
              {.pattern = "\\w+|[^\\w\\s]+", .invert = true, .behavior = SplitBehavior::kRemoved});
        } else if (type == "WhitespaceSplit") {
          steps.push_back({.pattern = "\\s", .behavior = SplitBehavior::kRemoved});
        } else if (type == "Punctuation") {
          steps.push_back({.pattern = "[!-/:-@\\[-`{-~\\p{P}]",
                           .behavior = member(step, "behavior").is_null()
                                           ? SplitBehavior::kIsolated
                                           : parse_behavior(step, where)});
        } else {
          unsupported(where, type);
        }
      });
}

void parse_decoder(const Node& root, TokenizerSpec& spec) {
  DecoderSpec& decoder = spec.decoder;
  bool fused = false;
  for_each_step(root, "decoders", "decoder", [&](const Node& step, const std::string& where) {
    const std::string& type = string_member(step, "type", where);
    if (type == "ByteLevel") {
      decoder.byte_level = true;
    } else if (type == "Replace") {
      const Pattern pattern = parse_pattern(step, where);
      if (!pattern.literal || fused) unsupported(where, "Replace by expression or after Fuse");
      decoder.replacements.push_back({pattern.text, string_member(step, "content", where)});
    } else if (type == "ByteFallback") {
      decoder.byte_fallback = true;
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Strip") {
      const std::string& content = string_member(step, "content", where);
      const Node& start = member(step, "start");
      const Node& stop = member(step, "stop");
      const bool counts = start.is_number_unsigned() && stop.is_number_unsigned();
      if (!counts || content.size() != 1) corrupt(where, "not a character and two counts");
      if (!fused || stop.get<uint64_t>() != 0)
        unsupported(where, "Strip at an end, or before Fuse");
      decoder.strip_character = content[0];
      decoder.strip_at_start =
          static_cast<int64_t>(std::min<uint64_t>(start.get<uint64_t>(), 1024));
    } else if (type == "Metaspace") {
      const PreTokenizerStep metaspace = parse_metaspace(step, where);
      decoder.metaspace = metaspace.pattern;
      decoder.metaspace_drops_first = metaspace.prepend != PreTokenizerStep::Prepend::kNever;
    } else {
      unsupported(where, type);
    }
  });
}

// A pair of a merge is found again by its texts.
void set_merges(const TokenizerDocument& document, const TokenTable& ids, TokenizerSpec& spec) {
  if (!document.merges) corrupt("model.merges", "not a list");
  spec.merges.reserve(document.merges->size());
  const auto find = [&](std::string_view text) {
    const int32_t id = ids.find(text);
    if (id < 0) {
      corrupt("model.merges[" + std::to_string(spec.merges.size()) + "]",
              "'" + std::string(text.substr(0, 100)) + "' is not in the vocabulary");
    }
    return id;
  };
  std::string joined;
  for (const auto& [left, right] : *document.merges) {
    joined.assign(left).append(right);
    spec.merges.push_back({find(left), find(right), find(joined)});
  }
}

void set_model(TokenizerDocument& document, TokenizerSpec& spec) {
  const Node& model = member(*document.root, "model");
  if (!model.is_object()) corrupt("model", "missing");
  const std::string type = string_or(model, "type", "model", "BPE");  // old files do not say
  if (type != "BPE") unsupported("model.type", type);
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!string_or(model, affix, "model", "").empty()) unsupported("model", affix);
  }
  if (!document.vocab) corrupt("model.vocab", "not an object");
  for (auto& [text, value] : *document.vocab) {
    const int32_t id = checked_id(value, "model.vocab", document.vocab->size());
    set_token(spec, id, std::move(text));
    spec.in_model[id] = true;
  }
  TokenTable ids(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.in_model[id]) ids.insert(spec.tokens[id], static_cast<int32_t>(id));
  }
  set_merges(document, ids, spec);

  const std::string unknown = string_or(model, "unk_token", "model", "");
  if (!unknown.empty()) {
    if (const int32_t id = ids.find(unknown); id >= 0) spec.unknown_id = id;
  }
  spec.fuse_unknown = bool_or(model, "fuse_unk", "model", false);
  spec.byte_fallback = bool_or(model, "byte_fallback", "model", false);
  spec.ignore_merges = bool_or(model, "ignore_merges", "model", false);
}

void parse_added_tokens(const Node& list, TokenizerSpec& spec) {
  if (list.is_null()) return;
  if (!list.is_array()) corrupt("added_tokens", "not a list");
  const size_t num_entries = spec.tokens.size() + list.size();
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = "added_tokens[" + std::to_string(i) + "]";
    AddedToken token;
    const Node& id = member(list[i], "id");
    const bool fits = id.is_number_integer() &&
                      !(id.is_number_unsigned() && id.get<uint64_t>() > uint64_t{INT32_MAX});
    if (!fits) corrupt(where + ".id", "not a token id");
    token.id = checked_id(id.get<int64_t>(), where, num_entries);
    token.content = string_member(list[i], "content", where);
    token.special = bool_or(list[i], "special", where, false);
    token.normalized = bool_or(list[i], "normalized", where, !token.special);
    token.lstrip = bool_or(list[i], "lstrip", where, false);
    token.rstrip = bool_or(list[i], "rstrip", where, false);
    token.single_word = bool_or(list[i], "single_word", where, false);
    set_token(spec, token.id, token.content);
    spec.added_tokens.push_back(std::move(token));
  }
}

std::optional<int32_t> find_id(const TokenizerSpec& spec, std::string_view text) {
  for (const AddedToken& token : spec.added_tokens) {
    if (token.content == text) return token.id;
  }
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.in_model[id] && spec.tokens[id] == text) return static_cast<int32_t>(id);
  }
  return std::nullopt;
}

// A template such as "<s> $A": what stands in front of the text is BOS.
void parse_post_processor(const Node& root, TokenizerSpec& spec) {
  for_each_step(root, "processors", "post_processor",
                [&](const Node& step, const std::string& where) {
                  const Node& single = member(step, "single");
                  if (string_member(step, "type", where) != "TemplateProcessing" ||
                      !single.is_array() || single.empty()) {
                    return;
                  }
                  const Node& first = member(single[0], "SpecialToken");
                  if (first.is_null()) return;
                  spec.bos_id = find_id(spec, string_member(first, "id", where + ".single"));
                  spec.add_bos = spec.bos_id.has_value();
                });
}

// A token is named by its text, or by an object that also holds its flags.
std::optional<std::string> token_text(const Node& value) {
  const Node& text = value.is_object() ? member(value, "content") : value;
  if (!text.is_string()) return std::nullopt;
  return text.get<std::string>();
}

void add_end_id(TokenizerSpec& spec, int32_t id) {
  if (std::find(spec.end_ids.begin(), spec.end_ids.end(), id) == spec.end_ids.end()) {
    spec.end_ids.push_back(id);
  }
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view text) {
  TokenizerDocument document = read_tokenizer_document(text);
  const Node& root = *document.root;
  if (!root.is_object()) corrupt("top level", "not an object");
  TokenizerSpec spec;
  set_model(document, spec);
  parse_added_tokens(member(root, "added_tokens"), spec);
  parse_normalizer(member(root, "normalizer"), spec);
  parse_pre_tokenizer(member(root, "pre_tokenizer"), spec);
  parse_decoder(member(root, "decoder"), spec);
  parse_post_processor(member(root, "post_processor"), spec);
  return spec;
}

void apply_tokenizer_config(std::string_view json, TokenizerSpec& spec) {
  const Node root = parse(json, "tokenizer_config.json");
  if (const auto bos = token_text(member(root, "bos_token"))) {
    if (const auto id = find_id(spec, *bos)) spec.bos_id = id;
  }
  if (const auto eos = token_text(member(root, "eos_token"))) {
    if (const auto id = find_id(spec, *eos)) {
      spec.eos_id = id;
      add_end_id(spec, *id);
    }
  }
  const Node& add_bos = member(root, "add_bos_token");
  if (add_bos.is_boolean()) spec.add_bos = add_bos.get<bool>() && spec.bos_id.has_value();
}

void apply_generation_config(std::string_view json, TokenizerSpec& spec) {
  const Node root = parse(json, "generation_config.json");
  const auto valid_id = [&](const Node& value) -> std::optional<int32_t> {
    if (!value.is_number_unsigned() || value.get<uint64_t>() >= spec.tokens.size())
      return std::nullopt;
    return static_cast<int32_t>(value.get<uint64_t>());
  };
  const auto add_end = [&](const Node& value) {
    const auto id = valid_id(value);
    if (!id) return;
    if (!spec.eos_id) spec.eos_id = id;
    add_end_id(spec, *id);
  };
  const Node& eos = member(root, "eos_token_id");
  if (eos.is_array()) {
    for (const Node& value : eos) add_end(value);
  } else {
    add_end(eos);
  }
  if (!spec.bos_id) spec.bos_id = valid_id(member(root, "bos_token_id"));
}

}  // namespace lathe

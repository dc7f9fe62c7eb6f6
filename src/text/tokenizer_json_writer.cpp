#include "base/json.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

using Node = nlohmann::ordered_json;  // small objects only: written in the customary order

std::string dump(const Node& node) {
  return node.dump(-1, ' ', false, Node::error_handler_t::replace);
}

Node sequence_of(Node list, const char* key) {
  if (list.empty()) return nullptr;
  if (list.size() == 1) return list[0];
  return {{"type", "Sequence"}, {key, std::move(list)}};
}

Node normalizer_node(const TokenizerSpec& spec) {
  using Kind = NormalizerStep::Kind;
  Node list = Node::array();
  for (const auto& step : spec.normalizer) {
    switch (step.kind) {
      case Kind::kNfc:
        list.push_back({{"type", "NFC"}});
        break;
      case Kind::kNfd:
        list.push_back({{"type", "NFD"}});
        break;
      case Kind::kNfkc:
        list.push_back({{"type", "NFKC"}});
        break;
      case Kind::kNfkd:
        list.push_back({{"type", "NFKD"}});
        break;
      case Kind::kLowercase:
        list.push_back({{"type", "Lowercase"}});
        break;
      case Kind::kPrepend:
        list.push_back({{"type", "Prepend"}, {"prepend", step.content}});
        break;
      case Kind::kReplace:
      case Kind::kReplaceRegex: {
        const char* kind = step.kind == Kind::kReplace ? "String" : "Regex";
        list.push_back({{"type", "Replace"},
                        {"pattern", Node{{kind, step.pattern}}},
                        {"content", step.content}});
        break;
      }
      case Kind::kStrip:
        list.push_back({{"type", "Strip"}, {"strip_left", step.left}, {"strip_right", step.right}});
        break;
    }
  }
  return sequence_of(std::move(list), "normalizers");
}

const char* behavior_name(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      return "Removed";
    case SplitBehavior::kIsolated:
      return "Isolated";
    case SplitBehavior::kMergedWithPrevious:
      return "MergedWithPrevious";
    case SplitBehavior::kMergedWithNext:
      return "MergedWithNext";
    case SplitBehavior::kContiguous:
      return "Contiguous";
  }
  return "Isolated";
}

Node byte_level_node(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", false},
          {"use_regex", use_regex}};
}

Node pre_tokenizer_node(const TokenizerSpec& spec) {
  Node list = Node::array();
  // ByteLevel adds its space before its own split, so a split behind the space is ByteLevel's.
  bool prefix_space = false;
  bool use_regex = false;
  for (const auto& step : spec.pre_tokenizer) {
    switch (step.kind) {
      case PreTokenizerStep::Kind::kSplit:
        if (prefix_space) {
          use_regex = true;
          break;
        }
        list.push_back({{"type", "Split"},
                        {"pattern", Node{{step.literal ? "String" : "Regex", step.pattern}}},
                        {"behavior", behavior_name(step.behavior)},
                        {"invert", step.invert}});
        break;
      case PreTokenizerStep::Kind::kPrefixSpace:
        prefix_space = true;
        break;
      case PreTokenizerStep::Kind::kMetaspace: {
        using Prepend = PreTokenizerStep::Prepend;
        list.push_back({{"type", "Metaspace"},
                        {"replacement", step.pattern},
                        {"prepend_scheme", step.prepend == Prepend::kAlways  ? "always"
                                           : step.prepend == Prepend::kFirst ? "first"
                                                                             : "never"},
                        {"split", step.split}});
        break;
      }
    }
  }
  if (spec.byte_level) list.push_back(byte_level_node(prefix_space, use_regex));
  return sequence_of(std::move(list), "pretokenizers");
}

Node decoder_node(const TokenizerSpec& spec) {
  const DecoderSpec& decoder = spec.decoder;
  if (decoder.byte_level) return byte_level_node(false, true);
  Node list = Node::array();
  for (const auto& step : decoder.replacements) {
    list.push_back({{"type", "Replace"},
                    {"pattern", Node{{"String", step.pattern}}},
                    {"content", step.content}});
  }
  if (decoder.byte_fallback) list.push_back({{"type", "ByteFallback"}});
  if (!decoder.metaspace.empty()) {
    list.push_back({{"type", "Metaspace"},
                    {"replacement", decoder.metaspace},
                    {"prepend_scheme", decoder.metaspace_drops_first ? "always" : "never"},
                    {"split", true}});
  }
  if (!list.empty()) list.push_back({{"type", "Fuse"}});
  if (decoder.strip_at_start > 0) {
    list.push_back({{"type", "Strip"},
                    {"content", std::string(1, decoder.strip_character)},
                    {"start", decoder.strip_at_start},
                    {"stop", 0}});
  }
  return sequence_of(std::move(list), "decoders");
}

// The template that puts BOS in front of a text (or of each of two).
Node post_processor_node(const TokenizerSpec& spec) {
  if (!spec.add_bos || !spec.bos_id) return nullptr;
  const std::string& bos = spec.tokens[*spec.bos_id];
  const auto special = [&](int type) {
    return Node{{"SpecialToken", {{"id", bos}, {"type_id", type}}}};
  };
  const auto text = [](const char* id, int type) {
    return Node{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  return {
      {"type", "TemplateProcessing"},
      {"single", Node::array({special(0), text("A", 0)})},
      {"pair", Node::array({special(0), text("A", 0), special(1), text("B", 1)})},
      {"special_tokens",
       {{bos,
         {{"id", bos}, {"ids", Node::array({*spec.bos_id})}, {"tokens", Node::array({bos})}}}}}};
}

void append_added_tokens(const TokenizerSpec& spec, std::string& out) {
  for (size_t i = 0; i < spec.added_tokens.size(); ++i) {
    const AddedToken& token = spec.added_tokens[i];
    out += i > 0 ? ",\n" : "\n";
    out += dump({{"id", token.id},
                 {"content", token.content},
                 {"single_word", token.single_word},
                 {"lstrip", token.lstrip},
                 {"rstrip", token.rstrip},
                 {"normalized", token.normalized},
                 {"special", token.special}});
  }
}

void append_model(const TokenizerSpec& spec, std::string& out) {
  const bool known = spec.unknown_id.has_value();
  Node head = {{"type", "BPE"},
               {"dropout", nullptr},
               {"unk_token", known ? Node(spec.tokens[*spec.unknown_id]) : Node()},
               {"continuing_subword_prefix", nullptr},
               {"end_of_word_suffix", nullptr},
               {"fuse_unk", spec.fuse_unknown},
               {"byte_fallback", spec.byte_fallback},
               {"ignore_merges", spec.ignore_merges}};
  out += dump(head);
  out.back() =
      ',';  // the two long lists are written piece by piece: no tree of half a million nodes
  out += "\n\"vocab\":{";
  bool first = true;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.in_model[id]) continue;
    out += first ? "\n" : ",\n";
    out += dump(spec.tokens[id]) + ":" + std::to_string(id);
    first = false;
  }
  out += "},\n\"merges\":[";
  first = true;
  for (const BpeMerge& merge : spec.merges) {
    out += first ? "\n[" : ",\n[";
    out += dump(spec.tokens[merge.left]) + "," + dump(spec.tokens[merge.right]) + "]";
    first = false;
  }
  out += "]}";
}

}  // namespace

std::string write_tokenizer_json(const TokenizerSpec& spec) {
  std::string out =
      "{\"version\":\"1.0\",\n\"truncation\":null,\n\"padding\":null,\n\"added_tokens\":[";
  append_added_tokens(spec, out);
  out += "],\n\"normalizer\":" + dump(normalizer_node(spec));
  out += ",\n\"pre_tokenizer\":" + dump(pre_tokenizer_node(spec));
  out += ",\n\"post_processor\":" + dump(post_processor_node(spec));
  out += ",\n\"decoder\":" + dump(decoder_node(spec));
  out += ",\n\"model\":";
  append_model(spec, out);
  out += "}\n";
  return out;
}

}  // namespace lathe

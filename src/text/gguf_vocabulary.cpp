#include "text/gguf_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "text/split_patterns.h"
#include "text/token_table.h"

namespace lathe {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581

// What a published tokenizer.json puts behind the name that a GGUF gives its pre-tokenizer.
struct PreTokenizerKind {
  std::string_view names;  // between spaces
  std::string_view pattern;
  bool single_digits = false;  // digits are cut off one by one first
  bool nfc = false;
  bool ignore_merges = false;
  bool adds_bos = false;  // where the file does not say
};

constexpr PreTokenizerKind kPreTokenizers[] = {
    {.names = " qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez ",
     .pattern = kQwen2Split,
     .nfc = true},
    {.names = " llama3 llama-v3 llama-bpe falcon3 pixtral ",
     .pattern = kLlama3Split,
     .ignore_merges = true,
     .adds_bos = true},
    {.names = " dbrx smaug-bpe ", .pattern = kLlama3Split},
    {.names = " smollm codeshell starcoder refact command-r exaone minerva-7b ",
     .pattern = kGpt2Split,
     .single_digits = true},
    {.names = " gpt-2 gpt2 phi-2 olmo jina-v2-en jina-v2-es jina-v2-de mpt ",
     .pattern = kGpt2Split},
    {.names = " tekken ", .pattern = kTekkenSplit, .ignore_merges = true, .adds_bos = true},
    {.names = " gpt-4o llama4 ", .pattern = kO200kSplit, .ignore_merges = true},
};

const PreTokenizerKind& find_pre_tokenizer(const std::string& name) {
  const std::string needle = " " + name + " ";
  const bool is_one_word = !name.empty() && name.find(' ') == std::string::npos;
  for (const auto& kind : kPreTokenizers) {
    if (is_one_word && kind.names.find(needle) != std::string_view::npos) return kind;
  }
  fail(ErrorCode::kUnsupported, "tokenizer.ggml.pre is '", name.substr(0, 100),
       "', which lathe does not know; use the checkpoint's Hugging Face directory instead");
}

struct Kinds {
  const GgufVocabulary& vocabulary;
  int32_t operator()(size_t id) const {
    return vocabulary.token_types.empty() ? GgufVocabulary::kNormal : vocabulary.token_types[id];
  }
};

void check_lengths(const GgufVocabulary& v) {
  if (v.tokens.empty()) fail(ErrorCode::kCorruptData, "tokenizer.ggml.tokens is empty");
  if (v.tokens.size() > (size_t{1} << 28)) {
    fail(ErrorCode::kUnsupported, "vocabulary of ", v.tokens.size(), " tokens");
  }
  const auto check = [&](size_t size, std::string_view key) {
    if (size != 0 && size != v.tokens.size()) {
      fail(ErrorCode::kCorruptData, "tokenizer.ggml.", key, " has ", size, " entries for ",
           v.tokens.size(), " tokens");
    }
  };
  check(v.token_types.size(), "token_type");
  check(v.scores.size(), "scores");
}

void set_byte_level(const GgufVocabulary& v, TokenizerSpec& spec) {
  const PreTokenizerKind& kind = find_pre_tokenizer(v.pre);
  if (kind.nfc) spec.normalizer.push_back({.kind = NormalizerStep::Kind::kNfc});
  if (kind.single_digits) spec.pre_tokenizer.push_back({.pattern = "\\p{N}"});
  spec.pre_tokenizer.push_back({.pattern = std::string(kind.pattern)});
  spec.byte_level = true;
  spec.decoder.byte_level = true;
  spec.ignore_merges = kind.ignore_merges;
  spec.add_bos = v.add_bos.value_or(kind.adds_bos);

  TokenTable ids(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.in_model[id]) ids.insert(spec.tokens[id], static_cast<int32_t>(id));
  }
  spec.merges.reserve(v.merges.size());
  std::string joined;
  for (size_t i = 0; i < v.merges.size(); ++i) {
    const std::string_view merge = v.merges[i];
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == merge.size()) {
      fail(ErrorCode::kCorruptData, "tokenizer.ggml.merges[", i, "] is not two tokens");
    }
    joined.assign(merge, 0, space).append(merge, space + 1);
    const BpeMerge ids_of{ids.find(merge.substr(0, space)), ids.find(merge.substr(space + 1)),
                          ids.find(joined)};
    // Converters drop unused tokens and leave their merges: such a merge cannot happen.
    if (ids_of.left < 0 || ids_of.right < 0 || ids_of.result < 0) continue;
    spec.merges.push_back(ids_of);
  }
}

void set_sentencepiece(const GgufVocabulary& v, TokenizerSpec& spec) {
  if (v.scores.empty()) fail(ErrorCode::kCorruptData, "tokenizer.ggml.scores is missing");
  const Kinds type_of{v};
  for (std::string& token : spec.tokens) {
    // User-defined runs of spaces are stored as spaces; the vocabulary has U+2581.
    for (size_t pos = 0; (pos = token.find(' ', pos)) != std::string::npos;) {
      token.replace(pos, 1, kMetaspace);
    }
  }
  const std::string metaspace(kMetaspace);
  if (v.add_space_prefix.value_or(true)) {
    spec.normalizer.push_back({.kind = NormalizerStep::Kind::kPrepend, .content = metaspace});
    spec.decoder.strip_at_start = 1;
  }
  spec.normalizer.push_back(
      {.kind = NormalizerStep::Kind::kReplace, .pattern = " ", .content = metaspace});
  spec.decoder.replacements.push_back({metaspace, " "});
  spec.decoder.byte_fallback = true;
  spec.byte_fallback = true;
  spec.fuse_unknown = true;
  spec.unknown_id = v.unknown_id;
  spec.add_bos = v.add_bos.value_or(true);

  // SentencePiece joins the pair whose result scores best; equal scores: the lower id. User-defined
  // tokens (runs of spaces) have no score worth the name and go first, as in published merges.
  std::vector<int32_t> by_score(spec.tokens.size());
  std::iota(by_score.begin(), by_score.end(), 0);
  const auto score = [&](int32_t id) {  // a total order even with NaN in the file
    if (type_of(id) == GgufVocabulary::kUserDefined) return std::numeric_limits<float>::infinity();
    return std::isnan(v.scores[id]) ? -std::numeric_limits<float>::infinity() : v.scores[id];
  };
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](int32_t a, int32_t b) { return score(a) > score(b); });
  std::vector<int32_t> order(spec.tokens.size());
  for (size_t i = 0; i < by_score.size(); ++i) order[by_score[i]] = static_cast<int32_t>(i);
  std::vector<bool> usable = spec.in_model;
  for (size_t id = 0; id < usable.size(); ++id) {
    if (type_of(id) == GgufVocabulary::kControl || type_of(id) == GgufVocabulary::kByte) {
      usable[id] = false;
    }
  }
  spec.merges = merges_from_vocabulary(spec.tokens, usable, order);
}

}  // namespace

TokenizerSpec spec_from_gguf(const GgufVocabulary& v) {
  check_lengths(v);
  const Kinds type_of{v};
  TokenizerSpec spec;
  spec.tokens = v.tokens;
  spec.in_model.resize(v.tokens.size());
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    spec.in_model[id] = type_of(id) != GgufVocabulary::kUnused;
  }
  if (v.model == "gpt2") {
    set_byte_level(v, spec);
  } else if (v.model == "llama") {
    set_sentencepiece(v, spec);
  } else {
    fail(ErrorCode::kUnsupported, "tokenizer.ggml.model is '", v.model.substr(0, 100),
         "'; lathe knows 'gpt2' and 'llama'");
  }
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const bool control = type_of(id) == GgufVocabulary::kControl;
    if (!control && type_of(id) != GgufVocabulary::kUserDefined) continue;
    spec.added_tokens.push_back(
        {.id = static_cast<int32_t>(id), .content = spec.tokens[id], .special = control});
  }
  spec.bos_id = v.bos_id;
  spec.eos_id = v.eos_id;
  spec.end_ids = v.end_ids;
  if (v.eos_id) spec.end_ids.insert(spec.end_ids.begin(), *v.eos_id);
  return spec;
}

}  // namespace lathe

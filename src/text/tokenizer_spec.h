// What a tokenizer is made of, as plain data: both a tokenizer.json and a GGUF vocabulary become
// this, and Tokenizer is built from nothing else. The steps and their names are those of the
// Hugging Face `tokenizers` library, whose results lathe reproduces id for id.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lathe {

// Changes the text between added tokens, before it is split.
struct NormalizerStep {
  enum class Kind {
    kNfc,
    kNfd,
    kNfkc,
    kNfkd,
    kLowercase,
    kPrepend,
    kReplace,
    kReplaceRegex,
    kStrip
  };
  Kind kind = Kind::kNfc;
  std::string pattern = "";  // kReplace, kReplaceRegex
  std::string content = "";  // kPrepend, kReplace, kReplaceRegex
  bool left = true;          // kStrip
  bool right = true;
};

// What becomes of the matches of a split pattern.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Cuts normalised text into pieces that the model never merges across.
struct PreTokenizerStep {
  enum class Kind {
    kSplit,        // by a regular expression or a literal string
    kPrefixSpace,  // ByteLevel's add_prefix_space: a space before each piece that has none
    kMetaspace,    // spaces become `pattern`, which may be put in front of the text as well
  };
  enum class Prepend { kNever, kFirst, kAlways };
  Kind kind = Kind::kSplit;
  std::string pattern = "";
  bool literal = false;  // kSplit: the pattern is a string, not an expression
  bool invert = false;   // kSplit: the pattern describes the text between matches
  SplitBehavior behavior = SplitBehavior::kIsolated;
  Prepend prepend = Prepend::kNever;  // kMetaspace
  bool split = true;                  // kMetaspace: cut before each `pattern`
};

// Turns the tokens' texts back into text.
struct DecoderSpec {
  struct Replacement {
    std::string pattern, content;
  };
  bool byte_level = false;  // token texts are in GPT-2's byte alphabet
  std::vector<Replacement> replacements;
  bool byte_fallback = false;  // <0x41> is the byte 0x41
  char strip_character = ' ';  // removed from the start of the whole text ...
  int64_t strip_at_start = 0;  // ... up to so many times
  std::string metaspace;       // becomes a space; dropped at the very start if ...
  bool metaspace_drops_first = false;
};

struct AddedToken {
  int32_t id = 0;
  std::string content = "";
  bool special = false;     // control: matched only when special tokens are parsed
  bool normalized = false;  // looked for in normalised text, after normalising the content
  bool lstrip = false;      // swallows white space on its left
  bool rstrip = false;
  bool single_word = false;  // only where no word character touches it
};

struct BpeMerge {
  int32_t left, right, result;  // token ids; the position in the list is the rank, best first
};

struct TokenizerSpec {
  // Text of each id as the vocabulary spells it. An id that nothing names has an empty text.
  std::vector<std::string> tokens;
  std::vector<bool> in_model;  // the merge algorithm may produce it (not only an added token)
  std::vector<BpeMerge> merges;
  std::vector<AddedToken> added_tokens;

  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool byte_level = false;  // pieces are split into bytes, tokens are in GPT-2's byte alphabet
  DecoderSpec decoder;

  std::optional<int32_t> unknown_id;
  bool fuse_unknown = false;
  bool byte_fallback = false;  // an unknown character becomes <0xXX> tokens
  bool ignore_merges = false;  // a piece that is a token needs no merges

  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::vector<int32_t> end_ids;  // every id that ends a generation, eos_id among them
  bool add_bos = false;
};

// Ranks of SentencePiece BPE as merges: every way to put two tokens together into a third, the best
// resulting token first (`order[id]`, lower is better), then the shorter left part. Only ids with
// `usable[id]` take part.
std::vector<BpeMerge> merges_from_vocabulary(const std::vector<std::string>& tokens,
                                             const std::vector<bool>& usable,
                                             const std::vector<int32_t>& order);

}  // namespace lathe

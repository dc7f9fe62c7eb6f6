#include "text/gguf_vocabulary.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/tokenizer.h"

namespace lathe {
namespace {

using Ids = std::vector<int32_t>;

GgufVocabulary byte_level_vocabulary() {
  GgufVocabulary v;
  v.model = "gpt2";
  v.pre = "qwen2";
  v.tokens = {"a", "b", "\xC4\xA0", "ab", "<|end|>", "<tool>", "unused", "\xC3\x83", "\xC2\xA9"};
  v.token_types = {1, 1, 1, 1, 3, 4, 5, 1, 1};
  v.merges = {"a b", "unused b"};
  v.eos_id = 4;
  return v;
}

GgufVocabulary sentencepiece_vocabulary() {
  GgufVocabulary v;
  v.model = "llama";
  v.tokens = {"<unk>",
              "<s>",
              "\xE2\x96\x81",
              "a",
              "b",
              "ab",
              "\xE2\x96\x81"
              "a",
              "  "};
  v.token_types = {2, 3, 1, 1, 1, 1, 1, 4};
  v.scores = {0, 0, -9, -10, -11, -2, -1, -1000};
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    snprintf(text, sizeof text, "<0x%02X>", byte);
    v.tokens.push_back(text);
    v.token_types.push_back(6);
    v.scores.push_back(0);
  }
  v.bos_id = 1;
  v.eos_id = 0;
  v.unknown_id = 0;
  return v;
}

TEST(GgufVocabulary, ByteLevel) {
  const Tokenizer tokenizer(spec_from_gguf(byte_level_vocabulary()));
  EXPECT_EQ(tokenizer.encode("ab a<|end|><tool>", true), (Ids{3, 2, 0, 4, 5}));
  EXPECT_EQ(tokenizer.encode("b<tool>", false), (Ids{1, 5}));
  // NFC, as the published tokenizer of qwen2: e + acute is one character of two bytes.
  EXPECT_EQ(tokenizer.encode("e\xCC\x81", false), (Ids{7, 8}));
  EXPECT_EQ(tokenizer.end_ids().size(), 1u);
  EXPECT_FALSE(tokenizer.add_bos());
  EXPECT_EQ(tokenizer.decode(Ids{3, 2, 0, 4}, true), "ab a");
}

TEST(GgufVocabulary, SentencePiece) {
  GgufVocabulary v = sentencepiece_vocabulary();
  const Tokenizer with_prefix(spec_from_gguf(v));
  EXPECT_TRUE(with_prefix.add_bos());
  EXPECT_EQ(with_prefix.encode("ab", false),
            (Ids{6, 4}));  // the better score, not the longer match
  EXPECT_EQ(with_prefix.decode(Ids{6, 4}, false), "ab");
  v.add_space_prefix = false;
  const Tokenizer tokenizer(spec_from_gguf(v));
  EXPECT_EQ(tokenizer.encode("ab", false), (Ids{5}));
  EXPECT_EQ(tokenizer.encode("  a", false), (Ids{7, 3}));  // runs of spaces join before words
  EXPECT_EQ(tokenizer.encode("\xC3\xA9", false), (Ids{8 + 0xC3, 8 + 0xA9}));
  EXPECT_EQ(tokenizer.decode(Ids{7, 8 + 0xC3, 8 + 0xA9}, false), "  \xC3\xA9");
}

TEST(GgufVocabulary, RefusesWhatContradictsItself) {
  constexpr auto kCorrupt = ErrorCode::kCorruptData;
  constexpr auto kUnsupported = ErrorCode::kUnsupported;
  struct Case {
    const char* name;
    void (*damage)(GgufVocabulary&);
    bool sentencepiece;
    ErrorCode code;
  };
  const Case cases[] = {
      {"no tokens", [](GgufVocabulary& v) { v.tokens.clear(); }, false, kCorrupt},
      {"types", [](GgufVocabulary& v) { v.token_types.pop_back(); }, false, kCorrupt},
      {"scores", [](GgufVocabulary& v) { v.scores.push_back(0); }, true, kCorrupt},
      {"no scores", [](GgufVocabulary& v) { v.scores.clear(); }, true, kCorrupt},
      {"model", [](GgufVocabulary& v) { v.model = "bert"; }, false, kUnsupported},
      {"pre", [](GgufVocabulary& v) { v.pre = "someone-elses"; }, false, kUnsupported},
      {"no pre", [](GgufVocabulary& v) { v.pre = ""; }, false, kUnsupported},
      {"pre of two words", [](GgufVocabulary& v) { v.pre = "smollm codeshell"; }, false,
       kUnsupported},
      {"merge", [](GgufVocabulary& v) { v.merges = {"ab"}; }, false, kCorrupt},
      {"empty merge", [](GgufVocabulary& v) { v.merges = {""}; }, false, kCorrupt},
      {"half a merge", [](GgufVocabulary& v) { v.merges = {"a "}; }, false, kCorrupt},
      {"bos", [](GgufVocabulary& v) { v.bos_id = 100000; }, false, kCorrupt},
      {"eos", [](GgufVocabulary& v) { v.eos_id = -1; }, false, kCorrupt},
      {"unknown", [](GgufVocabulary& v) { v.unknown_id = 9999; }, true, kCorrupt},
      {"end", [](GgufVocabulary& v) { v.end_ids = {9999}; }, true, kCorrupt},
  };
  for (const Case& item : cases) {
    GgufVocabulary v = item.sentencepiece ? sentencepiece_vocabulary() : byte_level_vocabulary();
    item.damage(v);
    try {
      Tokenizer tokenizer(spec_from_gguf(v));
      ADD_FAILURE() << item.name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), item.code) << item.name << ": " << error.what();
    }
  }
}

}  // namespace
}  // namespace lathe

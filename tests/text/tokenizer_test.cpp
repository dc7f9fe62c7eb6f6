#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "support/shared_data.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

using Node = nlohmann::json;
using Ids = std::vector<int32_t>;

Tokenizer small_tokenizer(const std::string& name) {
  return Tokenizer(
      parse_tokenizer_json(read_file(golden_path("text/" + name + ".tokenizer.json"))));
}

// tests/golden/text/make_tokenizers.py: what Hugging Face tokenizers says.
TEST(Tokenizer, SmallTokenizersAgreeWithTheOriginalLibrary) {
  const Node golden = Node::parse(read_file(golden_path("text/tokenizers.json")));
  ASSERT_EQ(golden.size(), 12u);
  for (const auto& [name, data] : golden.items()) {
    const Tokenizer tokenizer = small_tokenizer(name);
    EXPECT_EQ(tokenizer.vocab_size(), data["vocab_size"].get<int64_t>());
    for (const Node& item : data["cases"]) {
      const auto text = item["text"].get<std::string>();
      SCOPED_TRACE(name + ": " + item["text"].dump());
      EXPECT_EQ(tokenizer.encode(text, false), item["plain"].get<Ids>());
      const auto special = item["special"].get<Ids>();
      EXPECT_EQ(tokenizer.encode(text, true), special);
      EXPECT_EQ(tokenizer.decode(special, false), item["decoded"].get<std::string>());
      EXPECT_EQ(tokenizer.decode(special, true), item["skipped"].get<std::string>());
    }
    EXPECT_EQ(tokenizer.decode(data["scrambled"].get<Ids>(), false),
              data["scrambled_decoded"].get<std::string>())
        << name;
  }
}

TEST(Tokenizer, WhatItWritesMeansTheSame) {
  const Node golden = Node::parse(read_file(golden_path("text/tokenizers.json")));
  for (const auto& [name, data] : golden.items()) {
    const auto path = golden_path("text/" + name + ".tokenizer.json");
    const TokenizerSpec spec = parse_tokenizer_json(read_file(path));
    const Tokenizer again(parse_tokenizer_json(write_tokenizer_json(spec)));
    EXPECT_EQ(again.add_bos(), spec.add_bos);
    EXPECT_EQ(again.bos_id(), spec.bos_id);
    for (const Node& item : data["cases"]) {
      SCOPED_TRACE(name + ": " + item["text"].dump());
      const auto special = item["special"].get<Ids>();
      EXPECT_EQ(again.encode(item["text"].get<std::string>(), true), special);
      EXPECT_EQ(again.decode(special, false), item["decoded"].get<std::string>());
    }
  }
}

TEST(Tokenizer, TokenBytesConcatenateToTheDecodedText) {
  for (const std::string name : {"qwen2", "smollm", "llama2", "gemma"}) {
    const Tokenizer tokenizer = small_tokenizer(name);
    EXPECT_EQ(tokenizer.strips_leading_space(), name == "llama2");
    const std::string text = "the dog caf\xC3\xA9 \xF0\x9F\x98\x80<|end|> x <tool>";
    std::string bytes;
    for (const int32_t id : tokenizer.encode(text, true)) bytes += tokenizer.token_bytes(id);
    // Llama 2 puts a space in front of each stretch of text.
    if (name == "llama2") {
      EXPECT_EQ(bytes, " the dog caf\xC3\xA9 \xF0\x9F\x98\x80<|end|>  x <tool>");
    } else {
      EXPECT_EQ(bytes, text);
    }
  }
}

TEST(Tokenizer, InvalidUtf8IsReplaced) {
  for (const std::string name : {"qwen2", "llama2"}) {
    const Tokenizer tokenizer = small_tokenizer(name);
    const std::string bad = "a\xFF\xE2\x82z\xED\xA0\x80";
    const std::string repaired = "a\xEF\xBF\xBD\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD";
    EXPECT_EQ(tokenizer.encode(bad, false), tokenizer.encode(repaired, false));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(bad, false), false), repaired);
  }
}

TEST(Tokenizer, FindsTokensAndKnowsSpecialOnes) {
  const Tokenizer tokenizer = small_tokenizer("qwen2");
  const auto end = tokenizer.find_token("<|end|>");
  ASSERT_TRUE(end.has_value());
  EXPECT_TRUE(tokenizer.is_special(*end));
  EXPECT_EQ(tokenizer.encode("<|end|>", true), Ids{*end});
  const auto tool = tokenizer.find_token("<tool>");
  ASSERT_TRUE(tool.has_value());
  EXPECT_FALSE(tokenizer.is_special(*tool));
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.find_token(" the")), " the");
  EXPECT_FALSE(tokenizer.find_token("no such token").has_value());
}

TEST(Tokenizer, AnIdOutOfRangeIsAnInvalidArgument) {
  const Tokenizer tokenizer = small_tokenizer("qwen2");
  for (const int64_t id : {int64_t{-1}, tokenizer.vocab_size(), int64_t{1} << 30}) {
    const Ids ids{static_cast<int32_t>(id)};
    for (const auto& call : {std::function([&] { tokenizer.decode(ids, false); }),
                             std::function([&] { tokenizer.token_bytes(ids[0]); }),
                             std::function([&] { tokenizer.is_special(ids[0]); })}) {
      try {
        call();
        ADD_FAILURE() << id;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
      }
    }
  }
}

// Quadratic merging of one such piece would take a minute; a second is allowed for slow builds.
TEST(Tokenizer, LongHostileTextIsNotQuadratic) {
  for (const std::string name : {"gpt2", "qwen2", "llama3", "llama2", "gemma", "mistral"}) {
    const Tokenizer tokenizer = small_tokenizer(name);
    std::string marks;  // combining marks in an order that normalisation has to reverse
    for (int i = 0; i < 50000; ++i) marks += "\xCC\x81\xCC\xA3";
    for (const std::string& text :
         {std::string(200000, 'a'), std::string(200000, ' '), std::string(200000, ' ') + "x",
          std::string(200000, '\n'), std::string(200000, '1'), std::string(200000, '\x80'),
          std::string(200000, '<'), marks}) {
      const auto start = std::chrono::steady_clock::now();
      const bool stripped = name == "mistral" && (text[0] == ' ' || text[0] == '\n');
      EXPECT_EQ(tokenizer.encode(text, true).empty(), stripped && text.back() != 'x');
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      EXPECT_LT(elapsed.count(), 5) << name << ": " << text.substr(0, 2);
    }
  }
}

}  // namespace
}  // namespace lathe

#include "text/tokenizer_json.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/tokenizer.h"

namespace lathe {
namespace {

// A whole tokenizer.json around the given pieces.
std::string with_model(const std::string& model, const std::string& rest = "") {
  return "{\"model\":" + model + rest + "}";
}

const char* const kModel = R"({"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]})";

TEST(TokenizerJson, ReadsTheSmallestFile) {
  const Tokenizer tokenizer(parse_tokenizer_json(with_model(kModel)));
  EXPECT_EQ(tokenizer.encode("abba", false), (std::vector<int32_t>{2, 1, 0}));
  EXPECT_FALSE(tokenizer.bos_id().has_value());
  EXPECT_FALSE(tokenizer.add_bos());
}

struct BadFile {
  std::string json;
  ErrorCode code;
};

TEST(TokenizerJson, RefusesBadFiles) {
  constexpr auto kCorrupt = ErrorCode::kCorruptData;
  constexpr auto kUnsupported = ErrorCode::kUnsupported;
  const std::string deep(1000, '[');
  const BadFile files[] = {
      {"", kCorrupt},
      {"null", kCorrupt},
      {"[]", kCorrupt},
      {"{}", kCorrupt},
      {"{\"model\":", kCorrupt},
      {"{\"model\":\"\xFF\"}", kCorrupt},
      {deep, kCorrupt},
      {with_model("{\"type\":\"WordPiece\",\"vocab\":{}}"), kUnsupported},
      {with_model("{\"type\":\"Unigram\",\"vocab\":[]}"), kUnsupported},
      {with_model(R"({"type":7,"vocab":{},"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{}})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":[],"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":-1},"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":4000000000},"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":18446744073709551615},"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":1.5},"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":"0"},"merges":[]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":["a b"]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":["a a"]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":["a"]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":["a a a"]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":[["a"]]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":[7]})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":{}})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":[],"byte_fallback":"yes"})"), kCorrupt},
      {with_model(R"({"type":"BPE","vocab":{"a":0},"merges":[],"end_of_word_suffix":"</w>"})"),
       kUnsupported},
      {with_model(kModel, R"(,"added_tokens":{})"), kCorrupt},
      {with_model(kModel, R"(,"added_tokens":[{"content":"x"}])"), kCorrupt},
      {with_model(kModel, R"(,"added_tokens":[{"id":3}])"), kCorrupt},
      {with_model(kModel, R"(,"added_tokens":[{"id":99999999,"content":"x"}])"), kCorrupt},
      {with_model(kModel, R"(,"added_tokens":[{"id":3,"content":"x","special":1}])"), kCorrupt},
      {with_model(kModel, R"(,"normalizer":"NFC")"), kCorrupt},
      {with_model(kModel, R"(,"normalizer":{"type":"Precompiled"})"), kUnsupported},
      {with_model(kModel, R"(,"normalizer":{"type":"Sequence"})"), kCorrupt},
      {with_model(kModel, R"(,"normalizer":{"type":"Prepend"})"), kCorrupt},
      {with_model(kModel, R"(,"normalizer":{"type":"Replace","content":""})"), kCorrupt},
      {with_model(kModel, R"(,"pre_tokenizer":{"type":"BertPreTokenizer"})"), kUnsupported},
      {with_model(kModel, R"(,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"a"}})"),
       kCorrupt},
      {with_model(kModel, R"(,"pre_tokenizer":{"type":"Split","behavior":"Isolated"})"), kCorrupt},
      {with_model(kModel,
                  R"(,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"a"},"behavior":"X"})"),
       kCorrupt},
      {with_model(
           kModel,
           R"(,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"})"),
       kUnsupported},
      {with_model(kModel, R"(,"pre_tokenizer":{"type":"Sequence","pretokenizers":[)"
                          R"({"type":"ByteLevel"},{"type":"Digits"}]})"),
       kCorrupt},
      {with_model(kModel, R"(,"decoder":{"type":"WordPiece"})"), kUnsupported},
      {with_model(kModel, R"(,"decoder":{"type":"Strip","content":" ","start":1,"stop":0})"),
       kUnsupported},
      {with_model(kModel, R"(,"decoder":{"type":"Strip","content":"","start":1,"stop":0})"),
       kCorrupt},
  };
  for (const BadFile& file : files) {
    try {
      Tokenizer tokenizer(parse_tokenizer_json(file.json));
      ADD_FAILURE() << "accepted " << file.json.substr(0, 200);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), file.code) << file.json.substr(0, 200) << "\n" << error.what();
    }
  }
}

TEST(TokenizerJson, NormalizersCannotBlowUpMemory) {
  std::string steps;
  for (int i = 0; i < 12; ++i) {
    steps += std::string(i > 0 ? "," : "") +
             R"({"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaaaaaaaaa"})";
  }
  const Tokenizer tokenizer(parse_tokenizer_json(
      with_model(kModel, R"(,"normalizer":{"type":"Sequence","normalizers":[)" + steps + "]}")));
  EXPECT_THROW(tokenizer.encode("aaaa", false), Error);
}

TEST(TokenizerJson, ReadsBosAndEos) {
  const std::string added =
      R"(,"added_tokens":[{"id":3,"content":"<s>","special":true},{"id":4,"content":"</s>","special":true}])";
  TokenizerSpec spec = parse_tokenizer_json(with_model(
      kModel,
      added + R"(,"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"},)"
              R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},)"
              R"({"Sequence":{"id":"A","type_id":0}}]}]})"));
  EXPECT_TRUE(spec.add_bos);
  EXPECT_EQ(spec.bos_id, 3);

  apply_tokenizer_config(
      R"({"bos_token":"<s>","eos_token":{"content":"</s>"},"add_bos_token":false})", spec);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_EQ(spec.eos_id, 4);
  apply_generation_config(R"({"bos_token_id":3,"eos_token_id":[4,2,99,-1,"x"]})", spec);
  EXPECT_EQ(spec.end_ids, (std::vector<int32_t>{4, 2}));
  apply_tokenizer_config(R"({"bos_token":null,"eos_token":"none such"})", spec);
  EXPECT_EQ(spec.bos_id, 3);
  EXPECT_THROW(apply_tokenizer_config("{", spec), Error);
  EXPECT_THROW(apply_generation_config("", spec), Error);
}

}  // namespace
}  // namespace lathe

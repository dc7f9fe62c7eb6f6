// The 25 kinds of instructions of IFEval, each with a check that a program can make of a response.
// Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"
// (arXiv 2311.07911), and the authors' checker as lm-eval 0.4.13 has it, whose verdicts these are.
//
// Where the verdicts may differ:
// - length_constraints:number_sentences, and rarely change_case:capital_word_frequency, need NLTK's
//   trained sentence splitter; sentences.h stands in for it.
// - language:response_language, change_case:english_capital and :english_lowercase need langdetect,
//   trained as well and random; language.h stands in for it.
//   Those headers say how often each agrees, and the test IfevalGolden by instruction.
// - Keywords, postscript markers and section names are plain text here; the checker reads them as
//   regular expressions. Those of the published items are words and mean the same either way.
// - A letter that is none of a to z (two items have "#" and "!") is counted as it is; the checker
//   takes a random letter in its place.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

struct IfevalRule;  // one of the 25

struct IfevalInstruction {
  const IfevalRule* rule = nullptr;  // static
  std::vector<std::string> words;    // keywords, forbidden_words
  std::string text;                  // a keyword, phrase, letter, language, marker
  int64_t count = 0;                 // of words, sections, ...
  int64_t nth = 0;                   // paragraph, from 1
  bool at_least = true;              // the relation to count; false: less than
};

// From an item's instruction id and its entry in kwargs, in which nulls count as absent. Throws
// kCorruptData naming the id for an id or an argument that is unknown, missing, of the wrong type
// or out of range.
IfevalInstruction parse_ifeval_instruction(const std::string& id,
                                           const nlohmann::ordered_json& kwargs);
// "keywords:existence".
std::string_view ifeval_id(const IfevalInstruction& instruction);

// Whether a response, valid UTF-8, follows the instruction. Nothing of a response is an error;
// linear time in its length.
bool follows(const IfevalInstruction& instruction, std::string_view response);

}  // namespace lathe

#include "eval/passkey.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/rng.h"

namespace lathe {
namespace {

constexpr std::string_view kIntroduction =
    "There is a pass key hidden in the text below. Find it and memorize it.\n\n";
constexpr std::string_view kQuestion = "\n\nWhat is the pass key? The pass key is";

void append(std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

void check(const PasskeyOptions& options) {
  if (options.lengths.empty()) fail(ErrorCode::kInvalidArgument, "passkey: no --lengths given");
  if (options.depths < 1 || options.depths > 1000 || options.trials < 1 || options.trials > 1000) {
    fail(ErrorCode::kInvalidArgument, "--depths ", options.depths, ", --trials ", options.trials,
         ": 1 to 1000 each");
  }
}

}  // namespace

std::vector<PasskeyItem> passkey_items(const Tokenizer& tokenizer, std::string_view text,
                                       const PasskeyOptions& options) {
  check(options);
  const std::vector<int32_t> hay = tokenizer.encode(text, /*parse_special=*/false);
  std::vector<int32_t> head;
  if (tokenizer.add_bos() && tokenizer.bos_id()) head.push_back(*tokenizer.bos_id());
  append(head, tokenizer.encode(kIntroduction, false));
  const std::vector<int32_t> question = tokenizer.encode(kQuestion, false);
  Rng rng(options.seed);
  std::vector<PasskeyItem> items;
  for (const int64_t length : options.lengths) {
    for (int64_t d = 0; d < options.depths; ++d) {
      for (int64_t trial = 0; trial < options.trials; ++trial) {
        PasskeyItem item;
        item.length = length;
        item.depth = (static_cast<double>(d) + 0.5) / static_cast<double>(options.depths);
        item.key = std::to_string(10000 + rng.below(90000));
        const std::vector<int32_t> needle = tokenizer.encode(
            "\nThe pass key is " + item.key + ". Remember it. " + item.key + " is the pass key.\n",
            false);
        const std::vector<int32_t> answer = tokenizer.encode(" " + item.key, false);
        const int64_t filler = length - static_cast<int64_t>(head.size() + needle.size() +
                                                             question.size() + answer.size());
        if (filler < 0 || filler > static_cast<int64_t>(hay.size())) {
          fail(ErrorCode::kInvalidArgument, "passkey: length ", length, " needs ", filler,
               " tokens of text; the text has ", hay.size());
        }
        const auto from = hay.begin() + static_cast<std::ptrdiff_t>(rng.below(static_cast<uint64_t>(
                                            static_cast<int64_t>(hay.size()) - filler + 1)));
        const auto before = static_cast<std::ptrdiff_t>(static_cast<double>(filler) * item.depth);
        item.ids = head;
        item.ids.insert(item.ids.end(), from, from + before);
        append(item.ids, needle);
        item.ids.insert(item.ids.end(), from + before, from + static_cast<std::ptrdiff_t>(filler));
        append(item.ids, question);
        append(item.ids, answer);
        item.answer_tokens = static_cast<int64_t>(answer.size());
        items.push_back(std::move(item));
      }
    }
  }
  return items;
}

void run_passkey(const MeasuredModel& model, std::vector<PasskeyItem>& items, Exec& exec,
                 const std::function<void()>& done) {
  int64_t longest = 2;
  for (const PasskeyItem& item : items) longest = std::max(longest, item.length);
  LogitStream stream(*model.model, model.make_cache(longest), longest, model.chunk_rows, exec);
  for (PasskeyItem& item : items) {
    const int64_t first_answer = static_cast<int64_t>(item.ids.size()) - item.answer_tokens - 1;
    item.right_tokens = 0;
    for (stream.begin(item.ids, false, first_answer); stream.next();) {
      for (int64_t i = 0; i < stream.num_rows(); ++i) {
        const std::span<const float> row = stream.row(i);
        const auto top = std::max_element(row.begin(), row.end()) - row.begin();
        item.right_tokens += top == stream.target(i);
      }
    }
    if (done) done();
  }
}

}  // namespace lathe

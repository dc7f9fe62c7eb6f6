// lathe eval passkey.
#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/eval_flags.h"
#include "eval/json_lines.h"
#include "eval/passkey.h"
#include "eval/statistics.h"

namespace lathe {
namespace {

Json passkey_json(const std::vector<PasskeyItem>& items) {
  int64_t right = 0;
  std::map<int64_t, std::pair<int64_t, int64_t>> by_length;  // right, all
  Json list = Json::array();
  for (const PasskeyItem& item : items) {
    right += item.right();
    auto& [length_right, length_all] = by_length[item.length];
    length_right += item.right();
    ++length_all;
    list.push_back({{"length", item.length},
                    {"depth", item.depth},
                    {"key", item.key},
                    {"right", item.right()},
                    {"right_tokens", item.right_tokens},
                    {"answer_tokens", item.answer_tokens}});
  }
  Json json = {{"accuracy", static_cast<double>(right) / static_cast<double>(items.size())},
               {"right", right},
               {"items", items.size()}};
  for (const auto& [length, counts] : by_length) {
    json["by_length"].push_back(
        {{"length", length}, {"right", counts.first}, {"items", counts.second}});
  }
  json["tries"] = std::move(list);
  return json;
}

}  // namespace

Json eval_passkey(const EvalFlags& flags, Exec& exec) {
  if (flags.paths.size() != 1) {
    fail(ErrorCode::kInvalidArgument, "passkey takes one model, not ", flags.paths.size());
  }
  const auto longest = std::max_element(flags.passkey.lengths.begin(), flags.passkey.lengths.end());
  const TextModel source(flags.paths.front());
  const int64_t context = source.checkpoint().config().max_position_embeddings;
  if (longest != flags.passkey.lengths.end() && *longest > context) {
    fail(ErrorCode::kInvalidArgument, "--lengths ", *longest, " is longer than the context of ",
         flags.paths.front(), ", ", context, " tokens");
  }
  const std::string text = read_text_file(flags.data);
  std::vector<PasskeyItem> items = passkey_items(source.tokenizer(), text, flags.passkey);
  const LoadedModel loaded(flags.paths.front(), flags.model, exec,
                           {.quiet = flags.common.json, .max_sequence_tokens = *longest});
  Progress progress("passkey", static_cast<int64_t>(items.size()), "items", flags.common.json);
  run_passkey(measured(loaded, flags.chunk), items, exec, [&] { progress.advance(); });
  Json json = passkey_json(items);
  json["model"] = flags.paths.front();
  json["kv"] = kv_json(loaded, *longest);
  return json;
}

}  // namespace lathe

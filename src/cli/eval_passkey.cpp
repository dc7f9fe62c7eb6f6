// lathe eval passkey: one model, two to compare, or the caches of one.
#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/eval_caches.h"
#include "cli/eval_flags.h"
#include "cli/eval_report.h"
#include "eval/json_lines.h"
#include "eval/passkey.h"

namespace lathe {
namespace {

// The numbers and where they hide are the same for every tokenizer; the texts around them are as
// many tokens of its own.
std::vector<PasskeyItem> items_of(const std::string& path, const std::string& text,
                                  const PasskeyOptions& options) {
  const TextModel source(path);
  const int64_t context = source.checkpoint().config().max_position_embeddings;
  const auto longest = std::max_element(options.lengths.begin(), options.lengths.end());
  if (longest != options.lengths.end() && *longest > context) {
    fail(ErrorCode::kInvalidArgument, "--lengths ", *longest, " is longer than the context of ",
         path, ", ", context, " tokens");
  }
  return passkey_items(source.tokenizer(), text, options);
}

std::vector<char> right_items(const std::vector<PasskeyItem>& items) {
  std::vector<char> right;
  for (const PasskeyItem& item : items) right.push_back(item.right());
  return right;
}

}  // namespace

Json eval_passkey(const EvalFlags& flags, Exec& exec) {
  std::vector<RunningKv> caches = named_caches(flags.caches, flags.model, exec);
  const std::string text = read_text_file(flags.data);
  // Before any model is loaded: one [model or cache] after the other.
  std::vector<std::vector<PasskeyItem>> runs;
  for (const std::string& path : flags.paths) runs.push_back(items_of(path, text, flags.passkey));
  if (!caches.empty()) runs.resize(caches.size(), runs.front());
  const int64_t longest =
      *std::max_element(flags.passkey.lengths.begin(), flags.passkey.lengths.end());

  std::vector<Json> kv;
  for (const std::string& path : flags.paths) {
    const LoadedModel loaded(path, flags.model, exec,
                             {.quiet = flags.common.json, .max_sequence_tokens = longest});
    load_caches(caches, loaded, exec);
    std::vector<const RunningKv*> measured_caches;
    for (const RunningKv& cache : caches) measured_caches.push_back(&cache);
    if (caches.empty()) measured_caches.push_back(&loaded.kv());
    std::vector<MeasuredModel> models;
    for (const RunningKv* cache : measured_caches) {
      models.push_back(measured(loaded.model(), *cache, flags.chunk));
    }
    std::vector<MeasuredModel*> all;
    for (MeasuredModel& model : models) all.push_back(&model);
    take_common_chunk(all);
    for (std::size_t i = 0; i < models.size(); ++i) {
      std::vector<PasskeyItem>& items = runs[kv.size()];
      Progress progress("passkey on " + path, std::ssize(items), "items", flags.common.json);
      run_passkey(models[i], items, exec, [&] { progress.advance(); });
      kv.push_back(kv_json(loaded.model(), *measured_caches[i], longest));
    }
  }

  const auto result_json = [&](std::size_t i) {
    Json json = passkey_json(runs[i]);
    if (i > 0) json["paired"] = paired_accuracy_json(right_items(runs[0]), right_items(runs[i]));
    json["kv"] = kv[i];
    return json;
  };
  Json json;
  if (!caches.empty()) {
    json["caches"] = Json::array();
    for (std::size_t i = 0; i < caches.size(); ++i) {
      Json row = {{"cache", flags.caches[i]}};
      row.update(result_json(i));
      json["caches"].push_back(std::move(row));
    }
  } else {
    json = result_json(0);
    if (runs.size() == 2) {
      json["compared"] = result_json(1);
      json["compared"]["model"] = flags.paths[1];
    }
  }
  json["model"] = flags.paths.front();
  return json;
}

}  // namespace lathe

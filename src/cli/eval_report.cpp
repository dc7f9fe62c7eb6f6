#include "cli/eval_report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "cli/draft_flags.h"
#include "cli/format.h"
#include "eval/statistics.h"

namespace lathe {
namespace {

// JSON has no NaN: null where a number cannot be known.
Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

// NaN for null.
double value(const Json& number) {
  return number.is_null() ? std::numeric_limits<double>::quiet_NaN() : number.get<double>();
}

std::string plus_minus(const Json& error, const char* pattern = " ± %.3f") {
  return error.is_null() ? "" : format(pattern, error.get<double>());
}

}  // namespace

Json perplexity_json(const PerplexityResult& result) {
  Json json;
  json["perplexity"] = number(result.perplexity);
  json["standard_error"] = number(result.standard_error);
  json["windows"] = result.windows;
  json["seq_len"] = result.seq_len;
  json["scored_tokens"] = result.scored_tokens;
  json["window_nll"] = result.window_nll;
  return json;
}

Json compared_perplexity_json(const std::string& second_path,
                              const std::vector<PerplexityResult>& results) {
  const PerplexityResult& first = results[0];
  const PerplexityResult& second = results[1];
  Json json = perplexity_json(second);
  json["model"] = second_path;
  if (first.windows != second.windows || first.seq_len != second.seq_len) {
    json["paired"] = nullptr;
    return json;
  }
  std::vector<double> differences;
  for (std::size_t i = 0; i < first.window_nll.size(); ++i) {
    differences.push_back((second.window_nll[i] - first.window_nll[i]) /
                          static_cast<double>(first.seq_len - 1));
  }
  const MeanInterval interval = mean_interval(differences);
  json["paired"] = {
      {"nll_difference", interval.mean},
      {"standard_error", number(interval.standard_error)},
      {"t_interval_95", {number(interval.low), number(interval.high)}},
      {"bootstrap_interval_95", {number(interval.bootstrap_low), number(interval.bootstrap_high)}},
      {"perplexity_ratio", std::exp(interval.mean)},
      {"perplexity_ratio_95", {nullptr, nullptr}},
  };
  if (std::isfinite(interval.low) && std::isfinite(interval.high)) {  // more than one window
    json["paired"]["perplexity_ratio_95"] = {std::exp(interval.low), std::exp(interval.high)};
  }
  return json;
}

Json divergence_json(const DivergenceResult& result) {
  Json json;
  json["mean_kl"] = number(result.mean_kl);
  json["mean_kl_standard_error"] = number(result.mean_kl_error);
  json["median_kl"] = number(result.median_kl);
  json["p99_kl"] = number(result.p99_kl);
  json["max_kl"] = number(result.max_kl);
  json["top1_agreement"] = result.top1_agreement;
  json["perplexity"] = number(result.model.perplexity);
  json["reference_perplexity"] = number(result.reference.perplexity);
  json["compared"] = compared_perplexity_json("", {result.reference, result.model})["paired"];
  json["windows"] = result.model.windows;
  json["seq_len"] = result.model.seq_len;
  json["scored_tokens"] = result.model.scored_tokens;
  return json;
}

namespace {

Json ifeval_json(const IfevalCounts& counts) {
  const auto share = [](int64_t part, int64_t whole) {
    return number(static_cast<double>(part) / static_cast<double>(whole));
  };
  return {{"prompt_strict", share(counts.strict_prompts, counts.prompts)},
          {"prompt_loose", share(counts.loose_prompts, counts.prompts)},
          {"instruction_strict", share(counts.strict_instructions, counts.instructions)},
          {"instruction_loose", share(counts.loose_instructions, counts.instructions)},
          {"instructions", counts.instructions}};
}

}  // namespace

Json task_json(const std::string& task, const TaskResult& result) {
  Json json;
  json[task == "humaneval" ? "pass_at_1" : "accuracy"] = result.accuracy;
  json["standard_error"] = result.standard_error;
  json["items"] = result.items.size();
  json["right"] = result.num_right;
  if (result.ifeval) {
    json["ifeval"] = ifeval_json(*result.ifeval);
  } else if (task != "humaneval") {
    json["invalid"] = result.invalid;
  }
  if (result.unjudged > 0) json["unjudged"] = result.unjudged;
  int64_t cut_off = 0;
  for (const TaskItem& item : result.items) cut_off += item.cut_off;
  json["cut_off"] = cut_off;
  json["completion_tokens"] = result.completion_tokens;
  json["generation_seconds"] = result.seconds;
  if (result.speculation.cycles > 0) json["speculative"] = speculation_json(result.speculation);
  return json;
}

Json compared_task_json(const std::string& task, const std::string& second_path,
                        const std::vector<TaskResult>& results) {
  Json json = task_json(task, results[1]);
  json["model"] = second_path;
  json["paired"] = paired_accuracy_json(right_items(results[0]), right_items(results[1]));
  return json;
}

Json paired_accuracy_json(std::span<const char> first_right, std::span<const char> second_right) {
  const PairedAccuracy paired = compare_accuracy(first_right, second_right);
  return {{"difference", paired.difference},
          {"interval_95", {paired.low, paired.high}},
          {"only_first_right", paired.only_first},
          {"only_second_right", paired.only_second},
          {"mcnemar_p", paired.p_value}};
}

Json passkey_json(const std::vector<PasskeyItem>& items) {
  struct Count {
    int64_t right = 0, items = 0;
  };
  Count all;
  std::map<int64_t, Count> by_length;
  std::map<double, Count> by_depth;
  Json tries = Json::array();
  for (const PasskeyItem& item : items) {
    for (Count* count : {&all, &by_length[item.length], &by_depth[item.depth]}) {
      count->right += item.right();
      ++count->items;
    }
    tries.push_back({{"length", item.length},
                     {"depth", item.depth},
                     {"key", item.key},
                     {"right", item.right()},
                     {"right_tokens", item.right_tokens},
                     {"answer_tokens", item.answer_tokens}});
  }
  Json json = {{"accuracy", static_cast<double>(all.right) / static_cast<double>(all.items)},
               {"right", all.right},
               {"items", all.items}};
  for (const auto& [length, count] : by_length) {
    json["by_length"].push_back(
        {{"length", length}, {"right", count.right}, {"items", count.items}});
  }
  for (const auto& [depth, count] : by_depth) {
    json["by_depth"].push_back({{"depth", depth}, {"right", count.right}, {"items", count.items}});
  }
  json["tries"] = std::move(tries);
  return json;
}

void write_task_items(const std::string& file, const std::vector<std::string>& paths,
                      const std::vector<TaskResult>& results) {
  std::string text;
  for (std::size_t m = 0; m < results.size(); ++m) {
    for (const TaskItem& item : results[m].items) {
      text += dump_json({{"id", item.id},
                         {"model", paths[m]},
                         {"right", item.right},
                         {"outcome", item.outcome},
                         {"expected", item.expected},
                         {"cut_off", item.cut_off},
                         {"response", item.response}}) +
              "\n";
    }
  }
  write_file_atomically(file, text);
}

namespace {

std::string perplexity_text(const Json& json) {
  return format("perplexity %.4f", value(json["perplexity"])) + plus_minus(json["standard_error"]) +
         "   " + json["model"].get<std::string>();
}

std::string ifeval_text(const Json& json) {
  const auto percent = [&](const char* key) { return 100 * json[key].get<double>(); };
  return format("\n  loosely %.2f %%; instructions followed: %.2f %%, loosely %.2f %%",
                percent("prompt_loose"), percent("instruction_strict"),
                percent("instruction_loose")) +
         str(", of ", json["instructions"]);
}

std::string accuracy_text(const Json& json) {
  const char* key = json.contains("accuracy") ? "accuracy" : "pass_at_1";
  const std::string name = key == std::string("accuracy") ? "accuracy" : "pass@1";
  return name + format(" %.2f %%", 100 * json[key].get<double>()) +
         format(" ± %.2f", 100 * json["standard_error"].get<double>()) +
         str("   ", json["right"], " of ", json["items"], "   ") +
         json["model"].get<std::string>() +
         (json.contains("ifeval") ? ifeval_text(json["ifeval"]) : "");
}

std::string paired_text(const Json& paired) {
  if (paired.is_null()) {
    return "not compared: the models make different tokens of the text";
  }
  if (paired.contains("mcnemar_p")) {
    return format("difference %+.2f points, 95 %% [%+.2f, %+.2f], exact McNemar p = %.3g",
                  100 * paired["difference"].get<double>(),
                  100 * paired["interval_95"][0].get<double>(),
                  100 * paired["interval_95"][1].get<double>(), paired["mcnemar_p"].get<double>());
  }
  const double ratio = paired["perplexity_ratio"].get<double>();
  std::string text = format("perplexity ratio %.4f", ratio);
  if (!paired["perplexity_ratio_95"][0].is_null()) {
    text += format(", 95 %% [%.4f, %.4f], paired over windows",
                   paired["perplexity_ratio_95"][0].get<double>(),
                   paired["perplexity_ratio_95"][1].get<double>());
  }
  return text;
}

// Names on the left, as wide as the longest.
std::size_t name_width(const Json& caches) {
  std::size_t width = 5;
  for (const Json& cache : caches)
    width = std::max(width, cache["cache"].get<std::string>().size());
  return width;
}

std::string caches_text(const Json& caches) {
  const std::size_t width = name_width(caches);
  std::string text = std::string(width, ' ') + "   bits  in all   mean KL  same top  perplexity\n";
  for (const Json& cache : caches) {
    const std::string name = cache["cache"].get<std::string>();
    text += name + std::string(width - name.size(), ' ') +
            format(" %6.3f  %6.3f", cache["kv"]["bits_per_value"].get<double>(),
                   cache["kv"]["sequence_bits_per_value"].get<double>()) +
            format("  %8.5f  %6.2f %%  %10.4f\n", value(cache["mean_kl"]),
                   100 * value(cache["top1_agreement"]), value(cache["perplexity"]));
  }
  return text + "bf16" + std::string(width - 4, ' ') +
         format("%47.4f\n", value(caches[0]["reference_perplexity"]));
}

// Right and wrong answers with each cache, against the first.
std::string task_caches_text(const Json& caches) {
  const std::size_t width = name_width(caches);
  const char* key = caches[0].contains("pass_at_1") ? "pass_at_1" : "accuracy";
  std::string text = std::string(width, ' ') + "   bits    right   accuracy  against " +
                     caches[0]["cache"].get<std::string>() + "\n";
  for (const Json& cache : caches) {
    const std::string name = cache["cache"].get<std::string>();
    const std::string right = str(cache["right"], "/", cache["items"]);
    text += name + std::string(width - name.size(), ' ') +
            format(" %6.3f  %7s  %7.2f %%", cache["kv"]["bits_per_value"].get<double>(),
                   right.c_str(), 100 * cache[key].get<double>()) +
            (cache.contains("paired") ? "  " + paired_text(cache["paired"]) : "") + "\n";
  }
  return text;
}

// Right answers of all, by the text's length (rows) and the number's depth (columns).
std::string passkey_text(const Json& json) {
  std::string text = format("passkey %.1f %%", 100 * json["accuracy"].get<double>()) +
                     str("   ", json["right"], " of ", json["items"], "   ",
                         json["model"].get<std::string>(), "\n  depth        ");
  for (const Json& depth : json["by_depth"]) {
    text += format(" %6.3g %%", 100 * depth["depth"].get<double>());
  }
  text += "\n";
  const auto cell = [](int64_t right, int64_t items) {
    return format(" %8s", str(right, "/", items).c_str());
  };
  for (const Json& length : json["by_length"]) {
    text += format("  length %-6lld", static_cast<long long>(length["length"].get<int64_t>()));
    for (const Json& depth : json["by_depth"]) {
      int64_t right = 0, items = 0;
      for (const Json& item : json["tries"]) {
        if (item["length"] != length["length"] || item["depth"] != depth["depth"]) continue;
        right += item["right"].get<bool>();
        ++items;
      }
      text += cell(right, items);
    }
    text += cell(length["right"].get<int64_t>(), length["items"].get<int64_t>()) + "\n";
  }
  text += "  all          ";
  for (const Json& depth : json["by_depth"]) {
    text += cell(depth["right"].get<int64_t>(), depth["items"].get<int64_t>());
  }
  return text + cell(json["right"].get<int64_t>(), json["items"].get<int64_t>()) + "\n";
}

std::string models_text(const Json& models, const std::string& reference) {
  std::size_t width = reference.size();
  for (const Json& model : models) {
    width = std::max(width, model["model"].get<std::string>().size());
  }
  std::string text = std::string(width, ' ') + "   mean KL  same top  perplexity\n";
  for (const Json& model : models) {
    const std::string path = model["model"].get<std::string>();
    text += path + std::string(width - path.size(), ' ') +
            format("  %8.5f  %6.2f %%  %10.4f\n", value(model["mean_kl"]),
                   100 * value(model["top1_agreement"]), value(model["perplexity"]));
  }
  return text + reference + std::string(width - reference.size(), ' ') +
         format("%32.4f\n", value(models[0]["reference_perplexity"]));
}

}  // namespace

std::string eval_text(const Json& json) {
  const std::string task = json["task"].get<std::string>();
  std::string text;
  if (json.contains("caches")) {
    text = task == "kld" ? caches_text(json["caches"]) : task_caches_text(json["caches"]);
  } else if (json.contains("models")) {
    text = models_text(json["models"], json["reference"].get<std::string>());
  } else if (task == "kld") {
    text = format("KL divergence  mean %.5f", value(json["mean_kl"])) +
           plus_minus(json["mean_kl_standard_error"], " ± %.5f") +
           format(", median %.5f, 99 %% %.4f nats a token\n", value(json["median_kl"]),
                  value(json["p99_kl"])) +
           format("same top token %.2f %%\n", 100 * value(json["top1_agreement"])) +
           format("perplexity     %.4f, reference %.4f\n", value(json["perplexity"]),
                  value(json["reference_perplexity"])) +
           paired_text(json["compared"]) + "\n";
  } else if (task == "passkey") {
    text = passkey_text(json);
    if (json.contains("compared")) {
      text += passkey_text(json["compared"]) + paired_text(json["compared"]["paired"]) + "\n";
    }
  } else {
    const auto line = task == "perplexity" ? perplexity_text : accuracy_text;
    text = line(json) + "\n";
    if (json.contains("compared")) {
      text += line(json["compared"]) + "\n" + paired_text(json["compared"]["paired"]) + "\n";
    }
  }
  if (json.contains("kv") && json["kv"]["name"] != "bf16") {
    text += str("cache ", json["kv"]["name"].get<std::string>(), ", ") +
            format("%.3f bits a number", json["kv"]["bits_per_value"].get<double>());
    if (json["kv"].contains("sequence_bits_per_value")) {
      text += format(", %.3f with what stays exact in a sequence",
                     json["kv"]["sequence_bits_per_value"].get<double>());
    }
    text += "\n";
  }
  if (json.contains("windows")) {
    text += str(json["windows"], json["windows"] == 1 ? " window of " : " windows of ",
                json["seq_len"], " tokens of ", json["data"].get<std::string>(), "\n");
  }
  return text;
}

}  // namespace lathe

// Results of eval as JSON (the public keys) and as text.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "eval/passkey.h"
#include "eval/perplexity.h"
#include "eval/tasks.h"

namespace lathe {

nlohmann::ordered_json perplexity_json(const PerplexityResult& result);
// Of two results over the same windows: the second model against the first. Where the windows
// differ (other tokenizers) there is no paired comparison, and the JSON says so.
nlohmann::ordered_json compared_perplexity_json(const std::string& second_path,
                                                const std::vector<PerplexityResult>& results);
nlohmann::ordered_json divergence_json(const DivergenceResult& result);

nlohmann::ordered_json task_json(const std::string& task, const TaskResult& result);
nlohmann::ordered_json compared_task_json(const std::string& task, const std::string& second_path,
                                          const std::vector<TaskResult>& results);

// Of the same items, right or wrong: the second run against the first.
nlohmann::ordered_json paired_accuracy_json(std::span<const char> first_right,
                                            std::span<const char> second_right);

// Numbers hidden at several depths of texts of several lengths, by length and depth and in all.
nlohmann::ordered_json passkey_json(const std::vector<PasskeyItem>& items);

// One line an item and model.
void write_task_items(const std::string& file, const std::vector<std::string>& paths,
                      const std::vector<TaskResult>& results);

// What eval prints without --json.
std::string eval_text(const nlohmann::ordered_json& result);

}  // namespace lathe

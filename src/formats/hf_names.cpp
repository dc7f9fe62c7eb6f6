#include "formats/hf_names.h"

#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace lathe {
namespace {

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

bool ends_with(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

void replace_once(std::string& text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

// Multimodal wrappers off, Mixtral's names to those of the other families.
std::string simple_renames(std::string name) {
  for (const auto& [from, to] :
       {std::pair<std::string_view, std::string_view>{"language_model.model.", "model."},
        {"language_model.lm_head.", "lm_head."},
        {"model.language_model.", "model."}}) {
    if (starts_with(name, from)) name.replace(0, from.size(), to);
  }
  if (name.find(".block_sparse_moe.") != std::string::npos) {
    replace_once(name, ".block_sparse_moe.", ".mlp.");
    replace_once(name, ".w1.", ".gate_proj.");
    replace_once(name, ".w2.", ".down_proj.");
    replace_once(name, ".w3.", ".up_proj.");
  }
  return name;
}

struct Part {
  const char* module;
  int64_t rows;
};

// The parts of a stacked module and what follows its name; empty when it is not stacked.
struct Stack {
  std::string prefix;  // "model.layers.0.self_attn."
  std::string suffix;  // "weight", "weight_packed", ...
  std::vector<Part> parts;
};

Stack stack_of(const std::string& name, const ModelConfig& config) {
  const auto split = [&](std::string_view module, std::vector<Part> parts) {
    const std::size_t at = name.find(module);
    if (at == std::string::npos) return Stack{};
    return Stack{name.substr(0, at + module.find('.', 1) + 1), name.substr(at + module.size()),
                 std::move(parts)};
  };
  Stack stack = split(
      ".self_attn.qkv_proj.",
      {{"q_proj.", config.q_size()}, {"k_proj.", config.kv_size()}, {"v_proj.", config.kv_size()}});
  if (stack.parts.empty()) {
    stack = split(".mlp.gate_up_proj.", {{"gate_proj.", config.intermediate_size},
                                         {"up_proj.", config.intermediate_size}});
  }
  return stack;
}

// What has one row (or one number) an output feature; the rest belongs to the module as a whole.
bool is_by_row(const std::string& suffix) {
  return suffix == "weight" || suffix == "weight_packed" || suffix == "weight_scale" ||
         suffix == "bias";
}

}  // namespace

std::vector<std::string> module_spellings(const std::string& module) {
  std::vector<std::string> names = {module};
  const auto add_variant =
      [&](const std::vector<std::pair<std::string_view, std::string_view>>& replacements) {
        std::string name = module;
        for (const auto& [from, to] : replacements) replace_once(name, from, to);
        if (name != module) names.push_back(std::move(name));
      };
  for (const char* part : {".q_proj", ".k_proj", ".v_proj"}) add_variant({{part, ".qkv_proj"}});
  if (module.find(".mlp.experts.") != std::string::npos) {
    for (const auto& [part, short_name] :
         {std::pair<std::string_view, std::string_view>{".gate_proj", ".w1"},
          {".down_proj", ".w2"},
          {".up_proj", ".w3"}}) {
      if (ends_with(module, part)) {
        add_variant({{".mlp.", ".block_sparse_moe."}, {part, short_name}});
      }
    }
  } else if (ends_with(module, ".mlp.gate")) {
    add_variant({{".mlp.", ".block_sparse_moe."}});
  } else {
    for (const char* part : {".gate_proj", ".up_proj"}) add_variant({{part, ".gate_up_proj"}});
  }
  const std::size_t plain = names.size();
  for (std::size_t i = 0; i < plain; ++i) {
    const std::string name = names[i];
    names.push_back("language_model." + name);
    if (starts_with(name, "model.")) names.push_back("model.language_model." + name.substr(6));
  }
  return names;
}

std::string stored_module_name(const std::string& module, Architecture architecture) {
  std::string name = module;
  if (architecture == Architecture::kPhi3) {
    for (const char* part : {".q_proj", ".k_proj", ".v_proj"})
      replace_once(name, part, ".qkv_proj");
    for (const char* part : {".gate_proj", ".up_proj"}) replace_once(name, part, ".gate_up_proj");
  } else if (architecture == Architecture::kMixtral) {
    replace_once(name, ".mlp.", ".block_sparse_moe.");
    replace_once(name, ".gate_proj", ".w1");
    replace_once(name, ".down_proj", ".w2");
    replace_once(name, ".up_proj", ".w3");
  }
  return name;
}

std::string stored_name(const std::string& name, Architecture architecture,
                        const std::string& decoder_prefix) {
  std::string stored = stored_module_name(name, architecture);
  if (decoder_prefix == "language_model.model." && starts_with(stored, "lm_head")) {
    return "language_model." + stored;
  }
  for (const char* part : {"model.layers.", "model.embed_tokens", "model.norm"}) {
    if (starts_with(stored, part)) return decoder_prefix + stored.substr(6);
  }
  return stored;
}

std::vector<std::string> engine_spellings(const std::string& stored_module) {
  constexpr std::pair<std::string_view, std::string_view> kMoved[] = {
      {"language_model.model.", "model.language_model."},
      {"vision_tower.", "model.vision_tower."},
      {"multi_modal_projector.", "model.multi_modal_projector."}};
  std::vector<std::string> names = {stored_module};
  for (const auto& [before, after] : kMoved) {
    for (const auto& [from, to] : {std::pair(before, after), std::pair(after, before)}) {
      if (!starts_with(stored_module, from)) continue;
      names.push_back(std::string(to) + stored_module.substr(from.size()));
    }
  }
  return names;
}

TensorView row_range(const TensorView& view, int64_t begin, int64_t count) {
  TensorView part = view;
  const int64_t row_bytes = view.shape[0] == 0 ? 0 : view.num_bytes() / view.shape[0];
  part.shape[0] = count;
  part.data = view.data + begin * row_bytes;
  return part;
}

std::map<std::string, TensorView> canonical_tensors(const std::map<std::string, TensorView>& stored,
                                                    const ModelConfig& config,
                                                    const std::string& what) {
  std::map<std::string, TensorView> tensors;
  const auto add = [&](const std::string& name, TensorView view) {
    if (!tensors.emplace(name, std::move(view)).second) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", name, "' is stored twice");
    }
  };
  const auto add_parts = [&](const std::string& stored_name, const Stack& stack,
                             const TensorView& view) {
    int64_t total = 0;
    for (const Part& part : stack.parts) total += part.rows;
    const bool by_row = is_by_row(stack.suffix) && !view.shape.empty() && view.shape[0] == total;
    if (!by_row &&
        (stack.suffix == "weight" || stack.suffix == "weight_packed" || stack.suffix == "bias")) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", stored_name, "' has shape ",
           to_string(view.shape), ", the config asks for ", total, " rows");
    }
    int64_t row = 0;
    for (const Part& part : stack.parts) {
      add(stack.prefix + part.module + stack.suffix,
          by_row ? row_range(view, row, part.rows) : view);
      row += part.rows;
    }
  };
  // [experts, rows, cols] -> one matrix an expert
  const auto add_experts = [&](const std::string& name, const TensorView& view,
                               const std::vector<Part>& parts) {
    int64_t total = 0;
    for (const Part& part : parts) total += part.rows;
    if (view.shape.size() != 3 || view.shape[0] != config.num_experts || view.shape[1] != total) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", name, "' has shape ", to_string(view.shape),
           ", the config asks for [", config.num_experts, ", ", total, ", ...]");
    }
    const std::string prefix = name.substr(0, name.rfind('.') + 1);
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      TensorView matrix = row_range(view, expert, 1);
      matrix.shape.erase(matrix.shape.begin());
      int64_t row = 0;
      for (const Part& part : parts) {
        add(prefix + std::to_string(expert) + "." + part.module + "weight",
            row_range(matrix, row, part.rows));
        row += part.rows;
      }
    }
  };

  for (const auto& [stored_name, view] : stored) {
    const std::string name = simple_renames(stored_name);
    if (ends_with(name, ".mlp.experts.gate_up_proj")) {
      add_experts(name, view,
                  {{"gate_proj.", config.moe_intermediate_size},
                   {"up_proj.", config.moe_intermediate_size}});
    } else if (ends_with(name, ".mlp.experts.down_proj")) {
      add_experts(name, view, {{"down_proj.", config.hidden_size}});
    } else if (const Stack stack = stack_of(name, config); !stack.parts.empty()) {
      add_parts(stored_name, stack, view);
    } else {
      add(name, view);
    }
  }
  return tensors;
}

}  // namespace lathe

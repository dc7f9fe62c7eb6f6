// One set of names for what Hugging Face checkpoints store under several.
//
//   stored                                                  here (model_tensors.h)
//   language_model.model.X, model.language_model.X          model.X       (multimodal Gemma 3)
//   L.block_sparse_moe.experts.E.w1 | w3 | w2               L.mlp.experts.E.gate | up | down_proj
//   L.block_sparse_moe.gate                                 L.mlp.gate    (Mixtral)
//   L.self_attn.qkv_proj        [q + 2 kv, hidden]          q_proj, k_proj, v_proj  (Phi-3)
//   L.mlp.gate_up_proj          [2 intermediate, hidden]    gate_proj, up_proj
//   L.mlp.experts.gate_up_proj  [experts, 2 inter., hidden] one gate_proj and up_proj an expert
//   L.mlp.experts.down_proj     [experts, hidden, inter.]   one down_proj an expert
//
// Every part is a run of whole rows, so a name maps to a view into the file and nothing is copied.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "formats/model_config.h"
#include "tensor/tensor.h"

namespace lathe {

// Throws kCorruptData when two stored tensors come to the same name or a fused tensor does not have
// the rows that the config says. `what` names the checkpoint in messages.
std::map<std::string, TensorView> canonical_tensors(const std::map<std::string, TensorView>& stored,
                                                    const ModelConfig& config,
                                                    const std::string& what);

// The names under which a configuration may speak of a linear module: its common name first, then
// the stored ones of the table above.
std::vector<std::string> module_spellings(const std::string& module);

// The name under which published checkpoints of this family store a module: Phi-3's and Mixtral's
// column of the table above. Modules that share a name are stored as one tensor, their rows in the
// order of model_tensors().
std::string stored_module_name(const std::string& module, Architecture architecture);

// The same for any name of model_tensors(), a tensor's or a module's, with what stands in front of
// the decoder's names (Checkpoint::decoder_prefix()).
std::string stored_name(const std::string& name, Architecture architecture,
                        const std::string& decoder_prefix);

// A stored module's names in engines: transformers moved the parts of multimodal models under
// "model." in 4.52, and files of both kinds go with either. Its own name first.
std::vector<std::string> engine_spellings(const std::string& stored_module);

// Rows [begin, begin + count) of the first dimension. The caller has checked the range.
TensorView row_range(const TensorView& view, int64_t begin, int64_t count);

}  // namespace lathe

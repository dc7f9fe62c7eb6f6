// config.json and generation_config.json from a ModelConfig, in the spelling of transformers 4
// (which 5 and other engines read too). parse_hf_config() of the text gives the config back.
#pragma once
#include <string>

#include "formats/model_config.h"
#include "tensor/dtype.h"

namespace lathe {

// dtype: of the weights beside it, kF32, kF16 or kBF16.
std::string write_hf_config(const ModelConfig& config, DType dtype);
// bos and eos ids.
std::string write_generation_config(const ModelConfig& config);

}  // namespace lathe

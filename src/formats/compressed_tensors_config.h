// `quantization_config` of a compressed-tensors checkpoint: which linear layers are quantized how,
// and which are rotated (transform_config). Source: spec/mr-gptq.md 8.4-8.7; the Python package
// compressed-tensors 0.20.0 (quantization/quant_config.py, transform/).
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "formats/module_pattern.h"
#include "quant/weight_format.h"

namespace lathe {

// How a module's codes lie in the file.
enum class PackedLayout {
  kFp4,    // weight_packed u8 [N, K/2], even column in the low nibble
  kInt32,  // weight_packed i32 [N, ceil(K bits / 32)], q + 2^(bits - 1), first column lowest
  kPlain,  // weight i8 or f8_e4m3 [N, K]
};

enum class ScaleShape { kTensor, kChannel, kGroup };

struct CompressedScheme {
  PackedLayout layout = PackedLayout::kFp4;
  ElementType element = ElementType::kE2M1;
  ScaleShape scale_shape = ScaleShape::kGroup;
  int64_t group_size = 0;         // kGroup
  bool has_global_scale = false;  // NVFP4: weight_global_scale
  ActivationFormat activations = ActivationFormat::kNone;
  bool has_input_global_scale = false;  // NVFP4 activations
};

class CompressedTensorsConfig {
 public:
  // From config.json's text; nullopt when it has no quantization_config. Throws kUnsupported for
  // another quant_method or a scheme that lathe does not run, kCorruptData for a malformed one.
  static std::optional<CompressedTensorsConfig> parse(const std::string& config_json,
                                                      const std::string& what);

  // The scheme of a linear module, by any spelling of its name; nullptr: not targeted, or ignored.
  const CompressedScheme* scheme(const std::vector<std::string>& spellings) const;
  // Block size of the rotation of a module's input, merged into its stored weight; 0: none.
  int64_t hadamard(const std::vector<std::string>& spellings) const;
  // A module may carry a copy of its rotation's matrix, under its name and this suffix.
  struct StoredTransform {
    std::string suffix;  // ".v_input.weight"
    int64_t block = 0;
  };
  const std::vector<StoredTransform>& stored_transforms() const { return stored_transforms_; }

 private:
  struct Group {
    ModulePatterns targets;
    std::optional<CompressedScheme> scheme;  // nullopt: the group does not quantize weights
  };
  struct Rotation {
    ModulePatterns targets;
    ModulePatterns ignore;
    int64_t block = 0;
  };
  std::vector<Group> groups_;
  ModulePatterns ignore_;
  std::vector<Rotation> rotations_;
  std::vector<StoredTransform> stored_transforms_;
};

}  // namespace lathe

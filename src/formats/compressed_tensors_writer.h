// Writes a compressed model as a Hugging Face directory in compressed-tensors form, which vLLM and
// transformers read: quantized linear layers as `L.weight_packed`, `L.weight_scale`, ..., the other
// tensors as they are, and config.json with `quantization_config`. Source: spec/mr-gptq.md 8.4-8.7,
// compressed-tensors 0.20.0; docs/formats.md lists every tensor.
//
// Compressing takes hours and may be killed at any moment, so the model is written in parts (one
// per decoder layer, one for everything else), and the order of writes is
//
//   1. model-0000I-of-0000N.safetensors    one part: written aside, synced, renamed
//   2. quantize.journal.json               names the finished parts with size and SHA-256
//      ... (1 and 2 once per part)
//   3. index, config.json, tokenizer files
//   4. lathe.json                          the manifest; now the directory is a whole model
//   5. the journal is removed
//
// Killed before 4, the directory has a journal and no manifest: lathe calls it incomplete
// (manifest.h), others find no config.json or no index. Opened again with the same settings it
// continues: a part that is in the journal and whose file still has that SHA-256 is done, any other
// is written anew.
//
// Order of calls, by the quantizer:
//
//   CompressedTensorsWriter writer({.directory = out, .num_parts = config.num_layers + 1, ...});
//   for (int64_t layer = 0; layer < config.num_layers; ++layer) {
//     if (writer.is_done(layer)) { /* reload what later layers need from writer.part_path(layer) */
//     continue; }
//     ... quantize ...
//     writer.write_part(layer, linears, dense, record);   // on disk when it returns
//   }
//   writer.write_part(config.num_layers, {}, {embeddings, final norm, lm_head}, "");
//   writer.finish(manifest);
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "formats/manifest.h"
#include "quant/weight_format.h"
#include "tensor/tensor.h"

namespace lathe {

struct CompressedTensorsOptions {
  std::string directory;  // created when missing
  int64_t num_parts = 0;  // >= 1
  // Everything that determines the weights (source model, method, format, calibration, seed, ...)
  // as text; a run continues only where this is equal.
  std::string settings;
  // true: continue an unfinished run, or start when the directory has none. false: start, and
  // refuse a directory that holds an unfinished run.
  bool resume = false;
  // The source model's config.json. `quantization_config` and the dtype are replaced.
  std::string config_json;
  // Files to write beside it, by name: tokenizer.json, tokenizer_config.json, ...
  std::vector<std::pair<std::string, std::string>> auxiliary_files;
};

// One quantized linear layer.
struct QuantizedLinear {
  std::string module;  // without ".weight": "model.layers.0.self_attn.q_proj"
  const QuantizedMatrix* weight = nullptr;
  LinearScheme scheme;
};

// Any other tensor: a bias, a norm, the embeddings, a linear layer that stays dense.
struct DenseTensor {
  std::string name;  // whole: "model.layers.0.input_layernorm.weight"
  TensorView tensor;
};

// What the configuration says about one quantized module.
struct ModuleScheme {
  std::string module;
  WeightFormat format;
  LinearScheme scheme;
};

class CompressedTensorsWriter {
 public:
  // Throws kInvalidArgument when the directory already holds a whole model, or an unfinished run
  // while `resume` is false or its settings differ; kCorruptData for an unreadable journal.
  explicit CompressedTensorsWriter(CompressedTensorsOptions options);

  bool is_done(int64_t part) const;
  // The `record` that was given with a finished part.
  const std::string& record(int64_t part) const;
  // Where a part lies once it is done: a safetensors file with the tensors of docs/formats.md.
  std::string part_path(int64_t part) const;

  // Writes one part, durably. `record` is the caller's text about it (errors, times), kept in the
  // journal so that a resumed run can report the whole. Tensors in any order, each name once over
  // all parts. Throws kUnsupported for what compressed-tensors cannot express (see
  // check_expressible), kInvalidArgument for inconsistent input, kIo for a full disk.
  void write_part(int64_t part, std::span<const QuantizedLinear> linears,
                  std::span<const DenseTensor> dense, const std::string& record);

  // Every part must be done (kInvalidArgument). Writes index, config.json and auxiliary files, then
  // the manifest with the sizes and digests of all files, then removes the journal.
  void finish(Manifest manifest);

 private:
  struct Part {
    bool done = false;
    ManifestFile file;
    std::string record;
    std::vector<ModuleScheme> modules;                     // quantized
    std::vector<std::string> dense_linears;                // "ignore" of the quantization config
    std::vector<std::pair<std::string, int64_t>> tensors;  // name and bytes, for the index
    std::string dense_dtype;  // of its floating-point tensors, or empty
  };
  void load_journal();
  void store_journal() const;

  CompressedTensorsOptions options_;
  std::vector<Part> parts_;
};

// compressed-tensors knows MXFP4 with power-of-two scales only. A global scale on it (the 4/3 rule)
// and the fitted grid (mxfp4-fitted) would be read as other numbers by everyone else, so they are
// never written: kUnsupported, with the way out (write the decoded weights as dense tensors).
// NVFP4: q/k/v and gate/up of one layer must share their global scale, since engines fuse them and
// keep one (kInvalidArgument).
void check_expressible(std::span<const QuantizedLinear> linears);

// Tensors that stand for one linear layer in the file, ready to be written. Some borrow the matrix,
// which must outlive them.
struct StoredLinear {
  std::vector<DenseTensor> tensors;
  std::vector<Tensor> owned;
};
StoredLinear store_linear(const QuantizedLinear& linear);

// The value of `quantization_config` (JSON text) for these modules and `ignore`, the linear modules
// that stay dense.
std::string quantization_config(std::span<const ModuleScheme> modules,
                                std::span<const std::string> ignore);

}  // namespace lathe

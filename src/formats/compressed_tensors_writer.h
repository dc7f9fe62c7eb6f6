// Writes a compressed model as a Hugging Face directory in compressed-tensors form, which vLLM and
// transformers read: quantized linear layers as `L.weight_packed`, `L.weight_scale`, ..., the other
// tensors as they are, and config.json with `quantization_config`. The layout of
// one layer is compressed_tensors_layout.h's.
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
//     writer.write_part(layer, linears, dense, record);  // on disk when it returns
//   }
//   writer.write_part(config.num_layers, {}, {embeddings, final norm, lm_head}, "");
//   writer.finish(manifest);
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "formats/compressed_tensors_layout.h"
#include "formats/compression_journal.h"
#include "formats/manifest.h"
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
  // The source model's config.json. Its `quantization_config` and dtype are replaced.
  std::string config_json;
  DType dense_dtype = DType::kBF16;  // what config.json says of the tensors that stay dense
  // Files to write beside it, by name: tokenizer.json, tokenizer_config.json, ...
  std::vector<std::pair<std::string, std::string>> auxiliary_files;
};

class CompressedTensorsWriter {
 public:
  // Throws kInvalidArgument when the directory already holds a model, or an unfinished run while
  // `resume` is false or its settings differ, or when another process is writing into it;
  // kCorruptData for an unreadable journal or config_json.
  explicit CompressedTensorsWriter(CompressedTensorsOptions options);
  ~CompressedTensorsWriter();
  CompressedTensorsWriter(const CompressedTensorsWriter&) = delete;
  CompressedTensorsWriter& operator=(const CompressedTensorsWriter&) = delete;

  bool is_done(int64_t part) const { return journal_.parts.contains(part); }
  // The `record` that was given with a finished part.
  const std::string& record(int64_t part) const;
  // Where a part lies once it is done: a safetensors file with the tensors of docs/formats.md.
  std::string part_path(int64_t part) const;

  // Writes one part, durably. `dense`: every other tensor (biases, norms, embeddings, linear layers
  // that stay dense). `record` is the caller's text about the part (errors, times), kept so that a
  // resumed run can report the whole. Throws what check_expressible does, kInvalidArgument for a
  // part that is done or a tensor that is there twice, kIo for a full disk; the part is then not
  // done.
  void write_part(int64_t part, std::span<const QuantizedLinear> linears,
                  std::span<const NamedTensor> dense, const std::string& record);

  // Every part must be done (kInvalidArgument). Writes index, config.json and auxiliary files, then
  // the manifest with the sizes and digests of all files, then removes the journal.
  void finish(Manifest manifest);

 private:
  std::string part_name(int64_t part) const;
  void forget_damaged_parts();

  CompressedTensorsOptions options_;
  CompressionJournal journal_;
  int directory_fd_ = -1;  // holds the lock
};

}  // namespace lathe

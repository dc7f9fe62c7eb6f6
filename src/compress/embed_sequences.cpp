#include "compress/embed_sequences.h"

#include <span>

#include "base/error.h"
#include "base/sha256.h"
#include "kernels/embedding/embedding.h"

namespace lathe {

void check_token_ids(const std::vector<std::vector<int32_t>>& sequences, int64_t vocab_size) {
  for (const std::vector<int32_t>& sequence : sequences) {
    for (const int32_t id : sequence) {
      if (id < 0 || id >= vocab_size) {
        fail(ErrorCode::kInvalidArgument, "calibration token ", id,
             " is outside the model's vocabulary of ", vocab_size);
      }
    }
  }
}

std::vector<int64_t> lengths_of(const std::vector<std::vector<int32_t>>& sequences) {
  std::vector<int64_t> lengths;
  for (const auto& sequence : sequences) lengths.push_back(static_cast<int64_t>(sequence.size()));
  return lengths;
}

std::string digest_of(const std::vector<std::vector<int32_t>>& sequences) {
  Sha256 sha;
  for (const std::vector<int32_t>& sequence : sequences) {
    sha.update(std::as_bytes(std::span(sequence)));
    const auto length = static_cast<int64_t>(sequence.size());
    sha.update(std::as_bytes(std::span(&length, 1)));
  }
  return sha.hex_digest();
}

void embed_sequences(const Checkpoint& checkpoint,
                     const std::vector<std::vector<int32_t>>& sequences, DType dtype,
                     const std::function<void(float* rows, int64_t tokens)>& transform,
                     HiddenStore& store, Exec& exec) {
  const ModelConfig& config = checkpoint.config();
  const Tensor table = checkpoint.load("model.embed_tokens.weight", dtype);
  std::vector<float> hidden;
  store.begin(0);
  for (int64_t i = 0; i < store.num_sequences(); ++i) {
    if (!store.owns(i)) continue;
    const std::vector<int32_t>& ids = sequences[static_cast<std::size_t>(i)];
    hidden.resize(ids.size() * static_cast<std::size_t>(config.hidden_size));
    embedding_lookup(table.view(), ids, static_cast<float>(config.embedding_scale), hidden.data(),
                     exec);
    if (transform) transform(hidden.data(), store.length(i));
    store.write(0, i, 1, hidden.data());
  }
  store.finish(0);
  checkpoint.release_pages();
}

}  // namespace lathe

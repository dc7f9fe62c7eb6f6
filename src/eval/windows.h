// Text cut into windows, and a model's logits over a window, chunk by chunk, so that memory is
// bound by the chunk and not by window x vocabulary.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/model.h"

namespace lathe {

struct WindowOptions {
  int64_t seq_len = 512;    // tokens of a window, BOS included
  int64_t max_windows = 0;  // 0: all that the text fills
};

// Windows that follow each other without overlap or gap; what does not fill the last one is left
// out. With `bos`, every window begins with it, inside its length. Throws kInvalidArgument when
// seq_len < 2, or the text does not fill one window.
std::vector<std::vector<int32_t>> cut_windows(std::span<const int32_t> ids,
                                              std::optional<int32_t> bos,
                                              const WindowOptions& options);

// The logits of a window's positions, usually but for the last, which predicts nothing that is
// there.
class LogitStream {
 public:
  // Enough rows to read the weights rarely; 128 rows of 150,000 logits are 77 MB, 1024 on a GPU are
  // 614 MB.
  static constexpr int64_t kChunkRows = 128;

  // Borrows model and exec. Holds a cache for one window of at most max_seq_len tokens. stay: a
  // model on a GPU leaves the rows there (device_rows() instead of row()).
  LogitStream(Model& model, KvFormat kv_format, int64_t max_seq_len, Exec& exec, bool stay = false);
  // In a given cache, empty and with room for a window. chunk_rows: positions that are computed at
  // once. What a cache that codes its older tokens shows to a query depends on it: where it divides
  // the codec's window and chunk, queries see what they would see one at a time. 0: kChunkRows.
  LogitStream(Model& model, std::unique_ptr<KvCache> cache, int64_t max_seq_len, int64_t chunk_rows,
              Exec& exec, bool stay = false);
  ~LogitStream();

  // Borrows the window until the last chunk. Positions in front of first_wanted have no rows: they
  // are computed without the head.
  void begin(std::span<const int32_t> window, bool with_last = false, int64_t first_wanted = 0);
  // Computes up to the next rows, of one chunk; false when the window is done.
  bool next();

  int64_t first_position() const { return first_position_; }  // of row 0
  int64_t num_rows() const { return num_rows_; }
  std::span<const float> row(int64_t i) const {
    return {logits_.as<float>() + i * vocab_size_, static_cast<std::size_t>(vocab_size_)};
  }
  // Where a model on a GPU has left the rows instead, [num_rows, vocab_size]; null on a CPU. Valid
  // until this model's next step.
  const float* device_rows() const { return device_rows_; }
  int64_t vocab_size() const { return vocab_size_; }
  // The token that row i predicts. Not for the last position.
  int32_t target(int64_t i) const {
    return window_[static_cast<std::size_t>(first_position_ + i + 1)];
  }

 private:
  void compute(int64_t begin, int64_t end);

  static constexpr int64_t kDeviceChunkRows = 1024;
  Model& model_;
  Exec& exec_;
  const bool stays_;
  const int64_t chunk_rows_;
  std::unique_ptr<KvCache> cache_;
  int64_t vocab_size_;
  KvSequence sequence_;
  std::span<const int32_t> window_;
  int64_t first_wanted_ = 0, end_ = 0;  // positions of the window with rows
  int64_t num_computed_ = 0;
  int64_t first_position_ = 0;
  int64_t num_rows_ = 0;
  std::vector<int64_t> positions_;
  std::vector<int32_t> logit_rows_;
  Buffer logits_;  // [chunk_rows_, vocab_size]; empty where the rows stay
  const float* device_rows_ = nullptr;
};

// log(sum(exp(logits))): fp32 exponentials of the distance to the maximum, summed in fp64. NaN when
// a logit is NaN.
double log_sum_exp_f32(std::span<const float> logits);

}  // namespace lathe

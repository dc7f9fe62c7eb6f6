// The hidden states of all calibration sequences between two decoder layers, in files beside the
// output, so that memory does not grow with the calibration data and a killed run can go on.
//
// Two files take turns: the input of layer l lies in file l % 2, its output, the input of layer
// l + 1, is written to the other and synced before layer l counts as finished. So whenever a run
// dies, the input of its first unfinished layer is whole.
//
//   calibration.0, calibration.1: fp32 [total tokens, hidden_size], sequence after sequence, then
//                                 int64: the layer whose inputs these are, or -1 while written
//
// Ranks (comm/communicator.h) share the files, which lie on a file system that all of them see:
// each writes the sequences that it owns, rank 0 the mark, when all are synced. What is where does
// not depend on the number of ranks.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace lathe {

class HiddenStore {
 public:
  // Opens or creates the files. lengths: tokens of each sequence. ranks: borrowed; null: this
  // process alone. Throws kIo, also where a rank does not see the files of rank 0.
  HiddenStore(std::string directory, std::vector<int64_t> lengths, int64_t hidden_size,
              Communicator* ranks = nullptr);
  ~HiddenStore();
  HiddenStore(const HiddenStore&) = delete;
  HiddenStore& operator=(const HiddenStore&) = delete;

  int64_t num_sequences() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<std::size_t>(sequence)]; }
  int64_t num_tokens() const { return offsets_.back(); }
  // Tokens of the first so many sequences.
  int64_t tokens_before(int64_t sequence) const {
    return offsets_[static_cast<std::size_t>(sequence)];
  }
  Communicator& ranks() const { return *ranks_; }
  // Whether this rank reads and writes the sequence. They take turns, so that the sequences of one
  // round, one a rank, follow one another.
  bool owns(int64_t sequence) const { return sequence % ranks_->size() == ranks_->rank(); }
  int64_t data_bytes() const;  // of the hidden states in one of the two files

  // Marks the file of `layer` as unfinished, durably; write() may follow. This, finish() and
  // remove() are called by all ranks.
  void begin(int64_t layer);
  // `count` sequences starting at `first`, [their tokens, hidden_size], from or to the file that
  // holds the inputs of `layer`. Throws kIo (disk full), kCorruptData when the file is too short.
  void read(int64_t layer, int64_t first, int64_t count, float* out) const;
  void write(int64_t layer, int64_t first, int64_t count, const float* values);
  // The inputs of `layer` are whole on the disk, and marked so, when this returns (on rank 0; on
  // the others, once rank 0 has returned).
  void finish(int64_t layer);
  // Whether finish(layer) was the last thing that happened to its file.
  bool complete(int64_t layer) const;
  // Deletes the files.
  void remove();

 private:
  bool leads() const { return ranks_->rank() == 0; }
  void open_files();
  void check_shared();
  std::string path(int64_t layer) const;
  void sync(int64_t layer);
  void mark(int64_t layer, int64_t value);
  void write_bytes(int64_t layer, int64_t offset, const void* data, int64_t size);
  std::string directory_;
  std::vector<int64_t> lengths_;
  std::vector<int64_t> offsets_;  // in tokens, one more than sequences
  int64_t hidden_size_;
  SoloCommunicator solo_;
  Communicator* ranks_;
  int fds_[2] = {-1, -1};
};

}  // namespace lathe

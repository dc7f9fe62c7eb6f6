// What a mining run has done so far, on disk: journal.jsonl has one line a finished question,
// features.f32 the features of its tokens one behind the other. Features are written and synced
// before their line, so a run that is killed loses at most the questions it was at; a torn line
// and features without a line are cut off when the journal is opened again.
//
// Ranks keep a journal each: rank 0 the one of the directory, rank R > 0 one in its folder rank-R,
// which is taken into the first one and removed when a run ends or the next one starts, whatever
// its number of ranks. Shards (fit-judge --shard) are ranks from 1 on without a rank 0. A process
// locks the journal that it writes.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "compress/judge_miner.h"

namespace lathe {

// What the text of a journal says, up to its last whole line.
struct MiningJournalText {
  bool has_identity = false;  // false: not even the first line is whole
  std::vector<MinedQuestion> questions;
  int64_t num_rows = 0;     // tokens of all questions
  int64_t whole_bytes = 0;  // the lines; what is behind them is a torn one
};
// Throws kInvalidArgument when the first line is not the identity, kCorruptData, naming `path` and
// the line, for one that is not as append() writes it.
MiningJournalText parse_mining_journal(std::string_view text, const std::string& identity,
                                       const std::string& path);
// One line of the journal, without its end.
std::string mining_journal_line(const MinedQuestion& question);

class MiningJournal {
 public:
  // directory: made when it is not there. identity: what was mined with what; the first line.
  // Throws kInvalidArgument when the journal there has another, kCorruptData when it contradicts
  // itself, kIo, also where another process writes to it.
  MiningJournal(const std::string& directory, const std::string& identity, int64_t hidden_size);
  ~MiningJournal();
  MiningJournal(const MiningJournal&) = delete;
  MiningJournal& operator=(const MiningJournal&) = delete;

  // The questions of a journal, without their features and without opening it for writing; none
  // where there is no journal. Throws as the constructor.
  static std::vector<MinedQuestion> read_questions(const std::string& directory,
                                                   const std::string& identity);

  void append(const MinedQuestion& question);
  // Takes the questions of the journals in rank-* folders in, those that are not here already, and
  // removes the folders. Killed between the two, it finds the questions here the next time.
  void absorb_ranks();
  // Where rank `rank` of a run keeps its journal.
  static std::string directory_of_rank(const std::string& directory, int rank);
  // In order of completion, without their features.
  const std::vector<MinedQuestion>& questions() const { return questions_; }
  // [all tokens of all questions, hidden_size], in their order.
  std::vector<float> load_features() const;

 private:
  void load();

  std::string directory_;
  std::string identity_;
  int64_t hidden_size_;
  int64_t num_rows_ = 0;
  std::vector<MinedQuestion> questions_;
  int journal_fd_ = -1;
  int features_fd_ = -1;
};

}  // namespace lathe

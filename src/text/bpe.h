// Byte-pair encoding by ranked merges (Sennrich et al., "Neural Machine Translation of Rare Words
// with Subword Units", 2016), over bytes (GPT-2) or over characters (SentencePiece).
//
// A piece starts as one symbol per byte or character; the neighbouring pair with the best rank is
// joined, leftmost first, until no pair has a rank. Short pieces look for the best pair by a scan,
// long ones by a heap, so that a piece of n symbols takes O(n log n).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/token_table.h"
#include "text/tokenizer_spec.h"

namespace lathe {

class Bpe {
 public:
  // Takes the vocabulary as raw bytes in byte-level mode, else as text. `token_texts` is indexed by
  // id and must outlive the Bpe; in both cases only ids with spec.in_model take part.
  Bpe(const TokenizerSpec& spec, const std::vector<std::string_view>& token_texts);

  // Reused between pieces by one thread.
  struct Workspace {
    struct Symbol {
      int32_t id;
      int32_t previous, next;  // index of the neighbour, -1: none; next == kGone: merged away
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;   // rank << 32 | index of the left symbol
    std::vector<uint32_t> ranks;  // scan: rank of symbol i with symbol i + 1
  };

  // Appends the ids of one piece, which must be valid UTF-8 unless in byte-level mode.
  // Pieces are shorter than 2^31 bytes.
  void encode(std::string_view piece, Workspace& work, std::vector<int32_t>& ids) const;

  // The token whose vocabulary text (or bytes) is exactly this, or -1.
  int32_t find(std::string_view text) const { return ids_.find(text); }

 private:
  static constexpr uint32_t kNoRank = 0xFFFFFFFF;

  // Open addressing from a pair of ids to its rank: half the size and a quarter of the time of
  // std::unordered_map, and the look-up that all encoding waits for.
  struct PairTable {
    struct Slot {
      uint64_t pair;  // left << 32 | right
      uint32_t rank;  // kNoRank: empty
    };
    std::vector<Slot> slots;
    uint64_t mask = 0;
  };

  uint32_t rank(int32_t left, int32_t right) const;
  void split_into_symbols(std::string_view piece, Workspace& work) const;
  void merge_by_scan(Workspace& work) const;
  void merge_by_heap(Workspace& work) const;

  TokenTable ids_;
  PairTable pairs_;
  std::vector<int32_t> results_;          // by rank
  std::array<int32_t, 256> byte_ids_{};   // byte level: of the byte; else of its <0xXX> token
  std::array<int32_t, 128> ascii_ids_{};  // of one-character tokens
  bool byte_level_ = false;
  bool has_all_bytes_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  bool fuse_unknown_ = false;
  int32_t unknown_id_ = -1;
};

}  // namespace lathe

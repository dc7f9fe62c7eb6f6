// From the text of a token to its id. Building the merges of a SentencePiece vocabulary asks for
// millions of substrings, so the hash of every prefix of a text comes from that of the one before,
// and a look-up touches one cache line of the table before it compares texts.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace lathe {

class TokenTable {
 public:
  // Hash of a text, byte by byte.
  struct Hash {
    uint64_t state = 0xCBF29CE484222325;  // FNV-1a, 64 bits
    void add(char byte) { state = (state ^ static_cast<uint8_t>(byte)) * 0x100000001B3; }
    static Hash of(std::string_view text) {
      Hash hash;
      for (const char byte : text) hash.add(byte);
      return hash;
    }
  };

  TokenTable() = default;
  explicit TokenTable(size_t capacity);

  // Borrows the text. A text that comes again gets the new id. At most `capacity` texts.
  void insert(std::string_view text, int32_t id);
  // -1 when the text is not there.
  int32_t find(std::string_view text) const { return find(text, Hash::of(text)); }
  int32_t find(std::string_view text, Hash hash) const;

 private:
  struct Slot {
    uint32_t tag = 0;    // some bits of the hash
    int32_t entry = -1;  // index into entries_, -1: free
  };
  struct Entry {
    std::string_view text;
    int32_t id;
  };
  // Slot of the text, or the free one where it would go.
  size_t locate(std::string_view text, Hash hash) const;

  std::vector<Slot> slots_;  // a power of two, at most half full
  std::vector<Entry> entries_;
};

}  // namespace lathe

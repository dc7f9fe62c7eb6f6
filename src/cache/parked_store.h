// Parked pieces of prefixes, in memory and on disk: bytes under a key that says which tokens they
// are for. Both tiers are bounded and give up the least recently used piece first. What is put goes
// to both; what is found on disk alone comes back to memory.
//
// Keys are chained, so a key stands for everything before its piece too:
//   key 0 = SHA-256(fingerprints),  key i + 1 = SHA-256(key i, the piece's token ids)
//
// On disk every piece is a file of its own, KEY.kv, with its key, size and SHA-256 inside, written
// under another name and renamed. A file that a crash has torn, that has a bit flipped, or that is
// something else is deleted and counts as not there; the others are unharmed. Nothing is synced:
// after a power cut some pieces may be missing. Room is made before a piece is written, so the
// directory of one process is never over its size. Two processes may share a directory; a lock on
// what is being written tells the living from the dead.
//
// Losing a piece costs its computation, so nothing here throws once the store is open: what cannot
// be written or read is counted (Stats::num_errors) and missing.
//
// Not for use from several threads at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lathe {

// SHA-256 in hex; also the file's name.
using ParkedKey = std::string;

// What all pieces of one model and codec start from.
ParkedKey parked_root(std::string_view fingerprint);
ParkedKey parked_key(const ParkedKey& previous, std::span<const int32_t> tokens);

struct ParkedStoreOptions {
  int64_t memory_bytes = 0;  // 0: none is kept in memory
  std::string directory;     // empty: no disk; made when it does not exist
  int64_t disk_bytes = 0;
};

class ParkedStore {
 public:
  struct Stats {
    int64_t memory_bytes = 0;  // held now
    int64_t memory_pieces = 0;
    int64_t disk_bytes = 0;
    int64_t disk_pieces = 0;
    int64_t num_hits = 0;    // of get(), those from disk too
    int64_t num_misses = 0;  // of get()
    int64_t num_disk_hits = 0;
    int64_t num_evicted = 0;  // from their last tier
    int64_t num_corrupt = 0;  // files deleted for what was in them
    int64_t num_errors = 0;   // of the file system
  };

  // Lists what the directory has. Throws kIo when it cannot be made, read and written;
  // kInvalidArgument for a negative size.
  explicit ParkedStore(const ParkedStoreOptions& options);

  bool contains(const ParkedKey& key) const;
  // The piece, valid until the next call; nothing when there is none. Counts as a use.
  std::optional<std::span<const std::byte>> get(const ParkedKey& key);
  // Counts as a use.
  void touch(const ParkedKey& key);
  // Keeps a copy. A key that is there already counts as used, no more.
  void put(const ParkedKey& key, std::span<const std::byte> piece);
  const Stats& stats() const { return stats_; }

 private:
  struct MemoryPiece {
    ParkedKey key;
    std::vector<std::byte> bytes;
  };
  struct DiskPiece {
    ParkedKey key;
    int64_t bytes = 0;  // of the file
  };
  // Both lists: the most recently used first.
  using MemoryList = std::list<MemoryPiece>;
  using DiskList = std::list<DiskPiece>;

  std::string path_of(const ParkedKey& key) const;
  void open_directory();
  void keep_in_memory(const ParkedKey& key, std::span<const std::byte> piece);
  void write_to_disk(const ParkedKey& key, std::span<const std::byte> piece);
  bool read_from_disk(const ParkedKey& key, std::vector<std::byte>& piece);
  void forget_on_disk(DiskList::iterator piece);
  void shrink_memory();
  void shrink_disk(int64_t max_bytes);

  const ParkedStoreOptions options_;
  MemoryList memory_;
  DiskList disk_;
  std::unordered_map<ParkedKey, MemoryList::iterator> in_memory_;
  std::unordered_map<ParkedKey, DiskList::iterator> on_disk_;
  std::vector<std::byte> loaded_;  // the last piece that came from disk
  Stats stats_;
};

}  // namespace lathe

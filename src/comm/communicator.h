// Processes that work on one job together, called ranks: what they exchange, whatever carries it.
// One implementation for a process alone, one for MPI (make_communicator(), launch.h).
//
// Every rank makes the same calls in the same order. A rank that fails does not tell the others
// through these functions: it ends the job (abort()), since they may be waiting for it anywhere.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace lathe {

// Used by one thread. Sizes are equal on both ends. Throw kIo, naming the other rank and its host,
// where the connection fails before the launcher ends the job.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // 0 to size() - 1
  virtual int size() const = 0;
  virtual const std::string& host(int rank) const = 0;  // name of the machine that a rank runs on

  virtual void send(int to, std::span<const std::byte> data) = 0;
  virtual void receive(int from, std::span<std::byte> data) = 0;
  // What `root` has, on all ranks.
  virtual void broadcast(int root, std::span<std::byte> data) = 0;
  // Returns when all ranks have called it.
  virtual void barrier() = 0;
  // Ends every process of the job, at once and for good.
  [[noreturn]] virtual void abort(int exit_code) = 0;
};

// A process alone.
class SoloCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& host(int rank) const override;
  void send(int to, std::span<const std::byte> data) override;
  void receive(int from, std::span<std::byte> data) override;
  void broadcast(int, std::span<std::byte>) override {}
  void barrier() override {}
  [[noreturn]] void abort(int exit_code) override;
};

// "rank 1 of 2 (host a)", for messages.
std::string rank_name(const Communicator& ranks, int rank);

// Sums over the ranks, in double and in the order of ranks, rounded once to the type at the end: so
// a result depends on how the work was split, but not on which rank is `root` or on the network.
// The sums replace root's values; those of the others are left alone.
void reduce_sum(Communicator& ranks, int root, std::span<float> values);
void reduce_sum(Communicator& ranks, int root, std::span<double> values);
// The same sums on all ranks.
void all_reduce_sum(Communicator& ranks, std::span<double> values);
// The largest of each, on all ranks.
void all_reduce_max(Communicator& ranks, std::span<float> values);

// Of root's, whatever their sizes; what the others had is lost.
void broadcast_text(Communicator& ranks, int root, std::string& text);
template <typename T>
void broadcast_value(Communicator& ranks, int root, T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  ranks.broadcast(root, std::as_writable_bytes(std::span(&value, 1)));
}
template <typename T>
void broadcast_vector(Communicator& ranks, int root, std::vector<T>& values) {
  static_assert(std::is_trivially_copyable_v<T>);
  auto size = static_cast<int64_t>(values.size());
  broadcast_value(ranks, root, size);
  values.resize(static_cast<std::size_t>(size));
  ranks.broadcast(root, std::as_writable_bytes(std::span(values)));
}

// Which of `count` pieces of work, in their order, are a rank's: consecutive ones, as many for each
// as can be.
struct RankShare {
  int64_t begin = 0;
  int64_t end = 0;
};
RankShare share_of(int64_t count, int rank, int size);

}  // namespace lathe

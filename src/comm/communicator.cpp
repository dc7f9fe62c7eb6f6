#include "comm/communicator.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/check.h"
#include "base/error.h"

namespace lathe {
namespace {

constexpr std::size_t kPiece = std::size_t{1}
                               << 18;  // numbers on their way at a time: 2 MiB at the most

// root's values become combine(... combine(value of rank 0, value of rank 1) ...).
template <typename T, typename Sum, typename Combine>
void reduce(Communicator& ranks, int root, std::span<T> values, Combine combine) {
  if (ranks.size() == 1) return;
  std::vector<Sum> sums;
  std::vector<T> received;
  for (std::size_t first = 0; first < values.size(); first += kPiece) {
    const std::span<T> piece = values.subspan(first, std::min(kPiece, values.size() - first));
    if (ranks.rank() != root) {
      ranks.send(root, std::as_bytes(piece));
      continue;
    }
    sums.resize(piece.size());
    received.resize(piece.size());
    for (int rank = 0; rank < ranks.size(); ++rank) {
      std::span<const T> from = piece;
      if (rank != root) {
        ranks.receive(rank, std::as_writable_bytes(std::span(received)));
        from = received;
      }
      for (std::size_t i = 0; i < from.size(); ++i) {
        sums[i] = rank == 0 ? Sum{from[i]} : combine(sums[i], Sum{from[i]});
      }
    }
    for (std::size_t i = 0; i < piece.size(); ++i) piece[i] = static_cast<T>(sums[i]);
  }
}

double add(double a, double b) { return a + b; }

}  // namespace

const std::string& SoloCommunicator::host(int) const {
  static const std::string name = "this machine";
  return name;
}

void SoloCommunicator::send(int, std::span<const std::byte>) { LATHE_CHECK(false); }
void SoloCommunicator::receive(int, std::span<std::byte>) { LATHE_CHECK(false); }
void SoloCommunicator::abort(int exit_code) { ::_exit(exit_code); }

std::string rank_name(const Communicator& ranks, int rank) {
  return str("rank ", rank, " of ", ranks.size(), " (host ", ranks.host(rank), ")");
}

void reduce_sum(Communicator& ranks, int root, std::span<float> values) {
  reduce<float, double>(ranks, root, values, add);
}

void reduce_sum(Communicator& ranks, int root, std::span<double> values) {
  reduce<double, double>(ranks, root, values, add);
}

void all_reduce_sum(Communicator& ranks, std::span<double> values) {
  reduce_sum(ranks, 0, values);
  ranks.broadcast(0, std::as_writable_bytes(values));
}

void all_reduce_max(Communicator& ranks, std::span<float> values) {
  reduce<float, float>(ranks, 0, values, [](float a, float b) { return std::max(a, b); });
  ranks.broadcast(0, std::as_writable_bytes(values));
}

void broadcast_text(Communicator& ranks, int root, std::string& text) {
  auto size = static_cast<int64_t>(text.size());
  broadcast_value(ranks, root, size);
  text.resize(static_cast<std::size_t>(size));
  ranks.broadcast(root, std::as_writable_bytes(std::span(text)));
}

RankShare share_of(int64_t count, int rank, int size) {
  return {count * rank / size, count * (rank + 1) / size};
}

}  // namespace lathe

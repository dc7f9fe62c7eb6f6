#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "comm/launch.h"

namespace lathe {
namespace {

constexpr std::size_t kMaxMessage = std::size_t{1} << 30;  // MPI counts in int
constexpr std::size_t kHostBytes = 256;

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator() {
    int provided = 0;
    // Only this thread calls MPI; the thread pool's workers compute.
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS ||
        provided < MPI_THREAD_FUNNELED) {
      fail(ErrorCode::kInternal, "MPI does not start with threads");
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    std::array<char, kHostBytes> own{};
    ::gethostname(own.data(), own.size() - 1);
    std::vector<char> all(kHostBytes * static_cast<std::size_t>(size_));
    MPI_Allgather(own.data(), kHostBytes, MPI_CHAR, all.data(), kHostBytes, MPI_CHAR,
                  MPI_COMM_WORLD);
    for (int rank = 0; rank < size_; ++rank) {
      hosts_.emplace_back(all.data() + kHostBytes * static_cast<std::size_t>(rank));
    }
  }
  ~MpiCommunicator() override { MPI_Finalize(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& host(int rank) const override {
    return hosts_[static_cast<std::size_t>(rank)];
  }

  void send(int to, std::span<const std::byte> data) override {
    in_messages(data, [&](std::span<const std::byte> part) {
      check("sending to", to,
            MPI_Send(part.data(), static_cast<int>(part.size()), MPI_BYTE, to, 0, MPI_COMM_WORLD));
    });
  }

  void receive(int from, std::span<std::byte> data) override {
    in_messages(data, [&](std::span<std::byte> part) {
      check("receiving from", from,
            MPI_Recv(part.data(), static_cast<int>(part.size()), MPI_BYTE, from, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE));
    });
  }

  void broadcast(int root, std::span<std::byte> data) override {
    in_messages(data, [&](std::span<std::byte> part) {
      check("broadcasting of", root,
            MPI_Bcast(part.data(), static_cast<int>(part.size()), MPI_BYTE, root, MPI_COMM_WORLD));
    });
  }

  void barrier() override { check("waiting with", 0, MPI_Barrier(MPI_COMM_WORLD)); }

  [[noreturn]] void abort(int exit_code) override {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    ::_exit(exit_code);
  }

 private:
  template <typename Byte, typename Body>
  static void in_messages(std::span<Byte> data, Body&& body) {
    for (std::size_t first = 0; first < data.size(); first += kMaxMessage) {
      body(data.subspan(first, std::min(kMaxMessage, data.size() - first)));
    }
  }

  void check(const char* what, int rank, int code) const {
    if (code == MPI_SUCCESS) return;
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    MPI_Error_string(code, text.data(), &length);
    fail(ErrorCode::kIo, what, " ", rank_name(*this, rank), ": ",
         std::string_view(text.data(), static_cast<std::size_t>(length)));
  }

  int rank_ = 0;
  int size_ = 1;
  std::vector<std::string> hosts_;
};

}  // namespace

std::unique_ptr<Communicator> make_communicator() {
  if (launched().size == 1) return std::make_unique<SoloCommunicator>();
  return std::make_unique<MpiCommunicator>();
}

}  // namespace lathe

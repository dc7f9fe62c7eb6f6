// One accepted socket, plain or TLS: bytes in and out with deadlines, and whether its client is
// still there. The socket does not block; waiting is done by poll() with what is left of the time.
//
// Threads: one uses it; is_gone(), fd() and shut_down() may be called from any.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "server/tls.h"

struct ssl_st;

namespace lathe {

// Whether the client of a request still waits for the answer. A client that closes its sending side
// counts as gone, as with other servers of this API.
class ClientWatch {
 public:
  virtual ~ClientWatch() = default;
  virtual bool is_gone() const = 0;
  // For poll(): POLLRDHUP, POLLHUP or POLLERR when the client leaves. -1: cannot be polled.
  virtual int fd() const = 0;
};

class Connection : public ClientWatch {
 public:
  using Clock = std::chrono::steady_clock;
  using Deadline = Clock::time_point;

  // Takes over the socket. tls: null for plain.
  Connection(int socket, const TlsContext* tls);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Result { kOk, kClosed, kTimeout };
  // TLS handshake; kOk at once without TLS.
  Result handshake(Deadline deadline);
  // Appends at least one byte, at most max_bytes, to `buffer`.
  Result receive(std::string& buffer, std::size_t max_bytes, Deadline deadline);
  // All of it. kTimeout: the client reads too slowly.
  Result send(const char* bytes, std::size_t size, Deadline deadline);

  bool is_gone() const override;
  int fd() const override { return socket_; }
  // Ends waiting calls and makes later ones fail.
  void shut_down();
  // Tells the client that nothing more comes, then reads what it still sends for a moment: closing
  // a socket with unread bytes would reset it and might take the answer with it.
  void linger(std::chrono::milliseconds limit);
  // Address of the client, for logs.
  const std::string& peer() const { return peer_; }

 private:
  bool wait(short events, Deadline deadline) const;

  const int socket_;
  ssl_st* ssl_ = nullptr;
  std::atomic<bool> is_shut_down_{false};
  std::string peer_;
};

}  // namespace lathe

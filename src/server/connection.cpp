#include "server/connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/error.h"

namespace lathe {
namespace {

std::string address_of(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "?";
  char text[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
    inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return str(text, ":", ntohs(v4->sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return str("[", text, "]:", ntohs(v6->sin6_port));
  }
  return "local";
}

// A peer that vanished without a word is noticed after half a minute: by probes while nothing is
// sent, by missing acknowledgements while something is.
void watch_for_dead_peers(int socket) {
  const auto set = [socket](int level, int option, int value) {
    setsockopt(socket, level, option, &value, sizeof value);  // a socket without it still works
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

}  // namespace

Connection::Connection(int socket, const TlsContext* tls)
    : socket_(socket), peer_(address_of(socket)) {
  watch_for_dead_peers(socket);
  if (tls == nullptr) return;
  ssl_ = SSL_new(tls->get());
  if (ssl_ == nullptr || SSL_set_fd(ssl_, socket) != 1) {
    SSL_free(ssl_);
    close(socket);
    fail(ErrorCode::kOutOfMemory, "OpenSSL has no memory for a connection");
  }
}

Connection::~Connection() {
  SSL_free(ssl_);
  close(socket_);
}

bool Connection::wait(short events, Deadline deadline) const {
  while (!is_shut_down_) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return false;
    pollfd poll_fd = {.fd = socket_, .events = events, .revents = 0};
    const int timeout = static_cast<int>(std::min<int64_t>(left.count(), 60'000));
    const int ready = poll(&poll_fd, 1, timeout);
    if (ready > 0) return true;  // or an error, which the next call tells
    if (ready < 0 && errno != EINTR) return true;
  }
  return true;
}

Connection::Result Connection::handshake(Deadline deadline) {
  if (ssl_ == nullptr) return Result::kOk;
  while (!is_shut_down_) {
    ERR_clear_error();
    const int done = SSL_accept(ssl_);
    if (done == 1) return Result::kOk;
    const int reason = SSL_get_error(ssl_, done);
    if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE) return Result::kClosed;
    if (!wait(reason == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, deadline)) return Result::kTimeout;
  }
  return Result::kClosed;
}

Connection::Result Connection::receive(std::string& buffer, std::size_t max_bytes,
                                       Deadline deadline) {
  char bytes[16 << 10];
  const std::size_t wanted = std::min(max_bytes, sizeof bytes);
  while (!is_shut_down_) {
    short events = POLLIN;
    if (ssl_ != nullptr) {
      ERR_clear_error();
      const int size = SSL_read(ssl_, bytes, static_cast<int>(wanted));
      if (size > 0) {
        buffer.append(bytes, static_cast<std::size_t>(size));
        return Result::kOk;
      }
      const int reason = SSL_get_error(ssl_, size);
      if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE) return Result::kClosed;
      if (reason == SSL_ERROR_WANT_WRITE) events = POLLOUT;
    } else {
      const ssize_t size = recv(socket_, bytes, wanted, 0);
      if (size > 0) {
        buffer.append(bytes, static_cast<std::size_t>(size));
        return Result::kOk;
      }
      if (size == 0) return Result::kClosed;
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return Result::kClosed;
    }
    if (!wait(events, deadline)) return Result::kTimeout;
  }
  return Result::kClosed;
}

Connection::Result Connection::send(const char* bytes, std::size_t size, Deadline deadline) {
  std::size_t sent = 0;
  while (sent < size) {
    if (is_shut_down_) return Result::kClosed;
    short events = POLLOUT;
    const std::size_t left = std::min<std::size_t>(size - sent, 1 << 20);
    if (ssl_ != nullptr) {
      ERR_clear_error();
      const int done = SSL_write(ssl_, bytes + sent, static_cast<int>(left));
      if (done > 0) {
        sent += static_cast<std::size_t>(done);
        continue;
      }
      const int reason = SSL_get_error(ssl_, done);
      if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE) return Result::kClosed;
      if (reason == SSL_ERROR_WANT_READ) events = POLLIN;
    } else {
      const ssize_t done = ::send(socket_, bytes + sent, left, MSG_NOSIGNAL);
      if (done > 0) {
        sent += static_cast<std::size_t>(done);
        continue;
      }
      if (done < 0 && errno == EINTR) continue;
      if (done < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return Result::kClosed;
    }
    if (!wait(events, deadline)) return Result::kTimeout;
  }
  return Result::kOk;
}

bool Connection::is_gone() const {
  if (is_shut_down_) return true;
  pollfd poll_fd = {.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void Connection::shut_down() {
  is_shut_down_ = true;
  shutdown(socket_, SHUT_RDWR);
}

void Connection::linger(std::chrono::milliseconds limit) {
  const Deadline deadline = Clock::now() + limit;
  if (ssl_ != nullptr) SSL_shutdown(ssl_);
  shutdown(socket_, SHUT_WR);
  char bytes[16 << 10];
  while (wait(POLLIN, deadline)) {
    const ssize_t size = recv(socket_, bytes, sizeof bytes, 0);
    if (size == 0 || (size < 0 && errno != EINTR && errno != EAGAIN)) return;
    if (Clock::now() >= deadline) return;
  }
}

}  // namespace lathe

// Accepts connections and answers their requests, one thread for each connection. An engine on one
// machine serves some hundred streams at most, which threads bear.
//
//   accept -> TLS handshake -> [ head -> check_head() -> body -> handle() -> answer ] ... -> close
//
// Every wait has a deadline (http_limits.h), so a client that says nothing, half a request, or
// reads nothing costs a connection for a bounded time.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "server/connection.h"
#include "server/http.h"
#include "server/http_limits.h"
#include "server/tls.h"

namespace lathe {

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // an address of this machine, or a name that stands for one
  int port = 8000;                 // 0: a free one
  HttpLimits limits;
};

struct HttpServerStats {
  int64_t open_connections = 0;
  int64_t accepted_connections = 0;
  int64_t refused_connections = 0;  // over max_connections
};

// An address and port, taken before there is anything to serve; clients are refused until listen().
class BoundSocket {
 public:
  // Throws kInvalidArgument for a host or a port that is none, kIo when the port cannot be had.
  BoundSocket(const std::string& host, int port);
  BoundSocket(BoundSocket&& other) noexcept;
  ~BoundSocket();

  void listen();
  int fd() const { return fd_; }
  int port() const { return port_; }

 private:
  std::string host_;
  int fd_ = -1;
  int port_ = 0;
};

class HttpServer {
 public:
  // Requests are taken from start() on, which listens. Borrows handler and tls (null: plain).
  HttpServer(BoundSocket socket, const HttpLimits& limits, const TlsContext* tls,
             HttpHandler& handler);
  // The same on a socket of its own.
  HttpServer(const HttpServerOptions& options, const TlsContext* tls, HttpHandler& handler);
  ~HttpServer();  // stop(0)
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void start();
  // Takes no more connections, closes idle ones, and waits until the open requests are answered;
  // after `patience` their clients are told no more. False when that had to be done.
  bool stop(std::chrono::milliseconds patience);

  int port() const { return socket_.port(); }
  HttpServerStats stats() const;

 private:
  struct Client;
  void accept_clients();
  void add_client(int socket);
  void serve(Client& client);
  bool serve_request(Client& client);
  bool answer_refusal(Client& client, int status, const std::string& message);
  void reap();

  BoundSocket socket_;
  const HttpLimits limits_;
  const TlsContext* tls_;
  HttpHandler& handler_;
  int wake_ = -1;  // eventfd: written to when the listener shall end
  std::thread acceptor_;

  mutable std::mutex mutex_;
  std::condition_variable client_left_;
  std::list<std::unique_ptr<Client>> clients_;
  bool stopping_ = false;
  HttpServerStats stats_;
};

}  // namespace lathe

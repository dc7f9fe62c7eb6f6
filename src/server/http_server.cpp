#include "server/http_server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "server/http_codec.h"
#include "server/request_id.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;
using Result = Connection::Result;

constexpr int kBacklog = 128;

[[noreturn]] void fail_to_listen(const std::string& host, int port, int error) {
  const std::string reason = std::error_code(error, std::generic_category()).message();
  fail(ErrorCode::kIo, "cannot listen on ", host, " port ", port, ": ", reason,
       "; choose another with --host and --port");
}

// SO_REUSEADDR lets a restart have its port back at once; SO_REUSEPORT, which would let two servers
// share it unnoticed, stays off.
int bind_to(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0) {
    fail(ErrorCode::kInvalidArgument, "--host ", host, ": ", gai_strerror(code),
         "; give an address of this machine, such as 127.0.0.1");
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  int error = 0;
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    const int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
      error = errno;
      continue;
    }
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0) return fd;
    error = errno;
    close(fd);
  }
  fail_to_listen(host, port, error);
}

int bound_port(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

// The connection as the codec sees it, each call with its deadline.
class ConnectionChannel : public ByteChannel {
 public:
  ConnectionChannel(Connection& connection, const HttpLimits& limits)
      : connection_(connection),
        limits_(limits),
        body_deadline_(Clock::now() + limits.body_timeout) {}
  Result receive(std::string& buffer, std::size_t max_bytes) override {
    return connection_.receive(buffer, max_bytes, body_deadline_);
  }
  Result send(const char* bytes, std::size_t size) override {
    return connection_.send(bytes, size, Clock::now() + limits_.write_timeout);
  }

 private:
  Connection& connection_;
  const HttpLimits& limits_;
  Clock::time_point body_deadline_;
};

}  // namespace

// A connection and its thread. `state` tells stop() whom it may close at once.
struct HttpServer::Client {
  Client(int socket, const TlsContext* tls) : connection(socket, tls) {}
  Connection connection;
  std::thread thread;
  std::string buffer;    // received, not yet used
  bool is_idle = true;   // between requests; guarded by mutex_
  bool is_done = false;  // its thread is about to end; guarded by mutex_
};

BoundSocket::BoundSocket(const std::string& host, int port) : host_(host) {
  if (port < 0 || port > 65535) {
    fail(ErrorCode::kInvalidArgument, "--port ", port, ": 1 to 65535, or 0 for a free one");
  }
  fd_ = bind_to(host, port);
  port_ = bound_port(fd_);
}

BoundSocket::BoundSocket(BoundSocket&& other) noexcept
    : host_(std::move(other.host_)), fd_(std::exchange(other.fd_, -1)), port_(other.port_) {}

BoundSocket::~BoundSocket() {
  if (fd_ >= 0) close(fd_);
}

void BoundSocket::listen() {
  if (::listen(fd_, kBacklog) != 0) fail_to_listen(host_, port_, errno);
}

HttpServer::HttpServer(BoundSocket socket, const HttpLimits& limits, const TlsContext* tls,
                       HttpHandler& handler)
    : socket_(std::move(socket)), limits_(limits), tls_(tls), handler_(handler) {
  validate(limits);
  signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  wake_ = eventfd(0, EFD_CLOEXEC);
}

HttpServer::HttpServer(const HttpServerOptions& options, const TlsContext* tls,
                       HttpHandler& handler)
    : HttpServer(BoundSocket(options.host, options.port), options.limits, tls, handler) {}

HttpServer::~HttpServer() {
  stop(std::chrono::milliseconds(0));
  close(wake_);
}

void HttpServer::start() {
  socket_.listen();
  acceptor_ = std::thread([this] { accept_clients(); });
}

HttpServerStats HttpServer::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void HttpServer::accept_clients() {
  for (;;) {
    pollfd fds[2] = {{socket_.fd(), POLLIN, 0}, {wake_, POLLIN, 0}};
    poll(fds, 2, 200);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    reap();
    const int fd = accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      add_client(fd);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      // Nothing to accept with until some connection ends.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
}

void HttpServer::add_client(int socket) {
  {
    const std::lock_guard lock(mutex_);
    if (stats_.open_connections >= limits_.max_connections) {
      ++stats_.refused_connections;
      if (tls_ == nullptr) {
        // One try: the socket's buffer is empty, so this does not wait.
        const std::string body =
            R"json({"error":{"message":"too many connections (--max-connections)",)json"
            R"("type":"server_error","param":null,"code":"overloaded"}})";
        const std::string answer =
            str("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n",
                "Retry-After: 1\r\nConnection: close\r\nContent-Length: ", body.size(), "\r\n\r\n",
                body);
        (void)!send(socket, answer.data(), answer.size(), MSG_NOSIGNAL);
        shutdown(socket, SHUT_WR);
      }
      close(socket);
      return;
    }
  }
  try {
    auto client = std::make_unique<Client>(socket, tls_);
    const std::lock_guard lock(mutex_);
    Client& added = *clients_.emplace_back(std::move(client));
    ++stats_.accepted_connections;
    ++stats_.open_connections;
    try {
      added.thread = std::thread([this, &added] { serve(added); });
    } catch (...) {
      --stats_.open_connections;
      clients_.pop_back();
      throw;
    }
  } catch (const std::exception&) {
    // No memory or no thread for it: the socket was closed on the way.
    const std::lock_guard lock(mutex_);
    ++stats_.refused_connections;
  }
}

void HttpServer::serve(Client& client) {
  bool in_order = false;
  try {
    const auto deadline = Clock::now() + limits_.head_timeout;
    if (client.connection.handshake(deadline) == Result::kOk) {
      while (serve_request(client)) {
      }
      in_order = true;
    }
  } catch (const std::exception&) {
    // Out of memory: this client's request is lost, the others are not.
  }
  if (in_order && !client.connection.is_gone()) {
    client.connection.linger(std::chrono::milliseconds(500));
  }
  client.connection.shut_down();
  const std::lock_guard lock(mutex_);
  client.is_done = true;
  --stats_.open_connections;
  client_left_.notify_all();
}

// False: the connection ends.
bool HttpServer::serve_request(Client& client) {
  const HttpLimits& limits = limits_;
  Connection& connection = client.connection;
  std::optional<std::size_t> head_end;
  Connection::Deadline deadline = Clock::now() + limits.idle_timeout;
  bool has_begun = false;
  std::size_t searched = 0;
  while (!head_end) {
    // A blank line in front of a request is ignored (RFC 9112, section 2.2).
    if (!has_begun && client.buffer.rfind("\r\n", 0) == 0) client.buffer.erase(0, 2);
    if (!has_begun && !client.buffer.empty()) {
      has_begun = true;
      deadline = Clock::now() + limits.head_timeout;
    }
    head_end = find_head_end(client.buffer, searched);
    searched = client.buffer.size();
    const auto size = static_cast<int64_t>(head_end.value_or(client.buffer.size()));
    if (size > limits.max_head_bytes) {
      return answer_refusal(
          client, 431,
          str("the headers have more than ", limits.max_head_bytes, " bytes (--max-header)"));
    }
    if (head_end) break;
    const Result result = connection.receive(client.buffer, 16 << 10, deadline);
    if (result == Result::kTimeout && has_begun) {
      return answer_refusal(client, 408, "the request's headers did not arrive in time");
    }
    if (result != Result::kOk) return false;
  }
  {
    const std::lock_guard lock(mutex_);
    client.is_idle = false;
  }

  const auto start = Clock::now();
  const auto parsed =
      parse_request_head(std::string_view(client.buffer).substr(0, *head_end), limits);
  client.buffer.erase(0, *head_end);
  if (const auto* refusal = std::get_if<HeadRefusal>(&parsed)) {
    return answer_refusal(client, refusal->status, refusal->message);
  }
  const RequestHead& head = std::get<RequestHead>(parsed);
  HttpRequest request{.id = head.request_id.empty() ? new_request_id() : head.request_id,
                      .method = head.method,
                      .path = head.path,
                      .query = head.query,
                      .host = head.host,
                      .authorization = head.authorization,
                      .content_type = head.content_type,
                      .user_agent = head.user_agent,
                      .peer = connection.peer(),
                      .has_body = head.has_body(),
                      .body = {}};
  ConnectionChannel channel(connection, limits);
  bool stopping = false;
  {
    const std::lock_guard lock(mutex_);
    stopping = stopping_;
  }
  CodecResult result =
      run_request(head, request, handler_.check_head(request), !head.keep_alive || stopping,
                  client.buffer, channel, connection, handler_, limits);
  result.outcome.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  handler_.finished(request, result.outcome);
  const std::lock_guard lock(mutex_);
  client.is_idle = true;
  return result.can_go_on && !stopping_;
}

// What cannot be read gets an answer all the same; then the connection ends.
bool HttpServer::answer_refusal(Client& client, int status, const std::string& message) {
  {
    const std::lock_guard lock(mutex_);
    client.is_idle = false;
  }
  const auto start = Clock::now();
  RequestHead head;
  head.forwarded = "GET / HTTP/1.1\r\n\r\n";
  HttpRequest request;
  request.id = new_request_id();
  request.method = "?";
  request.path = "?";
  request.peer = client.connection.peer();
  ConnectionChannel channel(client.connection, limits_);
  CodecResult result =
      run_request(head, request, handler_.refuse(request, status, message), /*close=*/true,
                  client.buffer, channel, client.connection, handler_, limits_);
  result.outcome.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  handler_.finished(request, result.outcome);
  return false;
}

// Joins the threads of connections that have ended.
void HttpServer::reap() {
  std::list<std::unique_ptr<Client>> done;
  {
    const std::lock_guard lock(mutex_);
    for (auto it = clients_.begin(); it != clients_.end();) {
      const auto next = std::next(it);
      if ((*it)->is_done) done.splice(done.end(), clients_, it);
      it = next;
    }
  }
  for (const std::unique_ptr<Client>& client : done) {
    if (client->thread.joinable()) client->thread.join();
  }
}

bool HttpServer::stop(std::chrono::milliseconds patience) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
  if (acceptor_.joinable()) acceptor_.join();
  // New connections are refused by the system from here on.
  shutdown(socket_.fd(), SHUT_RDWR);

  bool in_time = true;
  {
    std::unique_lock lock(mutex_);
    for (const std::unique_ptr<Client>& client : clients_) {
      if (client->is_idle && !client->is_done) client->connection.shut_down();
    }
    in_time = client_left_.wait_for(lock, patience, [&] { return stats_.open_connections == 0; });
    for (const std::unique_ptr<Client>& client : clients_) {
      if (!client->is_done) client->connection.shut_down();
    }
    client_left_.wait(lock, [&] { return stats_.open_connections == 0; });
  }
  reap();
  return in_time;
}

}  // namespace lathe

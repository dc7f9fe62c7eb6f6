#include "server/http_codec.h"

#include <httplib.h>

#include <algorithm>

#include "base/error.h"

namespace lathe {
namespace {

using Result = Connection::Result;

// The library's view of one request: head and body to read, an answer to write.
class CodecStream : public httplib::Stream {
 public:
  CodecStream(const RequestHead& head, std::string& buffer, ByteChannel& channel, int64_t max_body)
      : head_(head), buffer_(buffer), channel_(channel), body_left_(max_body) {}

  bool is_readable() const override { return true; }
  bool is_writable() const override { return write_result_ == Result::kOk; }

  ssize_t read(char* bytes, size_t size) override {
    if (head_read_ < head_.forwarded.size()) {
      const std::size_t taken = std::min(size, head_.forwarded.size() - head_read_);
      std::copy_n(head_.forwarded.data() + head_read_, taken, bytes);
      head_read_ += taken;
      return static_cast<ssize_t>(taken);
    }
    if (read_result_ != Result::kOk || too_large_) return -1;
    if (body_left_ == 0) {
      too_large_ = true;
      return -1;
    }
    if (buffer_begin_ == buffer_.size()) {
      buffer_.clear();
      buffer_begin_ = 0;
      read_result_ = channel_.receive(buffer_, 16 << 10);
      if (read_result_ != Result::kOk) return -1;
    }
    const std::size_t taken =
        std::min({size, buffer_.size() - buffer_begin_, static_cast<std::size_t>(body_left_)});
    std::copy_n(buffer_.data() + buffer_begin_, taken, bytes);
    buffer_begin_ += taken;
    body_left_ -= static_cast<int64_t>(taken);
    return static_cast<ssize_t>(taken);
  }

  ssize_t write(const char* bytes, size_t size) override {
    if (write_result_ == Result::kOk) write_result_ = channel_.send(bytes, size);
    return write_result_ == Result::kOk ? static_cast<ssize_t>(size) : -1;
  }

  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return 0; }  // the library only compares it with FD_SETSIZE

  // Takes out of the buffer what was read.
  void finish() {
    buffer_.erase(0, buffer_begin_);
    buffer_begin_ = 0;
  }
  bool is_too_large() const { return too_large_; }
  Result read_result() const { return read_result_; }
  Result write_result() const { return write_result_; }

 private:
  const RequestHead& head_;
  std::size_t head_read_ = 0;
  std::string& buffer_;
  std::size_t buffer_begin_ = 0;
  ByteChannel& channel_;
  int64_t body_left_;
  bool too_large_ = false;
  Result read_result_ = Result::kOk;
  Result write_result_ = Result::kOk;
};

// The library's server, for one request: no sockets, one route.
class Codec : public httplib::Server {
 public:
  Codec(HttpRequest& request, std::optional<HttpResponse> early, CodecStream& stream,
        const ClientWatch& client, HttpHandler& handler, const HttpLimits& limits, bool http_1_0)
      : request_(request),
        early_(std::move(early)),
        stream_(stream),
        client_(client),
        handler_(handler),
        http_1_0_(http_1_0) {
    set_keep_alive_timeout(limits.idle_timeout.count() / 1000);
    set_keep_alive_max_count(1'000'000);
    svr_sock_ = 0;  // anything but INVALID_SOCKET: it means "shutting down" to streamed answers
    set_pre_routing_handler([this](const httplib::Request&, httplib::Response& response) {
      if (!early_ && request_.has_body) return HandlerResponse::Unhandled;  // read the body first
      answer(response);
      return HandlerResponse::Handled;
    });
    const auto with_body = [this](const httplib::Request& read, httplib::Response& response) {
      request_.body = read.body;
      answer(response);
    };
    Post("/", with_body);  // what has a body comes as POST (request_head.cpp)
    set_error_handler(
        HandlerWithResponse([this](const httplib::Request&, httplib::Response& response) {
          if (!answered_) refuse(response);
          return HandlerResponse::Handled;
        }));
  }

  void run(bool close) {
    bool connection_closed = false;
    completed_ = process_request(stream_, close, connection_closed, nullptr);
  }
  bool answered() const { return answered_; }
  bool completed() const { return completed_ && !stream_failed_; }
  int status() const { return status_; }
  int64_t body_bytes() const { return body_bytes_; }

 private:
  void answer(httplib::Response& response) {
    answered_ = true;
    fill(response, early_ ? std::move(*early_) : handler_.handle(request_, client_));
  }

  // The library could not read the body.
  void refuse(httplib::Response& response) {
    if (stream_.is_too_large()) {
      fill(response, handler_.refuse(request_, 413, "the body is too large (--max-body)"));
    } else if (stream_.read_result() == Result::kTimeout) {
      fill(response, handler_.refuse(request_, 408, "the body did not arrive in time"));
    } else {
      const int status = response.status >= 400 ? response.status : 400;
      fill(response, handler_.refuse(request_, status, "the request could not be read"));
    }
  }

  void fill(httplib::Response& response, HttpResponse answer) {
    response.status = status_ = answer.status;
    for (const auto& [name, value] : answer.headers) response.set_header(name, value);
    if (!answer.stream) {
      body_bytes_ = static_cast<int64_t>(answer.body.size());
      response.set_content(answer.body, answer.content_type);
      return;
    }
    const auto provide = [this, stream = std::move(answer.stream)](std::size_t,
                                                                   httplib::DataSink& sink) {
      stream([&](std::string_view piece) {
        if (piece.empty()) return !stream_failed_;
        if (stream_failed_ || !sink.write(piece.data(), piece.size())) {
          stream_failed_ = true;
          return false;
        }
        body_bytes_ += static_cast<int64_t>(piece.size());
        return true;
      });
      if (stream_failed_) return false;
      sink.done();
      return true;
    };
    // HTTP/1.0 knows no chunks: the body ends with the connection.
    if (http_1_0_) {
      response.set_content_provider(answer.content_type, provide);
    } else {
      response.set_chunked_content_provider(answer.content_type, provide);
    }
  }

  HttpRequest& request_;
  std::optional<HttpResponse> early_;
  CodecStream& stream_;
  const ClientWatch& client_;
  HttpHandler& handler_;
  const bool http_1_0_;
  bool answered_ = false;
  bool completed_ = false;
  bool stream_failed_ = false;
  int status_ = 0;
  int64_t body_bytes_ = 0;
};

}  // namespace

CodecResult run_request(const RequestHead& head, HttpRequest& request,
                        std::optional<HttpResponse> early, bool close, std::string& buffer,
                        ByteChannel& channel, const ClientWatch& client, HttpHandler& handler,
                        const HttpLimits& limits) {
  const bool skips_body = early.has_value() && head.has_body();
  CodecStream stream(head, buffer, channel, limits.max_body_bytes);
  Codec codec(request, std::move(early), stream, client, handler, limits, head.is_http_1_0);
  codec.run(close || skips_body);
  stream.finish();
  CodecResult result;
  result.outcome.status = codec.status();
  result.outcome.body_bytes = codec.body_bytes();
  result.outcome.client_gone = !codec.completed() || stream.write_result() != Result::kOk ||
                               (stream.read_result() == Result::kClosed);
  result.can_go_on = !close && !skips_body && codec.answered() && !result.outcome.client_gone;
  return result;
}

}  // namespace lathe

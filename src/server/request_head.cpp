#include "server/request_head.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"

namespace lathe {
namespace {

bool is_token_char(char c) {
  if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) return true;
  return std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

std::string_view trim(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// Field values: no control characters but the tab (RFC 9110, section 5.5).
bool is_field_value(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return c == '\t' || (byte >= 0x20 && byte != 0x7f);
  });
}

// Ids travel into logs and answers: short and plain, or not taken over.
bool is_plain_id(std::string_view text) {
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

struct Refused {
  HeadRefusal refusal;
};

[[noreturn]] void refuse(int status, std::string message) {
  throw Refused{{status, std::move(message)}};
}

// The lines of a head, each ended by CR LF.
class Lines {
 public:
  explicit Lines(std::string_view bytes) : rest_(bytes) {}
  std::string_view next() {
    const std::size_t end = rest_.find('\n');
    if (end == std::string_view::npos || end == 0 || rest_[end - 1] != '\r') {
      refuse(400, "a line of the request does not end with CR LF");
    }
    const std::string_view line = rest_.substr(0, end - 1);
    rest_.remove_prefix(end + 1);
    return line;
  }

 private:
  std::string_view rest_;
};

void parse_request_line(std::string_view line, RequestHead& head) {
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    refuse(400, "the first line is not 'METHOD /path HTTP/1.1'");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!is_token(method) || method.size() > 32) refuse(400, "the method is not a word");
  if (version == "HTTP/1.0") {
    head.is_http_1_0 = true;
    head.keep_alive = false;
  } else if (version != "HTTP/1.1") {
    refuse(version.substr(0, 5) == "HTTP/" ? 505 : 400, "only HTTP/1.1 and HTTP/1.0 are spoken");
  }
  const bool visible =
      std::all_of(target.begin(), target.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (target.empty() || target[0] != '/' || !visible) {
    refuse(400, "the request target must be a path of visible ASCII that begins with '/'");
  }
  const std::size_t query = target.find('?');
  head.method = method;
  head.path = target.substr(0, query);
  if (query != std::string_view::npos) head.query = target.substr(query + 1);
}

int64_t parse_length(std::string_view value) {
  int64_t length = 0;
  const bool digits = !value.empty() && std::all_of(value.begin(), value.end(),
                                                    [](char c) { return c >= '0' && c <= '9'; });
  if (!digits ||
      std::from_chars(value.data(), value.data() + value.size(), length).ec != std::errc{}) {
    refuse(400, "Content-Length is not a number");
  }
  return length;
}

// What is read of the headers. Those that decide about framing or access may come once only.
class Headers {
 public:
  explicit Headers(RequestHead& head) : head_(head) {}

  void add(std::string_view name_as_sent, std::string_view value) {
    const std::string name = lower(name_as_sent);
    if (name == "connection") return add_connection(value);
    for (std::size_t i = 0; i < kSingle.size(); ++i) {
      if (name != kSingle[i]) continue;
      if (seen_[i]) refuse(400, "the header " + name + " comes twice");
      seen_[i] = true;
    }
    if (name == "host") head_.host = value;
    if (name == "authorization") head_.authorization = value;
    if (name == "content-type") head_.content_type = value;
    if (name == "user-agent") head_.user_agent = value.substr(0, 256);
    if (name == "x-request-id" && is_plain_id(value)) head_.request_id = value;
    if (name == "content-length") {
      head_.content_length = parse_length(value);
      has_length_ = true;
    }
    if (name == "transfer-encoding") {
      if (lower(value) != "chunked") refuse(501, "the only Transfer-Encoding taken is 'chunked'");
      head_.is_chunked = true;
    }
    if (name == "content-encoding" && lower(value) != "identity") {
      refuse(415, "compressed request bodies are not taken; send it without Content-Encoding");
    }
    if (name == "expect") {
      if (lower(value) != "100-continue") refuse(417, "the only Expect known is '100-continue'");
      expects_continue_ = true;
    }
  }

  void finish(const HttpLimits& limits) {
    if (!head_.is_http_1_0 && head_.host.empty()) refuse(400, "the header Host is missing");
    if (head_.is_chunked && (has_length_ || head_.is_http_1_0)) {
      refuse(400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0");
    }
    if (head_.content_length > limits.max_body_bytes) {
      refuse(413, str("the body has ", head_.content_length, " bytes; at most ",
                      limits.max_body_bytes, " are taken (--max-body)"));
    }
    const bool is_head = head_.method == "HEAD" && !head_.has_body();
    head_.forwarded = head_.has_body() ? "POST" : is_head ? "HEAD" : "GET";
    head_.forwarded += " / HTTP/1.1\r\n";
    if (head_.is_chunked) head_.forwarded += "Transfer-Encoding: chunked\r\n";
    if (has_length_)
      head_.forwarded += "Content-Length: " + std::to_string(head_.content_length) + "\r\n";
    if (expects_continue_ && head_.has_body()) head_.forwarded += "Expect: 100-continue\r\n";
    head_.forwarded += "\r\n";
  }

 private:
  static constexpr std::array<std::string_view, 7> kSingle = {
      "host",   "authorization",   "content-type", "content-length", "transfer-encoding",
      "expect", "content-encoding"};

  void add_connection(std::string_view value) {
    const std::string options = lower(value);
    if (options.find("close") != std::string::npos) head_.keep_alive = false;
    if (head_.is_http_1_0 && options.find("keep-alive") != std::string::npos) {
      head_.keep_alive = true;
    }
  }

  RequestHead& head_;
  std::array<bool, kSingle.size()> seen_{};
  bool has_length_ = false;
  bool expects_continue_ = false;
};

RequestHead parse(std::string_view bytes, const HttpLimits& limits) {
  RequestHead head;
  Lines lines(bytes);
  parse_request_line(lines.next(), head);
  Headers headers(head);
  int64_t num_headers = 0;
  for (std::string_view line = lines.next(); !line.empty(); line = lines.next()) {
    if (++num_headers > limits.max_headers) {
      refuse(431, str("more than ", limits.max_headers, " headers"));
    }
    if (line[0] == ' ' || line[0] == '\t') refuse(400, "a header is folded over two lines");
    const std::size_t colon = line.find(':');
    const std::string_view name = line.substr(0, colon);
    if (colon == std::string_view::npos || !is_token(name)) {
      refuse(400, "a header is not 'Name: value'");
    }
    const std::string_view value = trim(line.substr(colon + 1));
    if (!is_field_value(value)) refuse(400, "a header has control characters in its value");
    headers.add(name, value);
  }
  headers.finish(limits);
  return head;
}

}  // namespace

std::variant<RequestHead, HeadRefusal> parse_request_head(std::string_view bytes,
                                                          const HttpLimits& limits) {
  try {
    return parse(bytes, limits);
  } catch (const Refused& refused) {
    return refused.refusal;
  }
}

std::optional<std::size_t> find_head_end(std::string_view bytes, std::size_t search_from) {
  // Three bytes of an earlier search may belong to the end.
  const std::size_t begin = search_from < 3 ? 0 : search_from - 3;
  const std::size_t found = bytes.find("\r\n\r\n", begin);
  if (found == std::string_view::npos) return std::nullopt;
  return found + 4;
}

}  // namespace lathe

#include "server/http_server.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "formats/expect_error.h"
#include "formats/temporary_directory.h"
#include "server/api_client.h"
#include "server/served_tiny.h"

namespace lathe {
namespace {

using std::chrono::milliseconds;

// Answers with what it got; "/slow" waits for the client to leave, "/big" and "/stream" write.
class Echo : public HttpHandler {
 public:
  std::optional<HttpResponse> check_head(const HttpRequest& request) override {
    if (request.path != "/forbidden") return std::nullopt;
    HttpResponse response;
    response.status = 403;
    response.body = "no";
    return response;
  }
  HttpResponse handle(const HttpRequest& request, const ClientWatch& client) override {
    HttpResponse response;
    response.content_type = "text/plain";
    if (request.path == "/slow") {
      ++waiting;
      while (!client.is_gone()) std::this_thread::sleep_for(milliseconds(2));
      --waiting;
    }
    if (request.path == "/work") {
      ++waiting;
      std::this_thread::sleep_for(milliseconds(300));
      --waiting;
    }
    if (request.path == "/big") response.body.assign(64 << 20, 'x');
    if (request.path == "/stream") {
      response.stream = [this](const StreamWrite& write) {
        for (int i = 0; i < 1'000'000; ++i) {
          if (!write("piece\n")) {
            write_failed = true;
            return;
          }
          ++pieces;
        }
      };
    }
    if (request.path == "/three") {
      response.stream = [](const StreamWrite& write) {
        write("one");
        write("");
        write("three");
      };
    }
    if (response.body.empty())
      response.body = request.method + " " + request.path + " " + request.body;
    return response;
  }
  HttpResponse refuse(const HttpRequest&, int status, const std::string& message) override {
    HttpResponse response;
    response.status = status;
    response.body = message;
    return response;
  }
  void finished(const HttpRequest&, const HttpOutcome& outcome) override {
    ++finished_count;
    if (outcome.client_gone) ++gone_count;
    last_status = outcome.status;
  }
  std::atomic<int> waiting{0}, finished_count{0}, gone_count{0}, last_status{0}, pieces{0};
  std::atomic<bool> write_failed{false};
};

struct EchoServer {
  explicit EchoServer(const HttpLimits& limits = {}, const TlsContext* tls = nullptr)
      : server({.host = "127.0.0.1", .port = 0, .limits = limits}, tls, echo) {
    server.start();
  }
  // One request on a connection of its own.
  std::string ask(const std::string& bytes) const {
    RawClient client(server.port());
    client.send(bytes);
    return client.read();
  }
  Echo echo;
  HttpServer server;
};

std::string get(const std::string& path, const std::string& headers = "Connection: close\r\n") {
  return "GET " + path + " HTTP/1.1\r\nHost: h\r\n" + headers + "\r\n";
}

std::string post(const std::string& path, const std::string& body) {
  return "POST " + path + " HTTP/1.1\r\nHost: h\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

void expect_status(const std::string& answer, int status) {
  EXPECT_EQ(answer.substr(0, 12), "HTTP/1.1 " + std::to_string(status)) << answer.substr(0, 300);
}

TEST(HttpServer, AnswersOverOneConnection) {
  EchoServer server;
  RawClient client(server.server.port());
  client.send(get("/a", ""));
  EXPECT_TRUE(client.read("GET /a ").ends_with("GET /a "));
  client.send(post("/b", "body"));
  EXPECT_TRUE(client.read("POST /b body").ends_with("POST /b body"));
  // Two at once, the second cut in the middle.
  const std::string two = post("/c", "first") + post("/d", "second");
  client.send(two.substr(0, two.size() - 3));
  EXPECT_TRUE(client.read("POST /c first").ends_with("POST /c first"));
  client.send(two.substr(two.size() - 3));
  EXPECT_TRUE(client.read("POST /d second").ends_with("POST /d second"));
  client.send("\r\n" + get("/e"));  // a blank line in front is allowed
  EXPECT_TRUE(client.read().ends_with("GET /e "));
  EXPECT_TRUE(client.closed());
}

TEST(HttpServer, ReadsChunkedBodiesAndAnswersHead) {
  EchoServer server;
  const std::string head =
      "POST /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_TRUE(server.ask(head + "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").ends_with("POST /x abcde"));
  const std::string answer = server.ask("HEAD /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  expect_status(answer, 200);
  EXPECT_TRUE(answer.ends_with("\r\n\r\n")) << answer;
  // Broken chunks, and an end in the middle of one.
  expect_status(server.ask(head + "zz\r\nabc\r\n"), 400);
  expect_status(server.ask(head + "ffffffffffffffff\r\nabc\r\n0\r\n\r\n" + std::string(100, 'x')),
                400);
}

TEST(HttpServer, StreamsInChunks) {
  EchoServer server;
  const std::string answer = server.ask(get("/three"));
  expect_status(answer, 200);
  EXPECT_NE(answer.find("Transfer-Encoding: chunked"), std::string::npos) << answer;
  EXPECT_TRUE(answer.ends_with("3\r\none\r\n5\r\nthree\r\n0\r\n\r\n")) << answer;
  // HTTP/1.0 knows no chunks.
  const std::string old = server.ask("GET /three HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(old.ends_with("\r\n\r\nonethree")) << old;
}

TEST(HttpServer, RefusesWhatIsTooLargeOrMalformed) {
  EchoServer server({.max_head_bytes = 512, .max_body_bytes = 1000});
  expect_status(server.ask("nonsense\r\n\r\n"), 400);
  expect_status(server.ask(get("/" + std::string(600, 'a'))), 431);
  expect_status(server.ask(std::string(2000, 'a')), 431);  // no end of the head in sight
  expect_status(server.ask("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n"), 413);
  const std::string chunked =
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" +
      std::string(1000, 'x') + "\r\n0\r\n\r\n";
  expect_status(server.ask(chunked), 413);  // with its framing it is over the limit
  RawClient fits(server.server.port());
  fits.send(post("/", std::string(1000, 'x')));
  expect_status(fits.read("xxx"), 200);
  EXPECT_TRUE(eventually([&] { return server.echo.finished_count == 6; }));
}

TEST(HttpServer, AnswersBeforeTheBodyWhenTheHeadDecides) {
  EchoServer server;
  // The body never comes; the answer does, and the connection ends.
  expect_status(
      server.ask("POST /forbidden HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\nabc"), 403);
}

TEST(HttpServer, ContinuesWhenAsked) {
  EchoServer server;
  RawClient client(server.server.port());
  client.send("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("ok");
  EXPECT_TRUE(client.read("POST /x ok").ends_with("POST /x ok"));
}

TEST(HttpServer, SlowClientsTimeOut) {
  EchoServer server({.idle_timeout = milliseconds(100),
                     .head_timeout = milliseconds(150),
                     .body_timeout = milliseconds(150),
                     .write_timeout = milliseconds(200)});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(server.ask(""), "");  // says nothing: closed without a word
  expect_status(server.ask("GET / HT"), 408);
  expect_status(server.ask("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc"), 408);
  // A byte now and then does not help: the deadline is for all of the head.
  RawClient drip(server.server.port());
  for (int i = 0; i < 10; ++i) {
    drip.send("G");
    std::this_thread::sleep_for(milliseconds(30));
  }
  expect_status(drip.read(), 408);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  // Reads nothing: the buffers fill, then the time for a piece is over.
  RawClient reader(server.server.port());
  reader.send(get("/big"));
  EXPECT_TRUE(eventually([&] { return server.echo.gone_count == 1; }));
}

TEST(HttpServer, NoticesClientsThatLeave) {
  EchoServer server;
  {
    RawClient client(server.server.port());
    client.send(get("/slow"));
    ASSERT_TRUE(eventually([&] { return server.echo.waiting == 1; }));
  }
  EXPECT_TRUE(eventually([&] { return server.echo.waiting == 0; }));
  {
    RawClient half(server.server.port());  // closes its sending side only
    half.send(get("/slow"));
    ASSERT_TRUE(eventually([&] { return server.echo.waiting == 1; }));
    shutdown(half.fd(), SHUT_WR);
    EXPECT_TRUE(eventually([&] { return server.echo.waiting == 0; }));
  }
  {
    RawClient client(server.server.port());
    client.send(get("/stream"));
    client.read("piece");
  }
  EXPECT_TRUE(eventually([&] { return server.echo.write_failed.load(); }));
  EXPECT_LT(server.echo.pieces, 1'000'000);
}

TEST(HttpServer, LimitsConnections) {
  EchoServer server({.max_connections = 2});
  RawClient first(server.server.port()), second(server.server.port());
  first.send(get("/a", ""));
  second.send(get("/b", ""));
  first.read("GET /a ");
  second.read("GET /b ");
  const std::string answer = server.ask(get("/c"));
  expect_status(answer, 503);
  EXPECT_NE(answer.find("--max-connections"), std::string::npos);
  EXPECT_EQ(server.server.stats().refused_connections, 1);
  first.send(get("/d"));
  first.read();
  ASSERT_TRUE(eventually([&] { return server.server.stats().open_connections == 1; }));
  expect_status(server.ask(get("/c")), 200);
}

TEST(HttpServer, DrainsOpenRequests) {
  EchoServer server;
  RawClient idle(server.server.port()), busy(server.server.port());
  idle.send(get("/a", ""));
  idle.read("GET /a ");
  busy.send(get("/work", ""));
  ASSERT_TRUE(eventually([&] { return server.echo.waiting == 1; }));
  EXPECT_TRUE(server.server.stop(std::chrono::seconds(10)));
  EXPECT_TRUE(busy.read().ends_with("GET /work "));  // answered
  EXPECT_TRUE(busy.closed());
  idle.read();
  EXPECT_TRUE(idle.closed());
  EXPECT_EQ(server.server.stats().open_connections, 0);
}

TEST(HttpServer, StopsWithoutPatience) {
  EchoServer server;
  RawClient stuck(server.server.port());
  stuck.send(get("/slow"));
  ASSERT_TRUE(eventually([&] { return server.echo.waiting == 1; }));
  EXPECT_FALSE(server.server.stop(milliseconds(50)));
  EXPECT_EQ(server.echo.waiting, 0);
}

TEST(HttpServer, SaysWhyItCannotListen) {
  EchoServer server;
  Echo echo;
  expect_error(ErrorCode::kIo, "cannot listen on 127.0.0.1 port", [&] {
    HttpServer second({.host = "127.0.0.1", .port = server.server.port(), .limits = {}}, nullptr,
                      echo);
  });
  expect_error(ErrorCode::kInvalidArgument, "--host", [&] {
    HttpServer bad({.host = "no such host", .port = 0, .limits = {}}, nullptr, echo);
  });
  expect_error(ErrorCode::kInvalidArgument, "--port", [&] {
    HttpServer bad({.host = "::1", .port = 70000, .limits = {}}, nullptr, echo);
  });
  expect_error(ErrorCode::kInvalidArgument, "max_connections", [&] {
    HttpServer bad({.host = "::1", .port = 0, .limits = {.max_connections = 0}}, nullptr, echo);
  });
}

// A key and a certificate for localhost, signed by itself.
void write_certificate(const std::string& cert_file, const std::string& key_file) {
  EVP_PKEY* key = EVP_RSA_gen(2048);
  X509* cert = X509_new();
  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
  X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
  X509_set_pubkey(cert, key);
  X509_NAME* name = X509_get_subject_name(cert);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(cert, name);
  X509_sign(cert, key, EVP_sha256());
  FILE* file = fopen(cert_file.c_str(), "w");
  PEM_write_X509(file, cert);
  fclose(file);
  file = fopen(key_file.c_str(), "w");
  PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
  fclose(file);
  X509_free(cert);
  EVP_PKEY_free(key);
}

TEST(HttpServer, SpeaksTls) {
  const TemporaryDirectory directory;
  const std::string cert = directory.path() + "/cert.pem";
  const std::string key = directory.path() + "/key.pem";
  write_certificate(cert, key);
  expect_error(ErrorCode::kInvalidArgument, "--tls-cert /nowhere",
               [&] { TlsContext("/nowhere", key); });
  expect_error(ErrorCode::kInvalidArgument, "--tls-key", [&] { TlsContext(cert, cert); });
  const TlsContext tls(cert, key);
  EchoServer server({.head_timeout = milliseconds(300)}, &tls);

  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL* ssl = SSL_new(context);
  RawClient client(server.server.port());
  SSL_set_fd(ssl, client.fd());
  ASSERT_EQ(SSL_connect(ssl), 1);
  const std::string request = post("/tls", std::string(100'000, 'x'));
  ASSERT_EQ(SSL_write(ssl, request.data(), static_cast<int>(request.size())),
            static_cast<int>(request.size()));
  std::string answer;
  while (answer.size() < 100'000) {
    char bytes[4096];
    const int size = SSL_read(ssl, bytes, sizeof bytes);
    if (size <= 0) break;
    answer.append(bytes, static_cast<std::size_t>(size));
  }
  expect_status(answer, 200);
  EXPECT_NE(answer.find("POST /tls xxx"), std::string::npos);
  SSL_free(ssl);
  SSL_CTX_free(context);

  // Plain HTTP is no handshake; saying nothing runs into the deadline.
  EXPECT_EQ(server.ask(get("/")).find("HTTP/1.1 200"), std::string::npos);
  RawClient silent(server.server.port());
  silent.read();
  EXPECT_TRUE(silent.closed());
}

}  // namespace
}  // namespace lathe

// TLS for accepted connections, by OpenSSL: version 1.2 or newer, its default ciphers.
#pragma once
#include <memory>
#include <string>

struct ssl_ctx_st;

namespace lathe {

// The server's certificate and key. Immutable once made; connections share it.
class TlsContext {
 public:
  // PEM files; the certificate's file may hold its chain. Throws kInvalidArgument, naming the file,
  // when one cannot be used or they do not belong together.
  TlsContext(const std::string& cert_file, const std::string& key_file);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;
  ssl_ctx_st* get() const { return context_; }

 private:
  ssl_ctx_st* context_;
};

}  // namespace lathe

#include "server/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "base/error.h"

namespace lathe {
namespace {

std::string openssl_reason() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = ERR_reason_error_string(code);
  ERR_clear_error();
  return reason != nullptr ? reason : "unknown reason";
}

}  // namespace

TlsContext::TlsContext(const std::string& cert_file, const std::string& key_file)
    : context_(SSL_CTX_new(TLS_server_method())) {
  if (context_ == nullptr) fail(ErrorCode::kInternal, "OpenSSL: ", openssl_reason());
  const auto check = [this](bool ok, const char* flag, const std::string& file) {
    if (ok) return;
    const std::string reason = openssl_reason();
    SSL_CTX_free(context_);
    fail(ErrorCode::kInvalidArgument, flag, " ", file, ": ", reason,
         "; it must be a readable PEM file");
  };
  SSL_CTX_set_min_proto_version(context_, TLS1_2_VERSION);
  SSL_CTX_set_mode(context_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                 SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_options(context_, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  check(SSL_CTX_use_certificate_chain_file(context_, cert_file.c_str()) == 1, "--tls-cert",
        cert_file);
  check(SSL_CTX_use_PrivateKey_file(context_, key_file.c_str(), SSL_FILETYPE_PEM) == 1, "--tls-key",
        key_file);
  check(SSL_CTX_check_private_key(context_) == 1, "--tls-key", key_file);
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

}  // namespace lathe

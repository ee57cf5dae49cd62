// The only file with Boost.Beast and OpenSSL's TLS: their headers are slow to compile.
#include "client/http_client.h"

#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <chrono>
#include <cstdlib>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/version.h"

namespace phalanx {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using TlsStream = beast::ssl_stream<beast::tcp_stream>;

constexpr size_t kMaxAddresses = 6;           // of a host that are tried
constexpr uint32_t kMaxHeadBytes = 64 << 10;  // signed URLs in Location are long
constexpr int kMaxInformational = 8;          // 1xx answers before the real one

std::chrono::nanoseconds Seconds(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

bool IsAddress(const std::string& host) {
  error_code error;
  asio::ip::make_address(host, error);
  return !error;
}

// Why there may be no direct way out.
std::string ProxyHint() {
  for (const char* name :
       {"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0')
      return absl::StrCat(" (", name, " is set, but proxies are not used)");
  }
  return "";
}

class BeastResponse final : public HttpResponse {
 public:
  BeastResponse(const HttpOptions& options, asio::ssl::context& tls, Url url)
      : options_(options), url_(std::move(url)), stream_(io_, tls) {}

  // Connects, sends the request, reads the head.
  absl::Status Start(const HttpHeaders& headers) {
    PHX_RETURN_IF_ERROR(Connect());
    if (url_.tls) PHX_RETURN_IF_ERROR(Handshake());
    http::request<http::empty_body> request(http::verb::get, url_.target, 11);
    request.set(http::field::host, url_.Authority());
    request.set(http::field::user_agent, std::string("phalanx/") + kVersion);
    request.set(http::field::accept_encoding, "identity");  // hashes are of the bytes as they are
    request.set(http::field::connection, "close");
    for (const auto& [name, value] : headers) request.set(name, value);
    const error_code sent = Run(options_.stall_seconds, [&](auto done) {
      url_.tls ? http::async_write(stream_, request, done) : http::async_write(Tcp(), request, done);
    });
    if (sent) return Lost(sent);
    for (int i = 0; i < kMaxInformational; ++i) {
      parser_.emplace();
      parser_->header_limit(kMaxHeadBytes);
      parser_->body_limit(std::numeric_limits<uint64_t>::max());
      const error_code got = Run(options_.stall_seconds, [&](auto done) {
        url_.tls ? http::async_read_header(stream_, buffer_, *parser_, done)
                 : http::async_read_header(Tcp(), buffer_, *parser_, done);
      });
      if (got) return Lost(got);
      if (status() >= 200) return absl::OkStatus();
    }
    return absl::InternalError(absl::StrCat(url_.Origin(), " sends 1xx answers without end"));
  }

  int status() const override { return static_cast<int>(parser_->get().result_int()); }

  std::string_view Header(std::string_view name) const override {
    const auto& fields = parser_->get().base();
    const auto found = fields.find(beast::string_view(name.data(), name.size()));
    if (found == fields.end()) return {};
    return {found->value().data(), found->value().size()};
  }

  std::optional<uint64_t> ContentLength() const override {
    if (const auto length = parser_->content_length()) return *length;
    return std::nullopt;
  }

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    auto& body = parser_->get().body();
    body.data = out;
    body.size = size;
    while (body.size == size && !parser_->is_done()) {
      error_code got = Run(options_.stall_seconds, [&](auto done) {
        url_.tls ? http::async_read_some(stream_, buffer_, *parser_, done)
                 : http::async_read_some(Tcp(), buffer_, *parser_, done);
      });
      if (got == http::error::need_buffer) got = {};
      // A body that ends with the connection: its length is the caller's to check.
      if (got == asio::ssl::error::stream_truncated && parser_->need_eof()) {
        got = {};
        parser_->put_eof(got);
      }
      if (got) return Lost(got);
    }
    return size - body.size;
  }

 private:
  beast::tcp_stream& Tcp() { return stream_.next_layer(); }

  // Starts one operation on the stream and runs it to its end; beast::error::timeout after `seconds`.
  template <typename Start>
  error_code Run(double seconds, Start start) {
    error_code result = asio::error::would_block;
    Tcp().expires_after(Seconds(seconds));
    start([&result](error_code error, auto&&...) { result = error; });
    io_.restart();
    io_.run();
    return result;
  }

  absl::Status Connect() {
    const auto none = [this](const std::string& why) {
      return absl::UnavailableError(absl::StrCat("no connection to ", url_.Origin(), ": ", why, ProxyHint()));
    };
    // Not cancellable: it ends at the latest with the system's resolver, whose own deadline is short.
    tcp::resolver resolver(io_);
    tcp::resolver::results_type addresses;
    error_code error = asio::error::would_block;
    resolver.async_resolve(url_.host, std::to_string(url_.port),
                           [&](error_code e, tcp::resolver::results_type found) {
                             error = e;
                             addresses = std::move(found);
                           });
    io_.run();
    if (error == asio::error::host_not_found || error == asio::error::no_data) {
      return absl::NotFoundError(
          absl::StrCat("no such host: ", Quote(url_.host), " of ", url_.Origin(), ProxyHint()));
    }
    if (error) return none(absl::StrCat("its name cannot be looked up: ", error.message()));
    size_t tried = 0;
    for (const auto& address : addresses) {
      if (++tried > kMaxAddresses) break;
      error =
          Run(options_.connect_seconds, [&](auto done) { Tcp().async_connect(address.endpoint(), done); });
      if (!error) return absl::OkStatus();
      Tcp().close();
    }
    if (error == beast::error::timeout) {
      return none(absl::StrCat("no answer in ", options_.connect_seconds, " seconds"));
    }
    return none(error.message());
  }

  absl::Status Handshake() {
    SSL* const ssl = stream_.native_handle();
    const bool address = IsAddress(url_.host);
    const bool named = address ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), url_.host.c_str()) == 1
                               : SSL_set1_host(ssl, url_.host.c_str()) == 1 &&
                                     SSL_set_tlsext_host_name(ssl, url_.host.c_str()) == 1;
    if (!named) return absl::InternalError(absl::StrCat("TLS refuses the name ", Quote(url_.host)));
    const error_code error = Run(options_.connect_seconds, [&](auto done) {
      stream_.async_handshake(asio::ssl::stream_base::client, done);
    });
    if (!error) return absl::OkStatus();
    if (const long verified = SSL_get_verify_result(ssl); verified != X509_V_OK) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the certificate of ", url_.Origin(), " is not trusted: ", X509_verify_cert_error_string(verified),
          " (the system's certificates count; SSL_CERT_FILE names others)"));
    }
    if (error.category() == asio::error::get_ssl_category()) {
      return absl::FailedPreconditionError(
          absl::StrCat("no TLS with ", url_.Origin(), ": ", error.message()));
    }
    return Lost(error);
  }

  absl::Status Lost(error_code error) const {
    if (error == beast::error::timeout) {
      return absl::DeadlineExceededError(
          absl::StrCat("nothing came from ", url_.Origin(), " for ", options_.stall_seconds, " seconds"));
    }
    if (error == http::error::end_of_stream || error == http::error::partial_message) {
      return absl::AbortedError(absl::StrCat("the connection to ", url_.Origin(), " ended too early"));
    }
    if (error.category() == http::make_error_code(http::error::bad_version).category()) {
      return absl::InternalError(absl::StrCat(url_.Origin(), " sends what is no HTTP: ", error.message()));
    }
    return absl::AbortedError(absl::StrCat("the connection to ", url_.Origin(), " broke: ", error.message()));
  }

  const HttpOptions options_;
  const Url url_;
  asio::io_context io_{1};
  TlsStream stream_;  // without TLS only its lower layer is used
  beast::flat_buffer buffer_;
  std::optional<http::response_parser<http::buffer_body>> parser_;
};

class BeastClient final : public HttpClient {
 public:
  explicit BeastClient(const HttpOptions& options) : options_(options) {}

  absl::Status Init() {
    error_code error;
    tls_.set_verify_mode(asio::ssl::verify_peer, error);
    if (!error) tls_.set_default_verify_paths(error);
    if (error || SSL_CTX_set_min_proto_version(tls_.native_handle(), TLS1_2_VERSION) != 1) {
      return absl::InternalError(absl::StrCat("TLS cannot be set up: ", error.message()));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<HttpResponse>> Get(const Url& url, const HttpHeaders& headers) override {
    auto response = std::make_unique<BeastResponse>(options_, tls_, url);
    PHX_RETURN_IF_ERROR(response->Start(headers));
    return response;
  }

 private:
  const HttpOptions options_;
  asio::ssl::context tls_{asio::ssl::context::tls_client};
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpClient>> HttpClient::Create(const HttpOptions& options) {
  auto client = std::make_unique<BeastClient>(options);
  PHX_RETURN_IF_ERROR(client->Init());
  return client;
}

}  // namespace phalanx

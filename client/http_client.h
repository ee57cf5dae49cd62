// GET over HTTP/1.1, plain or with TLS. Certificates are checked against the system's store, or the one that
// SSL_CERT_FILE or SSL_CERT_DIR names. Proxies are not used. Every wait has a deadline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "client/http_url.h"

namespace phalanx {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpOptions {
  double connect_seconds = 10;  // for each address of a host, with its handshake
  double stall_seconds = 60;    // without a byte
};

// One answer, its body still on the wire.
class HttpResponse {
 public:
  virtual ~HttpResponse() = default;

  virtual int status() const = 0;
  // The first of that name in any case; empty where there is none.
  virtual std::string_view Header(std::string_view name) const = 0;
  // Of the body; absent where the answer does not say.
  virtual std::optional<uint64_t> ContentLength() const = 0;
  // At least one byte of the body, 0 at its end. Aborted where the connection ends before the body does,
  // DeadlineExceeded where nothing comes.
  virtual absl::StatusOr<size_t> Read(char* out, size_t size) = 0;
};

class HttpClient {
 public:
  virtual ~HttpClient() = default;

  // Returns when the head of the answer is there, whatever its status. The client must outlive the answer.
  // NotFound: no such host. Unavailable: no connection. FailedPrecondition: TLS, a certificate not trusted.
  // Aborted, DeadlineExceeded: as for Read. Internal: an answer that is no HTTP.
  virtual absl::StatusOr<std::unique_ptr<HttpResponse>> Get(const Url& url, const HttpHeaders& headers) = 0;

  static absl::StatusOr<std::unique_ptr<HttpClient>> Create(const HttpOptions& options);
};

}  // namespace phalanx

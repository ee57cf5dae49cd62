// URLs of a hub: parsing, redirects, and who may see the token. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace phalanx {

inline constexpr int kMaxRedirects = 5;

struct Url {
  bool tls = true;
  std::string host;  // in lower case; an IPv6 address without its brackets
  uint16_t port = 443;
  std::string target = "/";  // path and query, as they go into the request

  // "https://host", with the port where it is not the scheme's own.
  std::string Origin() const;
  // "host" or "host:port", as in the Host header.
  std::string Authority() const;
  // For messages: without the query, where signatures may be.
  std::string Shown() const;
};

// http and https only; a fragment is dropped, bytes that no URL holds are escaped. InvalidArgument for
// anything else, names and passwords ("user@") among it.
absl::StatusOr<Url> ParseUrl(std::string_view text);

// Where a Location header leads from `from`: absolute or relative. InvalidArgument where it is no URL,
// PermissionDenied for a step from https down to http.
absl::StatusOr<Url> ResolveRedirect(const Url& from, std::string_view location);

// The token is for the endpoint's origin; also for the same host with TLS where the endpoint is plain http.
// Each on its scheme's own port then.
bool MaySendToken(const Url& endpoint, const Url& to);

// All but unreserved characters, and '/' where keep_slash, become %XX.
std::string PercentEncode(std::string_view text, bool keep_slash);

}  // namespace phalanx

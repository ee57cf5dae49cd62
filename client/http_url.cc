#include "client/http_url.h"

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

constexpr char kHex[] = "0123456789ABCDEF";

void AppendEscaped(char c, std::string* out) {
  const auto byte = static_cast<unsigned char>(c);
  out->append({'%', kHex[byte >> 4], kHex[byte & 15]});
}

bool HasControl(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

// A path and query without a fragment; what may not stand in a request line is escaped.
std::string CleanTarget(std::string_view text) {
  std::string target;
  for (const char c : text.substr(0, text.find('#'))) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= 0x20 || byte >= 0x7f || c == '"' || c == '<' || c == '>' || c == '\\') {
      AppendEscaped(c, &target);
    } else {
      target.push_back(c);
    }
  }
  if (target.empty() || target[0] != '/') target.insert(0, 1, '/');
  return target;
}

// RFC 3986, 5.2.4, for a path that begins with '/'.
std::string RemoveDotSegments(std::string_view path) {
  std::vector<std::string_view> kept;
  bool directory = false;
  for (size_t at = 1; at <= path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string_view segment = path.substr(at, end - at);
    directory = segment == "." || segment == "..";
    if (segment == "..") {
      if (!kept.empty()) kept.pop_back();
    } else if (segment != ".") {
      kept.push_back(segment);
    }
    at = end + 1;
  }
  std::string out;
  for (const std::string_view segment : kept) absl::StrAppend(&out, "/", ToAbsl(segment));
  if (directory || out.empty()) out.push_back('/');
  return out;
}

}  // namespace

std::string Url::Authority() const {
  const std::string name = absl::StrContains(host, ':') ? absl::StrCat("[", host, "]") : host;
  return port == (tls ? 443 : 80) ? name : absl::StrCat(name, ":", port);
}

std::string Url::Origin() const { return absl::StrCat(tls ? "https://" : "http://", Authority()); }

std::string Url::Shown() const { return absl::StrCat(Origin(), target.substr(0, target.find('?'))); }

absl::StatusOr<Url> ParseUrl(std::string_view text) {
  const auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(Quote(text.substr(0, text.find('?'))), ": ", ToAbsl(why)));
  };
  Url url;
  std::string_view rest = text;
  if (HasControl(text)) return bad("a URL has no control characters");
  if (absl::StartsWithIgnoreCase(ToAbsl(text), "https://")) {
    rest.remove_prefix(8);
  } else if (absl::StartsWithIgnoreCase(ToAbsl(text), "http://")) {
    url.tls = false;
    url.port = 80;
    rest.remove_prefix(7);
  } else {
    return bad("a URL begins with https:// or http://");
  }
  const size_t end = std::min(rest.find_first_of("/?#"), rest.size());
  std::string_view authority = rest.substr(0, end);
  url.target = CleanTarget(rest.substr(end));
  if (authority.find('@') != std::string_view::npos) {
    return absl::InvalidArgumentError("a URL with a name or password in it ('...@host') is not supported");
  }
  std::string_view port;
  bool has_port = false;
  if (!authority.empty() && authority[0] == '[') {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad("the bracket of an IPv6 address is not closed");
    url.host = absl::AsciiStrToLower(ToAbsl(authority.substr(1, close - 1)));
    authority.remove_prefix(close + 1);
    has_port = !authority.empty();
    if (has_port && authority[0] != ':') return bad("only a port can follow an IPv6 address");
    if (has_port) port = authority.substr(1);
    if (url.host.find_first_not_of("0123456789abcdef:.") != std::string::npos || url.host.size() < 2) {
      return bad("no IPv6 address in the brackets");
    }
  } else {
    const size_t colon = authority.find(':');
    has_port = colon != std::string_view::npos;
    if (has_port) port = authority.substr(colon + 1);
    url.host = absl::AsciiStrToLower(ToAbsl(authority.substr(0, colon)));
    if (url.host.empty()) return bad("no host");
    if (url.host.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.-_") != std::string::npos) {
      return bad("a host is of letters, digits, '.', '-' and '_'");
    }
  }
  if (has_port && !port.empty()) {
    int number = 0;
    if (port.find_first_not_of("0123456789") != std::string_view::npos ||
        !absl::SimpleAtoi(ToAbsl(port), &number) || number < 1 || number > 65535) {
      return bad("a port is a number from 1 to 65535");
    }
    url.port = static_cast<uint16_t>(number);
  }
  return url;
}

absl::StatusOr<Url> ResolveRedirect(const Url& from, std::string_view location) {
  if (location.empty()) return absl::InvalidArgumentError("a redirect without a Location");
  if (HasControl(location))
    return absl::InvalidArgumentError("a redirect whose Location has control characters");
  Url to = from;
  const size_t colon = location.find_first_of(":/?#");
  if (colon != std::string_view::npos && colon > 0 && location[colon] == ':') {  // a scheme
    PHX_ASSIGN_OR_RETURN(to, ParseUrl(location));
  } else if (location.substr(0, 2) == "//") {
    PHX_ASSIGN_OR_RETURN(to, ParseUrl(absl::StrCat(from.tls ? "https:" : "http:", ToAbsl(location))));
  } else {
    const std::string_view base = std::string_view(from.target).substr(0, from.target.find('?'));
    std::string target;
    if (location[0] == '/') {
      target = location;
    } else if (location[0] == '?' || location[0] == '#') {
      target = absl::StrCat(ToAbsl(base), ToAbsl(location));
    } else {
      target = absl::StrCat(ToAbsl(base.substr(0, base.rfind('/') + 1)), ToAbsl(location));
    }
    to.target = CleanTarget(target);
    const size_t query = std::min(to.target.find('?'), to.target.size());
    to.target = RemoveDotSegments(std::string_view(to.target).substr(0, query)) + to.target.substr(query);
  }
  if (from.tls && !to.tls) {
    return absl::PermissionDeniedError(
        absl::StrCat("a redirect from ", from.Origin(), " down to ", to.Origin(), " without TLS is refused"));
  }
  return to;
}

bool MaySendToken(const Url& endpoint, const Url& to) {
  if (endpoint.host != to.host) return false;
  if (endpoint.tls == to.tls) return endpoint.port == to.port;
  return to.tls && endpoint.port == 80 && to.port == 443;
}

std::string PercentEncode(std::string_view text, bool keep_slash) {
  std::string out;
  for (const char c : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_' || c == '~' ||
        (keep_slash && c == '/')) {
      out.push_back(c);
    } else {
      AppendEscaped(c, &out);
    }
  }
  return out;
}

}  // namespace phalanx

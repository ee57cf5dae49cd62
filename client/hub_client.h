// A repository of a hub over HTTP: redirects, the token, and what its answers mean.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "base/file_hash.h"
#include "client/http_client.h"

namespace phalanx {

struct HubOptions {
  Url endpoint;       // its target is the prefix of all paths
  std::string token;  // empty: none. Sent to the endpoint's origin only
  std::string repository, revision;
};

struct HubAnswer {
  absl::Status status;
  bool retry = false;                 // the same request may do better later
  std::optional<double> retry_after;  // seconds that the server asks for
  // When status is OK: 200 or 206. OutOfRange: 416.
  std::unique_ptr<HttpResponse> response;
  FileHash hash;  // of the file, as the hub's own answer names it on the way
};

class HubClient {
 public:
  // `http` must outlive this and the answers.
  HubClient(HubOptions options, HttpClient* http) : options_(std::move(options)), http_(http) {}

  const HubOptions& options() const { return options_; }

  // The list of files, as JSON.
  HubAnswer GetListing();
  // From byte `from` on; the server may ignore that and answer 200 with the whole.
  HubAnswer GetFile(const std::string& commit, const std::string& path, int64_t from);

 private:
  HubAnswer Get(const std::string& path_and_query, int64_t from, const std::string& what);
  absl::Status Refusal(const HttpResponse& response, const Url& url, const std::string& what) const;

  const HubOptions options_;
  HttpClient* const http_;
  bool answered_ = false;  // the endpoint once: what cannot be reached now was reached before
};

// Seconds of a Retry-After header: a number, or a date after `now_seconds` (Unix). Absent for anything else.
std::optional<double> ParseRetryAfter(std::string_view value, double now_seconds);

}  // namespace phalanx

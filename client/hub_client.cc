#include "client/hub_client.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/strings.h"

namespace phalanx {
namespace {

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// A hash in an ETag: quotes and the mark of a weak one are no part of it.
FileHash HashOfEtag(std::string_view etag) {
  if (etag.starts_with("W/")) etag.remove_prefix(2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
  const FileHash sha256 = FileHash::Of(FileHash::Kind::kSha256, etag);
  return sha256.kind != FileHash::Kind::kNone ? sha256 : FileHash::Of(FileHash::Kind::kGitBlob, etag);
}

}  // namespace

std::optional<double> ParseRetryAfter(std::string_view value, double now_seconds) {
  if (double seconds = 0; absl::SimpleAtod(ToAbsl(value), &seconds)) {
    return seconds >= 0 && seconds < 1e9 ? std::optional<double>(seconds) : std::nullopt;
  }
  absl::Time date;
  std::string error;
  if (!absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", ToAbsl(value), &date, &error)) return std::nullopt;
  return std::max(0.0, absl::ToDoubleSeconds(date - absl::UnixEpoch()) - now_seconds);
}

HubAnswer HubClient::GetListing() {
  return Get(absl::StrCat("/api/models/", options_.repository, "/revision/",
                          PercentEncode(options_.revision, /*keep_slash=*/false), "?blobs=true"),
             0, "the list of its files");
}

HubAnswer HubClient::GetFile(const std::string& commit, const std::string& path, int64_t from) {
  return Get(absl::StrCat("/", options_.repository, "/resolve/", PercentEncode(commit, /*keep_slash=*/false),
                          "/", PercentEncode(path, /*keep_slash=*/true)),
             from, Quote(path));
}

absl::Status HubClient::Refusal(const HttpResponse& response, const Url& url, const std::string& what) const {
  const int status = response.status();
  const std::string_view said = response.Header("X-Error-Message");
  const std::string answer =
      absl::StrCat(options_.repository, ": ", url.Origin(), " answers ", status, " for ", what,
                   said.empty() ? "" : ": ", said.empty() ? "" : Quote(said));
  if (status == 401 || status == 403) {
    const std::string why = options_.token.empty() ? "the repository does not exist, or is private or gated: "
                                                     "set HF_TOKEN to a token that may read it"
                                                   : "HF_TOKEN is set, but its token is not valid, or may "
                                                     "not read this repository; a gated one must be "
                                                     "accepted on its page first";
    const std::string message = absl::StrCat(answer, "; ", why);
    return status == 401 ? absl::UnauthenticatedError(message) : absl::PermissionDeniedError(message);
  }
  if (status == 404) {
    return absl::NotFoundError(absl::StrCat(answer, "; no repository ", options_.repository,
                                            " with revision ", Quote(options_.revision),
                                            " there, or no such file in it"));
  }
  if (status == 416) return absl::OutOfRangeError(answer);
  if (status == 429) return absl::ResourceExhaustedError(absl::StrCat(answer, " (too many requests)"));
  if (status == 408 || status >= 500) return absl::UnavailableError(answer);
  return absl::FailedPreconditionError(absl::StrCat(answer, "; must be 200 or 206"));
}

HubAnswer HubClient::Get(const std::string& path_and_query, int64_t from, const std::string& what) {
  HubAnswer answer;
  Url url = options_.endpoint;
  url.target = (url.target == "/" ? "" : url.target) + path_and_query;
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    HttpHeaders headers;
    if (!options_.token.empty() && MaySendToken(options_.endpoint, url)) {
      headers.emplace_back("Authorization", absl::StrCat("Bearer ", options_.token));
    }
    if (from > 0) headers.emplace_back("Range", absl::StrCat("bytes=", from, "-"));
    auto response = http_->Get(url, headers);
    if (!response.ok()) {
      answer.status = absl::Status(response.status().code(), absl::StrCat(options_.repository, ": ", what,
                                                                          ": ", response.status().message()));
      const bool unreachable = absl::IsUnavailable(answer.status) || absl::IsNotFound(answer.status);
      answer.retry = absl::IsAborted(answer.status) || absl::IsDeadlineExceeded(answer.status) ||
                     (unreachable && answered_);
      return answer;
    }
    answered_ = true;
    const int status = (*response)->status();
    // Only the hub itself knows the file's hash: another server's ETag may be anything.
    if (MaySendToken(options_.endpoint, url)) {
      for (const char* name : {"ETag", "X-Linked-Etag"}) {
        if (const FileHash hash = HashOfEtag((*response)->Header(name)); hash.kind != FileHash::Kind::kNone) {
          answer.hash = hash;
        }
      }
    }
    if (IsRedirect(status)) {
      auto to = ResolveRedirect(url, (*response)->Header("Location"));
      if (!to.ok()) {
        answer.status =
            absl::Status(to.status().code(), absl::StrCat(options_.repository, ": ", url.Shown(), " answers ",
                                                          status, ": ", to.status().message()));
        return answer;
      }
      url = *std::move(to);
      continue;
    }
    if (status != 200 && (status != 206 || from == 0)) {
      answer.status = Refusal(**response, url, what);
      // A signed address of another server may have run out; the hub gives a fresh one.
      const bool signed_refused = status == 403 && !MaySendToken(options_.endpoint, url);
      answer.retry = status == 429 || status == 408 || status >= 500 || signed_refused;
      answer.retry_after = ParseRetryAfter((*response)->Header("Retry-After"),
                                           absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
      return answer;
    }
    if (const std::string_view coding = (*response)->Header("Content-Encoding");
        !coding.empty() && coding != "identity") {
      answer.status =
          absl::InternalError(absl::StrCat(options_.repository, ": ", url.Origin(), " sends ", what, " as ",
                                           Quote(coding), ", which was not asked for; must be identity"));
      return answer;
    }
    answer.response = *std::move(response);
    return answer;
  }
  answer.status =
      absl::FailedPreconditionError(absl::StrCat(options_.repository, ": more than ", kMaxRedirects,
                                                 " redirects for ", what, ", the last to ", url.Shown()));
  return answer;
}

}  // namespace phalanx

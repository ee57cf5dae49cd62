#include "client/pull.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "base/pull_manifest.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "client/http_client.h"
#include "client/hub.h"
#include "client/hub_client.h"
#include "client/pull_directory.h"
#include "client/pull_progress.h"

namespace phalanx {
namespace {

constexpr int64_t kMaxListingBytes = 32 << 20;  // R1's is below 100 kB
constexpr int64_t kMaxManifestBytes = 32 << 20;
constexpr size_t kReadBytes = 1 << 20;
constexpr double kFirstWaitSeconds = 0.25, kMaxWaitSeconds = 30;  // doubled from one failure to the next
constexpr double kMaxRetryAfterSeconds = 300;
constexpr int64_t kRealProgressBytes = 1 << 20;  // a connection that brought so much was no failure in a row

// What became of one request.
struct Attempt {
  absl::Status status;
  bool retry = false;
  std::optional<double> retry_after = std::nullopt;
};

// Counts the failures in a row of one transfer.
class Retries {
 public:
  Retries(int limit, PullProgress* progress) : limit_(limit), progress_(progress) {}

  // `reached` bytes are there: more than ever by kRealProgressBytes forgives earlier failures.
  void Reached(int64_t reached) {
    if (reached < best_ + kRealProgressBytes) return;
    best_ = reached;
    failures_ = 0;
  }

  // Waits where another attempt makes sense, else returns the error.
  absl::Status WaitAfter(const Attempt& attempt) {
    if (!attempt.retry) return attempt.status;
    // Aborted says how a connection ended; to a user the hub is unavailable.
    const auto code =
        absl::IsAborted(attempt.status) ? absl::StatusCode::kUnavailable : attempt.status.code();
    if (failures_ >= limit_) {
      return absl::Status(code, absl::StrCat(attempt.status.message(), " (tries: ", failures_ + 1, ")"));
    }
    const double wait = attempt.retry_after.value_or(std::min(
        kFirstWaitSeconds * static_cast<double>(int64_t{1} << std::min(failures_, 20)), kMaxWaitSeconds));
    if (wait > kMaxRetryAfterSeconds) {
      return absl::Status(
          code, absl::StrCat(attempt.status.message(), "; it asks to try again in ", wait, " seconds"));
    }
    ++failures_;
    progress_->Note(
        absl::StrCat(attempt.status.message(), "; again in ", wait, " s (", failures_, " of ", limit_, ")"));
    std::this_thread::sleep_for(std::chrono::duration<double>(wait));
    return absl::OkStatus();
  }

 private:
  const int limit_;
  PullProgress* const progress_;
  int failures_ = 0;
  int64_t best_ = 0;
};

// One file on its way.
struct Transfer {
  HubFile file;  // size and hash are filled in by the hub's answers where its list has none
  PartialFile partial;
  std::optional<FileHasher> hasher;  // of all of `partial`; absent until size and kind are known

  absl::Status Restart(PullProgress* progress) {
    progress->Lose(partial.size());
    hasher.reset();
    return partial.Clear();
  }
  absl::Status StartHash() {
    if (hasher || !file.size || file.hash.kind == FileHash::Kind::kNone) return absl::OkStatus();
    hasher.emplace(file.hash.kind, *file.size);
    return partial.Hash(&*hasher);
  }
};

class Puller {
 public:
  Puller(const ClientConfig& config, HubClient hub) : config_(config), hub_(std::move(hub)) {}

  // Fetches into the directory `path`, and returns its absolute path.
  absl::StatusOr<std::string> Run(const std::string& path) {
    PullProgress before(config_.quiet, 0);
    PHX_ASSIGN_OR_RETURN(listing_, List(&before));
    const std::vector<HubFile> files = SelectFiles(listing_, config_.include, config_.exclude);
    if (files.empty()) return NothingToTake();
    PHX_ASSIGN_OR_RETURN(directory_, PullDirectory::Open(path));
    ReadManifest();
    std::vector<HubFile> missing;
    int64_t bytes = 0, on_disk = 0;
    for (const HubFile& file : files) {
      PHX_ASSIGN_OR_RETURN(const bool there, IsThere(file, &before));
      if (there) continue;
      missing.push_back(file);
      bytes += file.size.value_or(0);
      PHX_ASSIGN_OR_RETURN(const auto partial,
                           directory_.Stat(absl::StrCat(file.path, ToAbsl(kPartialSuffix))));
      if (partial) on_disk += std::min(partial->size, file.size.value_or(0));
    }
    if (const auto free = directory_.FreeBytes(); free && *free < bytes - on_disk) {
      return absl::ResourceExhaustedError(absl::StrCat("the disk of ", directory_.path(),
                                                       " is too full: ", bytes - on_disk,
                                                       " bytes are to come, ", *free, " are free"));
    }
    PullProgress progress(config_.quiet, bytes);
    if (!missing.empty()) {
      progress.Note(absl::StrFormat("%s at %s: %d of %d files to fetch, %s", config_.repository,
                                    listing_.commit, missing.size(), files.size(), ShowBytes(bytes)));
    }
    for (const HubFile& file : missing) PHX_RETURN_IF_ERROR(Fetch(file, &progress));
    PHX_RETURN_IF_ERROR(RemoveStale(&progress));
    PHX_RETURN_IF_ERROR(WriteManifest());
    const bool weights = std::any_of(files.begin(), files.end(), [](const HubFile& file) {
      return absl::EndsWith(file.path, ".safetensors");
    });
    if (config_.include.empty() && config_.exclude.empty() && !weights) {
      progress.Warn(
          absl::StrCat("warning: ", config_.repository,
                       " has no *.safetensors at its top; --include takes other files, as '*.gguf'"));
    }
    return directory_.path();
  }

 private:
  absl::Status NothingToTake() const {
    std::string patterns = config_.include.empty()
                               ? "what a server needs (config.json, *.safetensors, ...)"
                               : absl::StrCat("--include ", absl::StrJoin(config_.include, " "));
    if (!config_.exclude.empty())
      absl::StrAppend(&patterns, " without ", absl::StrJoin(config_.exclude, " "));
    return absl::NotFoundError(
        absl::StrCat(config_.repository, ": none of its ", listing_.files.size(), " files is ", patterns));
  }

  absl::StatusOr<HubListing> List(PullProgress* progress) {
    const std::string where = absl::StrCat(config_.repository, ": the hub's list of files");
    Retries retries(config_.retries, progress);
    while (true) {
      std::string text;
      const Attempt attempt = ReadListing(&text);
      if (attempt.status.ok()) return ParseListing(text, where, config_.revision);
      PHX_RETURN_IF_ERROR(retries.WaitAfter(attempt));
    }
  }

  Attempt ReadListing(std::string* text) {
    HubAnswer answer = hub_.GetListing();
    if (!answer.status.ok()) return {answer.status, answer.retry, answer.retry_after};
    std::vector<char> buffer(64 << 10);
    while (true) {
      const auto got = answer.response->Read(buffer.data(), buffer.size());
      if (!got.ok()) return Broken("the list of its files", got.status());
      if (*got == 0) return {};
      if (static_cast<int64_t>(text->size() + *got) > kMaxListingBytes) {
        return {absl::InvalidArgumentError(absl::StrCat(
            config_.repository, ": the list of its files has more than ", kMaxListingBytes, " bytes"))};
      }
      text->append(buffer.data(), *got);
    }
  }

  // A body that broke off.
  Attempt Broken(const std::string& what, const absl::Status& status) const {
    return {absl::Status(status.code(), absl::StrCat(config_.repository, ": ", what, ": ", status.message())),
            absl::IsAborted(status) || absl::IsDeadlineExceeded(status)};
  }

  // A manifest is only a help: without a good one files are hashed.
  void ReadManifest() {
    const auto text = directory_.Read(std::string(kManifestName), kMaxManifestBytes);
    if (text.ok()) {
      auto manifest = ParseManifest(*text, std::string(kManifestName));
      if (manifest.ok() && manifest->repository == config_.repository) manifest_ = *std::move(manifest);
    }
    same_commit_ = manifest_.commit == listing_.commit;
    manifest_.repository = config_.repository;
  }

  absl::Status WriteManifest() {
    const std::string text = RenderManifest(manifest_);
    if (const auto old = directory_.Read(std::string(kManifestName), kMaxManifestBytes);
        old.ok() && *old == text) {
      return absl::OkStatus();
    }
    return directory_.Write(std::string(kManifestName), text);
  }

  // Whether the file is complete; then it is in the manifest, too.
  absl::StatusOr<bool> IsThere(const HubFile& file, PullProgress* progress) {
    PHX_ASSIGN_OR_RETURN(const auto stamp, directory_.Stat(file.path));
    if (!stamp || (file.size && *file.size != stamp->size)) return false;
    const auto known = manifest_.files.find(file.path);
    const bool untouched = known != manifest_.files.end() && known->second.size == stamp->size &&
                           known->second.mtime_ns == stamp->mtime_ns;
    if (file.hash.kind == FileHash::Kind::kNone) return untouched && same_commit_;
    if (untouched && known->second.hash == file.hash) return true;
    if (stamp->size >= int64_t{100} << 20)
      progress->Note(absl::StrCat(Quote(file.path), ": checking what is there"));
    PHX_ASSIGN_OR_RETURN(const FileHash hash, directory_.Hash(file.path, file.hash.kind));
    if (hash != file.hash) return false;
    manifest_.files[file.path] = {stamp->size, stamp->mtime_ns, hash};
    return true;
  }

  absl::Status Fetch(const HubFile& file, PullProgress* progress) {
    PHX_ASSIGN_OR_RETURN(PartialFile partial, directory_.OpenPartial(file.path));
    Transfer transfer{file, std::move(partial), std::nullopt};
    // What an earlier pull left is of use only where a hash will tell that it is of the same file.
    bool from_earlier = transfer.partial.size() > 0;
    if (from_earlier &&
        (file.hash.kind == FileHash::Kind::kNone || !file.size || transfer.partial.size() > *file.size)) {
      PHX_RETURN_IF_ERROR(transfer.partial.Clear());
      from_earlier = false;
    }
    progress->Begin(file.path, transfer.partial.size());
    Retries retries(config_.retries, progress);
    retries.Reached(transfer.partial.size());
    while (true) {
      if (!(transfer.file.size && transfer.partial.size() == *transfer.file.size)) {
        const Attempt attempt = Receive(&transfer, progress);
        if (!attempt.status.ok()) {
          retries.Reached(transfer.partial.size());
          PHX_RETURN_IF_ERROR(retries.WaitAfter(attempt));
          if (transfer.file.hash.kind == FileHash::Kind::kNone)
            PHX_RETURN_IF_ERROR(transfer.Restart(progress));
          continue;
        }
      }
      transfer.file.size = transfer.partial.size();
      PHX_RETURN_IF_ERROR(transfer.StartHash());
      const FileHash got = transfer.hasher ? transfer.hasher->Finish() : FileHash{};
      if (got == transfer.file.hash) return Finish(transfer, progress);
      const std::string differs =
          absl::StrCat(config_.repository, ": ", Quote(file.path), " must have the hash ",
                       transfer.file.hash.Text(), ", what came has ", got.Text());
      if (!from_earlier) {
        PHX_RETURN_IF_ERROR(directory_.RemovePartial(file.path));
        return absl::DataLossError(absl::StrCat(differs, "; it was removed"));
      }
      progress->Note(absl::StrCat(differs, "; what an earlier pull left was of another file: anew"));
      from_earlier = false;
      PHX_RETURN_IF_ERROR(transfer.Restart(progress));
    }
  }

  absl::Status Finish(const Transfer& transfer, PullProgress* progress) {
    const HubFile& file = transfer.file;
    PHX_ASSIGN_OR_RETURN(const FileStamp stamp, transfer.partial.Stamp());
    PHX_RETURN_IF_ERROR(directory_.Publish(file.path));
    manifest_.files[file.path] = {stamp.size, stamp.mtime_ns, file.hash};
    // The manifest's commit stays the old one until all files are of the new.
    PHX_RETURN_IF_ERROR(directory_.Write(std::string(kManifestName), RenderManifest(manifest_)));
    if (file.hash.kind == FileHash::Kind::kNone) {
      progress->Warn(
          absl::StrCat("warning: ", Quote(file.path), ": the hub gives no hash, only its size was checked"));
    }
    progress->End(absl::StrCat(absl::CEscape(file.path), "  ", ShowBytes(stamp.size)));
    return absl::OkStatus();
  }

  // One request for what is missing. OK when the whole body came and its size is right.
  Attempt Receive(Transfer* transfer, PullProgress* progress) {
    HubFile& file = transfer->file;
    const auto fatal = [&](const auto&... parts) {
      return Attempt{
          absl::DataLossError(absl::StrCat(config_.repository, ": ", Quote(file.path), ": ", parts...))};
    };
    HubAnswer answer = hub_.GetFile(listing_.commit, file.path, transfer->partial.size());
    if (absl::IsOutOfRange(answer.status)) {
      if (absl::Status s = transfer->Restart(progress); !s.ok()) return {s};
      return {absl::UnavailableError(answer.status.message()), true};
    }
    if (!answer.status.ok()) return {answer.status, answer.retry, answer.retry_after};
    if (file.hash.kind == FileHash::Kind::kNone) file.hash = answer.hash;
    std::optional<int64_t> total;
    if (answer.response->status() == 206) {
      const auto range = ParseContentRange(answer.response->Header("Content-Range"));
      if (!range || range->first != transfer->partial.size()) {
        const std::string said = Quote(answer.response->Header("Content-Range"));
        const int64_t asked = transfer->partial.size();
        if (absl::Status s = transfer->Restart(progress); !s.ok()) return {s};
        return {absl::UnavailableError(absl::StrCat(config_.repository, ": ", Quote(file.path),
                                                    ": Content-Range ", said, " is not from byte ", asked,
                                                    " on; beginning anew")),
                true};
      }
      total = range->total;
    } else {
      if (transfer->partial.size() > 0) {
        if (absl::Status s = transfer->Restart(progress); !s.ok()) return {s};
      }
      if (const auto length = answer.response->ContentLength()) total = static_cast<int64_t>(*length);
    }
    if (total && file.size && *total != *file.size) {
      return fatal("the hub lists ", *file.size, " bytes, but sends ", *total);
    }
    if (!file.size) file.size = total;
    if (absl::Status s = transfer->StartHash(); !s.ok()) return {s};
    buffer_.resize(kReadBytes);
    while (true) {
      const auto got = answer.response->Read(buffer_.data(), buffer_.size());
      if (!got.ok()) return Broken(Quote(file.path), got.status());
      if (*got == 0) break;
      if (file.size && transfer->partial.size() + static_cast<int64_t>(*got) > *file.size) {
        return fatal("the hub lists ", *file.size, " bytes, but sends more");
      }
      if (absl::Status s = transfer->partial.Append(buffer_.data(), *got); !s.ok()) return {s};
      if (transfer->hasher) transfer->hasher->Update(buffer_.data(), *got);
      progress->Add(static_cast<int64_t>(*got));
    }
    if (file.size && transfer->partial.size() < *file.size) {
      return Broken(Quote(file.path),
                    absl::AbortedError(absl::StrCat("it ended after ", transfer->partial.size(), " of ",
                                                    *file.size, " bytes")));
    }
    return {};
  }

  // Files of an earlier commit that the repository has no more would be taken for the model's. Only what a
  // pull wrote, and nobody touched since, is removed.
  absl::Status RemoveStale(PullProgress* progress) {
    manifest_.revision = config_.revision;
    manifest_.commit = listing_.commit;
    for (auto it = manifest_.files.begin(); it != manifest_.files.end();) {
      const auto& [path, entry] = *it;
      const bool listed = std::any_of(listing_.files.begin(), listing_.files.end(),
                                      [&](const HubFile& file) { return file.path == it->first; });
      if (listed || !CheckRepoPath(path).ok()) {
        ++it;
        continue;
      }
      PHX_ASSIGN_OR_RETURN(const auto stamp, directory_.Stat(path));
      if (stamp && stamp->size == entry.size && stamp->mtime_ns == entry.mtime_ns) {
        PHX_RETURN_IF_ERROR(directory_.Remove(path));
        progress->Note(absl::StrCat(absl::CEscape(path), "  is no longer in the repository: removed"));
      }
      it = manifest_.files.erase(it);
    }
    return absl::OkStatus();
  }

  const ClientConfig& config_;
  HubClient hub_;
  PullDirectory directory_;
  HubListing listing_;
  Manifest manifest_;
  bool same_commit_ = false;  // what is there was pulled from this very commit
  std::vector<char> buffer_;
};

std::string_view Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

}  // namespace

std::string DefaultPullDirectory(const std::string& repository, const std::string& revision,
                                 std::string_view xdg_cache_home, std::string_view home) {
  std::string cache(xdg_cache_home);
  if (cache.empty() && !home.empty()) cache = absl::StrCat(ToAbsl(home), "/.cache");
  if (cache.empty()) return "";
  // A '/' in a revision makes no folder; '%' keeps two revisions apart.
  const std::string suffix =
      revision == "main"
          ? ""
          : absl::StrCat("@", absl::StrReplaceAll(PercentEncode(revision, false), {{"%2F", "--"}}));
  return absl::StrCat(cache, "/phalanx/models/", repository, suffix);
}

std::optional<ContentRange> ParseContentRange(std::string_view value) {
  if (!absl::StartsWithIgnoreCase(ToAbsl(value), "bytes ")) return std::nullopt;
  value.remove_prefix(6);
  const size_t dash = value.find('-'), slash = value.find('/');
  if (dash == std::string_view::npos || slash == std::string_view::npos || slash < dash) return std::nullopt;
  const auto number = [](std::string_view digits) -> std::optional<int64_t> {
    int64_t parsed = 0;
    if (!absl::SimpleAtoi(ToAbsl(digits), &parsed) || parsed < 0) return std::nullopt;
    return parsed;
  };
  const auto first = number(value.substr(0, dash));
  const auto last = number(value.substr(dash + 1, slash - dash - 1));
  if (!first || !last || *last < *first) return std::nullopt;
  if (value.substr(slash + 1) == "*") return ContentRange{*first, std::nullopt};
  const auto total = number(value.substr(slash + 1));
  if (!total || *total <= *last) return std::nullopt;
  return ContentRange{*first, total};
}

absl::Status RunPull(const ClientConfig& config) {
  PHX_ASSIGN_OR_RETURN(Url endpoint, ParseUrl(config.hub_endpoint));
  if (endpoint.target.find('?') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("HF_ENDPOINT ", Quote(config.hub_endpoint), " has a query"));
  }
  while (endpoint.target.size() > 1 && endpoint.target.back() == '/') endpoint.target.pop_back();
  std::string path = config.output;
  if (path.empty()) {
    path = DefaultPullDirectory(config.repository, config.revision, Environment("XDG_CACHE_HOME"),
                                Environment("HOME"));
  }
  if (path.empty())
    return absl::InvalidArgumentError("--output is needed: neither XDG_CACHE_HOME nor HOME is set");
  PHX_ASSIGN_OR_RETURN(const auto http, HttpClient::Create({.stall_seconds = config.stall_seconds}));
  HubClient hub({endpoint, config.hub_token, config.repository, config.revision}, http.get());
  PHX_ASSIGN_OR_RETURN(const std::string absolute, Puller(config, std::move(hub)).Run(path));
  std::printf("%s\n", absolute.c_str());
  return absl::OkStatus();
}

}  // namespace phalanx

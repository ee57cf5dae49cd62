// The directory that a pull writes into. Nothing outside it is written, whatever links lie in it: each part
// of a path is opened without following links.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file_hash.h"

namespace phalanx {

// An open file descriptor, closed at the end.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  ~OwnedFd();
  int get() const { return fd_; }

 private:
  int fd_;
};

struct FileStamp {
  int64_t size = 0;
  int64_t mtime_ns = 0;
};

// A file that is being fetched: NAME.incomplete.
class PartialFile {
 public:
  PartialFile(OwnedFd fd, std::string name, int64_t size)
      : fd_(std::move(fd)), name_(std::move(name)), size_(size) {}

  int64_t size() const { return size_; }
  // ResourceExhausted where the disk is full, naming file and bytes.
  absl::Status Append(const char* data, size_t size);
  absl::Status Clear();
  // All bytes so far into the hasher.
  absl::Status Hash(FileHasher* hasher) const;
  absl::StatusOr<FileStamp> Stamp() const;

 private:
  OwnedFd fd_;
  std::string name_;  // for messages
  int64_t size_;
};

class PullDirectory {
 public:
  PullDirectory() = default;  // not open; only to be assigned to
  // Makes it where there is none, and locks it against another pull: FailedPrecondition.
  static absl::StatusOr<PullDirectory> Open(const std::string& path);

  const std::string& path() const { return path_; }

  // Paths below are relative and have passed CheckRepoPath, or are kManifestName.
  // Absent for what is no regular file.
  absl::StatusOr<std::optional<FileStamp>> Stat(const std::string& path) const;
  absl::StatusOr<FileHash> Hash(const std::string& path, FileHash::Kind kind) const;
  // With what an earlier pull left of it.
  absl::StatusOr<PartialFile> OpenPartial(const std::string& path) const;
  absl::Status RemovePartial(const std::string& path) const;
  // Gives a partial file its name; a file or link of that name is replaced.
  absl::Status Publish(const std::string& path) const;
  absl::Status Remove(const std::string& path) const;
  // Of a small file; NotFound.
  absl::StatusOr<std::string> Read(const std::string& name, int64_t max_bytes) const;
  // All or nothing.
  absl::Status Write(const std::string& name, std::string_view text) const;
  // For new files; absent where the file system does not say.
  std::optional<int64_t> FreeBytes() const;

 private:
  PullDirectory(OwnedFd root, std::string path) : root_(std::move(root)), path_(std::move(path)) {}
  // The directory that holds `path`, made where `create`.
  absl::StatusOr<OwnedFd> Parent(const std::string& path, bool create) const;
  std::string Shown(std::string_view path) const;

  OwnedFd root_;
  std::string path_;
};

}  // namespace phalanx

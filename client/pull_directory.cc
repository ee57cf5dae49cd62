#include "client/pull_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "client/hub.h"

namespace phalanx {
namespace {

constexpr int kDirectoryFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

absl::Status Failed(const std::string& what, const std::string& path, int error) {
  const std::string message = absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case ELOOP:
    case ENOTDIR:
      return absl::FailedPreconditionError(
          absl::StrCat(message, " (a link, or no directory, is in the way)"));
    default:
      return absl::InternalError(message);
  }
}

std::string LastPart(std::string_view path) { return std::string(path.substr(path.rfind('/') + 1)); }

FileStamp StampOf(const struct stat& info) {
  return {info.st_size, int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

absl::Status HashFd(int fd, const std::string& name, int64_t size, FileHasher* hasher) {
  std::vector<char> buffer(1 << 20);
  for (int64_t at = 0; at < size;) {
    const size_t want =
        static_cast<size_t>(std::min<int64_t>(size - at, static_cast<int64_t>(buffer.size())));
    const ssize_t got = ::pread(fd, buffer.data(), want, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Failed("read", name, errno);
    if (got == 0) return absl::AbortedError(absl::StrCat(name, " was cut while it was read"));
    hasher->Update(buffer.data(), static_cast<size_t>(got));
    at += got;
  }
  return absl::OkStatus();
}

}  // namespace

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.fd_;
    other.fd_ = -1;
  }
  return *this;
}

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status PartialFile::Append(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t wrote = ::pwrite(fd_.get(), data, size, size_);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) {
      const int error = wrote < 0 ? errno : ENOSPC;
      const absl::Status failed = Failed("write", name_, error);
      return absl::Status(failed.code(),
                          absl::StrCat(failed.message(), ", after ", size_,
                                       " bytes; they are kept, the next pull goes on from there"));
    }
    data += wrote;
    size -= static_cast<size_t>(wrote);
    size_ += wrote;
  }
  return absl::OkStatus();
}

absl::Status PartialFile::Clear() {
  if (::ftruncate(fd_.get(), 0) != 0) return Failed("empty", name_, errno);
  size_ = 0;
  return absl::OkStatus();
}

absl::Status PartialFile::Hash(FileHasher* hasher) const { return HashFd(fd_.get(), name_, size_, hasher); }

absl::StatusOr<FileStamp> PartialFile::Stamp() const {
  struct stat info;
  if (::fstat(fd_.get(), &info) != 0) return Failed("look at", name_, errno);
  return StampOf(info);
}

absl::StatusOr<PullDirectory> PullDirectory::Open(const std::string& path) {
  std::error_code error;
  const std::string absolute = std::filesystem::absolute(path, error).lexically_normal().string();
  if (!error) std::filesystem::create_directories(absolute, error);
  if (error) return Failed("make the directory", Quote(path), error.value());
  OwnedFd root(::open(absolute.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (root.get() < 0) return Failed("open the directory", Quote(absolute), errno);
  if (::flock(root.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Failed("lock the directory", Quote(absolute), errno);
    return absl::FailedPreconditionError(absl::StrCat("another pull is writing into ", Quote(absolute)));
  }
  std::string shown = absolute;
  while (shown.size() > 1 && shown.back() == '/') shown.pop_back();
  return PullDirectory(std::move(root), std::move(shown));
}

std::string PullDirectory::Shown(std::string_view path) const {
  return absl::StrCat(path_, "/", absl::CEscape(ToAbsl(path)));
}

absl::StatusOr<OwnedFd> PullDirectory::Parent(const std::string& path, bool create) const {
  OwnedFd at(::openat(root_.get(), ".", kDirectoryFlags));
  if (at.get() < 0) return Failed("open", path_, errno);
  for (size_t begin = 0, slash; (slash = path.find('/', begin)) != std::string::npos; begin = slash + 1) {
    const std::string part = path.substr(begin, slash - begin);
    if (create && ::mkdirat(at.get(), part.c_str(), 0777) != 0 && errno != EEXIST) {
      return Failed("make the directory", Shown(path.substr(0, slash)), errno);
    }
    OwnedFd next(::openat(at.get(), part.c_str(), kDirectoryFlags));
    if (next.get() < 0) return Failed("open the directory", Shown(path.substr(0, slash)), errno);
    at = std::move(next);
  }
  return at;
}

absl::StatusOr<std::optional<FileStamp>> PullDirectory::Stat(const std::string& path) const {
  auto parent = Parent(path, /*create=*/false);
  if (absl::IsNotFound(parent.status())) return std::nullopt;
  if (!parent.ok()) return parent.status();
  struct stat info;
  if (::fstatat(parent->get(), LastPart(path).c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return std::nullopt;
    return Failed("look at", Shown(path), errno);
  }
  if (!S_ISREG(info.st_mode)) return std::nullopt;
  return StampOf(info);
}

absl::StatusOr<FileHash> PullDirectory::Hash(const std::string& path, FileHash::Kind kind) const {
  PHX_ASSIGN_OR_RETURN(const OwnedFd parent, Parent(path, /*create=*/false));
  const OwnedFd fd(
      ::openat(parent.get(), LastPart(path).c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat info;
  if (fd.get() < 0 || ::fstat(fd.get(), &info) != 0) return Failed("read", Shown(path), errno);
  FileHasher hasher(kind, info.st_size);
  PHX_RETURN_IF_ERROR(HashFd(fd.get(), Shown(path), info.st_size, &hasher));
  return hasher.Finish();
}

absl::StatusOr<PartialFile> PullDirectory::OpenPartial(const std::string& path) const {
  const std::string name = absl::StrCat(path, ToAbsl(kPartialSuffix));
  PHX_ASSIGN_OR_RETURN(const OwnedFd parent, Parent(name, /*create=*/true));
  OwnedFd fd(::openat(parent.get(), LastPart(name).c_str(),
                      O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666));
  struct stat info;
  if (fd.get() < 0 || ::fstat(fd.get(), &info) != 0) return Failed("open", Shown(name), errno);
  if (!S_ISREG(info.st_mode) || info.st_nlink != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(Shown(name), " is no regular file with one name; remove it"));
  }
  return PartialFile(std::move(fd), Shown(path), info.st_size);
}

absl::Status PullDirectory::Remove(const std::string& path) const {
  PHX_ASSIGN_OR_RETURN(const OwnedFd parent, Parent(path, /*create=*/false));
  if (::unlinkat(parent.get(), LastPart(path).c_str(), 0) != 0) return Failed("remove", Shown(path), errno);
  return absl::OkStatus();
}

absl::Status PullDirectory::RemovePartial(const std::string& path) const {
  return Remove(absl::StrCat(path, ToAbsl(kPartialSuffix)));
}

absl::Status PullDirectory::Publish(const std::string& path) const {
  PHX_ASSIGN_OR_RETURN(const OwnedFd parent, Parent(path, /*create=*/false));
  const std::string name = LastPart(path);
  const std::string partial = absl::StrCat(name, ToAbsl(kPartialSuffix));
  if (::renameat(parent.get(), partial.c_str(), parent.get(), name.c_str()) != 0) {
    return Failed("put in place", Shown(path), errno);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> PullDirectory::Read(const std::string& name, int64_t max_bytes) const {
  const OwnedFd fd(::openat(root_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (fd.get() < 0) return Failed("read", Shown(name), errno);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return Failed("read", Shown(name), errno);
  if (!S_ISREG(info.st_mode) || info.st_size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(Shown(name), " is no regular file of at most ", max_bytes, " bytes"));
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t at = 0;
  while (at < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + at, text.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Failed("read", Shown(name), errno);
    if (got == 0) break;
    at += static_cast<size_t>(got);
  }
  text.resize(at);
  return text;
}

absl::Status PullDirectory::Write(const std::string& name, std::string_view text) const {
  PHX_ASSIGN_OR_RETURN(PartialFile file, OpenPartial(name));
  PHX_RETURN_IF_ERROR(file.Clear());
  PHX_RETURN_IF_ERROR(file.Append(text.data(), text.size()));
  return Publish(name);
}

std::optional<int64_t> PullDirectory::FreeBytes() const {
  struct statvfs info;
  if (::fstatvfs(root_.get(), &info) != 0 || info.f_blocks == 0) return std::nullopt;
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

}  // namespace phalanx

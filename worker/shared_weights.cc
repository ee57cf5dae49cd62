#include "worker/shared_weights.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/logging.h"
#include "base/mapped_file.h"
#include "base/status_macros.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

namespace phalanx {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kPage = 4096;
constexpr int64_t kAlignment = 64;
constexpr int64_t kKept = int64_t{32} << 20;  // of a folder, for others, or a tenth
constexpr int64_t kStep = int64_t{64} << 20;  // that a file grows by
constexpr int64_t kMaxBytes = int64_t{1} << 44;
constexpr int64_t kMaxPieces = int64_t{1} << 24;
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr auto kLookTime = std::chrono::seconds(1);
constexpr char kMagic[16] = "phalanx-weights";

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

uint64_t Hash(uint64_t seed, const std::string& text) {
  return Fnv1a(seed, text.data(), static_cast<int64_t>(text.size()));
}

std::string Prefix() { return absl::StrCat("phalanx-weights-", geteuid(), "-"); }
std::string ModelPart(const std::string& model_key) {
  return absl::StrFormat("%016x-", Hash(kFnvOffset, model_key));
}

bool Lock(int fd, int operation) {
  while (flock(fd, operation) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

// Whether `path` is still the file that is open; a lock on one that was removed is worth nothing.
bool IsLinked(int fd, const std::string& path) {
  struct stat open_file, linked;
  return fstat(fd, &open_file) == 0 && lstat(path.c_str(), &linked) == 0 &&
         open_file.st_dev == linked.st_dev && open_file.st_ino == linked.st_ino;
}

// An error number, or 0.
int Reserve(int fd, int64_t begin, int64_t end) {
  int error = 0;
  do {
    error = posix_fallocate(fd, begin, end - begin);
  } while (error == EINTR);
  return error;
}

int64_t FreeBytes(int fd) {
  struct statvfs info;
  if (fstatvfs(fd, &info) != 0) return 0;
  if (info.f_blocks == 0) return kMaxBytes;  // a tmpfs without a limit
  const auto bytes = [&](uint64_t blocks) {
    return static_cast<int64_t>(std::min<uint64_t>(blocks * info.f_frsize, kMaxBytes));
  };
  // Others need the folder too: /dev/shm has the memory of ranks that sum together.
  const int64_t kept = std::max(kKept, bytes(info.f_blocks) / 10);
  return std::max<int64_t>(0, bytes(info.f_bavail) - kept);
}

}  // namespace

struct SharedWeights::Header {
  char magic[16] = {};
  int64_t packer = 0;  // process id
  int64_t complete = 0;
  uint64_t key = 0;
  int64_t num_pieces = 0;  // their table lies at the end of the pieces
  int64_t end = 0;
  uint64_t checksum = 0;  // of the above and the table
};

absl::StatusOr<std::unique_ptr<SharedWeights>> SharedWeights::Open(const SharedWeightsOptions& options) {
  static_assert(std::is_trivially_copyable_v<Header> && std::is_trivially_copyable_v<PieceEntry>);
  std::unique_ptr<SharedWeights> weights(new SharedWeights);
  const std::string key_text = absl::StrCat(options.model_key, "\n", options.slice_key);
  weights->path_ = absl::StrCat(options.folder, "/", Prefix(), ModelPart(options.model_key),
                                absl::StrFormat("%016x", Hash(kFnvOffset, key_text)));
  // Not the hash in the name, so that two keys of one name are told apart.
  weights->key_ = Hash(Hash(kFnvOffset, "key"), key_text);
  const auto deadline = std::chrono::steady_clock::now() + options.wait;
  bool told = false;
  while (true) {
    std::string packer;
    PHX_ASSIGN_OR_RETURN(const Found found, weights->TryLock(weights->key_, &packer));
    if (found == Found::kReady) {
      PHX_RETURN_IF_ERROR(weights->MapPacked());
      return weights;
    }
    if (found == Found::kToPack) {
      PHX_RETURN_IF_ERROR(weights->MapToPack(options, weights->key_));
      return weights;
    }
    if (options.cancelled && options.cancelled()) return absl::CancelledError("loading was cancelled");
    if (std::chrono::steady_clock::now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("process ", packer, ", which packs ", weights->path_,
                                                      ", did not end within ", options.wait.count(), " ms"));
    }
    if (!told && !packer.empty()) {
      told = true;
      spdlog::info("waiting, at most {} s, for weights that process {} packs into {}",
                   options.wait.count() / 1000, packer, weights->path_);
    }
    std::this_thread::sleep_for(kPoll);
  }
}

// One look: with kReady and kToPack the file is open and locked. `packer` gets who else holds it.
absl::StatusOr<SharedWeights::Found> SharedWeights::TryLock(uint64_t key, std::string* packer) {
  Close();
  fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, S_IRUSR | S_IWUSR);
  if (fd_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path_));
  struct stat info;
  if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != geteuid()) {
    Close();
    return absl::PermissionDeniedError(absl::StrCat(path_, " is no file of this user"));
  }
  if (Lock(fd_, LOCK_EX | LOCK_NB)) {
    if (!IsLinked(fd_, path_)) return Found::kRetry;
    if (!ReadPieces(key)) return Found::kToPack;
    // Left complete by killed workers. Changing the lock opens a gap, hence the look below.
  } else if (errno != EWOULDBLOCK) {
    const int error = errno;
    Close();
    return absl::ErrnoToStatus(error, absl::StrCat("cannot lock ", path_));
  }
  if (!Lock(fd_, LOCK_SH | LOCK_NB)) {
    Header header;
    const bool read = pread(fd_, &header, sizeof(header), 0) == sizeof(header);
    *packer = read ? absl::StrCat(header.packer) : "?";
    return Found::kRetry;
  }
  return IsLinked(fd_, path_) && ReadPieces(key) ? Found::kReady : Found::kRetry;
}

// The table of a complete file of this key; false for any other.
bool SharedWeights::ReadPieces(uint64_t key) {
  Header header;
  struct stat info;
  if (fstat(fd_, &info) != 0 || pread(fd_, &header, sizeof(header), 0) != sizeof(header)) return false;
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0 || header.complete != 1 || header.key != key ||
      header.num_pieces < 0 || header.num_pieces > kMaxPieces || header.end < kHugePage ||
      header.end > kMaxBytes) {
    return false;
  }
  const auto table_bytes = header.num_pieces * static_cast<int64_t>(sizeof(PieceEntry));
  if (header.end + table_bytes > info.st_size) return false;
  std::vector<PieceEntry> pieces(static_cast<size_t>(header.num_pieces));
  if (pread(fd_, pieces.data(), static_cast<size_t>(table_bytes), header.end) != table_bytes) return false;
  const uint64_t checksum = Fnv1a(kFnvOffset, &header, offsetof(Header, checksum));
  if (header.checksum != Fnv1a(checksum, pieces.data(), table_bytes)) return false;
  for (const PieceEntry& piece : pieces) {
    if (piece.offset < kHugePage || piece.offset % kAlignment != 0 || piece.bytes < 0 ||
        piece.bytes > header.end - piece.offset) {
      return false;
    }
  }
  pieces_ = std::move(pieces);
  end_ = header.end;
  file_bytes_ = info.st_size;
  return true;
}

char* SharedWeights::Map(int64_t bytes, int protection) {
  const auto size = static_cast<size_t>(RoundUp(bytes, kHugePage));
  void* reserved =
      mmap(nullptr, size + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<char*>(reserved);
  char* const at =
      begin + RoundUp(reinterpret_cast<intptr_t>(begin), kHugePage) - reinterpret_cast<intptr_t>(begin);
  if (mmap(at, size, protection, MAP_SHARED | MAP_FIXED, fd_, 0) == MAP_FAILED) {
    const int error = errno;
    munmap(begin, size + kHugePage);
    errno = error;
    return nullptr;
  }
  if (at > begin) munmap(begin, static_cast<size_t>(at - begin));
  if (at < begin + kHugePage) munmap(at + size, static_cast<size_t>(begin + kHugePage - at));
  map_ = at;
  map_bytes_ = static_cast<int64_t>(size);
  // Advice, as all of these.
  madvise(map_, size, MADV_HUGEPAGE);
  return map_;
}

absl::Status SharedWeights::MapToPack(const SharedWeightsOptions& options, uint64_t key) {
  // What a killed packer left counts as room.
  if (ftruncate(fd_, 0) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot empty ", path_));
  int64_t room = FreeBytes(fd_);
  if (room < options.expected_bytes) {
    RemoveUnused(options.folder, "");
    room = FreeBytes(fd_);
  }
  const auto leave = [this](absl::Status why) {
    unlink(path_.c_str());
    Close();
    return why;
  };
  if (room < options.expected_bytes) {
    return leave(absl::ResourceExhaustedError(absl::StrCat(options.folder, " has room for ", room >> 20,
                                                           " MiB, they take about ",
                                                           options.expected_bytes >> 20, " MiB")));
  }
  Header header;
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.packer = getpid();
  header.key = key;
  // Reserved, so that no write to the mapping finds the folder full, which would be a SIGBUS.
  if (const int error = Reserve(fd_, 0, kPage); error != 0) {
    return leave(absl::ErrnoToStatus(error, absl::StrCat("cannot reserve memory in ", options.folder)));
  }
  if (pwrite(fd_, &header, sizeof(header), 0) != sizeof(header)) {
    return leave(absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_)));
  }
  // Pages beyond the file's end are not touched.
  if (Map(room + 2 * kHugePage, PROT_READ | PROT_WRITE) == nullptr) {
    return leave(absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path_)));
  }
  end_ = file_bytes_ = kHugePage;  // pieces begin at a huge page
  return absl::OkStatus();
}

absl::Status SharedWeights::MapPacked() {
  was_packed_ = finished_ = true;
  if (Map(file_bytes_, PROT_READ) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path_));
  }
  madvise(map_ + kHugePage, static_cast<size_t>(file_bytes_ - kHugePage), MADV_POPULATE_READ);
  return absl::OkStatus();
}

bool SharedWeights::Grow(int64_t end) {
  if (end <= file_bytes_) return true;
  if (end > map_bytes_) return false;
  const int64_t least = RoundUp(end, kHugePage);
  const int64_t begin = file_bytes_;
  for (const int64_t to : {std::min(std::max(least, begin + kStep), map_bytes_), least}) {
    if (to > map_bytes_ || FreeBytes(fd_) < to - begin || ftruncate(fd_, to) != 0) continue;
    // Huge pages, whatever the file system is set to: a page walk for each 4 KiB read costs bandwidth. Before
    // anything is there, since small pages would have to be copied into them.
    madvise(map_ + begin, static_cast<size_t>(to - begin), MADV_COLLAPSE);
    if (Reserve(fd_, begin, to) != 0) continue;
    file_bytes_ = to;
    return true;
  }
  return false;
}

void SharedWeights::GiveUp(const std::string& why) {
  given_up_ = true;
  spdlog::warn("weights from here on are not shared: {}", why);
  // What was packed so far stays this worker's; nobody else may trust the file.
  if (!was_packed_ && IsLinked(fd_, path_)) unlink(path_.c_str());
}

WeightMemory::Piece SharedWeights::Take(int64_t bytes) {
  if (given_up_ || bytes < 0) return {};
  if (was_packed_) {
    if (next_ >= pieces_.size() || pieces_[next_].bytes != bytes) {
      GiveUp(absl::StrCat("piece ", next_, " of ", pieces_.size(), " in ", path_, " is not of ", bytes,
                          " bytes"));
      return {};
    }
    taken_bytes_ += bytes;
    return {map_ + pieces_[next_++].offset, true};
  }
  if (finished_) return {};
  // Small ones lie closer.
  const int64_t offset = RoundUp(end_, bytes >= 16 * kPage ? kPage : kAlignment);
  const int64_t end = offset + RoundUp(bytes, kAlignment) + kAlignment;
  if (static_cast<int64_t>(pieces_.size()) >= kMaxPieces || !Grow(end)) {
    GiveUp(absl::StrCat("no room in ", std::filesystem::path(path_).parent_path().string(), " for ", bytes,
                        " bytes more"));
    return {};
  }
  end_ = end;
  pieces_.push_back({offset, bytes});
  taken_bytes_ += bytes;
  return {map_ + offset, false};
}

void SharedWeights::Finish() {
  if (finished_ || given_up_) return;
  finished_ = true;
  const auto table_bytes = static_cast<int64_t>(pieces_.size() * sizeof(PieceEntry));
  if (!Grow(end_ + table_bytes)) return GiveUp("no room for the table of pieces");
  std::memcpy(map_ + end_, pieces_.data(), static_cast<size_t>(table_bytes));
  // The rest is given back; a huge page is not cut.
  file_bytes_ = RoundUp(end_ + table_bytes, kHugePage);
  if (ftruncate(fd_, file_bytes_) != 0) return GiveUp(std::strerror(errno));
  Header header;
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.packer = getpid();
  header.complete = 1;
  header.key = key_;
  header.num_pieces = static_cast<int64_t>(pieces_.size());
  header.end = end_;
  header.checksum =
      Fnv1a(Fnv1a(kFnvOffset, &header, offsetof(Header, checksum)), pieces_.data(), table_bytes);
  if (pwrite(fd_, &header, sizeof(header), 0) != sizeof(header)) return GiveUp(std::strerror(errno));
  munmap(map_ + file_bytes_, static_cast<size_t>(map_bytes_ - file_bytes_));
  map_bytes_ = file_bytes_;
  mprotect(map_, static_cast<size_t>(map_bytes_), PROT_READ);
  // Changing the lock opens a gap in which others may look at the file, and remove it.
  const auto deadline = std::chrono::steady_clock::now() + kLookTime;
  while (!Lock(fd_, LOCK_SH | LOCK_NB) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kPoll);
  }
  if (!IsLinked(fd_, path_)) GiveUp(absl::StrCat(path_, " was removed"));
}

void SharedWeights::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

SharedWeights::~SharedWeights() {
  if (map_ != nullptr) munmap(map_, static_cast<size_t>(map_bytes_));
  if (fd_ >= 0 && Lock(fd_, LOCK_EX | LOCK_NB) && IsLinked(fd_, path_)) unlink(path_.c_str());
  Close();
}

void SharedWeights::RemoveUnused(const std::string& folder, const std::string& model_key) {
  const std::string prefix = Prefix();
  const std::string kept = model_key.empty() ? "" : prefix + ModelPart(model_key);
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(folder, ignored), end; it != end; it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(prefix) || (!kept.empty() && name.starts_with(kept))) continue;
    const std::string path = it->path().string();
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    struct stat info;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_uid == geteuid() &&
        Lock(fd, LOCK_EX | LOCK_NB) && IsLinked(fd, path) && unlink(path.c_str()) == 0) {
      spdlog::info("removed {}, {} MiB, which nobody used any more", path, info.st_size >> 20);
    }
    close(fd);
  }
}

}  // namespace phalanx

#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path,
                                                             std::string_view wanted) {
  // O_NONBLOCK: a pipe's open would wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size == 0) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the file is empty, ", ToAbsl(wanted), " is wanted"));
  }
  void* map = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_errno = errno;
  close(fd);
  if (map == MAP_FAILED) return absl::ErrnoToStatus(map_errno, absl::StrCat("cannot map ", path));
  return std::unique_ptr<MappedFile>(
      new MappedFile(path, static_cast<const uint8_t*>(map), info.st_size,
                     absl::StrCat(info.st_dev, ":", info.st_ino, ":", info.st_size, ":", info.st_mtim.tv_sec,
                                  ".", info.st_mtim.tv_nsec)));
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(bytes_)); }

uint64_t Fnv1a(uint64_t hash, const void* data, int64_t bytes) {
  constexpr uint64_t kFnvPrime = 0x100000001b3u;
  const auto* p = static_cast<const uint8_t*>(data);
  int64_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, p + i, sizeof(word));
    hash = (hash ^ word) * kFnvPrime;
    hash ^= hash >> 32;  // a product's low bits know nothing of its factors' high ones
  }
  for (; i < bytes; ++i) hash = (hash ^ p[i]) * kFnvPrime;
  return hash;
}

uint64_t HashSamples(uint64_t hash, const uint8_t* data, int64_t bytes) {
  constexpr int64_t kSample = 4096;
  const int64_t sample = std::min(kSample, bytes);
  const int64_t last = bytes - sample;
  for (const int64_t at : {int64_t{0}, last / 2, last}) hash = Fnv1a(hash, data + at, sample);
  return hash;
}

}  // namespace phalanx

// A file mapped into memory, and the hash that identifies what is in it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace phalanx {

// Thread safety: immutable. The file must not be truncated while it is mapped (reads would fault).
class MappedFile {
 public:
  // NotFound (no such file) and other errors of the system; InvalidArgument for what is no regular file and
  // for an empty one: `wanted` says what it should be ("a GGUF file"). Each names the path.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path, std::string_view wanted);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // Device, inode, size and time of the last change, when it was mapped: equal for what is the same file.
  const std::string& identity() const { return identity_; }

 private:
  MappedFile(std::string path, const uint8_t* data, int64_t bytes, std::string identity)
      : path_(std::move(path)), data_(data), bytes_(bytes), identity_(std::move(identity)) {}

  const std::string path_;
  const uint8_t* const data_;
  const int64_t bytes_;
  const std::string identity_;
};

// In the manner of FNV-1a, but eight bytes a step: Fnv1a(kFnvOffset, ...) begins, its result goes on.
inline constexpr uint64_t kFnvOffset = 0xcbf29ce484222325u;
uint64_t Fnv1a(uint64_t hash, const void* data, int64_t bytes);
// The same over three samples of 4 KiB: the first, the middle and the last.
uint64_t HashSamples(uint64_t hash, const uint8_t* data, int64_t bytes);

}  // namespace phalanx

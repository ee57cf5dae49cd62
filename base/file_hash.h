// The hashes by which a hub names files: SHA-256 of the content, or git's SHA-1 of a blob.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace phalanx {

struct FileHash {
  enum class Kind { kNone, kSha256, kGitBlob };
  Kind kind = Kind::kNone;
  std::string hex;  // lower case

  bool operator==(const FileHash&) const = default;
  std::string Text() const;  // "sha256:..." or "git-sha1:...", empty for kNone

  // kNone unless `hex` is as many hexadecimal digits as the kind has.
  static FileHash Of(Kind kind, std::string_view hex);
  // The other way round; kNone for any other text.
  static FileHash Parse(std::string_view text);
};

// Bytes in, hash out.
class FileHasher {
 public:
  // `size` bytes will follow: it is part of a blob's hash. kind is not kNone.
  FileHasher(FileHash::Kind kind, int64_t size);
  ~FileHasher();
  void Update(const void* data, size_t size);
  FileHash Finish();  // once, at the end

 private:
  struct State;
  const FileHash::Kind kind_;
  std::unique_ptr<State> state_;
};

}  // namespace phalanx

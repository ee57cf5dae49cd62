// From token ids back to text, as they come.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/token_bytes.h"

namespace phalanx {

// Bytes in pieces to whole UTF-8 characters. However the bytes are cut, the text is the same: bytes that are
// part of no character become U+FFFD, one for each maximal subpart.
class Utf8Stream {
 public:
  // Appends to `*out` all characters that are certain; holds back at most 3 bytes of one that is not yet
  // whole.
  void Feed(std::string_view bytes, std::string* out);
  // The stream ended: what is held becomes one U+FFFD.
  void Finish(std::string* out);

 private:
  std::string held_;
};

// One per sequence. Not thread-safe.
class Detokenizer {
 public:
  // `table` must outlive this. Control tokens are left out unless keep_control.
  explicit Detokenizer(const TokenBytes* table, bool keep_control = false)
      : table_(table), keep_control_(keep_control) {}

  // Appends to `*out` the text that `id` completes, maybe none. InvalidArgument naming an id outside the
  // table; then nothing has changed.
  absl::Status Feed(int32_t id, std::string* out);
  void Finish(std::string* out) { stream_.Finish(out); }

 private:
  const TokenBytes* table_;
  bool keep_control_;
  Utf8Stream stream_;
};

}  // namespace phalanx

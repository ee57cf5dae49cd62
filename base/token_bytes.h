// What both sides know of tokens: the bytes each stands for, and the matching of stop strings and marks over
// token borders.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

// Token id -> bytes. Control tokens (kept apart from text) have is_control set; their bytes are their name.
struct TokenBytes {
  std::vector<std::string> bytes;  // [vocab_size]
  std::vector<bool> is_control;    // [vocab_size]
};

// Finds the first occurrence of any of a set of byte strings in a stream fed in pieces. Feed returns what may
// be passed on: bytes that can no longer be part of a match. Pure; linear in the stream for a bounded set.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // empty strings are ignored

  // Appends `piece`; moves to `*out` all bytes that are certain not to begin a match. True once a stop string
  // was found: then *out got everything before it, matched() is set, and further input is ignored.
  bool Feed(std::string_view piece, std::string* out);
  // The stream ended: the held-back bytes are no match.
  void Finish(std::string* out);
  // The stop string found, empty if none.
  const std::string& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  size_t longest_ = 0;
  std::string held_;
  std::string matched_;
};

}  // namespace phalanx

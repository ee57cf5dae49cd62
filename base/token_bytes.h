// What both sides know of tokens: the bytes each stands for, and the matching of stop strings and marks over
// token borders.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/gguf.h"

namespace phalanx {

// Token id -> bytes. Control tokens (kept apart from text; unused and unknown ones too) have is_control set;
// their bytes are their name.
struct TokenBytes {
  std::vector<std::string> bytes;  // [vocab_size]
  std::vector<bool> is_control;    // [vocab_size]
};

// Whether `name` is written as the marks of turns and tools are: <|...|> or <｜...｜>. Some vocabularies
// (DeepSeek's <｜User｜>) have them as added tokens that are not special: to be shown with the text, but not
// for users to write.
bool LooksLikeMark(std::string_view name);

// Reads tokenizer.ggml.{model,tokens,token_type}. Unimplemented for a tokenizer model other than "gpt2"
// (byte-level BPE); NotFound / InvalidArgument naming the key for missing or impossible entries.
absl::StatusOr<TokenBytes> TokenBytesFromGguf(const GgufFile& file);

// Reads `directory`/tokenizer.json, Hugging Face's format. Added tokens stand for their content; the special
// ones of them are control tokens, as are ids below the vocabulary's size that the file gives no token (no
// bytes). Errors as ReadTokenizerJson (base/tokenizer_json.h).
absl::StatusOr<TokenBytes> TokenBytesFromTokenizerJson(const std::string& directory);

// Finds the first occurrence of any of a set of byte strings in a stream fed in pieces: the one that ends
// first, and of those that end together the longest, however the stream is cut. Feed returns what may be
// passed on: bytes that can no longer be part of a match. Pure; linear in the stream for a bounded set.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // empty strings are ignored

  // Reads on in `piece`; appends to `*out` all bytes that are certain not to begin a match. True once a stop
  // string was found: then *out got everything before it, matched() is set, and further input is ignored.
  bool Feed(std::string_view piece, std::string* out);
  // The stream ended: the held-back bytes are no match.
  void Finish(std::string* out);
  // The stop string found, empty if none.
  const std::string& matched() const { return matched_; }

 private:
  // A stop string and the Knuth-Morris-Pratt automaton that looks for it.
  struct Stop {
    std::string text;
    std::vector<size_t> fallback;  // [text.size()] longest border of text[0..i]
    size_t matched = 0;            // bytes of text that the stream ends with
  };

  std::vector<Stop> stops_;
  std::string held_;  // the longest end of the stream that may begin a match
  std::string matched_;
};

}  // namespace phalanx

// The regular expressions of the known tokenizers, each as a hand-written scan: one pass over the text, and
// the Unicode of tokenizers and tiktoken, whatever a regex library was built with.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace phalanx {

// Finds the matches of a pattern, one after the other.
// Thread safety: immutable.
class Matcher {
 public:
  // The text from the last piece's end to `end`: a match, or what lies between matches. Pieces that are no
  // match are not empty; a match may be.
  using Piece = absl::FunctionRef<void(size_t begin, size_t end, bool is_match)>;

  virtual ~Matcher() = default;
  // Calls `piece` in order for all of `text`, which is valid UTF-8.
  virtual absl::Status Find(std::string_view text, Piece piece) const = 0;
};

// The scan for a pattern that is known; null for any other.
std::unique_ptr<Matcher> KnownMatcher(std::string_view regex);

// The patterns as published.
extern const char kCl100kRegex[];  // Llama 3, too
extern const char kO200kRegex[];
extern const char kQwen2Regex[];
extern const char kGpt2Regex[];
extern const char kDeepSeekDigitsRegex[];
extern const char kDeepSeekCjkRegex[];
extern const char kDeepSeekWordsRegex[];

// One character of \p{N}, or a run of them, as Rust's char::is_numeric knows them (Unicode 17.0).
std::unique_ptr<Matcher> DigitsMatcher(bool individual);

}  // namespace phalanx

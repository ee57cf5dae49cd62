#include "coordinator/text/splitters.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "coordinator/text/unicode.h"

namespace phalanx {

#define PHX_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define PHX_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PHX_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define PHX_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

const char kCl100kRegex[] =
    PHX_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" PHX_SPACES;
const char kQwen2Regex[] =
    PHX_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" PHX_SPACES;
const char kO200kRegex[] =
    "[^\\r\\n\\p{L}\\p{N}]?" PHX_UPPER "*" PHX_LOWER "+" PHX_CONTRACTIONS "?|[^\\r\\n\\p{L}\\p{N}]?" PHX_UPPER
    "+" PHX_LOWER "*" PHX_CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" PHX_SPACES;
const char kGpt2Regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char kDeepSeekDigitsRegex[] = "\\p{N}{1,3}";
const char kDeepSeekCjkRegex[] = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
const char kDeepSeekWordsRegex[] =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" PHX_SPACES;

namespace {

constexpr const char kGpt2ShortRegex[] =
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr uint32_t kWordOrSpace = kLetters | In(kNumber) | In(kSpace);
constexpr uint32_t kAny = ~0u;

// A text and what the patterns ask of it. Positions are offsets of characters or the end.
class Scan {
 public:
  explicit Scan(std::string_view text) : text_(text), end_(text.size()), kinds_(CharKinds::Get()) {}

  size_t end() const { return end_; }
  bool Is(size_t at, char c) const { return at < end_ && text_[at] == c; }
  bool IsNewline(size_t at) const { return at < end_ && (text_[at] == '\n' || text_[at] == '\r'); }
  uint32_t CodePoint(size_t at) const { return DecodeUtf8(text_.data() + at).code_point; }
  // What is at `at`, as a set of one kind; nothing at the end.
  uint32_t Kind(size_t at) const { return at < end_ ? In(kinds_.Of(CodePoint(at))) : 0; }
  size_t Next(size_t at) const {
    const auto lead = static_cast<unsigned char>(text_[at]);
    return at + (lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4);
  }
  size_t Previous(size_t at) const { return LastCharacter(text_.substr(0, at)); }
  // The end of the run of such characters from `at`, of at most `limit`.
  size_t Run(size_t at, uint32_t kinds, size_t limit = std::numeric_limits<size_t>::max()) const {
    for (; at < end_ && limit > 0; --limit) {
      const Character c = DecodeUtf8(text_.data() + at);
      if ((In(kinds_.Of(c.code_point)) & kinds) == 0) break;
      at += c.bytes;
    }
    return at;
  }
  size_t NewlineRun(size_t at, bool slashes = false) const {
    while (IsNewline(at) || (slashes && Is(at, '/'))) ++at;
    return at;
  }

  // (?:'s|'t|'re|'ve|'m|'ll|'d), at `at`; `at` if there is none. Caseless as regular expressions have it:
  // U+017F is an s.
  size_t Contraction(size_t at, bool caseless) const {
    if (!Is(at, '\'') || at + 1 == end_) return at;
    const auto letter = [&](size_t i) {
      const char c = i < end_ ? text_[i] : '\0';
      return caseless && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char first = letter(at + 1), second = letter(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) return at + 3;
    if (caseless && text_.substr(at + 1, 2) == "\u017f") return at + 3;
    return at;
  }

  // \s*[\r\n]+|\s+(?!\S)|\s+ where there is white space at `at`.
  size_t Spaces(size_t at, bool newlines) const {
    size_t after = at, last = at,
           after_newline = at;  // the run's end, its last character, behind its last newline
    while ((Kind(after) & In(kSpace)) != 0) {
      last = after;
      after = Next(after);
      if (newlines && IsNewline(last)) after_newline = after;
    }
    if (after_newline > at) return after_newline;
    return after == end_ || last == at ? after : last;
  }

 private:
  std::string_view text_;
  size_t end_;
  const CharKinds& kinds_;
};

// A pattern of which some alternative matches at every character.
template <typename Match>
class TotalMatcher : public Matcher {
 public:
  explicit TotalMatcher(Match match) : match_(match) {}
  absl::Status Find(std::string_view text, Piece piece) const override {
    const Scan scan(text);
    for (size_t at = 0; at < scan.end();) {
      const size_t end = match_(scan, at);
      piece(at, end, true);
      at = end;
    }
    return absl::OkStatus();
  }

 private:
  Match match_;
};

// One that may match nowhere: then match returns `at`.
template <typename Match>
class PartialMatcher : public Matcher {
 public:
  explicit PartialMatcher(Match match) : match_(match) {}
  absl::Status Find(std::string_view text, Piece piece) const override {
    const Scan scan(text);
    size_t gap = 0;
    for (size_t at = 0; at < scan.end();) {
      const size_t end = match_(scan, at);
      if (end == at) {
        at = scan.Next(at);
        continue;
      }
      if (gap < at) piece(gap, at, false);
      piece(at, end, true);
      gap = at = end;
    }
    if (gap < scan.end()) piece(gap, scan.end(), false);
    return absl::OkStatus();
  }

 private:
  Match match_;
};

template <typename Match>
std::unique_ptr<Matcher> Total(Match match) {
  return std::make_unique<TotalMatcher<Match>>(match);
}
template <typename Match>
std::unique_ptr<Matcher> Partial(Match match) {
  return std::make_unique<PartialMatcher<Match>>(match);
}

// ` ?[^\s\p{L}\p{N}]+`, at `at`; `at` if it does not match.
size_t Marks(const Scan& scan, size_t at) {
  const size_t from = scan.Is(at, ' ') ? at + 1 : at;
  const size_t end = scan.Run(from, kAny & ~kWordOrSpace);
  return end > from ? end : at;
}

size_t MatchCl100k(const Scan& scan, size_t at, size_t digits) {
  const uint32_t kind = scan.Kind(at);
  if ((kind & kLetters) != 0) return scan.Run(at, kLetters);
  if ((kind & In(kNumber)) != 0) return scan.Run(at, In(kNumber), digits);
  if (const size_t end = scan.Contraction(at, true); end > at) return end;
  if (!scan.IsNewline(at)) {
    const size_t next = scan.Next(at);
    if (const size_t end = scan.Run(next, kLetters); end > next) return end;
  }
  if (const size_t end = Marks(scan, at); end > at) return scan.NewlineRun(end);
  return scan.Spaces(at, true);
}

constexpr uint32_t kUpperSide = kLetters - In(kLower) + In(kMark);
constexpr uint32_t kLowerSide = In(kLower) | In(kModifier) | In(kOtherLetter) | In(kMark);

// UPPER*LOWER+, at `at`; `at` if it does not match.
size_t LowerWord(const Scan& scan, size_t at) {
  const size_t upper = scan.Run(at, kUpperSide);
  if (const size_t end = scan.Run(upper, kLowerSide); end > upper) return end;
  // UPPER* gives back characters until one may be LOWER: what it gave back before that may not.
  for (size_t end = upper; end > at;) {
    const size_t last = scan.Previous(end);
    if ((scan.Kind(last) & kLowerSide) != 0) return end;
    end = last;
  }
  return at;
}

size_t MatchO200k(const Scan& scan, size_t at) {
  const uint32_t kind = scan.Kind(at);
  if ((kind & In(kNumber)) != 0) return scan.Run(at, In(kNumber), 3);
  // [^\r\n\p{L}\p{N}]? takes a character where it can, and gives it back if what follows does not match.
  const bool prefix = (kind & kLetters) == 0 && !scan.IsNewline(at);
  const size_t after = prefix ? scan.Next(at) : at;
  size_t end = at;
  if (const size_t word = LowerWord(scan, after); word > after) {
    end = word;
  } else if (const size_t bare = prefix ? LowerWord(scan, at) : at; bare > at) {
    end = bare;
  } else if (const size_t upper = scan.Run(after, kUpperSide); upper > after) {
    end = upper;  // followed by no LOWER, or LowerWord had matched
  }
  if (end > at) return scan.Contraction(end, true);
  if (const size_t marks = Marks(scan, at); marks > at) return scan.NewlineRun(marks, true);
  return scan.Spaces(at, true);
}

size_t MatchGpt2(const Scan& scan, size_t at) {
  if (const size_t end = scan.Contraction(at, false); end > at) return end;
  const size_t from = scan.Is(at, ' ') ? at + 1 : at;
  const uint32_t kind = scan.Kind(from);
  if ((kind & kLetters) != 0) return scan.Run(from, kLetters);
  if ((kind & In(kNumber)) != 0) return scan.Run(from, In(kNumber));
  if (kind != 0 && (kind & In(kSpace)) == 0) return scan.Run(from, kAny & ~kWordOrSpace);
  return scan.Spaces(at, false);
}

size_t MatchDeepSeekWords(const Scan& scan, size_t at) {
  constexpr uint32_t kWord = kLetters | In(kMark), kSign = In(kPunctuation) | In(kSymbol);
  const uint32_t kind = scan.Kind(at);
  if ((kind & kWord) != 0) return scan.Run(at, kWord);
  const size_t next = scan.Next(at);
  if ((kind & kSign) != 0) {
    if (scan.CodePoint(at) < 0x80) {
      size_t end = next;
      while (end < scan.end() && scan.CodePoint(end) < 0x80 && (scan.Kind(end) & kLetters) != 0) ++end;
      if (end > next) return end;
    }
    return scan.NewlineRun(scan.Run(at, kSign));
  }
  if (!scan.IsNewline(at)) {
    if (const size_t end = scan.Run(next, kWord); end > next) return end;
  }
  if (scan.Is(at, ' ')) {
    if (const size_t end = scan.Run(next, kSign); end > next) return scan.NewlineRun(end);
  }
  return (kind & In(kSpace)) != 0 ? scan.Spaces(at, true) : at;
}

size_t MatchDeepSeekCjk(const Scan& scan, size_t at) {
  while (at < scan.end()) {
    const uint32_t c = scan.CodePoint(at);
    if (!((c >= 0x4e00 && c <= 0x9fa5) || (c >= 0x3040 && c <= 0x30ff))) break;
    at += 3;
  }
  return at;
}

}  // namespace

std::unique_ptr<Matcher> KnownMatcher(std::string_view regex) {
  // Some files have the newlines themselves in the pattern.
  std::string pattern;
  for (const char c : regex) {
    if (c == '\r') {
      pattern += "\\r";
    } else if (c == '\n') {
      pattern += "\\n";
    } else {
      pattern += c;
    }
  }
  if (pattern == kCl100kRegex) return Total([](const Scan& s, size_t at) { return MatchCl100k(s, at, 3); });
  if (pattern == kQwen2Regex) return Total([](const Scan& s, size_t at) { return MatchCl100k(s, at, 1); });
  if (pattern == kO200kRegex) return Total([](const Scan& s, size_t at) { return MatchO200k(s, at); });
  if (pattern == kGpt2Regex || pattern == kGpt2ShortRegex) {
    return Total([](const Scan& s, size_t at) { return MatchGpt2(s, at); });
  }
  if (pattern == kDeepSeekDigitsRegex) {
    return Partial([](const Scan& s, size_t at) { return s.Run(at, In(kNumber), 3); });
  }
  if (pattern == kDeepSeekCjkRegex) {
    return Partial([](const Scan& s, size_t at) { return MatchDeepSeekCjk(s, at); });
  }
  if (pattern == kDeepSeekWordsRegex) {
    return Partial([](const Scan& s, size_t at) { return MatchDeepSeekWords(s, at); });
  }
  return nullptr;
}

std::unique_ptr<Matcher> DigitsMatcher(bool individual) {
  constexpr uint32_t kDigits = In(kNumber) | In(kLaterDigit);
  if (individual) return Partial([](const Scan& s, size_t at) { return s.Run(at, kDigits, 1); });
  return Partial([](const Scan& s, size_t at) { return s.Run(at, kDigits); });
}

}  // namespace phalanx

// What the regular expressions of tokenizers ask of a character: Unicode 16.0, as Hugging Face's tokenizers
// and tiktoken have it. The tables are written by make_unicode_tables.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace phalanx {

enum CharKind : uint8_t {
  kOther,
  kUpper,        // \p{Lu}
  kLower,        // \p{Ll}
  kTitle,        // \p{Lt}
  kModifier,     // \p{Lm}
  kOtherLetter,  // \p{Lo}
  kMark,         // \p{M}
  kNumber,       // \p{N}
  kPunctuation,  // \p{P}
  kSymbol,       // \p{S}
  kSpace,        // \s: White_Space
  kLaterDigit,   // unassigned in 16.0, a number in 17.0, which the Digits stage of tokenizers follows
};

// Sets of kinds are bit masks.
constexpr uint32_t In(CharKind kind) { return 1u << kind; }
constexpr uint32_t kLetters = In(kUpper) | In(kLower) | In(kTitle) | In(kModifier) | In(kOtherLetter);

class CharKinds {
 public:
  static const CharKinds& Get();

  // `code_point` up to U+10FFFF.
  CharKind Of(uint32_t code_point) const {
    return blocks_[static_cast<size_t>(block_of_[code_point >> 8]) << 8 | (code_point & 0xff)];
  }

 private:
  CharKinds();

  std::array<uint8_t, 0x1100> block_of_;
  std::vector<CharKind> blocks_;  // 256 code points each
};

// The first character of valid UTF-8 that is not empty.
struct Character {
  uint32_t code_point;
  uint32_t bytes;
};
inline Character DecodeUtf8(const char* text) {
  const auto at = [text](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t lead = at(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (at(1) & 0x3f), 2};
  if (lead < 0xf0) return {(lead & 0x0f) << 12 | (at(1) & 0x3f) << 6 | (at(2) & 0x3f), 3};
  return {(lead & 0x07) << 18 | (at(1) & 0x3f) << 12 | (at(2) & 0x3f) << 6 | (at(3) & 0x3f), 4};
}

// Offset of the last character of valid UTF-8 that is not empty.
inline size_t LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

// \w, as single_word of added tokens takes it.
bool IsWordCharacter(uint32_t code_point);

}  // namespace phalanx

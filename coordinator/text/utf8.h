// UTF-8, strictly: no surrogates, no overlong forms, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace phalanx {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

struct Utf8Step {
  enum class Kind {
    kCharacter,   // a whole character
    kInvalid,     // bytes that are no part of any character: one U+FFFD stands for them
    kIncomplete,  // the text ends inside a character that is right so far
  };
  Kind kind;
  size_t bytes;  // at least 1, at most 4
};

// What the text, which is not empty, begins with. An invalid step covers a maximal subpart (Unicode chapter
// 3, U+FFFD substitution), as WHATWG and Rust have it.
Utf8Step NextUtf8(std::string_view text);

// Offset of the first byte that is not part of a whole character; text.size() if there is none.
size_t ValidUtf8Prefix(std::string_view text);

}  // namespace phalanx

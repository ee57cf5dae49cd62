// Letter cases and printable characters, as Python's str has them.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/text/jinja_text.h"

namespace phalanx::jinja {

enum class Case {
  kUpper,
  kLower,
  kCapitalized,  // the first character in title case, the rest in lower case
  kTitle,        // str.title(): every run of letters capitalized
  kSwapped,
};

// A user's if any of `text` is.
Text InCase(const Text& text, Case to);

bool IsPrintable(uint32_t code_point);
// Whether the code point has another case.
bool HasCase(uint32_t code_point);
bool IsUpper(uint32_t code_point);

}  // namespace phalanx::jinja

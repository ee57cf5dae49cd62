// Cuts a Jinja template into tokens. Whitespace control happens here, as with trim_blocks and lstrip_blocks
// set.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx::jinja {

struct Token {
  enum class Kind {
    kText,  // outside of tags
    kVariableBegin,
    kVariableEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,   // text: its value
    kInteger,  // text: decimal digits
    kFloat,    // text: as C has it
    kOperator,
    kEnd,
  };
  Kind kind;
  std::string text;
  int line;  // of its first character, from 1
};

// The last token is kEnd. `source` must be valid UTF-8.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

// "line N: ..."
absl::Status ErrorAt(int line, absl::StatusCode code, const std::string& message);

}  // namespace phalanx::jinja

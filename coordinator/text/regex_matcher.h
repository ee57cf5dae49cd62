// Regular expressions that no splitter knows, by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/splitters.h"

namespace phalanx {

// InvalidArgument naming the pattern and where it is wrong. Its properties are those of PCRE2's Unicode
// (10.42: 14.0). Find is InvalidArgument naming the pattern for a text that it takes too many steps or too
// much time on.
absl::StatusOr<std::unique_ptr<Matcher>> RegexMatcher(std::string_view regex);

// Occurrences of a string. Of an empty one, as of the regular expression: before every character and at the
// end.
std::unique_ptr<Matcher> StringMatcher(std::string_view what);

}  // namespace phalanx

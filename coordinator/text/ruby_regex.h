// Regular expressions of tokenizer.json are written for Oniguruma with Ruby's syntax; PCRE2 reads some of it
// otherwise.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace phalanx {

// The same pattern for PCRE2 with UTF, UCP and MULTILINE. Unimplemented naming what is not known to mean the
// same: supported are literals, classes without nesting, groups, alternatives, lookaround, greedy, lazy and
// possessive quantifiers, ^ $ . \A \z, (?i: and a leading (?i), and the escapes \p \P \s \S \d \D \n \r \t \f
// \uHHHH \x{H}.
absl::StatusOr<std::string> Pcre2FromRuby(std::string_view regex);

}  // namespace phalanx

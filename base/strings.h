// Strings in messages. ToAbsl bridges std::string_view and absl::string_view, which are one type or two
// depending on how Abseil was built (Debian's is built with two).
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace phalanx {

// For absl::StrCat and the like.
inline absl::string_view ToAbsl(std::string_view s) { return absl::string_view(s.data(), s.size()); }

// In quotes, escaped and cut: names in a file may hold anything.
inline std::string Quote(std::string_view s) {
  constexpr size_t kShown = 80;
  return absl::StrCat("'", absl::CEscape(ToAbsl(s.substr(0, kShown))), s.size() > kShown ? "..." : "", "'");
}

}  // namespace phalanx

// Bridges std::string_view and absl::string_view, which are one type or two depending on how Abseil was built
// (Debian's is built with two).
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace phalanx {

// For absl::StrCat and the like.
inline absl::string_view ToAbsl(std::string_view s) { return absl::string_view(s.data(), s.size()); }

}  // namespace phalanx

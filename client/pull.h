// `phalanx pull`: a model's files from a Hugging Face compatible hub, each checked by its hash.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "client/config.h"

namespace phalanx {

// Prints the directory to stdout, progress to stderr. A pull that was cut goes on where it was; one of what
// is there already asks the hub for its list only.
absl::Status RunPull(const ClientConfig& config);

// ${XDG_CACHE_HOME:-~/.cache}/phalanx/models/ORG/NAME, with "@REVISION" where it is not main. Empty where
// neither variable is set. Pure.
std::string DefaultPullDirectory(const std::string& repository, const std::string& revision,
                                 std::string_view xdg_cache_home, std::string_view home);

struct ContentRange {
  int64_t first = 0;
  std::optional<int64_t> total;
  bool operator==(const ContentRange&) const = default;
};

// Of "bytes FIRST-LAST/TOTAL" or ".../*"; absent for anything else. Pure.
std::optional<ContentRange> ParseContentRange(std::string_view value);

}  // namespace phalanx

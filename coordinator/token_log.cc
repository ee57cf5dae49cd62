#include "coordinator/token_log.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::coordinator {

uint32_t TokenLog::BeginAttempt(std::string fingerprint) {
  fingerprint_ = std::move(fingerprint);
  return ++attempt_;
}

absl::StatusOr<size_t> TokenLog::Append(uint32_t attempt, int32_t offset, const std::vector<int32_t>& ids) {
  if (attempt < attempt_) return ids.size();
  if (attempt > attempt_) {
    return absl::InternalError(
        absl::StrCat("output of attempt ", attempt, ", but only ", attempt_, " attempts were begun"));
  }
  if (offset < 0 || static_cast<size_t>(offset) > ids_.size()) {
    return absl::DataLossError(
        absl::StrCat("output at offset ", offset, ", but the token log ends at ", ids_.size()));
  }
  const size_t known = std::min(ids_.size() - static_cast<size_t>(offset), ids.size());
  for (size_t i = 0; i < known; ++i) {
    if (ids_[static_cast<size_t>(offset) + i] != ids[i]) {
      return absl::DataLossError(absl::StrCat("token ", static_cast<size_t>(offset) + i, " is ", ids[i],
                                              ", but the token log has ",
                                              ids_[static_cast<size_t>(offset) + i]));
    }
  }
  ids_.insert(ids_.end(), ids.begin() + static_cast<std::ptrdiff_t>(known), ids.end());
  return known;
}

}  // namespace phalanx::coordinator

// The token log of a request: everything that a fresh group needs to go on with it, and the one place where
// it is decided which output is new. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/request.h"

namespace phalanx::coordinator {

class TokenLog {
 public:
  TokenLog(Sampling sampling, uint32_t rope_mode) : sampling_(std::move(sampling)), rope_mode_(rope_mode) {}

  // Begins a dispatch to a group; returns its number, 1 for the first. Output of older attempts is dropped.
  uint32_t BeginAttempt(std::string fingerprint);

  // Takes the output of `attempt` that follows `offset` generated tokens, and returns how many of `ids` at
  // their front are already in the log; the rest is appended. An older attempt's output is all dropped: the
  // return is ids.size(). DataLoss when tokens are missing before `offset` or differ from the logged ones;
  // Internal for an attempt that never began.
  absl::StatusOr<size_t> Append(uint32_t attempt, int32_t offset, const std::vector<int32_t>& ids);
  // Forgets the tokens after the first `size`: they were generated but are not said.
  void Truncate(size_t size) { ids_.resize(size); }

  const Sampling& sampling() const { return sampling_; }
  uint32_t rope_mode() const { return rope_mode_; }
  const std::string& fingerprint() const { return fingerprint_; }
  uint32_t attempt() const { return attempt_; }
  const std::vector<int32_t>& ids() const { return ids_; }

 private:
  const Sampling sampling_;
  const uint32_t rope_mode_;
  std::string fingerprint_;
  uint32_t attempt_ = 0;
  std::vector<int32_t> ids_;
};

}  // namespace phalanx::coordinator

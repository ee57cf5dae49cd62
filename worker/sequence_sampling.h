// How the tokens of one sequence are chosen: what of its request and its log goes into the SampleRow of each.
// Pure.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/ops.h"
#include "worker/thinking_budget.h"

namespace phalanx {

struct SequenceRequest;

class SequenceSampling {
 public:
  // `request` passed CheckRequest. `tokens` may be null where the request has no thinking budget.
  SequenceSampling(const SequenceRequest& request, int64_t vocab_size, const ThinkingTokens* tokens);

  // Fills in `row`, a copy of request.sampling, for generated token `index`; each index once, rising. A
  // decision by state (bans, forced tokens) reads `generated` up to index - 2. Penalties read all that
  // precedes it, when the row is sampled.
  void Fill(int64_t index, const std::vector<int32_t>& generated, SampleRow* row);
  // The next token of the log.
  void Commit(int32_t id);

 private:
  const int64_t min_tokens_;
  std::shared_ptr<TokenCounts> counts_;  // null: no penalties
  ThinkingTokens::Ids stop_ids_;         // null: never banned
  std::optional<ThinkingTracker> thinking_;
};

}  // namespace phalanx

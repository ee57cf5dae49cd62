#include "worker/sequence_sampling.h"

#include <utility>

#include "worker/scheduler.h"

namespace phalanx {

SequenceSampling::SequenceSampling(const SequenceRequest& request, int64_t vocab_size,
                                   const ThinkingTokens* tokens)
    : min_tokens_(request.min_tokens) {
  if (request.sampling.has_penalties()) {
    counts_ = std::make_shared<TokenCounts>(vocab_size);
    // The other penalties do not read the prompt.
    if (request.sampling.repetition_penalty != 1) {
      for (const int32_t id : request.prompt) counts_->AddPrompt(id);
    }
    for (const int32_t id : request.generated) counts_->AddOutput(id);
  }
  if (min_tokens_ > 0) {
    std::vector<int32_t> ids;
    for (const int32_t id : request.stop_ids) {
      if (id >= 0 && id < vocab_size) ids.push_back(id);  // others cannot be sampled
    }
    if (!ids.empty()) stop_ids_ = std::make_shared<const std::vector<int32_t>>(std::move(ids));
  }
  if (request.thinking.has_value()) thinking_.emplace(*request.thinking, tokens);
}

void SequenceSampling::Fill(int64_t index, const std::vector<int32_t>& generated, SampleRow* row) {
  row->counts = counts_;
  if (index < min_tokens_) row->banned[0] = stop_ids_;
  if (!thinking_.has_value()) return;
  const ThinkingTracker::Decision decision = thinking_->Decide(index, generated);
  row->target = decision.forced;
  row->banned[1] = decision.banned;
}

void SequenceSampling::Commit(int32_t id) {
  if (counts_ != nullptr) counts_->AddOutput(id);
}

}  // namespace phalanx

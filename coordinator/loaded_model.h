// A model that is served, as far as the coordinator needs it: limits, tokenizer, chat template.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "base/model_config.h"
#include "coordinator/admission.h"
#include "coordinator/cluster_state.h"
#include "coordinator/generation.h"
#include "coordinator/prompt.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace phalanx::coordinator {

// Thread safety: immutable once made.
struct LoadedModel {
  ModelSpec spec;  // complete
  ModelConfig config;
  ModelLimits limits;
  int64_t num_parameters = 0;
  std::unique_ptr<Tokenizer> tokenizer;       // null: there is none that we can use
  ControlNames control_names;                 // of the tokenizer
  std::optional<ChatTemplate> chat_template;  // absent: there is none that we can render
  std::vector<CloseMark> close_marks;         // of the families that the tokenizer can write

  // The prompt of a request that passed CheckRequest.
  absl::StatusOr<std::vector<int32_t>> Tokenize(const RequestFields& fields) const;
  // The family whose reasoning the prompt `ids`, made of `fields`, leaves open; null: none.
  const ReasoningFamily* OpenedReasoning(const RequestFields& fields, const std::vector<int32_t>& ids) const;
};

// The tokens of `model`, which they keep alive; null without a tokenizer.
std::shared_ptr<const TokenBytes> TokensOf(std::shared_ptr<const LoadedModel> model);

}  // namespace phalanx::coordinator

// What models make of text, and what they are: the calls of Inference besides Generate. Pure; the calls that
// take long belong on a pool.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "coordinator/model_registry.h"
#include "phalanx/v1/inference.pb.h"

namespace phalanx::coordinator {

// InvalidArgument naming field and offset or value; FailedPrecondition where the model lacks what it takes.
absl::Status TokenizePrompt(const LoadedModel& model, const v1::TokenizeRequest& request,
                            v1::TokenizeResponse* response);
// InvalidArgument naming an id outside the vocabulary, or for more text than one message can be worth.
absl::Status DetokenizeIds(const LoadedModel& model, const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse* response);

// All but `ready`. `detail` says what text the model cannot take.
void DescribeModel(const LoadedModel& model, int32_t max_tokens_default, v1::Model* out);

}  // namespace phalanx::coordinator

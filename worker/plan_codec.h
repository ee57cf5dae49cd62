// The worker's values as messages of group_control.proto and back. The only place that knows both.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "phalanx/internal/v1/group_control.pb.h"
#include "worker/scheduler.h"
#include "worker/step_plan.h"

namespace phalanx {

void ToProto(const StepPlan& plan, internal::v1::StepPlan* out);
StepPlan FromProto(const internal::v1::StepPlan& plan);

// `output.source` is not on the wire: the stream itself says which coordinator is meant.
void ToProto(const SequenceOutput& output, internal::v1::SequenceOutput* out);

// InvalidArgument naming the field where a value fits no request at all; limits of the model and the group
// are the scheduler's to check.
absl::StatusOr<SequenceRequest> FromProto(const internal::v1::Submit& submit, uint64_t source);

}  // namespace phalanx

// What Scheduler::Submit refuses whatever its state. A bad value must end here: in a step it would end the
// whole group.
#pragma once

#include "absl/status/status.h"
#include "worker/scheduler.h"

namespace phalanx {

// InvalidArgument naming the field, its value and what would be right. `request.stop_ids` is sorted.
absl::Status CheckRequest(const SchedulerOptions& options, const SequenceRequest& request);

}  // namespace phalanx

// StepRunner: what the leader's and the follower's loops need of one rank's model. ModelRunner is one; tests
// have fakes.
//
// Per step, on every rank, in this order:  Launch(plan);  the leader: Sample;  ShareSampled.
// After an error the runner is dead and its group's epoch over. Thread safety: one thread.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/scheduler.h"
#include "worker/step_plan.h"

namespace phalanx {

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Runs the plan: tokens, layers, logits of the rows that ask for them.
  virtual absl::Status Launch(const StepPlan& plan) = 0;
  // The leader, after Launch: samples and reads the results back. `samples` has plan.num_logits() rows.
  virtual absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>& samples) = 0;
  // Every rank, after Launch (the leader: after Sample): the ids sampled reach all ranks, for the next plan's
  // references. A step without logits shares nothing.
  virtual absl::Status ShareSampled() = 0;
};

}  // namespace phalanx

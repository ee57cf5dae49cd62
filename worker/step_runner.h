// StepRunner: what the leader's and the follower's loops need of one rank's model. ModelRunner is one; tests
// have fakes.
//
// Per step, on every rank, in this order:  Launch(plan);  the leader: Sample, or StartSample;  ShareSampled.
// Where the runner runs ahead, the next step's Launch comes between this one's ShareSampled and FinishSample.
// After an error the runner is dead and its group's epoch over. Thread safety: one thread.
#pragma once

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
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
  // Sample in two halves, of which the second waits. Of one that does not run ahead the first does it all.
  virtual absl::Status StartSample(const std::vector<SampleRow>& samples) {
    PHX_ASSIGN_OR_RETURN(started_, Sample(samples));
    return absl::OkStatus();
  }
  virtual absl::StatusOr<StepResult> FinishSample() { return std::move(started_); }
  // Calls but Sample and FinishSample return before their work is done.
  virtual bool runs_ahead() const { return false; }
  // Every rank, after Launch (the leader: after Sample): the ids sampled reach all ranks, for the next plan's
  // references. A step without logits shares nothing.
  virtual absl::Status ShareSampled() = 0;

 private:
  StepResult started_;
};

}  // namespace phalanx

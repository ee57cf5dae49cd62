// TimedRunner: tells a worker's vitals when the steps of a runner begin and end, so that one that hangs
// shows.
#pragma once

#include <vector>

#include "worker/step_runner.h"
#include "worker/vitals.h"

namespace phalanx {

// A step ends when its samples are there, also where the next was launched before; one that samples nothing
// here (a follower's, or one of a long prompt) when its calls returned: of a runner that runs ahead its
// device may still be at it, and a hung one shows as the launch after the next, which waits.
class TimedRunner final : public StepRunner {
 public:
  TimedRunner(StepRunner* runner, WorkerVitals* vitals) : runner_(runner), vitals_(vitals) {}
  absl::Status Launch(const StepPlan& plan) override {
    sampling_ = false;
    vitals_->StepBegins();
    return runner_->Launch(plan);
  }
  absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>& samples) override {
    return runner_->Sample(samples);
  }
  absl::Status StartSample(const std::vector<SampleRow>& samples) override {
    sampling_ = true;
    return runner_->StartSample(samples);
  }
  absl::StatusOr<StepResult> FinishSample() override {
    absl::StatusOr<StepResult> result = runner_->FinishSample();
    vitals_->StepEnds();
    return result;
  }
  bool runs_ahead() const override { return runner_->runs_ahead(); }
  absl::Status ShareSampled() override {
    absl::Status status = runner_->ShareSampled();
    if (!sampling_) vitals_->StepEnds();
    return status;
  }

 private:
  StepRunner* const runner_;
  WorkerVitals* const vitals_;
  bool sampling_ = false;  // the step launched last ends with FinishSample
};

}  // namespace phalanx

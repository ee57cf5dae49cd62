// What the worker puts around its runner, TimedRunner and FaultyRunner, with one that runs a step ahead.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "worker/debug_faults.h"
#include "worker/timed_runner.h"

namespace phalanx {
namespace {

// Samples the number of the step whose sampling was started first and not finished.
class QueuedRunner final : public StepRunner {
 public:
  absl::Status Launch(const StepPlan& plan) override {
    launched_ = static_cast<int32_t>(plan.step);
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>&) override {
    return absl::InternalError("waits at once");
  }
  absl::Status StartSample(const std::vector<SampleRow>& samples) override {
    started_ = StepResult();
    started_.ids.assign(samples.size(), launched_);
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> FinishSample() override { return started_; }
  bool runs_ahead() const override { return true; }
  absl::Status ShareSampled() override { return absl::OkStatus(); }

 private:
  int32_t launched_ = 0;
  StepResult started_;
};

StepPlan Step(uint64_t number) {
  StepPlan plan;
  plan.step = number;
  return plan;
}

TEST(FaultyRunner, ANanIsOfItsStepThoughTheNextIsLaunched) {
  QueuedRunner queued;
  DebugFaults faults({"nan@2"});
  FaultyRunner runner(&queued, &faults);
  ASSERT_TRUE(runner.runs_ahead());
  ASSERT_TRUE(runner.Launch(Step(1)).ok());
  for (int step = 1; step <= 4; ++step) {
    ASSERT_TRUE(runner.StartSample(std::vector<SampleRow>(2)).ok());
    ASSERT_TRUE(runner.ShareSampled().ok());
    ASSERT_TRUE(runner.Launch(Step(static_cast<uint64_t>(step) + 1)).ok());
    const absl::StatusOr<StepResult> result = runner.FinishSample();
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->ids[0], step == 2 ? -1 : step);
    EXPECT_EQ(result->ids[1], step);
  }
}

TEST(TimedRunner, AStepRunsUntilItsSamplesAreThere) {
  QueuedRunner queued;
  WorkerVitals vitals;
  TimedRunner runner(&queued, &vitals);
  ASSERT_TRUE(runner.runs_ahead());
  EXPECT_EQ(vitals.running_step_seconds(), -1);

  ASSERT_TRUE(runner.Launch(Step(1)).ok());
  ASSERT_TRUE(runner.StartSample(std::vector<SampleRow>(1)).ok());
  ASSERT_TRUE(runner.ShareSampled().ok());
  EXPECT_GE(vitals.running_step_seconds(), 0) << "its samples are not there";
  EXPECT_EQ(vitals.last_step_age_seconds(), -1);

  ASSERT_TRUE(runner.Launch(Step(2)).ok());
  ASSERT_TRUE(runner.FinishSample().ok());
  EXPECT_GE(vitals.last_step_age_seconds(), 0);
  EXPECT_GE(vitals.running_step_seconds(), 0) << "the next was launched before";

  ASSERT_TRUE(runner.ShareSampled().ok()) << "of a step that samples nothing";
  EXPECT_EQ(vitals.running_step_seconds(), -1);
}

TEST(TimedRunner, AStepThatSamplesNothingEndsWithItsCalls) {
  QueuedRunner queued;
  WorkerVitals vitals;
  TimedRunner runner(&queued, &vitals);
  for (uint64_t step = 1; step <= 3; ++step) {
    ASSERT_TRUE(runner.Launch(Step(step)).ok());
    EXPECT_GE(vitals.running_step_seconds(), 0);
    ASSERT_TRUE(runner.ShareSampled().ok());
    EXPECT_EQ(vitals.running_step_seconds(), -1);
  }
}

}  // namespace
}  // namespace phalanx

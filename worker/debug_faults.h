// Faults on demand, for tests of what the cluster makes of them (--debug-fault): a step that hangs or fails,
// logits that are no numbers, weights that are not what their checksum says. None unless asked for.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/step_runner.h"

namespace phalanx {

struct DebugFault {
  enum class Kind {
    kDelay,    // the step sleeps before it runs
    kError,    // the step fails
    kNan,      // the first row that the step samples is as one with a NaN among its logits (rank 0)
    kCorrupt,  // --verify-weights sees a bit flipped in the first file
  };
  Kind kind = Kind::kDelay;
  int64_t step = 0;    // of this worker's life, from 1; not of kCorrupt
  double seconds = 0;  // of kDelay

  // "delay@STEP=SECONDS", "error@STEP", "nan@STEP" or "corrupt". InvalidArgument naming the text.
  static absl::StatusOr<DebugFault> Parse(const std::string& text);
};

// A worker's faults and the steps it has run, over all its groups: a fault comes once. Thread safety: any
// thread.
class DebugFaults {
 public:
  // Texts that DebugFault::Parse takes; others are left out.
  explicit DebugFaults(const std::vector<std::string>& texts);
  // A step begins: its faults.
  std::vector<DebugFault> NextStep();

 private:
  std::vector<DebugFault> faults_;
  std::atomic<int64_t> steps_{0};
};

// A runner whose steps have the faults.
class FaultyRunner final : public StepRunner {
 public:
  // faults: null for none.
  FaultyRunner(StepRunner* runner, DebugFaults* faults) : runner_(runner), faults_(faults) {}
  absl::Status Launch(const StepPlan& plan) override;
  absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>& samples) override;
  absl::Status StartSample(const std::vector<SampleRow>& samples) override;
  absl::StatusOr<StepResult> FinishSample() override;
  bool runs_ahead() const override { return runner_->runs_ahead(); }
  absl::Status ShareSampled() override { return runner_->ShareSampled(); }

 private:
  StepRunner* const runner_;
  DebugFaults* const faults_;
  bool nan_ = false;          // in the step launched last
  bool sampled_nan_ = false;  // in the one whose sampling was started last
};

}  // namespace phalanx

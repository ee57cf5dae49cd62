// Follower: the loop of every rank but 0. It runs the plans of the leader in their order and takes part in
// the exchange of sampled ids. It needs no scheduler and knows no requests.
//
// Thread safety: all methods, from any thread. Source and runner are called from the loop's thread alone and
// must outlive the follower.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "worker/step_plan.h"
#include "worker/step_runner.h"

namespace phalanx {

class PlanSource {
 public:
  virtual ~PlanSource() = default;
  // The next plan in order; nothing when none came until `deadline`. An error (Unavailable when the leader's
  // stream ended) ends the epoch.
  virtual absl::StatusOr<std::optional<StepPlan>> Next(std::chrono::steady_clock::time_point deadline) = 0;
};

struct FollowerOptions {
  using Clock = std::chrono::steady_clock;
  std::chrono::milliseconds tick{200};  // the longest wait for a plan; Stop is noticed after it
  std::function<Clock::time_point()> now = Clock::now;
};

struct FollowerStats {
  uint64_t steps = 0;  // completed
  // When the last step was completed or its plan came; now while no plan is there.
  FollowerOptions::Clock::time_point last_progress;
  bool ended = false;
};

class Follower {
 public:
  // Starts the loop. `on_ended` is called once, as the last thing on the loop's thread: OK after Stop, else
  // what ended the epoch, named with its step. It must not destroy the follower.
  Follower(const FollowerOptions& options, StepRunner* runner, PlanSource* plans,
           std::function<void(const absl::Status&)> on_ended);
  // Stop, then waits for the loop. A step that is running ends first, at the latest by the runner's own
  // deadlines.
  ~Follower();
  Follower(const Follower&) = delete;
  Follower& operator=(const Follower&) = delete;

  // Ends the loop after the step that is running. Returns at once.
  void Stop();
  // Waits until the loop has ended (on_ended returned); false when `timeout` passed first.
  bool WaitUntilEnded(std::chrono::milliseconds timeout);

  FollowerStats stats() const;

 private:
  void Loop();
  absl::Status Serve();
  absl::Status RunStep(const StepPlan& plan);
  // Notes that the loop waits for a plan, or does not any more; false once stopped.
  bool SetWaiting(bool waiting);

  // Constant after construction.
  const FollowerOptions options_;
  StepRunner* const runner_;
  PlanSource* const plans_;
  const std::function<void(const absl::Status&)> on_ended_;

  mutable Mutex mu_;
  CondVar ended_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool waiting_ ABSL_GUARDED_BY(mu_) = false;
  FollowerStats stats_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace phalanx

// Leader: the loop of rank 0. It owns the scheduler, hands out plans one step ahead, runs them on its own
// rank and says what came of them. It knows no transport: plans and outputs go to sinks.
//
//   take in requests -> plan n+1, send it -> Launch n, Sample, ShareSampled -> Commit n -> outputs of n ->
//   ...
//
// Thread safety: all methods, from any thread. Sinks and runner are called from the loop's thread alone, with
// no lock held; they may call Submit, Abort, AbortSource, Stop and stats, and must outlive the leader.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "worker/scheduler.h"
#include "worker/step_plan.h"
#include "worker/step_runner.h"

namespace phalanx {

class PlanSink {
 public:
  virtual ~PlanSink() = default;
  // Hands the plan to every follower, in order; returns when it is on its way and does not wait until it is
  // run. An error ends the epoch.
  virtual absl::Status SendPlan(const StepPlan& plan) = 0;
};

// A request that was queued gets a second result, kAccepted, once it is admitted.
struct SubmitResult {
  uint64_t source = 0;
  uint64_t request = 0;
  uint32_t attempt = 0;
  absl::StatusOr<Admission> admission;
};

class OutputSink {
 public:
  virtual ~OutputSink() = default;
  // Neither may block. A request's results come in order: SubmitResult, then its outputs.
  virtual void OnSubmitResult(const SubmitResult& result) = 0;
  // Once a step, for all sources; empty when the step said nothing (a prompt's chunk).
  virtual void OnStep(uint64_t step, std::vector<SequenceOutput> outputs) = 0;
};

struct LeaderOptions {
  using Clock = std::chrono::steady_clock;

  SchedulerOptions scheduler;
  // Requests and cancellations that came since the last step; beyond, Submit says ResourceExhausted.
  size_t max_inbox = 65536;
  std::chrono::milliseconds idle_tick{1000};    // the longest wait
  std::chrono::milliseconds rate_window{5000};  // of tokens_per_second
  std::function<Clock::time_point()> now = Clock::now;
};

struct LeaderStats {
  uint64_t steps = 0;             // completed
  uint64_t generated_tokens = 0;  // given out, all sequences
  double tokens_per_second = 0;   // over the last rate_window
  SchedulerLoad load;
  // Liveness is progress: when the last step was completed, or when work came after idleness; now while idle.
  LeaderOptions::Clock::time_point last_progress;
  bool ended = false;
};

class Leader {
 public:
  // Starts the loop. `on_ended` is called once, as the last thing on the loop's thread: OK after Stop, else
  // what ended the epoch (from the runner, PlanSink, or a broken result), named with its step. It must not
  // destroy the leader. `options.scheduler` is valid.
  Leader(const LeaderOptions& options, StepRunner* runner, PlanSink* plans, OutputSink* outputs,
         std::function<void(const absl::Status&)> on_ended);
  // Stop(false), then waits for the loop. A step that is running ends first, at the latest by the runner's
  // own deadlines.
  ~Leader();
  Leader(const Leader&) = delete;
  Leader& operator=(const Leader&) = delete;

  // OK: the answer comes as a SubmitResult. Unavailable once stopped, draining or failed, ResourceExhausted
  // when the inbox is full: then nothing comes.
  absl::Status Submit(SequenceRequest request);
  // As in Scheduler. Outputs of a step that is running may still come.
  void Abort(uint64_t source, uint64_t request);
  void AbortSource(uint64_t source);

  // Ends the loop: with `drain` when all accepted and queued requests are done (Stop(false) may follow), else
  // after the steps that followers have been sent; what is unfinished then gets no output. Returns at once.
  void Stop(bool drain);
  // Waits until the loop has ended (on_ended returned); false when `timeout` passed first.
  bool WaitUntilEnded(std::chrono::milliseconds timeout);

  LeaderStats stats() const;

 private:
  using Clock = LeaderOptions::Clock;
  struct AbortOne {
    uint64_t source;
    uint64_t request;
  };
  struct AbortAll {
    uint64_t source;
  };
  using Command = std::variant<SequenceRequest, AbortOne, AbortAll>;
  enum class State { kServing, kDraining, kStopping, kEnded };

  void Loop();
  absl::Status Serve();
  // Waits for a command when `wait`, applies all, and returns the state.
  State TakeCommands(bool wait);
  void Apply(Command command);
  absl::StatusOr<std::optional<PlannedStep>> PlanAndSend();
  // Unless it is launched already.
  absl::Status Launch(const PlannedStep& step);
  // `next` may be null; a runner that runs ahead gets it before this step's result is waited for.
  absl::Status RunStep(const PlannedStep& step, const PlannedStep* next);
  void Record(const std::vector<SequenceOutput>& outputs);
  void Push(Command command) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const LeaderOptions options_;
  StepRunner* const runner_;
  PlanSink* const plans_;
  OutputSink* const outputs_;
  const std::function<void(const absl::Status&)> on_ended_;

  // The loop's own.
  Scheduler scheduler_;
  uint64_t launched_ = 0;  // the last step

  mutable Mutex mu_;
  CondVar changed_;  // the inbox or the state
  std::deque<Command> inbox_ ABSL_GUARDED_BY(mu_);
  State state_ ABSL_GUARDED_BY(mu_) = State::kServing;
  bool waiting_ ABSL_GUARDED_BY(mu_) = false;  // idle
  LeaderStats stats_ ABSL_GUARDED_BY(mu_);
  struct Tokens {
    Clock::time_point when;
    uint64_t count;
  };
  std::deque<Tokens> recent_ ABSL_GUARDED_BY(mu_);  // of the last rate_window, a tenth of a second each

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace phalanx

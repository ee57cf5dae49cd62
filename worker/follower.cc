#include "worker/follower.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx {

Follower::Follower(const FollowerOptions& options, StepRunner* runner, PlanSource* plans,
                   std::function<void(const absl::Status&)> on_ended)
    : options_(options), runner_(runner), plans_(plans), on_ended_(std::move(on_ended)) {
  stats_.last_progress = options_.now();
  thread_ = std::thread([this] { Loop(); });
}

Follower::~Follower() {
  Stop();
  thread_.join();
}

void Follower::Stop() {
  MutexLock lock(mu_);
  stopped_ = true;
}

bool Follower::WaitUntilEnded(std::chrono::milliseconds timeout) {
  const CondVar::Clock::time_point deadline = CondVar::Clock::now() + timeout;
  MutexLock lock(mu_);
  while (!stats_.ended) {
    if (!ended_.WaitUntil(mu_, deadline)) return stats_.ended;
  }
  return true;
}

FollowerStats Follower::stats() const {
  const FollowerOptions::Clock::time_point now = options_.now();
  MutexLock lock(mu_);
  FollowerStats stats = stats_;
  if (waiting_) stats.last_progress = now;
  return stats;
}

void Follower::Loop() {
  on_ended_(Serve());
  MutexLock lock(mu_);
  stats_.ended = true;
  ended_.NotifyAll();
}

bool Follower::SetWaiting(bool waiting) {
  const FollowerOptions::Clock::time_point now = options_.now();
  MutexLock lock(mu_);
  waiting_ = waiting;
  stats_.last_progress = now;
  return !stopped_;
}

absl::Status Follower::Serve() {
  uint64_t last_step = 0;
  while (SetWaiting(true)) {
    absl::StatusOr<std::optional<StepPlan>> plan =
        plans_->Next(FollowerOptions::Clock::now() + options_.tick);
    if (!SetWaiting(false)) return absl::OkStatus();
    if (!plan.ok()) {
      return absl::Status(plan.status().code(), absl::StrCat("waiting for the plan after step ", last_step,
                                                             ": ", plan.status().message()));
    }
    if (!plan->has_value()) continue;
    if ((*plan)->step != last_step + 1) {
      return absl::InternalError(
          absl::StrCat("the plan of step ", (*plan)->step, " came after step ", last_step));
    }
    last_step = (*plan)->step;
    PHX_RETURN_IF_ERROR(RunStep(**plan));
  }
  return absl::OkStatus();
}

absl::Status Follower::RunStep(const StepPlan& plan) {
  const char* doing = "launch";
  absl::Status status = runner_->Launch(plan);
  if (status.ok()) {
    doing = "getting the sampled ids";
    status = runner_->ShareSampled();
  }
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("step ", plan.step, ", ", doing, ": ", status.message()));
  }
  MutexLock lock(mu_);
  ++stats_.steps;
  return absl::OkStatus();
}

}  // namespace phalanx

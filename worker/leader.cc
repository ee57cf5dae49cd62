#include "worker/leader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

absl::Status Annotate(const absl::Status& status, uint64_t step, const char* what) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("step ", step, ", ", what, ": ", status.message()));
}

std::string NameOf(const std::string& request_id, uint64_t request) {
  // What others wrote must not forge lines of the log.
  return absl::StrCat("request \"", absl::CEscape(request_id), "\", number ", request);
}

void LogEnded(const std::vector<SequenceOutput>& outputs) {
  for (const SequenceOutput& out : outputs) {
    if (!out.error.ok()) {
      spdlog::warn("{}: {}", NameOf(out.request_id, out.request), absl::CEscape(out.error.message()));
    } else if (out.finish != Finish::kNone && spdlog::should_log(spdlog::level::debug)) {
      spdlog::debug("{}: ended ({}), {} tokens, {} of its prompt from the cache",
                    NameOf(out.request_id, out.request), out.finish == Finish::kStop ? "stop" : "length",
                    static_cast<size_t>(out.offset) + out.tokens.size(), out.cached_prompt_tokens);
    }
  }
}

}  // namespace

Leader::Leader(const LeaderOptions& options, StepRunner* runner, PlanSink* plans, OutputSink* outputs,
               std::function<void(const absl::Status&)> on_ended)
    : options_(options),
      runner_(runner),
      plans_(plans),
      outputs_(outputs),
      on_ended_(std::move(on_ended)),
      scheduler_(options.scheduler) {
  stats_.last_progress = options_.now();
  thread_ = std::thread([this] { Loop(); });
}

Leader::~Leader() {
  Stop(/*drain=*/false);
  thread_.join();
}

// ---- From any thread ----

void Leader::Push(Command command) {
  inbox_.push_back(std::move(command));
  changed_.NotifyAll();
}

absl::Status Leader::Submit(SequenceRequest request) {
  MutexLock lock(mu_);
  if (state_ != State::kServing) {
    return absl::UnavailableError(absl::StrCat("request ", request.request,
                                               ": this group takes no more requests: it ",
                                               state_ == State::kDraining ? "drains" : "is stopped"));
  }
  if (inbox_.size() >= options_.max_inbox) {
    return absl::ResourceExhaustedError(absl::StrCat("request ", request.request, ": ", inbox_.size(),
                                                     " requests came since the last step; try again later"));
  }
  Push(std::move(request));
  return absl::OkStatus();
}

void Leader::Abort(uint64_t source, uint64_t request) {
  MutexLock lock(mu_);
  if (state_ != State::kEnded) Push(AbortOne{source, request});
}

void Leader::AbortSource(uint64_t source) {
  MutexLock lock(mu_);
  if (state_ != State::kEnded) Push(AbortAll{source});
}

void Leader::Stop(bool drain) {
  MutexLock lock(mu_);
  state_ = std::max(state_, drain ? State::kDraining : State::kStopping);
  changed_.NotifyAll();
}

bool Leader::WaitUntilEnded(std::chrono::milliseconds timeout) {
  const CondVar::Clock::time_point deadline = CondVar::Clock::now() + timeout;
  MutexLock lock(mu_);
  while (!stats_.ended) {
    if (!changed_.WaitUntil(mu_, deadline)) return stats_.ended;
  }
  return true;
}

LeaderStats Leader::stats() const {
  const Clock::time_point now = options_.now();
  MutexLock lock(mu_);
  LeaderStats stats = stats_;
  uint64_t tokens = 0;
  for (const Tokens& t : recent_) {
    if (t.when + options_.rate_window > now) tokens += t.count;
  }
  stats.tokens_per_second =
      static_cast<double>(tokens) / std::chrono::duration<double>(options_.rate_window).count();
  if (waiting_) stats.last_progress = now;
  return stats;
}

// ---- The loop ----

void Leader::Loop() {
  const absl::Status status = Serve();
  std::deque<Command> late;
  {
    MutexLock lock(mu_);
    state_ = State::kEnded;
    late.swap(inbox_);
  }
  for (const Command& command : late) {
    const SequenceRequest* r = std::get_if<SequenceRequest>(&command);
    if (r == nullptr) continue;
    outputs_->OnSubmitResult(
        {r->source, r->request, r->attempt,
         absl::UnavailableError(absl::StrCat("request ", r->request, ": this group has ended: ",
                                             status.ok() ? "it is stopped" : status.message()))});
  }
  on_ended_(status);
  MutexLock lock(mu_);
  stats_.ended = true;
  changed_.NotifyAll();
}

absl::Status Leader::Serve() {
  std::optional<PlannedStep> current;  // sent, not run
  while (true) {
    const State state = TakeCommands(/*wait=*/!current && scheduler_.idle());
    if (state == State::kStopping) return current ? RunStep(*current, nullptr) : absl::OkStatus();
    if (!current) {
      PHX_ASSIGN_OR_RETURN(current, PlanAndSend());
      if (!current && state == State::kDraining) return absl::OkStatus();
      if (!current) continue;
    }
    PHX_ASSIGN_OR_RETURN(std::optional<PlannedStep> next, PlanAndSend());
    PHX_RETURN_IF_ERROR(RunStep(*current, next ? &*next : nullptr));
    current = std::move(next);
  }
}

Leader::State Leader::TakeCommands(bool wait) {
  std::deque<Command> commands;
  State state;
  {
    MutexLock lock(mu_);
    if (wait && inbox_.empty() && state_ == State::kServing) {
      waiting_ = true;
      changed_.WaitFor(mu_, options_.idle_tick);
      waiting_ = false;
      stats_.last_progress = options_.now();
    }
    state = state_;
    if (state == State::kStopping) return state;  // Loop answers what is left
    commands.swap(inbox_);
  }
  for (Command& command : commands) Apply(std::move(command));
  const SchedulerLoad load = scheduler_.load();
  MutexLock lock(mu_);
  stats_.load = load;
  return state;
}

void Leader::Apply(Command command) {
  if (SequenceRequest* request = std::get_if<SequenceRequest>(&command)) {
    SubmitResult result{request->source, request->request, request->attempt, Admission::kQueued};
    const bool log = spdlog::should_log(spdlog::level::debug);
    const std::string name = log ? NameOf(request->request_id, request->request) : "";
    result.admission = scheduler_.Submit(std::move(*request));
    if (log) {
      spdlog::debug("{}: {}", name,
                    !result.admission.ok()                      ? result.admission.status().ToString()
                    : *result.admission == Admission::kAccepted ? "accepted"
                                                                : "queued");
    }
    outputs_->OnSubmitResult(result);
  } else if (const AbortOne* one = std::get_if<AbortOne>(&command)) {
    spdlog::debug("request number {}: its coordinator wants no more of it", one->request);
    scheduler_.Abort(one->source, one->request);
  } else if (const AbortAll* all = std::get_if<AbortAll>(&command)) {
    scheduler_.AbortSource(all->source);
  }
}

absl::StatusOr<std::optional<PlannedStep>> Leader::PlanAndSend() {
  std::optional<PlannedStep> planned = scheduler_.Plan();
  for (const Scheduler::Admitted& a : scheduler_.TakeAdmitted()) {
    outputs_->OnSubmitResult({a.source, a.request, a.attempt, Admission::kAccepted});
  }
  if (planned) {
    PHX_RETURN_IF_ERROR(Annotate(plans_->SendPlan(planned->plan), planned->plan.step, "sending the plan"));
  }
  return planned;
}

absl::Status Leader::Launch(const PlannedStep& step) {
  if (launched_ == step.plan.step) return absl::OkStatus();
  launched_ = step.plan.step;
  return Annotate(runner_->Launch(step.plan), step.plan.step, "launch");
}

absl::Status Leader::RunStep(const PlannedStep& step, const PlannedStep* next) {
  const uint64_t n = step.plan.step;
  PHX_RETURN_IF_ERROR(Launch(step));
  if (!step.samples.empty()) {
    PHX_RETURN_IF_ERROR(Annotate(runner_->StartSample(step.samples), n, "sampling"));
  }
  PHX_RETURN_IF_ERROR(Annotate(runner_->ShareSampled(), n, "sharing the sampled ids"));
  // What the next step samples depends on this one's result; what it computes before that does not.
  if (next != nullptr && runner_->runs_ahead()) PHX_RETURN_IF_ERROR(Launch(*next));
  StepResult result;
  if (!step.samples.empty()) {
    absl::StatusOr<StepResult> sampled = runner_->FinishSample();
    PHX_RETURN_IF_ERROR(Annotate(sampled.status(), n, "sampling"));
    result = *std::move(sampled);
    const absl::Status good = CheckResult(step.samples, options_.scheduler.vocab_size, result);
    if (!good.ok()) return Annotate(absl::InternalError(good.message()), n, "sampling");
  }
  std::vector<SequenceOutput> outputs = scheduler_.Commit(result);
  Record(outputs);
  LogEnded(outputs);
  outputs_->OnStep(n, std::move(outputs));
  return absl::OkStatus();
}

void Leader::Record(const std::vector<SequenceOutput>& outputs) {
  uint64_t tokens = 0;
  for (const SequenceOutput& out : outputs) tokens += out.tokens.size();
  const Clock::time_point now = options_.now();
  const SchedulerLoad load = scheduler_.load();
  MutexLock lock(mu_);
  ++stats_.steps;
  stats_.generated_tokens += tokens;
  stats_.load = load;
  stats_.last_progress = now;
  while (!recent_.empty() && recent_.front().when + options_.rate_window <= now) recent_.pop_front();
  if (!recent_.empty() && now - recent_.back().when < std::chrono::milliseconds(100)) {
    recent_.back().count += tokens;
  } else {
    recent_.push_back({now, tokens});
  }
}

}  // namespace phalanx

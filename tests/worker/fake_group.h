// A group of threads around the fake model: a leader and followers as in production, channels instead of a
// network.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "tests/worker/fake_runner.h"
#include "worker/follower.h"
#include "worker/leader.h"

namespace phalanx {

inline constexpr std::chrono::milliseconds kLong{20000};  // a wait that ends early where all is well

inline SchedulerOptions SmallOptions() {
  SchedulerOptions o;
  o.num_blocks = 64;
  o.block_size = 4;
  o.context_length = 200;
  o.vocab_size = 1000;
  o.max_tokens_per_step = 16;
  o.max_sequences = 8;
  o.max_logits_per_step = 16;
  return o;
}

inline SequenceRequest Request(uint64_t source, uint64_t request, int32_t max_tokens, int prompt_length = 5) {
  SequenceRequest r;
  r.source = source;
  r.request = request;
  for (int i = 0; i < prompt_length; ++i) r.prompt.push_back(static_cast<int32_t>((request * 7 + i) % 1000));
  r.max_tokens = max_tokens;
  r.sampling.seed = request;
  return r;
}

// A queue between threads.
template <typename T>
class Channel {
 public:
  void Put(T value) {
    MutexLock lock(mu_);
    values_.push_back(std::move(value));
    changed_.NotifyAll();
  }
  std::optional<T> Take(CondVar::Clock::time_point deadline) {
    MutexLock lock(mu_);
    while (values_.empty()) {
      if (!changed_.WaitUntil(mu_, deadline)) return std::nullopt;
    }
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }
  std::optional<T> Take() { return Take(CondVar::Clock::now() + kLong); }

 private:
  Mutex mu_;
  CondVar changed_;
  std::deque<T> values_ ABSL_GUARDED_BY(mu_);
};

// What happened in a group, in order, and what was said to whom.
class Recorder : public PlanSink, public OutputSink {
 public:
  absl::Status SendPlan(const StepPlan& plan) override {
    Note(absl::StrCat("send ", plan.step));
    for (Channel<StepPlan>* follower : followers) follower->Put(plan);
    if (plan.step == fail_at_plan) return absl::UnavailableError("follower 3 is gone");
    return absl::OkStatus();
  }
  void OnSubmitResult(const SubmitResult& r) override {
    MutexLock lock(mu_);
    results_[r.request].push_back(r.admission.ok()
                                      ? (*r.admission == Admission::kAccepted ? "accepted" : "queued")
                                      : absl::StatusCodeToString(r.admission.status().code()));
    changed_.NotifyAll();
  }
  void OnStep(uint64_t step, std::vector<SequenceOutput> outputs) override {
    Note(absl::StrCat("output ", step));
    MutexLock lock(mu_);
    for (SequenceOutput& out : outputs) {
      Said& said = said_[{out.source, out.request}];
      EXPECT_EQ(out.offset, static_cast<int32_t>(said.tokens.size()));
      EXPECT_EQ(said.finish, Finish::kNone);
      said.tokens.insert(said.tokens.end(), out.tokens.begin(), out.tokens.end());
      said.finish = out.finish;
      EXPECT_TRUE(said.error.ok());
      said.error = out.error;
    }
    changed_.NotifyAll();
  }
  void OnEnded(const absl::Status& status) {
    MutexLock lock(mu_);
    ends_.push_back(status);
    changed_.NotifyAll();
  }
  void Note(std::string event) {
    MutexLock lock(mu_);
    events_.push_back(std::move(event));
    changed_.NotifyAll();
  }
  bool WaitEvent(const std::string& event) {
    const auto deadline = CondVar::Clock::now() + kLong;
    MutexLock lock(mu_);
    while (std::find(events_.begin(), events_.end(), event) == events_.end()) {
      if (!changed_.WaitUntil(mu_, deadline)) return false;
    }
    return true;
  }

  // The tokens of a request once it is finished; what there is of it after a long wait.
  std::vector<int32_t> WaitFinished(uint64_t source, uint64_t request) {
    const auto deadline = CondVar::Clock::now() + kLong;
    MutexLock lock(mu_);
    while (said_[{source, request}].finish == Finish::kNone) {
      if (!changed_.WaitUntil(mu_, deadline)) {
        ADD_FAILURE() << "request " << request << " does not end";
        break;
      }
    }
    return said_[{source, request}].tokens;
  }
  absl::Status WaitError(uint64_t source, uint64_t request) {
    const auto deadline = CondVar::Clock::now() + kLong;
    MutexLock lock(mu_);
    while (said_[{source, request}].error.ok() && changed_.WaitUntil(mu_, deadline)) {
    }
    return said_[{source, request}].error;
  }
  size_t WaitTokens(uint64_t source, uint64_t request, size_t count) {
    const auto deadline = CondVar::Clock::now() + kLong;
    MutexLock lock(mu_);
    while (said_[{source, request}].tokens.size() < count && changed_.WaitUntil(mu_, deadline)) {
    }
    return said_[{source, request}].tokens.size();
  }
  std::vector<std::string> WaitResults(uint64_t request, size_t count) {
    const auto deadline = CondVar::Clock::now() + kLong;
    MutexLock lock(mu_);
    while (results_[request].size() < count && changed_.WaitUntil(mu_, deadline)) {
    }
    return results_[request];
  }
  bool finished(uint64_t source, uint64_t request) {
    MutexLock lock(mu_);
    return said_[{source, request}].finish != Finish::kNone;
  }
  std::vector<std::string> events() {
    MutexLock lock(mu_);
    return events_;
  }
  std::vector<absl::Status> ends() {
    MutexLock lock(mu_);
    return ends_;
  }

  std::vector<Channel<StepPlan>*> followers;  // set before the loop starts
  uint64_t fail_at_plan = 0;

 private:
  struct Said {
    std::vector<int32_t> tokens;
    Finish finish = Finish::kNone;
    absl::Status error;
  };
  Mutex mu_;
  CondVar changed_;
  std::map<std::pair<uint64_t, uint64_t>, Said> said_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, std::vector<std::string>> results_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> events_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> ends_ ABSL_GUARDED_BY(mu_);
};

// What a rank shares of a step: its ids, and what it read to sample them, which followers compare with their
// own.
struct Shared {
  std::vector<int32_t> ids;
  std::vector<uint64_t> contexts;
};

class LeaderRunner : public FakeRunner {
 public:
  LeaderRunner(const SchedulerOptions& options, Recorder* recorder)
      : FakeRunner(options), recorder_(recorder) {}

  absl::Status Launch(const StepPlan& plan) override {
    step_ = plan.step;
    recorder_->Note(absl::StrCat("launch ", plan.step));
    if (gate != nullptr && !gate->Take()) return absl::DeadlineExceededError("the gate stays shut");
    if (fail_launch == plan.step) return absl::InternalError("device lost");
    return FakeRunner::Launch(plan);
  }
  absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>& samples) override {
    if (fail_sample == step_) return absl::DataLossError("logits are NaN");
    absl::StatusOr<StepResult> result = FakeRunner::Sample(samples);
    if (bad_id == step_ && result.ok()) result->ids[0] = 1000;
    return result;
  }
  absl::Status ShareSampled() override {
    if (fail_share == step_) return absl::UnavailableError("rank 1 is gone");
    for (Channel<Shared>* follower : followers) follower->Put({sampled_, contexts_});
    return FakeRunner::ShareSampled();
  }

  bool runs_ahead() const override { return ahead; }

  // Set before the loop starts.
  std::vector<Channel<Shared>*> followers;
  Channel<int>* gate = nullptr;  // a launch takes one from it
  bool ahead = false;
  uint64_t fail_launch = 0, fail_sample = 0, fail_share = 0, bad_id = 0;

 private:
  Recorder* const recorder_;
  uint64_t step_ = 0;
};

class FollowerRunner : public FakeRunner {
 public:
  FollowerRunner(const SchedulerOptions& options, Channel<Shared>* ids) : FakeRunner(options), ids_(ids) {}

  absl::Status ShareSampled() override {
    std::optional<Shared> shared = ids_->Take();
    if (!shared) return absl::DeadlineExceededError("no ids came");
    if (shared->contexts != contexts_)
      return absl::InternalError("this rank read other tokens than the leader");
    sampled_ = shared->ids;
    return FakeRunner::ShareSampled();
  }

 private:
  Channel<Shared>* const ids_;
};

class ChannelSource : public PlanSource {
 public:
  absl::StatusOr<std::optional<StepPlan>> Next(CondVar::Clock::time_point deadline) override {
    std::optional<StepPlan> plan = plans.Take(deadline);
    if (!plan && closed) return absl::UnavailableError("the leader's stream ended");
    return plan;
  }
  Channel<StepPlan> plans;
  std::atomic<bool> closed{false};
};

struct Group {
  explicit Group(const SchedulerOptions& scheduler = SmallOptions()) : runner(scheduler, &recorder) {
    options.scheduler = scheduler;
  }
  void Start() {
    leader = std::make_unique<Leader>(options, &runner, &recorder, &recorder,
                                      [this](const absl::Status& status) { recorder.OnEnded(status); });
  }
  std::vector<int32_t> Alone(const SequenceRequest& r) const {
    return GenerateAlone(r, options.scheduler.context_length, options.scheduler.vocab_size);
  }

  Recorder recorder;
  LeaderRunner runner;
  LeaderOptions options;
  std::unique_ptr<Leader> leader;
};

}  // namespace phalanx

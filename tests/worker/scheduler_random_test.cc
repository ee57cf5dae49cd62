// Random requests, cancellations and orders of Plan and Commit against a fake model that reads its context
// through the block tables. PHALANX_TEST_SEED=n runs one seed alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/worker/fake_runner.h"
#include "worker/scheduler.h"

namespace phalanx {
namespace {

struct Expected {
  SequenceRequest request;
  std::vector<int32_t> tokens;  // as said so far, after `generated`
  std::vector<TokenLogprobs> prompt_logprobs;
  Finish finish = Finish::kNone;
  bool aborted = false;
};

class RandomRun {
 public:
  explicit RandomRun(uint64_t seed) : random_(seed) {
    options_.num_blocks = Draw(6, 24);
    options_.block_size = 1 << Draw(0, 3);
    options_.context_length = Draw(8, 60);
    options_.vocab_size = Draw(5, 50);
    options_.max_tokens_per_step = Draw(2, 20);
    options_.max_logits_per_step = Draw(2, 12);
    options_.max_sequences = Draw(1, std::min(options_.max_tokens_per_step, options_.max_logits_per_step));
    options_.max_queued = Draw(0, 12);
    options_.max_guesses = std::max(0, Draw(-4, 6));
    scheduler_ = std::make_unique<Scheduler>(options_);
    runner_ = std::make_unique<FakeRunner>(options_);
  }

  void Run(int events) {
    for (int i = 0; i < events && !::testing::Test::HasFatalFailure(); ++i) {
      if (Draw(0, 2) == 0) Submit();
      if (Draw(0, 30) == 0) Abort();
      if (Draw(0, 300) == 0) AbortSource();
      // Out of two steps planned ahead at most one is uncommitted when the next is planned.
      if (planned_.size() < 2 && Draw(0, 3) > 0) Plan();
      if (!planned_.empty() && (planned_.size() == 2 || Draw(0, 2) == 0)) Commit();
      Check();
    }
    for (int i = 0; i < 20000 && !scheduler_->idle() && !::testing::Test::HasFatalFailure(); ++i) {
      if (planned_.size() < 2) Plan();
      if (!planned_.empty()) Commit();
      Check();
    }
    ASSERT_TRUE(scheduler_->idle());
    EXPECT_EQ(scheduler_->load().blocks_used, 0);
    load_ = scheduler_->load();
    for (const auto& [key, e] : expected_) CheckSequence(e);
  }

  int64_t finished() const { return finished_; }
  const SchedulerLoad& load() const { return load_; }

 private:
  int Draw(int64_t low, int64_t high) {
    return static_cast<int>(std::uniform_int_distribution<int64_t>(low, high)(random_));
  }
  std::vector<int32_t> DrawIds(int64_t count) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = Draw(0, options_.vocab_size - 1);
    return ids;
  }

  void Submit() {
    SequenceRequest r;
    r.source = Draw(1, 3);
    r.request = ++last_request_;
    r.attempt = Draw(0, 2);
    r.request_id = absl::StrCat("r", r.request);
    r.prompt = DrawIds(Draw(1, options_.context_length));
    r.priority = std::max(0, Draw(-3, 2));
    r.cache_salt = Draw(0, 3) == 0 ? "salt" : "";
    // Mostly one of few beginnings; or a turn after what was said.
    const int kind = Draw(0, 5);
    if (kind == 0 && !expected_.empty()) {
      auto it = expected_.begin();
      std::advance(it, Draw(0, expected_.size() - 1));
      std::vector<int32_t> before = it->second.request.prompt;
      before.insert(before.end(), it->second.tokens.begin(), it->second.tokens.end());
      before.resize(std::min<size_t>(before.size(), options_.context_length - 1));
      before.push_back(Draw(0, options_.vocab_size - 1));
      r.prompt = before;
    } else if (kind < 5) {
      const int32_t first = Draw(0, 1);
      const int64_t same = Draw(0, r.prompt.size());
      for (int64_t i = 0; i < same; ++i)
        r.prompt[i] = static_cast<int32_t>((first + i * i) % options_.vocab_size);
    }
    r.max_tokens = Draw(0, 12);
    r.stop_ids = DrawIds(Draw(0, 2));
    r.sampling.seed = Draw(0, 1000);
    r.min_tokens = std::max(0, Draw(-8, r.max_tokens));
    if (Draw(0, 2) == 0) r.sampling.presence_penalty = 1;
    if (Draw(0, 3) == 0) r.sampling.repetition_penalty = 1.5f;
    if (Draw(0, 2) == 0) r.sampling.top_k = 3;
    r.logprobs = Draw(-1, 2);
    r.prompt_logprobs = Draw(-3, 1);
    if (r.prompt_logprobs < -1) r.prompt_logprobs = -1;
    if (Draw(0, 3) == 0) {
      const std::vector<int32_t> all = GenerateAlone(r, options_.context_length, options_.vocab_size);
      if (all.size() > 1) r.generated.assign(all.begin(), all.begin() + Draw(0, all.size() - 1));
    }
    const absl::StatusOr<Admission> answer = scheduler_->Submit(r);
    if (answer.ok()) expected_[{r.source, r.request}].request = r;
    if (answer.ok() && *answer == Admission::kQueued) queued_.push_back({r.source, r.request});
  }

  void Abort() {
    if (expected_.empty()) return;
    auto it = expected_.begin();
    std::advance(it, Draw(0, expected_.size() - 1));
    it->second.aborted = true;
    scheduler_->Abort(it->first.first, it->first.second);
  }

  void AbortSource() {
    const uint64_t source = Draw(1, 3);
    for (auto& [key, e] : expected_) e.aborted |= key.first == source;
    scheduler_->AbortSource(source);
  }

  void Plan() {
    std::optional<PlannedStep> planned = scheduler_->Plan();
    // Between themselves the requests of a source, priority and salt are admitted in order.
    for (const Scheduler::Admitted& a : scheduler_->TakeAdmitted()) {
      const SequenceRequest& of = expected_[{a.source, a.request}].request;
      const auto mine = [&](const auto& q) {
        const Expected& e = expected_[q];
        return q.first == a.source && !e.aborted && e.request.priority == of.priority &&
               e.request.cache_salt == of.cache_salt;
      };
      auto it = std::find_if(queued_.begin(), queued_.end(), mine);
      ASSERT_NE(it, queued_.end());
      EXPECT_EQ(it->second, a.request);
      queued_.erase(it);
    }
    if (planned) planned_.push_back(*std::move(planned));
  }

  void Commit() {
    const PlannedStep step = std::move(planned_.front());
    planned_.erase(planned_.begin());
    absl::Status status = runner_->Launch(step.plan);
    ASSERT_TRUE(status.ok()) << status;
    const absl::StatusOr<StepResult> result = runner_->Sample(step.samples);
    ASSERT_TRUE(result.ok()) << result.status();
    status = CheckResult(step.samples, options_.vocab_size, *result);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(runner_->ShareSampled().ok());
    for (const SequenceOutput& out : scheduler_->Commit(*result)) {
      ASSERT_EQ(expected_.count({out.source, out.request}), 1u);
      Expected& e = expected_[{out.source, out.request}];
      EXPECT_FALSE(e.aborted);
      EXPECT_EQ(out.attempt, e.request.attempt);
      EXPECT_EQ(out.request_id, out.finish == Finish::kNone ? "" : e.request.request_id);
      EXPECT_EQ(e.finish, Finish::kNone) << "output after the end";
      EXPECT_EQ(out.offset, static_cast<int32_t>(e.request.generated.size() + e.tokens.size()));
      EXPECT_LT(out.cached_prompt_tokens, static_cast<int32_t>(e.request.prompt.size() + 1));
      if (e.request.prompt_logprobs >= 0 && e.request.generated.empty()) {
        EXPECT_EQ(out.cached_prompt_tokens, 0);
      }
      EXPECT_EQ(out.logprobs.size(), e.request.logprobs >= 0 ? out.tokens.size() : 0);
      for (size_t i = 0; i < out.logprobs.size(); ++i) EXPECT_EQ(out.logprobs[i].id, out.tokens[i]);
      if (!out.prompt_logprobs.empty()) {
        EXPECT_EQ(out.prompt_first_position, static_cast<int32_t>(1 + e.prompt_logprobs.size()));
      }
      e.tokens.insert(e.tokens.end(), out.tokens.begin(), out.tokens.end());
      e.prompt_logprobs.insert(e.prompt_logprobs.end(), out.prompt_logprobs.begin(),
                               out.prompt_logprobs.end());
      e.finish = out.finish;
    }
  }

  void Check() {
    const absl::Status status = scheduler_->CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
  }

  void CheckSequence(const Expected& e) {
    if (e.aborted) return;
    ++finished_;
    const std::vector<int32_t> all = GenerateAlone(e.request, options_.context_length, options_.vocab_size);
    std::vector<int32_t> said = e.request.generated;
    said.insert(said.end(), e.tokens.begin(), e.tokens.end());
    EXPECT_EQ(said, all) << "request " << e.request.request;
    const auto& stops = e.request.stop_ids;
    const bool stopped = !all.empty() && std::count(stops.begin(), stops.end(), all.back()) > 0;
    EXPECT_EQ(e.finish, stopped ? Finish::kStop : Finish::kLength) << "request " << e.request.request;
    const bool with_prompt = e.request.prompt_logprobs >= 0 && e.request.generated.empty();
    ASSERT_EQ(e.prompt_logprobs.size(), with_prompt ? e.request.prompt.size() - 1 : 0);
    uint64_t context = 0;
    for (size_t i = 0; i < e.prompt_logprobs.size(); ++i) {
      context = HashToken(context, e.request.prompt[i]);
      SampleRow row;
      row.num_top = e.request.prompt_logprobs;
      const TokenLogprobs expected = FakeLogprobs(context, row, e.request.prompt[i + 1]);
      EXPECT_EQ(e.prompt_logprobs[i].id, expected.id);
      EXPECT_EQ(e.prompt_logprobs[i].logprob, expected.logprob);
      EXPECT_EQ(e.prompt_logprobs[i].top, expected.top);
    }
  }

  std::mt19937_64 random_;
  SchedulerOptions options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<FakeRunner> runner_;
  std::vector<PlannedStep> planned_;
  std::map<std::pair<uint64_t, uint64_t>, Expected> expected_;
  std::vector<std::pair<uint64_t, uint64_t>> queued_;
  uint64_t last_request_ = 0;
  int64_t finished_ = 0;
  SchedulerLoad load_;
};

// Whatever is batched with it, however its prompt is cut: a sequence says what it says alone.
TEST(Scheduler, RandomRunsSayWhatEachSequenceSaysAlone) {
  const char* chosen = std::getenv("PHALANX_TEST_SEED");
  const uint64_t first = chosen != nullptr ? std::strtoull(chosen, nullptr, 10) : 1;
  const uint64_t count = chosen != nullptr ? 1 : 200;
  int64_t finished = 0;
  uint64_t hits = 0, preemptions = 0, drafted = 0, accepted = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(absl::StrCat("replay with PHALANX_TEST_SEED=", seed));
    RandomRun run(seed);
    run.Run(400);
    if (HasFailure()) break;
    finished += run.finished();
    hits += run.load().prefix_hit_tokens;
    preemptions += run.load().preemptions;
    drafted += run.load().drafted_tokens;
    accepted += run.load().accepted_tokens;
  }
  std::printf("%s\n",
              absl::StrCat(finished, " sequences ran to their end; ", hits, " tokens from the cache, ",
                           preemptions, " preemptions, ", accepted, " of ", drafted, " guesses right")
                  .c_str());
  if (chosen == nullptr) {
    EXPECT_GT(hits, 1000u);
    EXPECT_GT(preemptions, 200u);
    EXPECT_GT(accepted, 100u);
    EXPECT_GT(drafted, accepted + 100);
  }
  EXPECT_GT(finished, chosen != nullptr ? 0 : 1000);
}

// What a step costs the leader beside the model: a full batch in decode, planned, sent as a value and
// committed.
TEST(Scheduler, CostOfAStep) {
  SchedulerOptions o;
  o.num_blocks = 64 * 40;
  o.context_length = 1200;
  o.vocab_size = 1000;
  Scheduler scheduler(o);
  for (int i = 0; i < o.max_sequences; ++i) {
    SequenceRequest r;
    r.request = i;
    r.prompt = {1, 2, 3};
    r.max_tokens = 1000;
    r.stop_ids = {999, 998};
    ASSERT_TRUE(*scheduler.Submit(r) == Admission::kAccepted);
  }
  using Clock = std::chrono::steady_clock;
  Clock::duration total{}, copy{};
  int64_t tokens = 0, steps = 0;
  std::optional<PlannedStep> current = scheduler.Plan();
  while (current) {
    const auto start = Clock::now();
    std::optional<PlannedStep> next = scheduler.Plan();
    StepResult result;
    result.ids.assign(current->samples.size(), 7);
    for (const SequenceOutput& out : scheduler.Commit(result)) tokens += out.tokens.size();
    total += Clock::now() - start;
    const auto copied = Clock::now();
    const StepPlan plan = current->plan;
    copy += Clock::now() - copied;
    steps += plan.rows.empty() ? 0 : 1;
    current = std::move(next);
  }
  EXPECT_EQ(tokens, 64 * 1000);
  EXPECT_EQ(steps, 1000);
  EXPECT_TRUE(scheduler.idle());
  const auto us = [&](Clock::duration d) {
    return std::chrono::duration<double, std::micro>(d).count() / steps;
  };
  std::printf("Plan and Commit of 64 sequences: %.1f us a step, %.1f x copying the plan\n", us(total),
              us(total) / us(copy));
}

}  // namespace
}  // namespace phalanx

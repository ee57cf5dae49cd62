// What of a request and its log reaches the sampler, through the scheduler.
#include "worker/sequence_sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/worker/fake_runner.h"
#include "tests/worker/scheduler_driver.h"

namespace phalanx {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

SchedulerOptions Options() {
  SchedulerOptions o;
  o.num_blocks = 100;
  o.block_size = 4;
  o.context_length = 120;
  o.vocab_size = 20;
  o.max_tokens_per_step = 9;
  o.max_sequences = 8;
  o.max_logits_per_step = 9;
  return o;
}

SequenceRequest Request(uint64_t request, int32_t max_tokens) {
  SequenceRequest r;
  r.request = request;
  for (uint64_t i = 0; i < 3 + request * 3; ++i)
    r.prompt.push_back(static_cast<int32_t>((i * i + request) % 20));
  r.sampling.seed = request;
  r.max_tokens = max_tokens;
  return r;
}

std::map<uint64_t, DrivenRequest> RunFake(const std::vector<SequenceRequest>& requests, bool ahead,
                                          FakeRunner* runner) {
  return Drive(Options(), requests, ahead, [&](const PlannedStep& step) -> absl::StatusOr<StepResult> {
    PHX_RETURN_IF_ERROR(runner->Launch(step.plan));
    PHX_ASSIGN_OR_RETURN(StepResult result, runner->Sample(step.samples));
    PHX_RETURN_IF_ERROR(runner->ShareSampled());
    return result;
  });
}

std::map<uint64_t, DrivenRequest> RunFake(const std::vector<SequenceRequest>& requests, bool ahead) {
  FakeRunner runner(Options());
  return RunFake(requests, ahead, &runner);
}

// Before each token is sampled the counts are those of the log before it: what plain counting says.
TEST(SequenceSampling, PenaltiesReadTheWholeLogBeforeTheToken) {
  for (const bool ahead : {false, true}) {
    for (const float repetition : {1.0f, 1.25f}) {
      for (const size_t resumed : {0, 1, 7}) {
        SequenceRequest r = Request(2, 30);
        r.sampling.repetition_penalty = repetition;
        r.sampling.frequency_penalty = 0.5f;
        r.generated.assign(resumed, 4);
        std::vector<int32_t> log = r.generated;
        FakeRunner runner(Options());
        Drive(Options(), {r}, ahead, [&](const PlannedStep& step) -> absl::StatusOr<StepResult> {
          PHX_RETURN_IF_ERROR(runner.Launch(step.plan));
          PHX_ASSIGN_OR_RETURN(StepResult result, runner.Sample(step.samples));
          PHX_RETURN_IF_ERROR(runner.ShareSampled());
          if (step.samples.empty()) return result;
          const TokenCounts& counts = *step.samples[0].counts;
          for (const TokenCounts::Entry& e : counts.entries()) {
            EXPECT_EQ(e.num_output, std::count(log.begin(), log.end(), e.id));
            EXPECT_TRUE(e.num_output > 0 ||
                        (repetition != 1 && std::count(r.prompt.begin(), r.prompt.end(), e.id) > 0));
          }
          for (int32_t id = 0; id < 20; ++id) {
            const bool wanted = std::count(log.begin(), log.end(), id) > 0 ||
                                (repetition != 1 && std::count(r.prompt.begin(), r.prompt.end(), id) > 0);
            EXPECT_EQ(std::any_of(counts.entries().begin(), counts.entries().end(),
                                  [id](const auto& e) { return e.id == id; }),
                      wanted);
          }
          log.push_back(result.ids[0]);
          return result;
        });
        EXPECT_EQ(log.size(), 30u);
      }
    }
  }
}

TEST(SequenceSampling, NoStopIdBeforeMinTokens) {
  SequenceRequest r = Request(1, 30);
  for (int32_t id = 0; id < 20; ++id) {
    if (id != 3 && id != 11) r.stop_ids.push_back(id);
  }
  r.stop_ids.push_back(77);  // of no vocabulary: never sampled
  for (const int32_t min_tokens : {0, 1, 6, 30}) {
    r.min_tokens = min_tokens;
    const DrivenRequest want = RunFake({r}, false).at(1);
    EXPECT_GE(want.tokens.size(), static_cast<size_t>(min_tokens));
    for (int32_t i = 0; i < min_tokens; ++i) EXPECT_TRUE(want.tokens[i] == 3 || want.tokens[i] == 11) << i;
    EXPECT_EQ(want.finish, min_tokens == 30 ? Finish::kLength : Finish::kStop);
    for (size_t resumed = 0; resumed < want.tokens.size(); ++resumed) {
      SequenceRequest again = r;
      again.generated.assign(want.tokens.begin(), want.tokens.begin() + static_cast<int64_t>(resumed));
      EXPECT_EQ(RunFake({again}, true).at(1), want) << "resumed after " << resumed;
    }
  }
}

TEST(SequenceSampling, WhatTheRequestSaysReachesEveryRow) {
  SequenceRequest r = Request(1, 5);
  r.sampling.min_p = 0.25f;
  r.sampling.presence_penalty = 1;
  r.sampling.bias = std::make_shared<const std::vector<TokenBias>>(std::vector<TokenBias>{{2, 1.5f}});
  r.prompt_logprobs = 0;
  FakeRunner runner(Options());
  int sampled = 0, prompts = 0;
  Drive(Options(), {r}, true, [&](const PlannedStep& step) -> absl::StatusOr<StepResult> {
    for (const SampleRow& row : step.samples) {
      EXPECT_EQ(row.min_p, 0.25f);
      EXPECT_EQ(row.bias, r.sampling.bias);
      EXPECT_EQ(row.counts == nullptr, row.target >= 0);
      ++(row.target >= 0 ? prompts : sampled);
    }
    PHX_RETURN_IF_ERROR(runner.Launch(step.plan));
    PHX_ASSIGN_OR_RETURN(StepResult result, runner.Sample(step.samples));
    PHX_RETURN_IF_ERROR(runner.ShareSampled());
    return result;
  });
  EXPECT_EQ(sampled, 5);
  EXPECT_EQ(prompts, 5);
}

// The sequence may be gone when its row is sampled.
TEST(SequenceSampling, AnAbortBetweenPlanAndSampleLeavesTheRowWhole) {
  Scheduler scheduler(Options());
  SequenceRequest r = Request(1, 10);
  r.sampling.repetition_penalty = 1.5f;
  r.stop_ids = {4};
  r.min_tokens = 3;
  ASSERT_TRUE(scheduler.Submit(r).ok());
  const PlannedStep step = *scheduler.Plan();
  scheduler.Abort(0, 1);
  ASSERT_EQ(step.samples.size(), 1u);
  EXPECT_EQ(step.samples[0].counts->num_prompt(), 6);
  EXPECT_THAT(*step.samples[0].banned[0], ElementsAre(4));
  EXPECT_TRUE(scheduler.Commit({{7}, {}}).empty());
}

TEST(SequenceSampling, ARowWithoutATokenFailsItsSequenceAlone) {
  std::vector<SequenceRequest> requests;
  for (uint64_t i = 1; i <= 6; ++i) requests.push_back(Request(i, 12));
  requests[4].prompt_logprobs = 1;
  const auto want = RunFake(requests, false);
  for (const bool ahead : {false, true}) {
    for (const uint64_t request : {1, 3, 5}) {
      const uint64_t num_prompt = requests[request - 1].prompt.size();
      for (const uint64_t position : {num_prompt, num_prompt + 1, num_prompt + 11}) {
        FakeRunner runner(Options());
        runner.broken_seed = request;
        runner.broken_position = position;
        auto got = RunFake(requests, ahead, &runner);
        const absl::Status error = got.at(request).error;
        EXPECT_EQ(error.code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(error.message()),
                    HasSubstr(absl::StrCat("request ", request, ": the logits for position ", position,
                                           " hold a NaN")));
        EXPECT_EQ(got.at(request).tokens.size(), position - num_prompt);
        got.at(request) = want.at(request);
        EXPECT_EQ(got, want);
      }
    }
  }
  // Of a prompt's token.
  FakeRunner runner(Options());
  runner.broken_seed = 5;
  runner.broken_position = 4;
  auto got = RunFake(requests, true, &runner);
  EXPECT_THAT(std::string(got.at(5).error.message()), HasSubstr("the logits for position 4 hold a NaN"));
  EXPECT_TRUE(got.at(5).tokens.empty());
  got.at(5) = want.at(5);
  EXPECT_EQ(got, want);
}

TEST(SequenceSampling, EverythingBannedIsNamed) {
  SequenceRequest r = Request(1, 5);
  for (int32_t id = 0; id < 20; ++id) r.stop_ids.push_back(id);
  r.min_tokens = 1;
  const DrivenRequest run = RunFake({r, Request(2, 5)}, true).at(1);
  EXPECT_EQ(run.error.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(run.error.message()),
              HasSubstr("min_tokens and the thinking budget leave no token"));
}

}  // namespace
}  // namespace phalanx

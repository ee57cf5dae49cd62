#include "worker/leader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "absl/strings/match.h"
#include "tests/worker/fake_group.h"

namespace phalanx {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;

TEST(Leader, SendsThePlanOfTheNextStepBeforeItLaunchesAStep) {
  Group group;
  group.Start();
  const SequenceRequest request = Request(1, 1, 4);
  ASSERT_TRUE(group.leader->Submit(request).ok());
  EXPECT_EQ(group.recorder.WaitFinished(1, 1), group.Alone(request));
  EXPECT_THAT(group.recorder.WaitResults(1, 1), ElementsAre("accepted"));
  EXPECT_THAT(group.recorder.events(),
              ElementsAre("send 1", "send 2", "launch 1", "output 1", "send 3", "launch 2", "output 2",
                          "send 4", "launch 3", "output 3", "launch 4", "output 4"));
}

TEST(Leader, LaunchesAStepBeforeItWaitsForTheLastOneOfARunnerThatRunsAhead) {
  Group group;
  group.runner.ahead = true;
  group.Start();
  const SequenceRequest request = Request(1, 1, 4);
  ASSERT_TRUE(group.leader->Submit(request).ok());
  EXPECT_EQ(group.recorder.WaitFinished(1, 1), group.Alone(request));
  EXPECT_THAT(group.recorder.events(),
              ElementsAre("send 1", "send 2", "launch 1", "launch 2", "output 1", "send 3", "launch 3",
                          "output 2", "send 4", "launch 4", "output 3", "output 4"));
}

TEST(Leader, SaysTheSameWithAndWithoutOtherLoad) {
  Group alone, loaded;
  alone.Start();
  loaded.Start();
  const SequenceRequest request = Request(1, 1, 40, 37);
  ASSERT_TRUE(alone.leader->Submit(request).ok());
  std::vector<std::thread> clients;
  for (uint64_t source = 2; source < 5; ++source) {
    clients.emplace_back([&loaded, source] {
      for (uint64_t i = 1; i <= 20; ++i) {
        EXPECT_TRUE(loaded.leader->Submit(Request(source, source * 100 + i, 1 + i % 9, 1 + i * 3)).ok());
      }
    });
  }
  ASSERT_TRUE(loaded.leader->Submit(request).ok());
  for (std::thread& client : clients) client.join();
  const std::vector<int32_t> tokens = alone.recorder.WaitFinished(1, 1);
  EXPECT_EQ(tokens.size(), 40u);
  EXPECT_EQ(tokens, loaded.recorder.WaitFinished(1, 1));
  for (uint64_t source = 2; source < 5; ++source) {
    for (uint64_t i = 1; i <= 20; ++i) {
      const SequenceRequest r = Request(source, source * 100 + i, 1 + i % 9, 1 + i * 3);
      EXPECT_EQ(loaded.recorder.WaitFinished(source, r.request), loaded.Alone(r));
    }
  }
}

TEST(Leader, SaysWhoIsQueuedAndWhenItIsAdmitted) {
  SchedulerOptions scheduler = SmallOptions();
  scheduler.max_sequences = 1;
  scheduler.max_queued = 1;
  Group group(scheduler);
  group.options.idle_tick = kLong;  // what is queued must not wait for a tick
  Channel<int> gate;
  group.runner.gate = &gate;
  group.Start();
  ASSERT_TRUE(group.leader->Submit(Request(1, 1, 2)).ok());
  ASSERT_TRUE(group.recorder.WaitEvent("launch 1"));
  ASSERT_TRUE(group.leader->Submit(Request(1, 2, 1)).ok());
  ASSERT_TRUE(group.leader->Submit(Request(1, 3, 1)).ok());
  ASSERT_TRUE(group.leader->Submit(Request(1, 4, -1)).ok());
  gate.Put(0);
  EXPECT_THAT(group.recorder.WaitResults(4, 1), ElementsAre("INVALID_ARGUMENT"));
  EXPECT_THAT(group.recorder.WaitResults(3, 1), ElementsAre("RESOURCE_EXHAUSTED"));
  for (int i = 0; i < 2; ++i) gate.Put(0);
  EXPECT_EQ(group.recorder.WaitFinished(1, 2).size(), 1u);
  EXPECT_THAT(group.recorder.WaitResults(2, 2), ElementsAre("queued", "accepted"));
}

TEST(Leader, ACancelledRequestSaysNothingMoreAndGivesItsBlocksBack) {
  Group group;
  Channel<int> gate;
  group.runner.gate = &gate;
  group.Start();
  ASSERT_TRUE(group.leader->Submit(Request(1, 1, 100)).ok());
  ASSERT_TRUE(group.leader->Submit(Request(2, 2, 100)).ok());
  ASSERT_TRUE(group.leader->Submit(Request(2, 3, 100)).ok());
  for (int i = 0; i < 10; ++i) gate.Put(0);
  EXPECT_GE(group.recorder.WaitTokens(1, 1, 5), 5u);
  group.leader->Abort(1, 1);
  group.leader->AbortSource(2);
  const SequenceRequest after = Request(3, 4, 3);
  ASSERT_TRUE(group.leader->Submit(after).ok());
  for (int i = 0; i < 20; ++i) gate.Put(0);
  EXPECT_EQ(group.recorder.WaitFinished(3, 4), group.Alone(after));
  for (uint64_t request = 1; request <= 3; ++request) {
    EXPECT_FALSE(group.recorder.finished(request == 1 ? 1 : 2, request));
    EXPECT_LE(group.recorder.WaitTokens(request == 1 ? 1 : 2, request, 0), 12u);
  }
  group.leader->Stop(/*drain=*/true);
  ASSERT_TRUE(group.leader->WaitUntilEnded(kLong));
  EXPECT_EQ(group.leader->stats().load.blocks_used, 0);
  EXPECT_EQ(group.leader->stats().load.running, 0);
}

struct Fault {
  const char* name;
  absl::StatusCode code;
  const char* message;
  std::function<void(Group*)> set;
};

class LeaderFault : public ::testing::TestWithParam<Fault> {};

TEST_P(LeaderFault, EndsTheEpochOnceNamingTheStep) {
  Group group;
  GetParam().set(&group);
  group.Start();
  ASSERT_TRUE(group.leader->Submit(Request(1, 1, 50)).ok());
  ASSERT_TRUE(group.leader->WaitUntilEnded(kLong));
  EXPECT_TRUE(group.leader->stats().ended);
  ASSERT_EQ(group.recorder.ends().size(), 1u);
  EXPECT_EQ(group.recorder.ends()[0].code(), GetParam().code);
  EXPECT_EQ(group.recorder.ends()[0].message(), GetParam().message);
  EXPECT_FALSE(group.recorder.finished(1, 1));
  EXPECT_EQ(group.leader->Submit(Request(1, 2, 5)).code(), absl::StatusCode::kUnavailable);
  group.leader->Stop(/*drain=*/false);
  group.leader.reset();
  EXPECT_EQ(group.recorder.ends().size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(
    All, LeaderFault,
    ::testing::Values(Fault{"launch", absl::StatusCode::kInternal, "step 3, launch: device lost",
                            [](Group* g) { g->runner.fail_launch = 3; }},
                      Fault{"sample", absl::StatusCode::kDataLoss, "step 2, sampling: logits are NaN",
                            [](Group* g) { g->runner.fail_sample = 2; }},
                      Fault{"share", absl::StatusCode::kUnavailable,
                            "step 4, sharing the sampled ids: rank 1 is gone",
                            [](Group* g) { g->runner.fail_share = 4; }},
                      Fault{"send", absl::StatusCode::kUnavailable,
                            "step 5, sending the plan: follower 3 is gone",
                            [](Group* g) { g->recorder.fail_at_plan = 5; }},
                      Fault{"id", absl::StatusCode::kInternal,
                            "step 2, sampling: logits row 0 has the sampled id 1000; token ids are 0 to 999",
                            [](Group* g) { g->runner.bad_id = 2; }}),
    [](const auto& info) { return info.param.name; });

TEST(Leader, ARowWithoutATokenFailsItsSequenceAlone) {
  Group group;
  group.runner.broken_seed = 2;
  group.runner.broken_position = 9;
  group.Start();
  const SequenceRequest before = Request(1, 1, 40), broken = Request(1, 2, 40), after = Request(1, 3, 40);
  for (const SequenceRequest& r : {before, broken, after}) ASSERT_TRUE(group.leader->Submit(r).ok());
  const absl::Status error = group.recorder.WaitError(1, 2);
  EXPECT_EQ(error.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(error.message(),
            "request 2: the logits for position 9 hold a NaN or +inf, or nothing above -inf");
  EXPECT_EQ(group.recorder.WaitFinished(1, 1), group.Alone(before));
  EXPECT_EQ(group.recorder.WaitFinished(1, 3), group.Alone(after));
  EXPECT_EQ(group.recorder.WaitTokens(1, 2, 0), 4u) << "what was said before stands";
  ASSERT_TRUE(group.leader->Submit(Request(1, 4, 5)).ok());
  EXPECT_EQ(group.recorder.WaitFinished(1, 4), group.Alone(Request(1, 4, 5)));
  EXPECT_TRUE(group.recorder.ends().empty());
}

TEST(Leader, AFailureAnswersRequestsThatCameTooLate) {
  Group group;
  Channel<int> gate;
  group.runner.gate = &gate;
  group.runner.fail_launch = 1;
  group.Start();
  ASSERT_TRUE(group.leader->Submit(Request(1, 1, 50)).ok());
  EXPECT_THAT(group.recorder.WaitResults(1, 1), ElementsAre("accepted"));
  while (group.recorder.events().size() < 3)
    std::this_thread::sleep_for(milliseconds(1));  // launch 1 has begun
  ASSERT_TRUE(group.leader->Submit(Request(1, 2, 50)).ok());
  gate.Put(0);
  ASSERT_TRUE(group.leader->WaitUntilEnded(kLong));
  EXPECT_THAT(group.recorder.WaitResults(2, 1), ElementsAre("UNAVAILABLE"));
}

TEST(Leader, DrainsOrStops) {
  Group drained;
  drained.Start();
  const SequenceRequest request = Request(1, 1, 30);
  ASSERT_TRUE(drained.leader->Submit(request).ok());
  drained.leader->Stop(/*drain=*/true);
  EXPECT_EQ(drained.leader->Submit(Request(1, 2, 30)).code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(drained.leader->WaitUntilEnded(kLong));
  EXPECT_EQ(drained.recorder.WaitFinished(1, 1), drained.Alone(request));
  EXPECT_THAT(drained.recorder.ends(), ElementsAre(absl::OkStatus()));

  // Every plan that was sent is run, so that no follower waits for a leader that is gone.
  Group stopped;
  Channel<int> gate;
  stopped.runner.gate = &gate;
  stopped.Start();
  ASSERT_TRUE(stopped.leader->Submit(Request(1, 1, 100)).ok());
  gate.Put(0);
  EXPECT_EQ(stopped.recorder.WaitTokens(1, 1, 1), 1u);
  EXPECT_FALSE(stopped.leader->WaitUntilEnded(milliseconds(1)));
  ASSERT_TRUE(stopped.leader->Submit(Request(1, 2, 100)).ok());
  stopped.leader->Stop(/*drain=*/false);
  for (int i = 0; i < 10; ++i) gate.Put(0);
  ASSERT_TRUE(stopped.leader->WaitUntilEnded(kLong));
  EXPECT_THAT(stopped.recorder.ends(), ElementsAre(absl::OkStatus()));
  EXPECT_THAT(stopped.recorder.WaitResults(2, 1), ElementsAre("UNAVAILABLE"));
  int sent = 0, launched = 0;
  for (const std::string& event : stopped.recorder.events()) {
    sent += absl::StartsWith(event, "send") ? 1 : 0;
    launched += absl::StartsWith(event, "launch") ? 1 : 0;
  }
  EXPECT_EQ(sent, launched);
  EXPECT_LT(launched, 6);
}

TEST(Leader, RefusesMoreThanItsInboxHolds) {
  Group group;
  Channel<int> gate;
  group.runner.gate = &gate;
  group.options.max_inbox = 2;
  group.Start();
  ASSERT_TRUE(group.leader->Submit(Request(1, 1, 1)).ok());
  while (group.recorder.events().size() < 2)
    std::this_thread::sleep_for(milliseconds(1));  // launch 1 has begun
  EXPECT_TRUE(group.leader->Submit(Request(1, 2, 1)).ok());
  EXPECT_TRUE(group.leader->Submit(Request(1, 3, 1)).ok());
  EXPECT_EQ(group.leader->Submit(Request(1, 4, 1)).code(), absl::StatusCode::kResourceExhausted);
  for (int i = 0; i < 10; ++i) gate.Put(0);
  EXPECT_EQ(group.recorder.WaitFinished(1, 3).size(), 1u);
}

TEST(Leader, LivenessIsProgress) {
  std::atomic<int64_t> ms{1000};
  Group group;
  group.options.now = [&ms] { return LeaderOptions::Clock::time_point(milliseconds(ms.load())); };
  group.options.rate_window = milliseconds(2000);
  group.options.idle_tick = std::chrono::hours(1);
  Channel<int> gate;
  group.runner.gate = &gate;
  group.Start();
  const auto progress = [&] {
    return std::chrono::duration_cast<milliseconds>(group.leader->stats().last_progress.time_since_epoch())
        .count();
  };
  // Idle: now, for ever.
  ms = 50000;
  const auto deadline = CondVar::Clock::now() + kLong;
  while (progress() != 50000 && CondVar::Clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(progress(), 50000);
  // A step that hangs: it stays where the step began.
  ASSERT_TRUE(group.leader->Submit(Request(1, 1, 10)).ok());
  while (group.recorder.events().size() < 3)
    std::this_thread::sleep_for(milliseconds(1));  // launch 1 has begun
  ms = 90000;
  EXPECT_EQ(progress(), 50000);
  EXPECT_EQ(group.leader->stats().load.running, 1);
  EXPECT_EQ(group.leader->stats().steps, 0u);
  for (int i = 0; i < 10; ++i) gate.Put(0);
  EXPECT_EQ(group.recorder.WaitFinished(1, 1).size(), 10u);
  group.leader->Stop(/*drain=*/true);
  ASSERT_TRUE(group.leader->WaitUntilEnded(kLong));
  const LeaderStats stats = group.leader->stats();
  EXPECT_EQ(progress(), 90000);
  EXPECT_EQ(stats.steps, 10u);
  EXPECT_EQ(stats.generated_tokens, 10u);
  EXPECT_EQ(stats.tokens_per_second, 5);
  ms = 92000;
  EXPECT_EQ(group.leader->stats().tokens_per_second, 0);
}

}  // namespace
}  // namespace phalanx

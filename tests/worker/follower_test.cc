#include "worker/follower.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "tests/worker/fake_group.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Follower, RunsWhatTheLeaderRuns) {
  Group group;
  ChannelSource sources[2];
  Channel<Shared> ids[2];
  Recorder ended[2];
  std::vector<std::unique_ptr<FollowerRunner>> runners;
  std::vector<std::unique_ptr<Follower>> followers;
  for (int i = 0; i < 2; ++i) {
    group.recorder.followers.push_back(&sources[i].plans);
    group.runner.followers.push_back(&ids[i]);
    runners.push_back(std::make_unique<FollowerRunner>(group.options.scheduler, &ids[i]));
    followers.push_back(
        std::make_unique<Follower>(FollowerOptions(), runners[i].get(), &sources[i],
                                   [&ended, i](const absl::Status& s) { ended[i].OnEnded(s); }));
  }
  group.Start();
  for (uint64_t i = 1; i <= 12; ++i) ASSERT_TRUE(group.leader->Submit(Request(i % 2, i, 20, 1 + 3 * i)).ok());
  group.leader->Stop(/*drain=*/true);
  ASSERT_TRUE(group.leader->WaitUntilEnded(kLong));
  for (uint64_t i = 1; i <= 12; ++i) {
    EXPECT_EQ(group.recorder.WaitFinished(i % 2, i), group.Alone(Request(i % 2, i, 20, 1 + 3 * i)));
  }
  // One is stopped, the other loses the leader's stream after the last plan.
  const uint64_t steps = group.leader->stats().steps;
  const auto deadline = CondVar::Clock::now() + kLong;
  while (followers[0]->stats().steps < steps && CondVar::Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  followers[0]->Stop();
  sources[1].closed = true;
  for (auto& follower : followers) {
    EXPECT_TRUE(follower->WaitUntilEnded(kLong));
    EXPECT_EQ(follower->stats().steps, steps);
  }
  EXPECT_THAT(ended[0].ends(), ElementsAre(absl::OkStatus()));
  ASSERT_EQ(ended[1].ends().size(), 1u);
  EXPECT_EQ(ended[1].ends()[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(ended[1].ends()[0].message()), HasSubstr("the leader's stream ended"));
}

// What a follower says of a plan that it cannot run.
std::string FollowerEnd(const StepPlan& plan) {
  ChannelSource source;
  Channel<Shared> ids;
  FollowerRunner runner(SmallOptions(), &ids);
  Recorder ended;
  Follower follower(FollowerOptions(), &runner, &source,
                    [&ended](const absl::Status& s) { ended.OnEnded(s); });
  source.plans.Put(plan);
  EXPECT_TRUE(follower.WaitUntilEnded(kLong));
  EXPECT_TRUE(follower.stats().ended);
  EXPECT_EQ(follower.stats().steps, 0u);
  return ended.ends().size() == 1 ? ended.ends()[0].ToString() : "ended not once";
}

TEST(Follower, APlanThatDoesNotFitEndsIt) {
  StepPlan plan;
  plan.step = 2;
  EXPECT_EQ(FollowerEnd(plan), "INTERNAL: the plan of step 2 came after step 0");
  plan.step = 1;
  plan.checksum = 7;
  EXPECT_EQ(FollowerEnd(plan),
            "INTERNAL: step 1, launch: step 1 does not fit this rank's block tables: checksum is 7 and the "
            "tables give 0");
}

}  // namespace
}  // namespace phalanx

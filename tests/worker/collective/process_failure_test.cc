// What only ranks in processes of their own can suffer: they are killed or stopped, or never meet.
#include <signal.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/collective/failures.h"
#include "tests/worker/collective/group.h"
#include "worker/collective/collective.h"

namespace phalanx {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class EveryProcess : public testing::TestWithParam<Transport> {};
INSTANTIATE_TEST_SUITE_P(Transports, EveryProcess, testing::Values(Transport::kShm, Transport::kTcp),
                         [](const auto& info) { return ToString(info.param); });

TEST_P(EveryProcess, AKilledPeerIsNamedWithinASecond) {
  Results results = RunGroup(GetParam(), GroupOptions(3, 8), [](Collective& group) -> std::string {
    for (int i = 0; i < 3; ++i) {
      if (absl::Status s = group.Barrier(); !s.ok()) return s.ToString();
    }
    if (group.rank() == 1) {
      SleepMs(200);  // the others sleep by then
      raise(SIGKILL);
    }
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Barrier();
    const std::string wrong =
        Expect(status, absl::StatusCode::kUnavailable, "rank 1 is gone", start, 150, 1200);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  });
  EXPECT_EQ(results[1], "killed by signal 9");
  results.erase(1);
  ExpectAllWell(results);
}

// It had come to the call it died in, and so had the rank that sleeps beside it.
TEST_P(EveryProcess, APeerKilledInItsSleep) {
  Results results = RunGroup(GetParam(), GroupOptions(3, 8), [](Collective& group) -> std::string {
    if (group.rank() == 1) {
      std::thread([] {
        SleepMs(150);
        raise(SIGKILL);
      }).detach();
    }
    const Clock::time_point start = Clock::now();
    if (group.rank() == 0) SleepMs(800);
    const absl::Status status = FailingBarrier(group);
    return Expect(status, absl::StatusCode::kUnavailable, "rank 1 is gone", start, 100,
                  group.rank() == 0 ? 1500 : 600);
  });
  EXPECT_EQ(results[1], "killed by signal 9");
  results.erase(1);
  ExpectAllWell(results);
}

// Long before the call's time is over, and between two calls as well.
TEST_P(EveryProcess, AStoppedPeerIsNamedByItsSilence) {
  CollectiveOptions options = GroupOptions(3, 8);
  options.silence_ms = 700;
  Results results = RunProcesses(
      GetParam(), options, {0, 1, 2},
      [](Collective& group) -> std::string {
        if (group.rank() == 1) raise(SIGSTOP);
        const Clock::time_point start = Clock::now();
        absl::Status status;
        if (group.rank() == 0) {
          status = group.Barrier();
        } else {
          while (status.ok() && MsSince(start) < 10000) {
            SleepMs(20);
            status = group.Check();
          }
        }
        const std::string wrong =
            Expect(status, absl::StatusCode::kUnavailable, "rank 1 is gone: ", start, 300, 5000);
        return wrong.empty() ? ExpectDead(group, status) : wrong;
      },
      /*stopped_rank=*/1);
  EXPECT_EQ(results[1], "killed by signal 9");
  results.erase(1);
  ExpectAllWell(results);
}

// It gives signs of life while it computes, and while its peers wait for a third; rank 1's bytes wait at its
// door.
TEST_P(EveryProcess, APeerThatIsLateButLivesIsNoFault) {
  CollectiveOptions options = GroupOptions(3, 8);
  options.silence_ms = 1400;
  options.max_gather_bytes = 8 << 20;
  ExpectAllWell(RunGroup(GetParam(), options, [&](Collective& group) -> std::string {
    std::vector<char> all(static_cast<size_t>(3 * options.max_gather_bytes));
    if (group.rank() == 2) SleepMs(2200);
    for (int i = 0; i < 2; ++i) {
      const absl::Status status = group.AllGather(all.data(), options.max_gather_bytes, all.data());
      if (!status.ok()) return status.ToString();
    }
    return "";
  }));
}

TEST_P(EveryProcess, AMissingRankIsNamed) {
  CollectiveOptions options = GroupOptions(4, 8);
  options.connect_timeout_ms = 300;
  Results results =
      RunProcesses(GetParam(), options, {0, 2}, [](Collective&) { return std::string("connected"); });
  for (int rank : {0, 2}) {
    EXPECT_THAT(results[rank], AllOf(StartsWith("connect: DEADLINE_EXCEEDED"),
                                     HasSubstr("ranks 1, 3 of 4 did not come"), HasSubstr("300 ms")))
        << rank;
  }
}

TEST(ShmConnect, AMissingCreatorIsNamed) {
  CollectiveOptions options = GroupOptions(2, 8);
  options.connect_timeout_ms = 200;
  Results results =
      RunProcesses(Transport::kShm, options, {1}, [](Collective&) { return std::string("connected"); });
  EXPECT_THAT(results[1],
              AllOf(StartsWith("connect: DEADLINE_EXCEEDED"), HasSubstr("rank 0 of 2"), HasSubstr("200 ms")));
}

TEST(ShmConnect, ARankTakenTwice) {
  // Whichever of the two comes second, and later rank 2, which never comes.
  CollectiveOptions options = GroupOptions(3, 8);
  options.connect_timeout_ms = 500;
  Results results =
      RunProcesses(Transport::kShm, options, {0, 1, 1}, [](Collective&) { return std::string("connected"); });
  EXPECT_THAT(results[1], AllOf(HasSubstr("ALREADY_EXISTS"), HasSubstr("rank 1 of the group is process"),
                                HasSubstr("rank 2 of 3 did not come")));
}

TEST(ShmConnect, AnIdTakenTwice) {
  CollectiveOptions options = GroupOptions(2, 8);
  options.connect_timeout_ms = 500;
  Results results =
      RunProcesses(Transport::kShm, options, {0, 0}, [](Collective&) { return std::string("connected"); });
  EXPECT_THAT(results[0], AllOf(HasSubstr("ALREADY_EXISTS"), HasSubstr(options.id),
                                HasSubstr("rank 1 of 2 did not come")));
}

TEST(ShmConnect, ACreatorKilledWhileItWaits) {
  CollectiveOptions options = GroupOptions(3, 8);
  const Clock::time_point start = Clock::now();
  const pid_t creator = fork();
  ASSERT_GE(creator, 0);
  if (creator == 0) {
    std::thread([] {
      SleepMs(300);
      raise(SIGKILL);
    }).detach();
    CollectiveOptions mine = options;
    mine.rank = 0;
    _exit(CreateCollective("shm", mine).ok() ? 1 : 2);
  }
  Results results =
      RunProcesses(Transport::kShm, options, {1}, [](Collective&) { return std::string("connected"); });
  int status = 0;
  waitpid(creator, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_LT(MsSince(start), 1500);
  EXPECT_THAT(results[1], AllOf(StartsWith("connect: UNAVAILABLE"), HasSubstr("rank 0 is gone")));
}

TEST(ShmConnect, OptionsThatDifferFromRankZero) {
  struct Case {
    const char* named;
    std::function<void(CollectiveOptions&)> change;
  };
  const Case cases[] = {
      {"max_elements is 999 on rank 1 and 1000 on rank 0", [](auto& o) { o.max_elements = 999; }},
      {"max_gather_bytes is 5 on rank 1 and 1000 on rank 0", [](auto& o) { o.max_gather_bytes = 5; }},
      {"num_shards is 4 on rank 1 and 8 on rank 0", [](auto& o) { o.num_shards = 4; }},
      {"size is 3 on rank 1 and 2 on rank 0", [](auto& o) { o.size = 3; }},
  };
  for (const Case& c : cases) {
    CollectiveOptions options = GroupOptions(2, 8);
    options.connect_timeout_ms = 400;
    CollectiveOptions other = options;
    c.change(other);
    const pid_t creator = fork();
    ASSERT_GE(creator, 0);
    if (creator == 0) _exit(CreateCollective("shm", options).ok() ? 1 : 0);
    other.rank = 1;
    const auto group = CreateCollective("shm", other);
    EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(group.status().message()), HasSubstr(c.named));
    int status = 0;
    waitpid(creator, &status, 0);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(LeftInDevShm(options).empty());
  }
}

TEST(ShmConnect, DevShmTooSmall) {
  struct statvfs fs {};
  ASSERT_EQ(statvfs("/dev/shm", &fs), 0);
  const uint64_t capacity = fs.f_blocks * fs.f_frsize;
  CollectiveOptions options = GroupOptions(8, 8);
  options.max_elements = int64_t{1} << 32;  // of 8 subtrees, twice: 256 GiB
  if (capacity == 0 || capacity > uint64_t{1} << 37) GTEST_SKIP() << "/dev/shm has no small limit";
  const auto group = CreateCollective("shm", options);
  EXPECT_EQ(group.status().code(), absl::StatusCode::kResourceExhausted) << group.status();
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("/dev/shm larger"));
  EXPECT_TRUE(LeftInDevShm(options).empty());
}

TEST(CollectiveOptionsTest, WrongOnesAreNamed) {
  struct Case {
    const char* named;
    std::function<void(CollectiveOptions&)> change;
  };
  const Case cases[] = {
      {"size is 0", [](auto& o) { o.size = 0; }},
      {"size is 9; it must be 1 to 8", [](auto& o) { o.size = 9; }},
      {"num_shards is 65", [](auto& o) { o.num_shards = 65; }},
      {"num_shards is 0", [](auto& o) { o.num_shards = 0; }},
      {"rank is 2; with size 2 it must be 0 to 1", [](auto& o) { o.rank = 2; }},
      {"rank is -1", [](auto& o) { o.rank = -1; }},
      {"max_elements is -1", [](auto& o) { o.max_elements = -1; }},
      {"max_gather_bytes is -2", [](auto& o) { o.max_gather_bytes = -2; }},
      {"timeout_ms is 0", [](auto& o) { o.timeout_ms = 0; }},
      {"silence_ms is 99; it must be 100", [](auto& o) { o.silence_ms = 99; }},
      {"connect_timeout_ms is -1", [](auto& o) { o.connect_timeout_ms = -1; }},
      {"id is \"\"", [](auto& o) { o.id = ""; }},
      {"id is \"a/b\"", [](auto& o) { o.id = "a/b"; }},
      {"it must be 1 to 200", [](auto& o) { o.id = std::string(201, 'a'); }},
  };
  for (const Case& c : cases) {
    CollectiveOptions options = GroupOptions(2, 8);
    options.connect_timeout_ms = 100;
    c.change(options);
    const auto group = CreateCollective("shm", options);
    EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_THAT(std::string(group.status().message()), HasSubstr(c.named));
  }
  CollectiveOptions options = GroupOptions(0, 8);
  EXPECT_EQ(CreateThreadCollectives(options).status().code(), absl::StatusCode::kInvalidArgument);
  const auto unknown = CreateCollective("carrier-pigeon", GroupOptions(1, 8));
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()),
              AllOf(HasSubstr("carrier-pigeon"), HasSubstr("\"shm\""), HasSubstr("\"tcp\"")));
}

}  // namespace
}  // namespace phalanx

// What a collective does when something is wrong: never hang, and say which rank.
#include <signal.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/collective/group.h"
#include "worker/collective/collective.h"

namespace phalanx {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Clock = std::chrono::steady_clock;

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

int64_t MsSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

// "" when `status` has this code and names this, within the times.
std::string Expect(const absl::Status& status, absl::StatusCode code, const std::string& named,
                   Clock::time_point start, int64_t min_ms, int64_t max_ms) {
  const int64_t ms = MsSince(start);
  if (status.code() != code || !absl::StrContains(status.message(), named)) {
    return absl::StrCat("got ", status.ToString(), "; wanted ", absl::StatusCodeToString(code), " with ",
                        named);
  }
  if (ms < min_ms || ms > max_ms) {
    return absl::StrCat("after ", ms, " ms; wanted ", min_ms, " to ", max_ms);
  }
  return "";
}

// Barriers until one fails. The first may succeed: all had come to it, though some left or died in it.
absl::Status FailingBarrier(Collective& group) {
  absl::Status status = group.Barrier();
  return status.ok() ? group.Barrier() : status;
}

// All calls of a dead collective return what it died of.
std::string ExpectDead(Collective& group, const absl::Status& of) {
  float x = 0;
  const absl::Status again[] = {group.Barrier(), group.SumsBuffer(1).status(), group.TreeAllReduce(1, &x),
                                group.AllGather(&x, 0, &x), group.Broadcast(&x, 4, 0)};
  for (const absl::Status& status : again) {
    if (status != of) return absl::StrCat("died of ", of.ToString(), " but now says ", status.ToString());
  }
  return "";
}

class EveryTransport : public testing::TestWithParam<Transport> {};
INSTANTIATE_TEST_SUITE_P(Transports, EveryTransport,
                         testing::Values(Transport::kThread, Transport::kShm, Transport::kTcp),
                         [](const auto& info) { return ToString(info.param); });

TEST_P(EveryTransport, AbortWakesASleeper) {
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(3, 8), [](Collective& group) -> std::string {
    if (group.rank() == 0) {
      Clock::time_point aborted;
      std::thread other([&] {
        SleepMs(200);
        aborted = Clock::now();
        group.Abort("drained by its owner");
      });
      const absl::Status status = group.Barrier();
      other.join();
      const std::string wrong =
          Expect(status, absl::StatusCode::kCancelled, "drained by its owner", aborted, 0, 100);
      return wrong.empty() ? ExpectDead(group, status) : wrong;
    }
    // A peer asleep in the same call, and one that comes later.
    if (group.rank() == 2) SleepMs(400);
    const Clock::time_point start = Clock::now();
    const absl::Status status = FailingBarrier(group);
    const std::string wrong = Expect(status, absl::StatusCode::kUnavailable,
                                     "rank 0 left the group: drained by its owner", start, 0, 500);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, AbortBeforeACallAndTwice) {
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(1, 8), [](Collective& group) -> std::string {
    group.Abort("first");
    group.Abort("second");
    const absl::Status status = group.Barrier();
    const std::string wrong = Expect(status, absl::StatusCode::kCancelled, "first", Clock::now(), 0, 100);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, ARankThatClosesIsNamedByAll) {
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(4, 8), [](Collective& group) -> std::string {
    for (int i = 0; i < 3; ++i) {
      if (absl::Status s = group.Barrier(); !s.ok()) return s.ToString();
    }
    if (group.rank() == 2) return "";
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Barrier();
    const std::string wrong =
        Expect(status, absl::StatusCode::kUnavailable, "rank 2 left the group", start, 0, 1000);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, ARankThatDoesNotComeIsNamedAtTheDeadline) {
  CollectiveOptions options = GroupOptions(3, 8);
  options.timeout_ms = 300;
  ExpectAllWell(RunGroup(GetParam(), options, [](Collective& group) -> std::string {
    if (group.rank() == 1) {
      SleepMs(900);
      const absl::Status late = FailingBarrier(group);
      return late.code() == absl::StatusCode::kDeadlineExceeded ? "" : late.ToString();
    }
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Barrier();
    const std::string wrong =
        Expect(status, absl::StatusCode::kDeadlineExceeded,
               "rank 1 of 3 did not come to Barrier within 300 ms, though it lives", start, 250, 800);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, CallsThatDifferAreNamedByAll) {
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(3, 8), [](Collective& group) -> std::string {
    char data[300] = {};
    const absl::Status status = group.Broadcast(data, group.rank() == 2 ? 100 : 99, 0);
    return Expect(status, absl::StatusCode::kFailedPrecondition,
                  group.rank() == 2 ? "rank 0 came to Broadcast of 99 bytes from rank 0"
                                    : "rank 2 came to Broadcast of 100 bytes from rank 0",
                  Clock::now(), 0, 1000);
  }));
}

TEST_P(EveryTransport, WrongArgumentsNameTheValueAndEndTheGroup) {
  struct Case {
    const char* named;
    absl::StatusCode code;
    std::function<absl::Status(Collective&)> call;
  };
  static float x[2000];
  const Case cases[] = {
      {"SumsBuffer of 1001", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.SumsBuffer(1001).status(); }},
      {"SumsBuffer of -1", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.SumsBuffer(-1).status(); }},
      {"TreeAllReduce of 10 elements without", absl::StatusCode::kFailedPrecondition,
       [](Collective& g) { return g.TreeAllReduce(10, x); }},
      {"(it was of 9)", absl::StatusCode::kFailedPrecondition,
       [](Collective& g) { return g.SumsBuffer(9).ok() ? g.TreeAllReduce(10, x) : absl::UnknownError("?"); }},
      {"AllGather of 1001", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.AllGather(x, 1001, x); }},
      {"AllGather of -5", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.AllGather(x, -5, x); }},
      {"Broadcast of 1001", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.Broadcast(x, 1001, 0); }},
      {"Broadcast from rank 2", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.Broadcast(x, 4, 2); }},
      {"Broadcast from rank -1", absl::StatusCode::kInvalidArgument,
       [](Collective& g) { return g.Broadcast(x, 4, -1); }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.named);
    ExpectAllWell(RunGroup(GetParam(), GroupOptions(2, 8), [&](Collective& group) -> std::string {
      const Clock::time_point start = Clock::now();
      if (group.rank() == 1) {
        const absl::Status status = c.call(group);
        const std::string wrong = Expect(status, c.code, c.named, start, 0, 1000);
        return wrong.empty() ? ExpectDead(group, status) : wrong;
      }
      return Expect(group.Barrier(), absl::StatusCode::kUnavailable, absl::StrCat("rank 1 left the group: "),
                    start, 0, 1000);
    }));
  }
}

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

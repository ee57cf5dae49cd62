// What a collective does when something is wrong: never hang, and say which rank. Between hosts and, in
// tests/cuda, between devices.
#include <algorithm>
#include <functional>
#include <thread>

#include "gtest/gtest.h"
#include "tests/worker/collective/failures.h"
#include "tests/worker/collective/group.h"
#include "worker/collective/collective.h"

namespace phalanx {
namespace {

class EveryTransport : public testing::TestWithParam<Transport> {
 protected:
  // What is to take `ms` at most between hosts. A device that waits learns it from a thread that looks, and
  // goes on a while when a peer left.
  static int64_t Within(int64_t ms) { return IsOfDevice(GetParam()) ? std::min<int64_t>(5 * ms, 2000) : ms; }
};
INSTANTIATE_TEST_SUITE_P(Transports, EveryTransport, testing::ValuesIn(TestedTransports()),
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
          Expect(status, absl::StatusCode::kCancelled, "drained by its owner", aborted, 0, Within(100));
      return wrong.empty() ? ExpectDead(group, status) : wrong;
    }
    // A peer asleep in the same call, and one that comes later.
    if (group.rank() == 2) SleepMs(400);
    const Clock::time_point start = Clock::now();
    const absl::Status status = FailingBarrier(group);
    const std::string wrong = Expect(status, absl::StatusCode::kUnavailable,
                                     "rank 0 left the group: drained by its owner", start, 0, Within(500));
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, AbortBeforeACallAndTwice) {
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(1, 8), [](Collective& group) -> std::string {
    const Clock::time_point start = Clock::now();
    group.Abort("first");
    group.Abort("second");
    const absl::Status status = group.Barrier();
    const std::string wrong = Expect(status, absl::StatusCode::kCancelled, "first", start, 0, Within(100));
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
        Expect(status, absl::StatusCode::kUnavailable, "rank 2 left the group", start, 0, Within(1000));
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, ARankThatDoesNotComeIsNamedAtTheDeadline) {
  CollectiveOptions options = GroupOptions(3, 8);
  options.timeout_ms = 300;
  // Virtual ranks meet by a gather of the host's.
  const std::string named = GetParam() == Transport::kNccl ? "one of the 3 ranks did not come"
                            : GetParam() == Transport::kVirtual
                                ? "rank 1 of 3 did not come to AllGather"
                                : "rank 1 of 3 did not come to Barrier within 300 ms, though it lives";
  ExpectAllWell(RunGroup(GetParam(), options, [&](Collective& group) -> std::string {
    if (group.rank() == 1) {
      SleepMs(900);
      const absl::Status late = FailingBarrier(group);
      return late.code() == absl::StatusCode::kDeadlineExceeded ? "" : late.ToString();
    }
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Barrier();
    const std::string wrong =
        Expect(status, absl::StatusCode::kDeadlineExceeded, named, start, 250, Within(800));
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryTransport, CallsThatDifferAreNamedByAll) {
  if (GetParam() == Transport::kNccl) GTEST_SKIP() << "NCCL does not compare calls";
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(3, 8), [](Collective& group) -> std::string {
    char data[300] = {};
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Broadcast(data, group.rank() == 2 ? 100 : 99, 0);
    return Expect(status, absl::StatusCode::kFailedPrecondition,
                  group.rank() == 2 ? "rank 0 came to Broadcast of 99 bytes from rank 0"
                                    : "rank 2 came to Broadcast of 100 bytes from rank 0",
                  start, 0, Within(1000));
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
        const std::string wrong = Expect(status, c.code, c.named, start, 0, Within(1000));
        return wrong.empty() ? ExpectDead(group, status) : wrong;
      }
      return Expect(group.Barrier(), absl::StatusCode::kUnavailable, absl::StrCat("rank 1 left the group: "),
                    start, 0, Within(1000));
    }));
  }
}

}  // namespace
}  // namespace phalanx

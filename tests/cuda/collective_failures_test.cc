// What the collectives between devices do when something is wrong: never hang, and say which rank. On the
// emulator; NCCL is a fake.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/nccl_exchange.h"
#include "tests/cuda/device_group.h"
#include "tests/cuda/fake_nccl.h"
#include "tests/kernels/ops_testing.h"
#include "tests/worker/collective/group.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// "" when `status` has this code and names this, within the time.
std::string Expect(const absl::Status& status, absl::StatusCode code, const std::string& named,
                   Clock::time_point start, int64_t max_ms) {
  const int64_t ms = (Clock::now() - start) / std::chrono::milliseconds(1);
  if (status.code() != code || !absl::StrContains(status.message(), named)) {
    return absl::StrCat("got ", status.ToString(), "; wanted ", absl::StatusCodeToString(code), " with ",
                        named);
  }
  return ms <= max_ms ? "" : absl::StrCat("after ", ms, " ms; wanted at most ", max_ms);
}

std::string ExpectDead(Collective& group, const absl::Status& of) {
  float x = 0;
  const absl::Status again[] = {group.Barrier(), group.SumsBuffer(1).status(), group.TreeAllReduce(1, &x),
                                group.AllGather(&x, 0, &x), group.Broadcast(&x, 4, 0)};
  for (const absl::Status& status : again) {
    if (status != of) return absl::StrCat("died of ", of.ToString(), " but now says ", status.ToString());
  }
  return "";
}

class EveryPath : public testing::TestWithParam<Transport> {};
INSTANTIATE_TEST_SUITE_P(Paths, EveryPath, testing::ValuesIn(TestedTransports()),
                         [](const auto& info) { return ToString(info.param); });

TEST_P(EveryPath, AbortEndsAWaitAndThePeersWaits) {
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
          Expect(status, absl::StatusCode::kCancelled, "drained by its owner", aborted, 500);
      return wrong.empty() ? ExpectDead(group, status) : wrong;
    }
    if (group.rank() == 2) SleepMs(400);
    const Clock::time_point start = Clock::now();
    absl::Status status = group.Barrier();
    if (status.ok()) status = group.Barrier();
    const std::string wrong = Expect(status, absl::StatusCode::kUnavailable,
                                     "rank 0 left the group: drained by its owner", start, 2000);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryPath, ARankThatClosesIsNamedByAll) {
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(4, 8), [](Collective& group) -> std::string {
    for (int i = 0; i < 3; ++i) {
      if (absl::Status s = group.Barrier(); !s.ok()) return s.ToString();
    }
    if (group.rank() == 2) return "";
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Barrier();
    const std::string wrong =
        Expect(status, absl::StatusCode::kUnavailable, "rank 2 left the group", start, 2000);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

TEST_P(EveryPath, ARankThatDoesNotComeIsTheEndAtTheDeadline) {
  CollectiveOptions options = GroupOptions(3, 8);
  options.timeout_ms = 300;
  const std::string named = GetParam() == Transport::kNccl      ? "one of the 3 ranks did not come"
                            : GetParam() == Transport::kVirtual ? "rank 1 of 3 did not come"
                                                                : "rank 1 of 3 did not come to Barrier";
  ExpectAllWell(RunGroup(GetParam(), options, [&](Collective& group) -> std::string {
    if (group.rank() == 1) {
      SleepMs(900);
      const absl::Status late = group.Barrier();
      return late.code() == absl::StatusCode::kDeadlineExceeded ? "" : late.ToString();
    }
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Barrier();
    const std::string wrong = Expect(status, absl::StatusCode::kDeadlineExceeded, named, start, 2000);
    return wrong.empty() ? ExpectDead(group, status) : wrong;
  }));
}

// NCCL does not compare calls.
TEST_P(EveryPath, CallsThatDifferAreNamedByAll) {
  if (GetParam() == Transport::kNccl) GTEST_SKIP() << "NCCL does not say";
  ExpectAllWell(RunGroup(GetParam(), GroupOptions(3, 8), [](Collective& group) -> std::string {
    char data[300] = {};
    const Clock::time_point start = Clock::now();
    const absl::Status status = group.Broadcast(data, group.rank() == 2 ? 100 : 99, 0);
    return Expect(status, absl::StatusCode::kFailedPrecondition,
                  group.rank() == 2 ? "rank 0 came to Broadcast of 99 bytes from rank 0"
                                    : "rank 2 came to Broadcast of 100 bytes from rank 0",
                  start, 2000);
  }));
}

TEST_P(EveryPath, WrongArgumentsNameTheValueAndEndTheGroup) {
  struct Case {
    const char* named;
    std::function<absl::Status(Collective&)> call;
  };
  static float x[2000];
  const Case cases[] = {
      {"SumsBuffer of 1001", [](Collective& g) { return g.SumsBuffer(1001).status(); }},
      {"TreeAllReduce of 10 elements without", [](Collective& g) { return g.TreeAllReduce(10, x); }},
      {"AllGather of 1001", [](Collective& g) { return g.AllGather(x, 1001, x); }},
      {"Broadcast from rank 2", [](Collective& g) { return g.Broadcast(x, 4, 2); }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.named);
    ExpectAllWell(RunGroup(GetParam(), GroupOptions(2, 8), [&](Collective& group) -> std::string {
      const Clock::time_point start = Clock::now();
      if (group.rank() == 1) {
        const absl::Status status = c.call(group);
        const std::string wrong = Expect(status, status.code(), c.named, start, 2000);
        return wrong.empty() ? ExpectDead(group, status) : wrong;
      }
      return Expect(group.Barrier(), absl::StatusCode::kUnavailable, "rank 1 left the group: ", start, 2000);
    }));
  }
}

// The norm in the sums' kernel has the bits of the two calls, with one product and with two.
TEST_P(EveryPath, SumsWithTheirNormHaveTheBitsOfBothCalls) {
  for (const auto& shape : {std::array<int, 3>{3, 264, 1}, {1, 8, 2}, {2, 600, 2}}) {
    const int rows = shape[0], cols = shape[1], products = shape[2];
    CollectiveOptions options = GroupOptions(3, 8);
    options.max_elements = int64_t{rows} * cols * products;
    ExpectAllWell(RunGroup(GetParam(), options, [&](Collective& group) -> std::string {
      auto ops = OrDie(CreateOps({kEmulatedCudaRung, Compute::kFast, 1}));
      const int64_t count = options.max_elements;
      const auto out = std::make_unique<float[]>(static_cast<size_t>(count));
      std::fill_n(out.get(), count, 7.0f);
      std::vector<std::vector<float>> got;
      for (const bool fused : {true, false}) {
        Random of_rank(11 + group.rank()), same(5);
        const auto sums = group.SumsBuffer(count);
        if (!sums.ok()) return sums.status().ToString();
        const Range shards = ShardsOfRank(8, 3, group.rank());
        const auto trees = SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end)).size();
        const std::vector<float> values = of_rank.Normal(static_cast<int64_t>(trees) * count);
        std::copy(values.begin(), values.end(), *sums);
        DeviceMatrix residual(*ops, rows, cols, same.Normal(rows * cols), 8), y(*ops, rows, cols);
        DeviceArray<float> weight(*ops, same.Normal(cols));
        RmsNormParams norm;
        norm.residual = residual.view();
        norm.add = out.get();
        norm.add2 = products > 1 ? out.get() + rows * cols : nullptr;
        norm.weight = weight.data();
        norm.y = y.view();
        absl::Status status;
        if (fused) {
          status = group.TreeAllReduceRmsNorm(count, out.get(), ops.get(), norm);
        } else {
          status = group.TreeAllReduce(count, out.get());
          if (status.ok()) status = ops->RmsNorm(norm);
        }
        if (status.ok()) status = group.Completed();
        if (!status.ok()) return status.ToString();
        if (fused && std::count(out.get(), out.get() + count, 7.0f) != count) {
          return "the sums went through memory";
        }
        got.push_back(residual.Get());
        got.push_back(y.Get());
      }
      return SameBits(got[0], got[2]) && SameBits(got[1], got[3]) ? "" : "other bits";
    }));
  }
}

// A rank that comes late, and one that does not wait for it: the suite would see it.
TEST(PeerPath, PlantedFaultsAreCaught) {
  for (const simt::Fault fault : {simt::Fault::kExchangeNoWait, simt::Fault::kExchangeOldEpoch}) {
    CollectiveOptions options = GroupOptions(2, 2);
    options.timeout_ms = 2000;
    std::atomic<int> wrong{0};
    const Results results = RunGroup(Transport::kPeer, options, [&](Collective& group) -> std::string {
      for (int round = 0; round < 3; ++round) {
        if (group.rank() == 1) SleepMs(30);
        if (round == 1) simt::SetFault(fault);
        const auto sums = group.SumsBuffer(1);
        if (sums.ok()) **sums = static_cast<float>(100 * round + group.rank());
        float out = 0;
        const absl::Status status = group.TreeAllReduce(1, &out);
        const bool right = status.ok() && out == static_cast<float>(200 * round + 1);
        if (round == 0 && !right) return "wrong without a fault";
        if (!right) ++wrong;
      }
      return "";
    });
    simt::SetFault(simt::Fault::kNone);
    ExpectAllWell(results);
    EXPECT_GT(wrong, 0) << static_cast<int>(fault);
  }
}

TEST(NcclPath, AnAsynchronousErrorEndsTheGroupAndSaysWhat) {
  ExpectAllWell(RunGroup(Transport::kNccl, GroupOptions(2, 8), [](Collective& group) -> std::string {
    const Clock::time_point start = Clock::now();
    absl::Status status = group.Barrier();
    if (group.rank() == 0 && !status.ok()) return status.ToString();
    if (group.rank() == 0) cuda::SetFakeNcclFaults({.async_error = 6});
    while (status.ok() && Clock::now() - start < std::chrono::seconds(5)) status = group.Barrier();
    return Expect(status, absl::StatusCode::kUnavailable, "NCCL error 6, a fake's error", start, 2000);
  }));
  cuda::SetFakeNcclFaults({});
}

TEST(NcclPath, AnAbortThatDoesNotReturnEndsTheProcess) {
  static std::mutex mu;
  static std::vector<std::string> exits;
  cuda::SetNcclExitForTesting([](const std::string& why) {
    std::lock_guard<std::mutex> lock(mu);
    exits.push_back(why);
  });
  cuda::SetFakeNcclFaults({.abort_hangs = true});
  ExpectAllWell(RunGroup(Transport::kNccl, GroupOptions(2, 8), [](Collective& group) -> std::string {
    const Clock::time_point start = Clock::now();
    if (group.rank() == 0) group.Abort("enough");
    const absl::Status status = group.Barrier();
    return status.ok() || Clock::now() - start > std::chrono::seconds(4) ? status.ToString() : "";
  }));
  SleepMs(1500);  // the hanging threads end
  cuda::SetFakeNcclFaults({});
  std::lock_guard<std::mutex> lock(mu);
  ASSERT_EQ(exits.size(), 2u);
  EXPECT_EQ(exits[0], "ncclCommAbort did not return within 2000 ms");
}

TEST(NcclPath, TheLibraryIsFoundOrNamed) {
  cuda::SetNcclForTesting(nullptr);
  const auto api = cuda::LoadNccl();
  if (api.ok()) {
    int version = 0;
    ASSERT_EQ((*api)->GetVersion(&version), 0);
    EXPECT_GE(version, 21800) << cuda::NcclVersionText(version);
  } else {
    EXPECT_THAT(std::string(api.status().message()), testing::HasSubstr("libnccl.so.2"));
  }
  EXPECT_EQ(cuda::NcclVersionText(22809), "2.28.9");
}

}  // namespace
}  // namespace phalanx

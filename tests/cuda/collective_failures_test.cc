// What only collectives between devices do or suffer; tests/worker/collective/collective_failure_test.cc is
// theirs, too. On the emulator; NCCL is a fake.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>

#include "kernels/backends.h"
#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/nccl_exchange.h"
#include "tests/cuda/device_group.h"
#include "tests/cuda/fake_nccl.h"
#include "tests/kernels/ops_testing.h"
#include "tests/worker/collective/failures.h"
#include "tests/worker/collective/group.h"

namespace phalanx {
namespace {

class EveryPath : public testing::TestWithParam<Transport> {};
INSTANTIATE_TEST_SUITE_P(Paths, EveryPath, testing::ValuesIn(TestedTransports()),
                         [](const auto& info) { return ToString(info.param); });

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
    return Expect(status, absl::StatusCode::kUnavailable, "NCCL error 6, a fake's error", start, 0, 2000);
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

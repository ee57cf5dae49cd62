// Mode fast over NCCL: its own all-reduce of 16-bit sums, on the emulator with a fake of the library.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "kernels/cuda/runtime.h"
#include "tests/cuda/device_group.h"
#include "tests/cuda/fake_nccl.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {
namespace {

struct Group {
  std::vector<std::unique_ptr<Ops>> ops;
  std::vector<std::unique_ptr<Collective>> ranks;
};

Group Create(int size, DeviceMode mode, bool half, ExchangePath path, int64_t timeout_ms = 20000) {
  Group group;
  std::vector<Ops*> views;
  for (int r = 0; r < size; ++r) {
    OpsOptions options;
    options.device_mode = mode;
    options.fp16 = half;
    group.ops.push_back(OrDie(cuda::CreateCudaOps(cuda::CreateEmulatedRuntime(), options)));
    views.push_back(group.ops.back().get());
  }
  CollectiveOptions options;
  options.size = size;
  options.num_shards = 7;
  options.max_elements = 5000;
  options.max_gather_bytes = 4096;
  options.timeout_ms = timeout_ms;
  group.ranks = OrDie(CreateDeviceGroup(views, options, path, 4096));
  return group;
}

// Each rank's TreeAllReduce of sums drawn with its number as the seed; what comes out, and the exact sum and
// the sum of magnitudes.
struct Reduced {
  std::vector<std::vector<float>> of_rank;
  std::vector<double> exact, magnitude;
};
Reduced Reduce(Group& group, int64_t count) {
  const size_t size = group.ranks.size();
  Reduced all;
  all.of_rank.resize(size);
  all.exact.assign(static_cast<size_t>(count), 0);
  all.magnitude = all.exact;
  std::vector<std::vector<float>> sums;
  for (size_t r = 0; r < size; ++r) {
    // Subtrees of its shards.
    const Range shards = ShardsOfRank(7, static_cast<int>(size), static_cast<int>(r));
    const auto trees =
        static_cast<int64_t>(SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end)).size());
    Random random(static_cast<uint32_t>(r + 1));
    sums.push_back(random.Normal(trees * count, 3.0f));
    for (int64_t i = 0; i < trees * count; ++i) {
      all.exact[static_cast<size_t>(i % count)] += sums[r][static_cast<size_t>(i)];
      all.magnitude[static_cast<size_t>(i % count)] += std::fabs(sums[r][static_cast<size_t>(i)]);
    }
  }
  std::vector<std::thread> threads;
  for (size_t r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      Ops& ops = *group.ops[r];
      float* const buffer = OrDie(group.ranks[r]->SumsBuffer(count));
      EXPECT_TRUE(
          ops.Copy(buffer, sums[r].data(), static_cast<int64_t>(sums[r].size()) * 4, CopyKind::kToDevice)
              .ok());
      DeviceArray<float> out(ops, std::vector<float>(static_cast<size_t>(count), kNan));
      const absl::Status status = group.ranks[r]->TreeAllReduce(count, out.data());
      EXPECT_TRUE(status.ok()) << status.ToString();
      all.of_rank[r] = out.Get();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return all;
}

TEST(NcclReduceTest, AddsSumsOf16Bits) {
  for (const bool half : {false, true}) {
    for (const int size : {2, 3}) {
      Group group = Create(size, DeviceMode::kFast, half, ExchangePath::kNccl);
      for (const int64_t count : {1, 37, 5000}) {
        const int before = cuda::FakeAllReduces();
        const Reduced got = Reduce(group, count);
        EXPECT_EQ(cuda::FakeAllReduces() - before, size);
        for (int64_t i = 0; i < count; ++i) {
          const auto at = static_cast<size_t>(i);
          // A rounding a rank, and one an addition.
          const double bound = got.magnitude[at] * 2 * size * (half ? 0x1p-11 : 0x1p-8);
          ASSERT_NEAR(got.of_rank[0][at], got.exact[at], bound) << i << " of " << count;
          const float v = got.of_rank[0][at];
          ASSERT_EQ(v, half ? FloatFromF16(cuda::HalfFromFloat(v)) : RoundToBf16(v)) << "of 16 bits";
        }
        for (const std::vector<float>& of_rank : got.of_rank) EXPECT_TRUE(SameBits(got.of_rank[0], of_rank));
      }
    }
  }
}

TEST(NcclReduceTest, OtherModesAndPathsAddInTheTree) {
  Group tree = Create(3, DeviceMode::kInvariant, false, ExchangePath::kVirtual);
  const Reduced want = Reduce(tree, 1000);
  const int before = cuda::FakeAllReduces();
  for (const auto& [mode, path] : {std::pair{DeviceMode::kInvariant, ExchangePath::kNccl},
                                   {DeviceMode::kFast, ExchangePath::kPeer},
                                   {DeviceMode::kFast, ExchangePath::kVirtual}}) {
    Group group = Create(3, mode, false, path);
    EXPECT_TRUE(SameBits(want.of_rank[0], Reduce(group, 1000).of_rank[2]));
  }
  EXPECT_EQ(cuda::FakeAllReduces(), before);
}

TEST(NcclReduceTest, WithNormAddsToTheResidual) {
  Group group = Create(2, DeviceMode::kFast, false, ExchangePath::kNccl);
  const int64_t rows = 3, cols = 40;
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> residuals(2), normed(2);
  const int before = cuda::FakeAllReduces();
  for (size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      Ops& ops = *group.ops[r];
      DeviceMatrix residual(ops, rows, cols, std::vector<float>(rows * cols, 1.0f)), y(ops, rows, cols);
      DeviceArray<float> out(ops, std::vector<float>(rows * cols, kNan)),
          weight(ops, std::vector<float>(cols, 2.0f));
      const Range shards = ShardsOfRank(7, 2, static_cast<int>(r));
      const auto trees = SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end)).size();
      const std::vector<float> sums(trees * rows * cols, 0.5f);
      float* const buffer = OrDie(group.ranks[r]->SumsBuffer(rows * cols));
      EXPECT_TRUE(
          ops.Copy(buffer, sums.data(), static_cast<int64_t>(sums.size()) * 4, CopyKind::kToDevice).ok());
      RmsNormParams norm;
      norm.residual = residual.view();
      norm.add = out.data();
      norm.weight = weight.data();
      norm.y = y.view();
      const absl::Status status = group.ranks[r]->TreeAllReduceRmsNorm(rows * cols, out.data(), &ops, norm);
      EXPECT_TRUE(status.ok()) << status.ToString();
      residuals[r] = residual.Get();
      normed[r] = y.Get();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cuda::FakeAllReduces() - before, 2);
  const auto trees = static_cast<float>(SubtreesOf(0, static_cast<int>(ShardsOfRank(7, 2, 0).end)).size() +
                                        SubtreesOf(static_cast<int>(ShardsOfRank(7, 2, 1).begin), 7).size());
  for (size_t r = 0; r < 2; ++r) {
    EXPECT_THAT(residuals[r], testing::Each(1 + trees * 0.5f));
    EXPECT_THAT(normed[r], testing::Each(testing::FloatNear(2.0f, 1e-2f)));
  }
}

TEST(NcclReduceTest, ARankThatDoesNotComeEndsTheOthersCall) {
  Group group = Create(2, DeviceMode::kFast, false, ExchangePath::kNccl, 300);
  OrDie(group.ranks[0]->SumsBuffer(10));
  DeviceArray<float> out(*group.ops[0], std::vector<float>(10, kNan));
  absl::Status status = group.ranks[0]->TreeAllReduce(10, out.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status.ToString();
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("one of the 2 ranks did not come"));
}

}  // namespace
}  // namespace phalanx

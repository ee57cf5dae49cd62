// Calls that do several products' work at once give the bits of the calls they stand for, on every rung.
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "kernels/ops.h"
#include "tests/kernels/ops_fixture.h"

namespace phalanx {
namespace {

class GatedProductsTest : public testing::TestWithParam<RungCase> {
 protected:
  std::unique_ptr<Ops> Make(int num_threads) {
    return OrDie(
        CreateOps({GetParam().rung, GetParam().compute, num_threads, GetParam().kv_type, GetParam().fp16}));
  }
};

// One call or two, few rows or many, whole panels of columns or not: the same bits.
TEST_P(GatedProductsTest, GatedMatmulIsMatmulAndSwiGlu) {
  auto ops = Make(3);
  Random random(9);
  const int64_t max_rows = 300;
  for (const auto& [k, ffn] : {std::pair<int64_t, int64_t>{70, 48}, {576, 80}, {64, 37}, {96, 16}}) {
    for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_1}) {
      if (k % BlockElements(dtype) != 0) continue;
      const std::vector<uint8_t> w = RandomBlocks(random, dtype, 2 * ffn * k);
      const std::vector<float> x = random.Normal(max_rows * k);
      PackWeightParams pack;
      pack.pieces = {{{w.data(), dtype, 2 * ffn, k}, {0, 2 * ffn}}};
      pack.cols = {0, k};
      auto weight = OrDie(ops->PackWeight(pack));
      for (const int64_t rows : {1, 16, 32, 33, 49, 131, 273, 300}) {
        DeviceMatrix x_m(*ops, rows, k, Rows(x, k, 0, rows)), gate_up(*ops, rows, 2 * ffn),
            both(*ops, rows, ffn), y(*ops, rows, ffn, 3);
        MatmulParams p;
        p.x = x_m.view();
        p.weight = weight.get();
        p.y = gate_up.view();
        ASSERT_TRUE(ops->Matmul(p).ok());
        ASSERT_TRUE(ops->SwiGlu({gate_up.view(), both.view()}).ok());
        ASSERT_TRUE(ops->GatedMatmul({x_m.view(), weight.get(), gate_up.view(), y.view()}).ok());
        EXPECT_TRUE(SameBits(both.Get(), y.Get()))
            << DTypeName(dtype) << ", " << rows << " rows, " << ffn << " columns";
      }
    }
  }
}

TEST_P(GatedProductsTest, GatedShardedMatmulIsItsParts) {
  auto ops = Make(3);
  Random random(10);
  const int64_t k = 100, n = 45, max_rows = 290;
  const std::vector<std::vector<int64_t>> cuts = {
      {0, 32, 64, 128, 128, 192, 224, 256, 320}, {0, 40, 64, 96}, {0, 96, 160, 192}, {0, 16, 48, 80}};
  for (const std::vector<int64_t>& cut : cuts) {
    const int64_t ffn = cut.back();
    const std::vector<float> up = random.Normal(2 * ffn * k), w = random.Normal(n * ffn),
                             x = random.Normal(max_rows * k);
    PackWeightParams pack_up, pack_down;
    pack_up.pieces = {{{up.data(), DType::kF32, 2 * ffn, k}, {0, 2 * ffn}}};
    pack_up.cols = {0, k};
    pack_down.pieces = {{{w.data(), DType::kF32, n, ffn}, {0, n}}};
    pack_down.cols = {0, ffn};
    pack_down.shard_cuts = cut;
    auto gate_up = OrDie(ops->PackWeight(pack_up)), down = OrDie(ops->PackWeight(pack_down));
    const size_t trees = down->subtrees().size();
    for (const int64_t rows : {1, 32, 33, 50, 131, 272, 290}) {
      DeviceMatrix x_m(*ops, rows, k, Rows(x, k, 0, rows)), wide(*ops, rows, 2 * ffn), y(*ops, rows, ffn);
      DeviceArray<float> parts(*ops, std::vector<float>(trees * static_cast<size_t>(rows * n), kNan));
      DeviceArray<float> one(*ops, std::vector<float>(trees * static_cast<size_t>(rows * n), kNan));
      MatmulParams p;
      p.x = x_m.view();
      p.weight = gate_up.get();
      p.y = wide.view();
      ASSERT_TRUE(ops->Matmul(p).ok());
      ASSERT_TRUE(ops->SwiGlu({wide.view(), y.view()}).ok());
      ASSERT_TRUE(ops->ShardedMatmul({y.view(), down.get(), parts.data()}).ok());
      GatedShardedMatmulParams gated;
      gated.x = x_m.view();
      gated.gate_up = gate_up.get();
      gated.down = down.get();
      gated.gated_from = wide.view();
      gated.gated = y.view();
      gated.sums = one.data();
      ASSERT_TRUE(ops->GatedShardedMatmul(gated).ok());
      EXPECT_TRUE(SameBits(parts.Get(), one.Get())) << rows << " rows, " << ffn << " columns";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rungs, GatedProductsTest, testing::ValuesIn(RungCases()), RungCaseName);

// Hosts with either may be ranks of one group.
TEST(Avx512ProductsTest, HaveTheBitsOfAvx2) {
  const std::vector<std::string> rungs = AvailableRungs();
  if (std::find(rungs.begin(), rungs.end(), "avx512") == rungs.end()) GTEST_SKIP() << "no AVX-512 here";
  for (const Compute compute : {Compute::kFp32, Compute::kFast}) {
    auto avx2 = OrDie(CreateOps({"avx2", compute, 1})), avx512 = OrDie(CreateOps({"avx512", compute, 2}));
    Random random(11);
    for (const auto& [k, n] :
         {std::pair<int64_t, int64_t>{7, 16}, {256, 50}, {700, 33}, {1031, 100}, {4500, 33}}) {
      const std::vector<float> w = random.Normal(n * k), x = random.Normal(150 * k);
      PackWeightParams pack;
      pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
      pack.cols = {0, k};
      for (const int64_t rows : {1, 2, 3, 11, 12, 13, 40, 97, 150}) {
        std::vector<std::vector<float>> results;
        for (Ops* ops : {avx2.get(), avx512.get()}) {
          auto weight = OrDie(ops->PackWeight(pack));
          DeviceMatrix x_m(*ops, rows, k, Rows(x, k, 0, rows)), y(*ops, rows, n, 3);
          MatmulParams p;
          p.x = x_m.view();
          p.weight = weight.get();
          p.y = y.view();
          ASSERT_TRUE(ops->Matmul(p).ok());
          results.push_back(y.Get());
        }
        EXPECT_TRUE(SameBits(results[0], results[1])) << k << " to " << n << ", " << rows << " rows";
      }
    }
  }
}

}  // namespace
}  // namespace phalanx

// Conformance of Matmul, ShardedMatmul and the packing of weights.
#include "tests/kernels/ops_fixture.h"

#include "kernels/numeric.h"

namespace phalanx {
namespace {

std::vector<float> RunMatmul(Ops& ops, const PackedWeight& weight, const std::vector<float>& x, int64_t rows,
                             const std::vector<float>& bias, int64_t padding) {
  DeviceMatrix x_m(ops, rows, weight.k(), x, padding);
  DeviceMatrix y_m(ops, rows, weight.n(), padding, padding % 2 == 0);
  DeviceArray<float> bias_a(ops, bias);
  MatmulParams p;
  p.x = x_m.view();
  p.weight = &weight;
  p.bias = bias.empty() ? nullptr : bias_a.data();
  p.y = y_m.view();
  p.y_fp32 = padding % 2 == 0;
  const absl::Status status = ops.Matmul(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return y_m.Get();
}

// The sums of subtrees lie `gap` elements apart.
std::vector<float> RunSharded(Ops& ops, const PackedWeight& weight, const std::vector<float>& x, int64_t rows,
                              int64_t padding, int64_t gap = 0) {
  DeviceMatrix x_m(ops, rows, weight.k(), x, padding);
  const int64_t size = rows * weight.n(), stride = size + gap;
  const auto trees = static_cast<int64_t>(weight.subtrees().size());
  DeviceArray<float> sums(ops, std::vector<float>(static_cast<size_t>(trees * stride), kNan));
  ShardedMatmulParams p;
  p.x = x_m.view();
  p.weight = &weight;
  p.sums = sums.data();
  p.tree_stride = gap == 0 ? 0 : stride;
  const absl::Status status = ops.ShardedMatmul(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  const std::vector<float> got = sums.Get();
  std::vector<float> out;
  for (int64_t i = 0; i < trees; ++i) {
    out.insert(out.end(), got.begin() + i * stride, got.begin() + i * stride + size);
    for (int64_t j = 0; j < gap; ++j) EXPECT_TRUE(std::isnan(got[i * stride + size + j])) << "the gap";
  }
  return out;
}

TEST_P(OpsTest, MatmulEveryNumberOfRows) {
  Random random(1);
  const int64_t n = 35, k = 67;
  const std::vector<float> w = random.Normal(n * k);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = {0, k};
  auto ours = OrDie(ops_->PackWeight(pack));
  auto theirs = OrDie(reference_->PackWeight(pack));
  EXPECT_EQ(ours->n(), n);
  EXPECT_EQ(ours->k(), k);
  EXPECT_GT(ours->bytes(), 0);
  EXPECT_TRUE(ours->subtrees().empty());
  for (int64_t rows = 0; rows <= 70; ++rows) {
    const std::vector<float> x = random.Normal(rows * k);
    const std::vector<float> bias = rows % 3 == 0 ? random.Normal(n) : std::vector<float>();
    ExpectClose(RunMatmul(*reference_, *theirs, x, rows, bias, 0),
                RunMatmul(*ops_, *ours, x, rows, bias, rows % 4), ProductTolerance(k),
                "T=" + std::to_string(rows));
  }
}

TEST_P(OpsTest, MatmulShapes) {
  Random random(2);
  for (const int64_t n : {1, 15, 16, 17, 64, 100, 272}) {
    for (const int64_t k : {0, 1, 7, 31, 32, 33, 64, 600, 1100}) {
      const std::vector<float> w = random.Normal(n * k);
      PackWeightParams pack;
      pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
      pack.cols = {0, k};
      auto ours = OrDie(ops_->PackWeight(pack));
      auto theirs = OrDie(reference_->PackWeight(pack));
      for (const int64_t rows : {1, 5, 16, 37}) {
        const std::vector<float> x = random.Normal(rows * k);
        const std::vector<float> bias = random.Normal(n);
        ExpectClose(RunMatmul(*reference_, *theirs, x, rows, bias, 0),
                    RunMatmul(*ops_, *ours, x, rows, bias, 3), ProductTolerance(k),
                    "N=" + std::to_string(n) + " K=" + std::to_string(k) + " T=" + std::to_string(rows));
      }
    }
  }
}

TEST_P(OpsTest, MatmulManyRowsAndWideWeights) {
  Random random(3);
  const int64_t n = 700, k = 1200, rows = 300;
  const std::vector<float> w = random.Normal(n * k);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = {0, k};
  auto ours = OrDie(ops_->PackWeight(pack));
  auto theirs = OrDie(reference_->PackWeight(pack));
  const std::vector<float> x = random.Normal(rows * k);
  ExpectClose(RunMatmul(*reference_, *theirs, x, rows, {}, 0), RunMatmul(*ops_, *ours, x, rows, {}, 1),
              ProductTolerance(k), "large");
}

// A NaN in one row stays there.
TEST_P(OpsTest, MatmulKeepsRowsApart) {
  Random random(4);
  const int64_t n = 40, k = 50, rows = 20;
  const std::vector<float> w = random.Normal(n * k);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = {0, k};
  auto weight = OrDie(ops_->PackWeight(pack));
  std::vector<float> x = random.Normal(rows * k);
  const std::vector<float> clean = RunMatmul(*ops_, *weight, x, rows, {}, 0);
  for (int64_t c = 0; c < k; ++c) x[7 * k + c] = kNan;
  const std::vector<float> got = RunMatmul(*ops_, *weight, x, rows, {}, 0);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t c = 0; c < n; ++c) {
      if (t == 7) {
        EXPECT_TRUE(std::isnan(got[t * n + c]));
      } else {
        EXPECT_EQ(got[t * n + c], clean[t * n + c]);
      }
    }
  }
}

TEST_P(OpsTest, WeightsOfEveryTypeWithCutsInsideBlocks) {
  Random random(5);
  const int64_t cols = 160, first_rows = 30, second_rows = 21;
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const std::vector<uint8_t> first = RandomBlocks(random, dtype, first_rows * cols);
    const std::vector<uint8_t> second = RandomBlocks(random, DType::kF32, second_rows * cols);
    PackWeightParams pack;
    pack.pieces = {{{first.data(), dtype, first_rows, cols}, {3, 29}},
                   {{second.data(), DType::kF32, second_rows, cols}, {0, 0}},
                   {{second.data(), DType::kF32, second_rows, cols}, {20, 21}},
                   {{first.data(), dtype, first_rows, cols}, {0, 4}}};
    for (const Range range : {Range{0, 160}, Range{5, 77}, Range{33, 34}, Range{31, 97}}) {
      pack.cols = range;
      pack.shard_cuts.clear();
      const int64_t rows = 9;
      const std::vector<float> x = random.Normal(rows * range.size());
      const std::string what = std::string(DTypeName(dtype)) + " from " + std::to_string(range.begin);
      ExpectAgree(ProductTolerance(range.size()), what, [&](Ops& ops) {
        auto weight = OrDie(ops.PackWeight(pack));
        EXPECT_EQ(weight->n(), 31);
        return RunMatmul(ops, *weight, x, rows, {}, 0);
      });
      pack.first_shard = 3;
      pack.shard_cuts = {range.begin, range.begin, (range.begin + range.end) / 2, range.end};
      ExpectAgree(ProductTolerance(range.size()), what + " sharded", [&](Ops& ops) {
        auto weight = OrDie(ops.PackWeight(pack));
        EXPECT_THAT(weight->subtrees(), testing::ElementsAre(Subtree{3, 1}, Subtree{4, 2}));
        return RunSharded(ops, *weight, x, rows, 5);
      });
    }
  }
}

TEST_P(OpsTest, ShardedMatmul) {
  Random random(6);
  struct Case {
    int64_t n, k;
    int first_shard;
    std::vector<int64_t> cuts;
  };
  std::vector<Case> cases = {
      {48, 576, 0, {0, 72, 144, 216, 288, 360, 432, 504, 576}},
      {33, 200, 0, {0, 0, 64, 65, 65, 130, 131, 200, 200}},  // empty and tiny shards
      {16, 100, 5, {0, 10, 40, 100}},
      {70, 0, 1, {0, 0, 0}},                        // nothing but empty shards
      {0, 64, 0, {0, 32, 64}},                      // no outputs
      {20, 90, 1, {0, 9, 20, 33, 41, 58, 66, 90}},  // subtrees of 1, 2, 4 shards
      {130, 640, 7, {0, 640}},
      {33, 640, 0, {}},  // as many shards as may be
      {20, 9000, 0, {0, 3000, 4600, 6000, 9000}},
  };
  for (int64_t s = 0; s <= kMaxShards; ++s) cases[7].cuts.push_back(s * 10);
  for (const Case& c : cases) {
    const std::vector<float> w = random.Normal(c.n * c.k);
    PackWeightParams pack;
    pack.pieces = {{{w.data(), DType::kF32, c.n, c.k}, {0, c.n}}};
    pack.cols = {0, c.k};
    pack.shard_cuts = c.cuts;
    pack.first_shard = c.first_shard;
    auto ours = OrDie(ops_->PackWeight(pack));
    auto theirs = OrDie(reference_->PackWeight(pack));
    EXPECT_EQ(ours->subtrees(), theirs->subtrees());
    EXPECT_EQ(ours->subtrees(),
              SubtreesOf(c.first_shard, c.first_shard + static_cast<int>(c.cuts.size()) - 1));
    for (const int64_t rows : {0, 1, 2, 6, 7, 16, 33, 70}) {
      const std::vector<float> x = random.Normal(rows * c.k);
      ExpectClose(RunSharded(*reference_, *theirs, x, rows, 0),
                  RunSharded(*ops_, *ours, x, rows, 2, rows % 3), ProductTolerance(c.k),
                  "N=" + std::to_string(c.n) + " T=" + std::to_string(rows));
    }
  }
}

}  // namespace
}  // namespace phalanx

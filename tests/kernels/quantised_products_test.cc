// Products with weights that stay quantised, bit for bit against plain loops of the arithmetic that
// kernels/cpu/quant_kernels.h defines, on every rung of this host.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "tests/kernels/ops_fixture.h"
#include "tests/kernels/quantised_testing.h"

namespace phalanx {
namespace {

constexpr int kBlock = 32;

// ---- The specification --------------------------------------------------------------------------

struct Arithmetic {
  float largest = 254.0f;  // integer of x
  bool forwards = true;    // order of blocks
};

uint16_t Half(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

struct Block {
  float d = 0, m = 0;
  int q[kBlock];
};

Block BlockAt(DType dtype, const uint8_t* b) {
  Block block;
  block.d = FloatFromF16(Half(b));
  if (dtype == DType::kQ4_1) block.m = FloatFromF16(Half(b + 2));
  const uint8_t* q = b + (dtype == DType::kQ4_1 ? 4 : 2);
  for (int i = 0; i < kBlock; ++i) {
    if (dtype == DType::kQ8_0) {
      block.q[i] = static_cast<int8_t>(q[i]);
    } else {
      block.q[i] = (i < 16 ? q[i] & 15 : q[i - 16] >> 4) - (dtype == DType::kQ4_0 ? 8 : 0);
    }
  }
  return block;
}

// Columns [begin, end) of a row of weights times x, whose first element is that of column x_begin.
float RunProduct(const Arithmetic& a, DType dtype, const uint8_t* row, Range run, const float* x,
                 int64_t x_begin) {
  float sum = 0;
  std::vector<int64_t> blocks;
  for (int64_t g = run.begin / kBlock; g * kBlock < run.end; ++g) blocks.push_back(g);
  if (!a.forwards) std::reverse(blocks.begin(), blocks.end());
  for (const int64_t g : blocks) {
    const int64_t begin = std::max(run.begin, g * kBlock), end = std::min(run.end, (g + 1) * kBlock);
    float largest = 0;
    bool finite = true;
    for (int64_t c = begin; c < end; ++c) {
      finite &= std::isfinite(x[c - x_begin]);
      largest = std::max(largest, std::fabs(x[c - x_begin]));
    }
    const bool zero = !finite || largest < 0x1p-100f;
    const float scale = !finite ? kNan : zero ? 0.0f : largest / a.largest;
    const float inverse = zero ? 0.0f : a.largest / largest;
    const Block block = BlockAt(dtype, row + g * BlockBytes(dtype));
    int64_t products = 0, integers = 0;
    for (int64_t c = begin; c < end && !zero; ++c) {
      const auto integer = static_cast<int64_t>(std::nearbyint(x[c - x_begin] * inverse));
      products += block.q[c % kBlock] * integer;
      integers += integer;
    }
    sum = std::fmaf(static_cast<float>(products), block.d * scale, sum);
    if (dtype == DType::kQ4_1) sum = std::fmaf(block.m, scale * static_cast<float>(integers), sum);
  }
  return sum;
}

Stored RandomMatrix(Random& random, DType dtype, int64_t rows, int64_t cols) {
  return {dtype, rows, cols, RandomBlocks(random, dtype, rows * cols)};
}

// Rows of the pieces (of one type), outputs [T, N] of each of the weight's subtrees.
std::vector<float> Specified(const Arithmetic& a, const std::vector<std::pair<const Stored*, Range>>& pieces,
                             const PackWeightParams& pack, const std::vector<float>& x, int64_t rows) {
  std::vector<int64_t> cuts = pack.shard_cuts;
  if (cuts.empty()) cuts = {pack.cols.begin, pack.cols.end};
  std::vector<Subtree> trees = {{0, 1}};
  if (!pack.shard_cuts.empty()) {
    trees = SubtreesOf(pack.first_shard, pack.first_shard + static_cast<int>(cuts.size()) - 1);
  }
  std::vector<float> out;
  size_t first = 0;
  for (const Subtree& tree : trees) {
    std::vector<Subtree> leaves;
    for (int i = 0; i < tree.count; ++i) leaves.push_back({tree.first + i, 1});
    const std::vector<MergeStep> merges = MergeOrder(leaves);
    for (int64_t t = 0; t < rows; ++t) {
      const float* row = x.data() + t * pack.cols.size();
      for (const auto& [matrix, range] : pieces) {
        for (int64_t r = range.begin; r < range.end; ++r) {
          std::vector<float> sums;
          for (size_t i = first; i < first + static_cast<size_t>(tree.count); ++i) {
            sums.push_back(RunProduct(a, matrix->dtype,
                                      matrix->bytes.data() + r * RowBytes(matrix->dtype, matrix->cols),
                                      {cuts[i], cuts[i + 1]}, row, pack.cols.begin));
          }
          for (const MergeStep& step : merges) sums[step.left] += sums[step.right];
          out.push_back(sums[0]);
        }
      }
    }
    first += static_cast<size_t>(tree.count);
  }
  return out;
}

// ---- The products of a rung ---------------------------------------------------------------------

std::vector<float> Computed(Ops& ops, const PackedWeight& weight, const std::vector<float>& x, int64_t rows,
                            const std::vector<float>& bias = {}) {
  return ComputeProduct(ops, weight, x, rows, {.y_padding = rows % 4, .bias = bias});
}

bool SameOrBothNan(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return false;
    if (!std::isnan(a[i]) && std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) return false;
  }
  return true;
}

std::vector<std::string> FastRungs() {
  std::vector<std::string> rungs = TestedRungs();
  std::erase(rungs, "reference");
  return rungs;
}

class QuantisedProducts : public testing::TestWithParam<std::string> {
 protected:
  QuantisedProducts() : ops_(OrDie(CreateOps({GetParam(), Compute::kFast, 2}))) {}
  std::unique_ptr<Ops> ops_;
  const Arithmetic arithmetic_;
};

constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};

TEST_P(QuantisedProducts, EveryNumberOfRows) {
  Random random(1);
  for (const DType dtype : kTypes) {
    const Stored m = RandomMatrix(random, dtype, 51, 96);
    PackWeightParams pack = Whole(m.source());
    auto weight = OrDie(ops_->PackWeight(pack));
    EXPECT_EQ(weight->n(), 51);
    EXPECT_EQ(weight->k(), 96);
    for (int64_t rows = 0; rows <= 70; ++rows) {
      const std::vector<float> x = random.Normal(rows * m.cols);
      const std::vector<float> want = Specified(arithmetic_, {{&m, {0, m.rows}}}, pack, x, rows);
      ASSERT_TRUE(SameBits(want, Computed(*ops_, *weight, x, rows))) << DTypeName(dtype) << " T=" << rows;
    }
  }
}

TEST_P(QuantisedProducts, ShapesPiecesAndBias) {
  Random random(2);
  for (const DType dtype : kTypes) {
    for (const int64_t cols : {32, 576, 1632}) {
      const Stored a = RandomMatrix(random, dtype, 40, cols), b = RandomMatrix(random, dtype, 19, cols);
      PackWeightParams pack;
      pack.pieces = {{a.source(), {3, 37}}, {b.source(), {0, 0}}, {b.source().Rows({2, 19}), {1, 15}}};
      pack.cols = {0, cols};
      auto weight = OrDie(ops_->PackWeight(pack));
      const std::vector<float> bias = random.Normal(weight->n());
      for (const int64_t rows : {1, 3, 4, 5, 8, 9, 16, 17, 300}) {
        const std::vector<float> x = random.Normal(rows * cols);
        std::vector<float> want = Specified(arithmetic_, {{&a, {3, 37}}, {&b, {3, 17}}}, pack, x, rows);
        const std::string what =
            std::string(DTypeName(dtype)) + " K=" + std::to_string(cols) + " T=" + std::to_string(rows);
        ASSERT_TRUE(SameBits(want, Computed(*ops_, *weight, x, rows))) << what;
        for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % bias.size()];
        ASSERT_TRUE(SameBits(want, Computed(*ops_, *weight, x, rows, bias))) << what << " with a bias";
      }
    }
  }
}

// So many outputs that a thread takes several panels at once.
TEST_P(QuantisedProducts, ManyOutputs) {
  Random random(8);
  for (const DType dtype : kTypes) {
    const Stored m = RandomMatrix(random, dtype, 300, 96);
    PackWeightParams pack = Whole(m.source());
    const std::vector<float> bias = random.Normal(m.rows);
    for (const bool sharded : {false, true}) {
      if (sharded) pack.shard_cuts = {0, 32, 40, 96};
      auto weight = OrDie(ops_->PackWeight(pack));
      for (const int64_t rows : {1, 5, 260}) {
        const std::vector<float> x = random.Normal(rows * m.cols);
        std::vector<float> want = Specified(arithmetic_, {{&m, {0, m.rows}}}, pack, x, rows);
        ASSERT_TRUE(SameBits(want, Computed(*ops_, *weight, x, rows)))
            << DTypeName(dtype) << (sharded ? " sharded" : "") << " T=" << rows;
        if (sharded) continue;
        for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % bias.size()];
        ASSERT_TRUE(SameBits(want, Computed(*ops_, *weight, x, rows, bias)))
            << DTypeName(dtype) << " T=" << rows;
      }
    }
  }
}

TEST_P(QuantisedProducts, CutsInsideBlocksAndEmptyShards) {
  Random random(3);
  struct Case {
    int first_shard;
    std::vector<int64_t> cuts;
  };
  std::vector<Case> cases = {
      {0, {0, 256}},
      {0, {7, 40, 41}},
      {3, {0, 16, 48, 256}},
      {0, {5, 5, 37, 64, 64, 100, 131, 131, 250}},
      {1, {0, 32, 64, 96, 128, 160, 192, 256}},
      {2, {31, 31, 31}},
      {5, {33, 34, 95, 256}},
      {0, {}},  // as many shards as may be
  };
  for (int64_t s = 0; s <= kMaxShards; ++s) cases.back().cuts.push_back(s * 4);
  for (const DType dtype : kTypes) {
    const Stored m = RandomMatrix(random, dtype, 33, 256);
    for (const Case& c : cases) {
      PackWeightParams pack;
      pack.pieces = {{m.source(), {0, m.rows}}};
      pack.cols = {c.cuts.front(), c.cuts.back()};
      for (const bool sharded : {false, true}) {
        if (sharded) pack.shard_cuts = c.cuts;
        pack.first_shard = sharded ? c.first_shard : 0;
        auto weight = OrDie(ops_->PackWeight(pack));
        for (const int64_t rows : {1, 2, 6, 16, 37}) {
          const std::vector<float> x = random.Normal(rows * pack.cols.size());
          const std::vector<float> want = Specified(arithmetic_, {{&m, {0, m.rows}}}, pack, x, rows);
          ASSERT_TRUE(SameBits(want, Computed(*ops_, *weight, x, rows)))
              << DTypeName(dtype) << " from " << c.cuts.front() << (sharded ? " sharded" : "")
              << " T=" << rows;
        }
      }
    }
  }
}

// Extreme weights and rows; NaNs and infinities stay in their rows.
TEST_P(QuantisedProducts, Extremes) {
  Random random(4);
  const float kInfinity = std::numeric_limits<float>::infinity();
  for (const DType dtype : kTypes) {
    Stored m = RandomMatrix(random, dtype, 20, 64);
    const auto block = static_cast<size_t>(BlockBytes(dtype));
    const size_t head = dtype == DType::kQ4_1 ? 4 : 2;
    for (size_t i = 0; i < 6 * block; ++i) {
      if (i % block < head) continue;
      m.bytes[i] = i / block % 3 == 0 ? 0x80 : i / block % 3 == 1 ? 0x7f : 0xff;
    }
    PackWeightParams pack = Whole(m.source());
    auto weight = OrDie(ops_->PackWeight(pack));
    std::vector<float> x;
    for (const float v :
         {1.0f, -1.0f, 3e38f, -3e38f, 1e-30f, 1e-37f, 1e-44f, 0.0f, -0.0f, kNan, kInfinity, -kInfinity}) {
      for (int c = 0; c < 64; ++c) x.push_back(v);
    }
    for (int c = 0; c < 64; ++c) x.push_back(c % 2 == 0 ? 1.0f : -1.0f);
    for (int c = 0; c < 64; ++c) x.push_back((static_cast<float>(c) + 0.5f) / 254.0f);  // ties
    for (int c = 0; c < 64; ++c) x.push_back(c == 40 ? kNan : 1.0f);
    const std::vector<float> normal = random.Normal(64);
    x.insert(x.end(), normal.begin(), normal.end());
    const auto rows = static_cast<int64_t>(x.size()) / 64;
    const std::vector<float> want = Specified(arithmetic_, {{&m, {0, m.rows}}}, pack, x, rows);
    const std::vector<float> got = Computed(*ops_, *weight, x, rows);
    EXPECT_TRUE(SameOrBothNan(want, got)) << DTypeName(dtype);
    for (int64_t t = 0; t < rows; ++t) {
      const std::vector<float> row = Rows(x, 64, t, t + 1), alone = Computed(*ops_, *weight, row, 1);
      EXPECT_TRUE(SameOrBothNan(alone, Rows(got, m.rows, t, t + 1))) << DTypeName(dtype) << " row " << t;
      const bool finite = std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); });
      for (const float v : alone) EXPECT_EQ(std::isnan(v), !finite) << DTypeName(dtype) << " row " << t;
    }
  }
}

TEST_P(QuantisedProducts, WeightsAreHeldAsTheyLieInTheFile) {
  Random random(5);
  for (const DType dtype : kTypes) {
    const Stored m = RandomMatrix(random, dtype, 64, 512);
    PackWeightParams pack = Whole(m.source());
    auto weight = OrDie(ops_->PackWeight(pack));
    EXPECT_EQ(weight->bytes(), static_cast<int64_t>(m.bytes.size())) << DTypeName(dtype);
    // Pieces of several types are widened.
    const Stored other = RandomMatrix(random, dtype == DType::kQ8_0 ? DType::kQ4_0 : DType::kQ8_0, 64, 512);
    pack.pieces.push_back({other.source(), {0, 64}});
    EXPECT_EQ(OrDie(ops_->PackWeight(pack))->bytes(), 2 * 64 * 512 * 2) << DTypeName(dtype);
  }
}

// Experts of a mixture take the same way.
TEST_P(QuantisedProducts, Experts) {
  Random random(6);
  const Stored m = RandomMatrix(random, DType::kQ4_0, 48, 64);
  std::vector<std::unique_ptr<PackedWeight>> experts;
  std::vector<const PackedWeight*> pointers;
  PackWeightParams pack;
  pack.cols = {0, 64};
  for (int e = 0; e < 3; ++e) {
    pack.pieces = {{m.source(), {e * 16, e * 16 + 16}}};
    experts.push_back(OrDie(ops_->PackWeight(pack)));
    pointers.push_back(experts.back().get());
  }
  const int64_t rows = 9;
  const std::vector<float> x = random.Normal(rows * 64);
  std::vector<int32_t> ids;
  std::vector<float> want;
  for (int32_t t = 0; t < rows; ++t) {
    ids.push_back(t % 3);
    const std::vector<float> row =
        Specified(arithmetic_, {{&m, {t % 3 * 16, t % 3 * 16 + 16}}}, pack, Rows(x, 64, t, t + 1), 1);
    want.insert(want.end(), row.begin(), row.end());
  }
  const auto y = GroupedProduct(*ops_, pointers, x, ids);
  ASSERT_TRUE(y.ok()) << y.status().ToString();
  EXPECT_TRUE(SameBits(want, *y));
}

// The comparison sees another order of sums, and another width of x.
TEST_P(QuantisedProducts, PlantedErrorsAreSeen) {
  Random random(7);
  for (const DType dtype : kTypes) {
    const Stored m = RandomMatrix(random, dtype, 20, 256);
    PackWeightParams pack = Whole(m.source());
    auto weight = OrDie(ops_->PackWeight(pack));
    const std::vector<float> x = random.Normal(3 * m.cols), got = Computed(*ops_, *weight, x, 3);
    Arithmetic backwards = arithmetic_, narrower = arithmetic_;
    backwards.forwards = false;
    narrower.largest -= 1;
    EXPECT_TRUE(SameBits(Specified(arithmetic_, {{&m, {0, m.rows}}}, pack, x, 3), got));
    EXPECT_FALSE(SameBits(Specified(backwards, {{&m, {0, m.rows}}}, pack, x, 3), got));
    EXPECT_FALSE(SameBits(Specified(narrower, {{&m, {0, m.rows}}}, pack, x, 3), got));
  }
}

INSTANTIATE_TEST_SUITE_P(Rungs, QuantisedProducts, testing::ValuesIn(FastRungs()),
                         [](const auto& info) { return info.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantisedProducts);

}  // namespace
}  // namespace phalanx

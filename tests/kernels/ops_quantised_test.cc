// Conformance of products with quantised weights: those that a backend widens, or makes 16 bits wide on the
// way to its products, have the bits of the widened weight wherever columns stay in order.
#include "tests/kernels/ops_fixture.h"
#include "tests/kernels/quantised_testing.h"

namespace phalanx {
namespace {

enum class Kind {
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kFp8,
  kFp8Tensor,
  kFp8Row,
  kFp8Block,
  kAwq,
  kAwqBf16,
  kGptq,
  kGptqActOrder,
};
constexpr Kind kAllKinds[] = {Kind::kQ8_0,      Kind::kQ4_0,   Kind::kQ4_1,        Kind::kFp8,
                              Kind::kFp8Tensor, Kind::kFp8Row, Kind::kFp8Block,    Kind::kAwq,
                              Kind::kAwqBf16,   Kind::kGptq,   Kind::kGptqActOrder};

std::string NameOf(Kind kind) {
  const char* names[] = {"Q8_0",        "Q4_0", "Q4_1",     "FP8",  "FP8 a tensor",  "FP8 a row",
                         "FP8 a block", "AWQ",  "AWQ bf16", "GPTQ", "GPTQ act order"};
  return names[static_cast<int>(kind)];
}

// Elements of order one.
Stored Make(Random& random, Kind kind, int64_t rows, int64_t cols, int64_t group = 64) {
  Stored m;
  m.rows = rows;
  m.cols = cols;
  if (kind <= Kind::kQ4_1) {
    m.dtype = kind == Kind::kQ8_0 ? DType::kQ8_0 : kind == Kind::kQ4_0 ? DType::kQ4_0 : DType::kQ4_1;
    m.bytes = RandomBlocks(random, m.dtype, rows * cols);
    return m;
  }
  if (kind <= Kind::kFp8Block) {
    // Exponents up to that of 1, subnormal ones too.
    const int64_t block_rows = kind == Kind::kFp8         ? 0
                               : kind == Kind::kFp8Tensor ? rows
                               : kind == Kind::kFp8Row    ? 1
                                                          : 32;
    return StoredFp8(random, rows, cols, 64, block_rows, kind == Kind::kFp8Block ? group : cols, 0.7f);
  }
  m.dtype = kind <= Kind::kAwqBf16 ? DType::kAwq : DType::kGptq;
  const auto words = [&](int64_t count) {
    std::vector<int32_t> w;
    for (int64_t i = 0; i < count; ++i) w.push_back(static_cast<int32_t>(random.generator()()));
    return w;
  };
  const std::vector<int32_t> numbers = words(rows * cols / 8);
  m.bytes.resize(numbers.size() * 4);
  std::memcpy(m.bytes.data(), numbers.data(), m.bytes.size());
  const int64_t groups = (cols + group - 1) / group;
  m.zeros = words(groups * rows / 8);
  m.int4.group_size = group;
  m.int4.zero_offset = kind == Kind::kGptq ? 1 : 0;
  m.int4.scales_dtype = kind == Kind::kAwqBf16 ? DType::kBF16 : DType::kF16;
  for (const float v : random.Normal(groups * rows, 0.1f)) {
    m.half_scales.push_back(kind == Kind::kAwqBf16 ? Bf16FromFloat(v) : cuda::HalfFromFloat(v));
  }
  if (kind == Kind::kGptqActOrder) {
    for (int64_t c = 0; c < cols; ++c) m.group_of.push_back(static_cast<int32_t>(c / group));
    std::shuffle(m.group_of.begin(), m.group_of.end(), random.generator());
  }
  return m;
}

// Of many forms of y.
std::vector<float> Product(Ops& ops, const PackedWeight& weight, const std::vector<float>& x, int64_t rows) {
  return ComputeProduct(ops, weight, x, rows, {.y_fp32 = rows % 2 == 0, .y_padding = rows % 4});
}

class QuantisedTest : public OpsTest {
 protected:
  // CPU rungs multiply some types by integers of x.
  bool Widens(Kind kind) const { return device() || kind > Kind::kQ4_1; }
  bool Keeps(const PackedWeight& weight, const PackedWeight& widened) const {
    return weight.bytes() < widened.bytes() * 5 / 8;
  }
};

TEST_P(QuantisedTest, BitsAreThoseOfTheWidenedWeight) {
  Random random(1);
  for (const Kind kind : kAllKinds) {
    if (!Widens(kind) || kind == Kind::kGptqActOrder) continue;
    const Stored m = Make(random, kind, 72, 320);
    const std::vector<float> values = m.Widened();
    const WeightSource plain = {values.data(), DType::kF32, m.rows, m.cols};
    for (const bool sharded : {false, true}) {
      PackWeightParams pack = Whole(m.source()), widened = Whole(plain);
      if (sharded) {
        // From inside of a group on, and empty ones; runs of 16 are of one group.
        pack.cols = widened.cols = {32, 304};
        pack.shard_cuts = widened.shard_cuts = {32, 96, 96, 192, 304};
        pack.first_shard = widened.first_shard = 4;
      } else {
        // Pieces that end inside of a tile.
        pack.pieces = {{m.source().Rows({5, 40}), {1, 30}}, {m.source(), {40, 71}}};
        widened.pieces = {{plain.Rows({5, 40}), {1, 30}}, {plain, {40, 71}}};
      }
      auto ours = OrDie(ops_->PackWeight(pack)), theirs = OrDie(ops_->PackWeight(widened));
      if (device()) {
        EXPECT_TRUE(Keeps(*ours, *theirs)) << NameOf(kind);
      }
      for (const int64_t rows : {1, 9, 40, 70, 530}) {
        if (rows == 530 && kind != Kind::kQ4_1 && kind != Kind::kFp8Row) continue;
        const std::vector<float> x = random.Normal(rows * pack.cols.size());
        EXPECT_TRUE(SameBits(Product(*ops_, *theirs, x, rows), Product(*ops_, *ours, x, rows)))
            << NameOf(kind) << (sharded ? " sharded" : "") << " T=" << rows;
      }
    }
  }
}

// Act orders, and cuts that leave groups of any number of columns: close to the reference, and with bits that
// depend on neither rows nor ranks.
TEST_P(QuantisedTest, ColumnsOutOfOrder) {
  Random random(2);
  const std::vector<int64_t> cuts = {3, 70, 75, 192, 249};
  for (const Kind kind : {Kind::kQ4_0, Kind::kFp8Block, Kind::kAwq, Kind::kGptqActOrder}) {
    if (!Widens(kind)) continue;
    const Stored m = Make(random, kind, 40, 256, 32);
    PackWeightParams pack = Whole(m.source());
    const int64_t rows = 70;
    std::vector<float> x = random.Normal(rows * 256);
    if (kind != Kind::kQ4_0) {
      ExpectAgree(ProductTolerance(256), NameOf(kind),
                  [&](Ops& ops) { return Product(ops, *OrDie(ops.PackWeight(pack)), x, rows); });
    }
    pack.cols = {cuts.front(), cuts.back()};
    pack.shard_cuts = cuts;
    const int64_t k = pack.cols.size(), size = rows * m.rows;
    x = random.Normal(rows * k);
    auto weight = OrDie(ops_->PackWeight(pack));
    const std::vector<float> all = Product(*ops_, *weight, x, rows);
    if (kind != Kind::kQ4_0) {
      ExpectClose(Product(*reference_, *OrDie(reference_->PackWeight(pack)), x, rows), all,
                  ProductTolerance(k), NameOf(kind));
    }
    for (const int64_t t : {0, 37}) {
      EXPECT_TRUE(SameBits(Rows(all, m.rows, t, t + 1), Product(*ops_, *weight, Rows(x, k, t, t + 1), 1)))
          << NameOf(kind) << " row " << t;
    }
    std::vector<float> halves;
    for (const size_t first : {0, 2}) {
      pack.first_shard = static_cast<int>(first);
      pack.shard_cuts = {cuts[first], cuts[first + 1], cuts[first + 2]};
      pack.cols = {cuts[first], cuts[first + 2]};
      std::vector<float> part;
      for (int64_t t = 0; t < rows; ++t) {
        const float* row = x.data() + t * k;
        part.insert(part.end(), row + pack.cols.begin - cuts[0], row + pack.cols.end - cuts[0]);
      }
      const std::vector<float> sums = Product(*ops_, *OrDie(ops_->PackWeight(pack)), part, rows);
      halves.insert(halves.end(), sums.begin(), sums.end());
    }
    for (int64_t i = 0; i < size; ++i) halves[i] += halves[size + i];
    halves.resize(static_cast<size_t>(size));
    EXPECT_TRUE(SameBits(all, halves)) << NameOf(kind) << " on two ranks";
  }
}

TEST_P(QuantisedTest, Gated) {
  Random random(3);
  for (const Kind kind : {Kind::kAwq, Kind::kFp8Block}) {
    const int64_t ffn = 144;
    const Stored m = Make(random, kind, 2 * ffn, 128);
    auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
    for (const int64_t rows : {3, 66, 515}) {
      const std::vector<float> x = random.Normal(rows * m.cols);
      DeviceMatrix x_m(*ops_, rows, m.cols, x), wide(*ops_, rows, 2 * ffn), two(*ops_, rows, ffn),
          one(*ops_, rows, ffn, 1);
      MatmulParams p;
      p.x = x_m.view();
      p.weight = weight.get();
      p.y = wide.view();
      ASSERT_TRUE(ops_->Matmul(p).ok());
      ASSERT_TRUE(ops_->SwiGlu({wide.view(), two.view()}).ok());
      ASSERT_TRUE(ops_->GatedMatmul({x_m.view(), weight.get(), wide.view(), one.view()}).ok());
      EXPECT_TRUE(SameBits(two.Get(), one.Get())) << NameOf(kind) << " T=" << rows;
    }
  }
}

TEST_P(QuantisedTest, Experts) {
  Random random(4);
  for (const Kind kind : {Kind::kFp8Block, Kind::kGptq, Kind::kGptqActOrder}) {
    const int64_t n = 32, k = 128;
    const Stored m = Make(random, kind, 3 * n, k);
    std::vector<std::unique_ptr<PackedWeight>> weights;
    std::vector<const PackedWeight*> experts;
    for (int64_t e = 0; e < 3; ++e) {
      PackWeightParams pack = Whole(m.source());
      pack.pieces[0].rows = {e * n, e * n + n};
      weights.push_back(OrDie(ops_->PackWeight(pack)));
      experts.push_back(weights.back().get());
    }
    for (const int64_t rows : {7, 50}) {
      const std::vector<float> x = random.Normal(rows * k);
      std::vector<int32_t> ids;
      std::vector<float> want;
      for (int64_t t = 0; t < rows; ++t) {
        ids.push_back(static_cast<int32_t>(t * t % 3));
        DeviceMatrix one(*ops_, 1, k, Rows(x, k, t, t + 1)), y(*ops_, 1, n);
        MatmulParams p;
        p.x = one.view();
        p.weight = experts[static_cast<size_t>(ids.back())];
        p.y = y.view();
        ASSERT_TRUE(ops_->Matmul(p).ok());
        const std::vector<float> row = y.Get();
        want.insert(want.end(), row.begin(), row.end());
      }
      const auto y = GroupedProduct(*ops_, experts, x, ids);
      ASSERT_TRUE(y.ok()) << y.status().ToString();
      EXPECT_TRUE(SameBits(want, *y)) << NameOf(kind) << " T=" << rows;
      if (!device()) continue;
      const std::vector<float> values = m.Widened();
      PackWeightParams pack = Whole({values.data(), DType::kF32, m.rows, k});
      pack.pieces[0].rows = {0, n};
      auto other = OrDie(ops_->PackWeight(pack));
      std::vector<const PackedWeight*> mixed = experts;
      mixed[0] = other.get();
      EXPECT_THAT(std::string(GroupedProduct(*ops_, mixed, x, ids).status().message()),
                  HasSubstr("kept in several formats"));
    }
  }
}

// A norm that knows which product reads it may leave that one its rows quantised: no bit changes.
TEST_P(QuantisedTest, NormsThatKnowTheirReader) {
  Random random(6);
  const int64_t n = 64, k = 200;
  for (const Kind kind : {Kind::kFp8Row, Kind::kQ4_1}) {
    const Stored m = Make(random, kind, n, kind == Kind::kQ4_1 ? 192 : k);
    auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
    DeviceArray<float> norm_weight(*ops_, random.Normal(m.cols));
    for (const int64_t rows : {3, 40}) {
      const std::vector<float> x = random.Normal(rows * m.cols), add = random.Normal(rows * m.cols);
      DeviceArray<float> add_a(*ops_, add);
      const auto run = [&](bool knows) {
        DeviceMatrix residual(*ops_, rows, m.cols, x, 1), normed(*ops_, rows, m.cols, 8),
            y(*ops_, rows, n, 16);
        RmsNormParams norm;
        norm.residual = residual.view();
        norm.add = add_a.data();
        norm.weight = norm_weight.data();
        norm.y = normed.view();
        norm.read_by = knows ? weight.get() : nullptr;
        EXPECT_TRUE(ops_->RmsNorm(norm).ok());
        EXPECT_TRUE(ops_->Matmul({normed.view(), weight.get(), nullptr, y.view()}).ok());
        std::vector<float> got = y.Get(), values = normed.Get();
        got.insert(got.end(), values.begin(), values.end());
        return got;
      };
      EXPECT_TRUE(SameBits(run(false), run(true))) << NameOf(kind) << " T=" << rows;
    }
  }
}

// A NaN of e4m3, and scales beyond what 16 bits hold, stay what they are.
TEST_P(QuantisedTest, Extremes) {
  Random random(5);
  Stored m = Make(random, Kind::kFp8Row, 20, 64);
  m.scales[1] = 3e38f;
  m.scales[2] = 1e-30f;
  m.scales[3] = kNan;
  for (const bool with_nan : {false, true}) {
    if (with_nan) m.bytes[4 * 64 + 9] = 0xff;
    const std::vector<float> values = m.Widened();
    auto ours = OrDie(ops_->PackWeight(Whole(m.source())));
    auto theirs = OrDie(ops_->PackWeight(Whole({values.data(), DType::kF32, m.rows, m.cols})));
    const std::vector<float> x = random.Normal(2 * 64);
    const std::vector<float> got = Product(*ops_, *ours, x, 2), want = Product(*ops_, *theirs, x, 2);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(std::isnan(got[i]) ? std::isnan(want[i]) : got[i] == want[i]) << i << ": " << got[i];
    }
    EXPECT_TRUE(std::isnan(got[3]));
    EXPECT_EQ(std::isnan(got[4]), with_nan);
    EXPECT_FALSE(std::isnan(got[5]));
  }
}

INSTANTIATE_TEST_SUITE_P(Rungs, QuantisedTest, testing::ValuesIn(RungCases()), RungCaseName);

}  // namespace
}  // namespace phalanx

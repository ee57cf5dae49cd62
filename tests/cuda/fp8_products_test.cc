// Products with e4m3 weights in mode fast: quantised rows against a host's formula, bit by bit; products by
// the library against the same formula and within FP8's error of the reference; our own kernel of few rows;
// and what is taken where the library has nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <numeric>
#include <optional>
#include <sstream>

#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/fp8_products.h"
#include "kernels/dequantize.h"
#include "tests/cuda/fake_cublaslt.h"
#include "tests/cuda/fp8_formula.h"
#include "tests/kernels/quantised_testing.h"

namespace phalanx::cuda {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::Not;

enum class Kind { kNone, kTensor, kRow, kBlock };

Stored Make(Random& random, Kind kind, int64_t rows, int64_t cols) {
  const int64_t block_rows = kind == Kind::kNone     ? 0
                             : kind == Kind::kTensor ? rows
                             : kind == Kind::kRow    ? 1
                                                     : 128;
  return StoredFp8(random, rows, cols, 0x7f, block_rows, kind == Kind::kBlock ? 128 : cols, 0.01f);
}

class Fp8Test : public testing::Test {
 protected:
  Fp8Test() : sink_(std::make_shared<spdlog::sinks::ostream_sink_mt>(log_)) {
    TheFakeCublasLt() = FakeCublasLt();
    spdlog::default_logger()->sinks().push_back(sink_);
    ops_ = Create();
  }
  ~Fp8Test() override {
    ops_.reset();
    EXPECT_EQ(TheFakeCublasLt().live_objects, 0);
    spdlog::default_logger()->sinks().pop_back();
    TheFakeCublasLt() = FakeCublasLt();
  }

  static std::unique_ptr<Ops> Create(bool half = false, const lt::Table* table = &FakeTable()) {
    OpsOptions options;
    options.device_mode = DeviceMode::kFast;
    options.fp16 = half;
    options.cache_folder = "/proc/none";
    return OrDie(CreateCudaOps(CreateEmulatedRuntime(), options, table));
  }
  static std::vector<float> Product(Ops& ops, const PackedWeight& weight, const std::vector<float>& x,
                                    int64_t rows, bool y_fp32 = true, const std::vector<float>& bias = {},
                                    int64_t y_padding = 16) {
    return ComputeProduct(ops, weight, x, rows, {y_fp32, y_padding, bias});
  }
  int Lines(const std::string& what) const {
    int lines = 0;
    for (size_t at = log_.str().find(what); at != std::string::npos; at = log_.str().find(what, at + 1))
      ++lines;
    return lines;
  }

  std::ostringstream log_;
  std::shared_ptr<spdlog::sinks::sink> sink_;
  std::unique_ptr<Ops> ops_;
};

// The product of one part of columns as W8A8 has it, the exact one, and how far the two may be apart.
struct Expected {
  std::vector<double> quantised, exact, bound;
};
Expected Expect(const PackWeightParams& pack, const std::vector<float>& x, int64_t rows, Range columns,
                bool blocks) {
  Expected e;
  const int64_t k = pack.cols.size(), unit = blocks ? 128 : columns.size();
  for (int64_t t = 0; t < rows; ++t) {
    std::vector<float> scales;
    std::vector<uint8_t> codes;
    for (int64_t c = columns.begin; c < columns.end; c += unit) {
      const float* from = x.data() + t * k + c;
      std::vector<float> v;
      for (int64_t i = 0; i < std::min(unit, columns.end - c); ++i) v.push_back(RoundToBf16(from[i]));
      scales.push_back(0);
      const std::vector<uint8_t> row = Quantised(v, &scales.back());
      codes.insert(codes.end(), row.begin(), row.end());
    }
    for (const WeightPiece& piece : pack.pieces) {
      for (int64_t r = piece.rows.begin; r < piece.rows.end; ++r) {
        std::vector<float> w(static_cast<size_t>(columns.size()));
        const Range stored = {pack.cols.begin + columns.begin, pack.cols.begin + columns.end};
        DequantizeTile(piece.source, {r, r + 1}, stored, w.data(), columns.size());
        double quantised = 0, exact = 0, bound = 0;
        for (int64_t i = 0; i < columns.size(); ++i) {
          const double v = RoundToBf16(x[static_cast<size_t>(t * k + columns.begin + i)]);
          const double scale = scales[static_cast<size_t>(i / unit)], weight = w[static_cast<size_t>(i)];
          quantised += weight * scale * FromE4m3(codes[static_cast<size_t>(i)]);
          exact += weight * v;
          // Half a unit in the last place: 2^-4 of normal numbers, 2^-10 scales of others.
          bound += std::fabs(weight) * std::max(std::fabs(v) / 16, scale / 1024);
        }
        e.quantised.push_back(quantised);
        e.exact.push_back(exact);
        e.bound.push_back(bound);
      }
    }
  }
  return e;
}

void ExpectProduct(const Expected& want, const std::vector<float>& got, size_t at, double rounding,
                   const std::string& what) {
  ASSERT_GE(got.size(), at + want.exact.size());
  for (size_t i = 0; i < want.exact.size(); ++i) {
    const double v = got[at + i], slack = want.bound[i] * 1e-3 + std::fabs(want.exact[i]) * rounding;
    ASSERT_LE(std::fabs(v - want.quantised[i]), slack) << what << " element " << i << " of W8A8";
    ASSERT_LE(std::fabs(v - want.exact[i]), want.bound[i] * 1.01 + slack) << what << " element " << i;
  }
}

TEST_F(Fp8Test, ManyRowsAreMultipliedByTheLibrary) {
  Random random(2);
  const int64_t k = 320, n = 272;
  const std::vector<float> bias = random.Normal(n);
  for (const Kind kind : {Kind::kNone, Kind::kTensor, Kind::kRow, Kind::kBlock}) {
    const Stored m = Make(random, kind, n, k);
    const auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
    const bool blocks = kind == Kind::kBlock;
    EXPECT_LT(weight->bytes(), n * 384 + 4096) << "one copy, of bytes";
    for (const int64_t rows : {17, 20, 34}) {
      TheFakeCublasLt().fast_sums.clear();
      const std::vector<float> x = random.Normal(rows * k);
      const Expected want = Expect(Whole(m.source()), x, blocks ? rows / 4 * 4 : rows, {0, k}, blocks);
      const std::string what = absl::StrCat("kind ", static_cast<int>(kind), ", ", rows, " rows");
      const std::vector<float> y = Product(*ops_, *weight, x, rows);
      ExpectProduct(want, y, 0, 0, what);
      if (const int64_t whole = rows / 4 * 4; blocks && whole < rows) {  // the rest is our own kernel's
        const std::vector<float> rest = Product(*ops_, *weight, Rows(x, k, whole, rows), rows - whole);
        EXPECT_TRUE(SameBits(Rows(y, n, whole, rows), rest)) << what;
      }
      ExpectProduct(want, Product(*ops_, *weight, x, rows, false), 0, 1.0 / 256, what + ", 16 bits");
      EXPECT_EQ(TheFakeCublasLt().fast_sums, std::vector<bool>(TheFakeCublasLt().fast_sums.size(), !blocks))
          << what;
      EXPECT_GE(TheFakeCublasLt().fast_sums.size(), 2u) << what;
      Expected with_bias = want;
      for (size_t i = 0; i < want.exact.size(); ++i) {
        with_bias.exact[i] += bias[i % n];
        with_bias.quantised[i] += bias[i % n];
      }
      ExpectProduct(with_bias, Product(*ops_, *weight, x, rows, false, bias), 0, 1.0 / 256, what + ", bias");
    }
  }
  EXPECT_EQ(log_.str(), "");
}

// Pieces with a scale each, and the parts of subtrees, whose rows of x are quantised apart.
TEST_F(Fp8Test, PiecesAndParts) {
  Random random(3);
  const Stored one = Make(random, Kind::kTensor, 160, 512), two = Make(random, Kind::kTensor, 96, 512),
               blocks = Make(random, Kind::kBlock, 384, 512);
  PackWeightParams pieces = Whole(one.source());
  pieces.pieces = {{one.source(), {16, 160}}, {two.source(), {0, 48}}};
  PackWeightParams rows_of_blocks = Whole(blocks.source());
  rows_of_blocks.pieces = {{blocks.source(), {256, 384}}, {blocks.source().Rows({128, 384}), {0, 16}}};
  for (PackWeightParams pack : {pieces, rows_of_blocks}) {
    const bool of_blocks = pack.pieces[0].source.scales.block_cols == 128;
    const int64_t rows = 20;
    for (const bool sharded : {false, true}) {
      if (sharded) {
        // Subtrees of shards 1, 2 and 3, and 4; shard 2 is empty.
        pack.cols = {128, 512};
        pack.shard_cuts = {128, 256, 256, 384, of_blocks ? 512 : 490};
        pack.cols.end = pack.shard_cuts.back();
        pack.first_shard = 1;
      }
      const auto weight = OrDie(ops_->PackWeight(pack));
      ASSERT_NE(dynamic_cast<const Fp8Weight*>(weight.get()), nullptr);
      const int64_t k = weight->k();
      const std::vector<float> x = random.Normal(rows * k);
      const std::vector<float> got = Product(*ops_, *weight, x, rows);
      const std::vector<Range> parts =
          sharded ? std::vector<Range>{{0, 128}, {128, 256}, {256, k}} : std::vector<Range>{{0, k}};
      ASSERT_EQ(got.size(), static_cast<size_t>(rows * weight->n()) * parts.size());
      for (size_t p = 0; p < parts.size(); ++p) {
        ExpectProduct(Expect(pack, x, rows, parts[p], of_blocks), got, p * rows * weight->n(), 0,
                      absl::StrCat("part ", p, of_blocks ? " of blocks" : ""));
      }
    }
  }
  EXPECT_EQ(log_.str(), "");
}

// The kernel of few rows keeps 16-bit activations, whatever the order in which warps run; its faults are
// seen.
TEST_F(Fp8Test, FewRowsAreOurOwnKernels) {
  Random random(4);
  for (const bool half : {false, true}) {
    if (half) ops_ = Create(true);
    for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
      const int64_t n = 144, k = 600;
      const Stored m = Make(random, kind, n, k);
      TheFakeCublasLt().has_fp8 = true;
      const auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
      const std::vector<float> wide = m.Widened();
      // More rows of it are what the library has nothing for.
      TheFakeCublasLt().has_fp8 = false;
      for (const int64_t rows : {5, 16, 34, 70}) {
        const std::vector<float> x = random.Normal(rows * k);
        const auto run = [&](simt::Fault fault, uint32_t seed) {
          simt::SetSeed(100 * seed + 7);
          simt::SetFault(fault);
          std::vector<float> y = Product(*ops_, *weight, x, rows);
          simt::SetFault(simt::Fault::kNone);
          return y;
        };
        const std::vector<float> got = run(simt::Fault::kNone, 0);
        for (int64_t t = 0; t < rows; ++t) {
          for (int64_t r = 0; r < n; ++r) {
            double sum = 0, size = 0;
            for (int64_t c = 0; c < k; ++c) {
              const float v = x[static_cast<size_t>(t * k + c)];
              const double term = double{half ? FloatFromF16(HalfFromFloat(v)) : RoundToBf16(v)} *
                                  wide[static_cast<size_t>(r * k + c)];
              sum += term;
              size += std::fabs(term);
            }
            ASSERT_NEAR(got[static_cast<size_t>(t * n + r)], sum, size * 1e-5) << t << " " << r;
          }
        }
        if (half || rows == 16 || rows == 34) continue;
        for (const simt::Fault fault : {simt::Fault::kGemmNoWait, simt::Fault::kGemmNoEpilogueBarrier}) {
          int caught = 0;
          for (uint32_t seed = 1; seed < 3; ++seed) {
            EXPECT_TRUE(SameBits(got, run(simt::Fault::kNone, seed)));
            caught += SameBits(got, run(fault, seed)) ? 0 : 1;
          }
          EXPECT_GE(caught, 1) << "fault " << static_cast<int>(fault) << ", " << rows << " rows";
        }
      }
    }
  }
  EXPECT_THAT(TheFakeCublasLt().runs, testing::IsEmpty());
}

TEST_F(Fp8Test, PartsOfSeveralBlocksAndOfNone) {
  Random random(12);
  for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
    const Stored m = Make(random, kind, 128, 512);
    PackWeightParams pack = Whole(m.source());
    pack.shard_cuts = {0, 0, 128, 256, 512};  // subtrees of shard 1, of 2 and 3, and of 4
    pack.first_shard = 1;
    const auto x = random.Normal(20 * 512), got = Product(*ops_, *OrDie(ops_->PackWeight(pack)), x, 20);
    for (const int part : {0, 1, 2}) {
      const Expected want = Expect(pack, x, 20, {part < 2 ? 0 : 256, part * 256}, kind == Kind::kBlock);
      ExpectProduct(want, got, part * 20 * 128, 0, "a part");
    }
  }
}

// What comes out of the gate, quantised as it is made: the bits of the three calls.
TEST_F(Fp8Test, Gated) {
  Random random(10);
  const int64_t hidden = 128, ffn = 384;
  for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
    const Stored up = Make(random, kind, 2 * ffn, hidden), down = Make(random, kind, 64, ffn);
    const auto gate_up = OrDie(ops_->PackWeight(Whole(up.source())));
    for (const int64_t cut : {128, 100}) {
      PackWeightParams pack = Whole(down.source());
      pack.shard_cuts = {0, cut, 256, ffn};  // subtrees of shards 1, and 2 and 3
      pack.first_shard = 1;
      const auto down_weight = OrDie(ops_->PackWeight(pack));
      for (const int64_t rows : {16, 23}) {
        const std::vector<float> x = random.Normal(rows * hidden);
        DeviceMatrix x_m(*ops_, rows, hidden, x), wide(*ops_, rows, 2 * ffn), gated(*ops_, rows, ffn, 3);
        DeviceArray<float> want(*ops_, std::vector<float>(2 * rows * 64, kNan)),
            got(*ops_, std::vector<float>(2 * rows * 64, kNan));
        ASSERT_TRUE(ops_->Matmul({x_m.view(), gate_up.get(), nullptr, wide.view()}).ok());
        ASSERT_TRUE(ops_->SwiGlu({wide.view(), gated.view()}).ok());
        ASSERT_TRUE(ops_->ShardedMatmul({gated.view(), down_weight.get(), want.data()}).ok());
        DeviceMatrix scratch(*ops_, rows, ffn, 3);
        GatedShardedMatmulParams p;
        p.x = x_m.view();
        p.gate_up = gate_up.get();
        p.down = down_weight.get();
        p.gated_from = wide.view();
        p.gated = scratch.view();
        p.sums = got.data();
        const absl::Status status = ops_->GatedShardedMatmul(p);
        ASSERT_TRUE(status.ok()) << status.ToString();
        EXPECT_TRUE(SameBits(want.Get(), got.Get())) << rows << " rows, cut at " << cut;
        const bool fused = rows == 23 && kind == Kind::kRow;
        EXPECT_EQ(std::isnan(scratch.Get()[0]), fused) << "x 16 bits wide is made where something reads it";
      }
    }
  }
}

// What a norm leaves quantised for the product that reads it is taken by that one, and by no other; it has
// the product's bits without.
TEST_F(Fp8Test, NormsQuantise) {
  Random random(11);
  const int64_t k = 200, n = 32;
  for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
    const Stored m = Make(random, kind, n, k), other = Make(random, kind, n, k);
    const auto weight = OrDie(ops_->PackWeight(Whole(m.source()))),
               another = OrDie(ops_->PackWeight(Whole(other.source())));
    DeviceArray<float> norm_weight(*ops_, random.Normal(k));
    for (const int64_t rows : {16, 17, 23, 40}) {
      DeviceMatrix x(*ops_, rows, k, random.Normal(rows * k)), x2(*ops_, rows, k, random.Normal(rows * k)),
          normed(*ops_, rows, k, 3), y(*ops_, rows, n, 16);
      const auto norm = [&](DeviceMatrix& from, const PackedWeight* read_by) {
        RmsNormParams p;
        p.residual = from.view();
        p.weight = norm_weight.data();
        p.y = normed.view();
        p.read_by = read_by;
        ASSERT_TRUE(ops_->RmsNorm(p).ok());
      };
      // The product, and how many kernels quantised for it.
      const auto product = [&](const PackedWeight& w, int64_t launches) {
        const int64_t before = simt::LaunchesOf("Fp8Rows");
        EXPECT_TRUE(ops_->Matmul({normed.view(), &w, nullptr, y.view()}).ok());
        EXPECT_EQ(simt::LaunchesOf("Fp8Rows") - before, launches) << rows << " rows";
        return y.Get();
      };
      const int64_t quantises = rows > 16 ? 1 : 0;
      norm(x, nullptr);
      const std::vector<float> want = product(*weight, quantises), others = product(*another, quantises);
      norm(x, weight.get());
      EXPECT_TRUE(SameBits(product(*weight, 0), want)) << rows << " rows";
      EXPECT_TRUE(SameBits(product(*weight, quantises), want)) << "taken once";
      norm(x, weight.get());
      EXPECT_TRUE(SameBits(product(*another, quantises), others)) << "of another weight";
      EXPECT_TRUE(SameBits(product(*weight, quantises), want)) << "which took its place";
      norm(x2, weight.get());
      norm(x, nullptr);
      EXPECT_TRUE(SameBits(product(*weight, quantises), want)) << "of a norm before the last";
      norm(x, another.get());
      EXPECT_TRUE(SameBits(product(*another, 0), others));
    }
  }
}

// Without an algorithm when a weight is packed, or of a form that the library has none for: the kernels that
// there are without cuBLASLt, said once.
TEST_F(Fp8Test, WhatTheLibraryDoesNotTakeStaysAsItWas) {
  Random random(5);
  const auto without = Create(false, nullptr);
  struct Case {
    Kind kind;
    int64_t n, k, first_row;
    bool has_fp8;
    const char* why;
  };
  for (const Case& c :
       std::vector<Case>{{Kind::kRow, 64, 128, 0, false, "cuBLASLt 13.1.0 has no algorithm for FP8"},
                         {Kind::kRow, 24, 128, 0, true, "an N that is a multiple of 16"},
                         {Kind::kBlock, 64, 256, 16, true, "that no cut divides"}}) {
    TheFakeCublasLt().has_fp8 = c.has_fp8;
    const Stored m = Make(random, c.kind, c.n + c.first_row, c.k);
    PackWeightParams pack = Whole(m.source());
    pack.pieces[0].rows.begin = c.first_row;
    const auto ours = OrDie(ops_->PackWeight(pack)), again = OrDie(ops_->PackWeight(pack)),
               theirs = OrDie(without->PackWeight(pack));
    const std::vector<float> x = random.Normal(20 * c.k);
    EXPECT_TRUE(SameBits(Product(*ops_, *ours, x, 20), Product(*without, *theirs, x, 20))) << c.why;
    EXPECT_EQ(Lines(c.why), 1) << log_.str();
  }
  EXPECT_THAT(TheFakeCublasLt().fast_sums, testing::IsEmpty());
  // A NaN has no code that our own kernel reads.
  TheFakeCublasLt().has_fp8 = true;
  Stored m = Make(random, Kind::kRow, 32, 64);
  m.bytes[5 * 64 + 3] = 0xff;
  const auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
  const std::vector<float> y = Product(*ops_, *weight, random.Normal(20 * 64), 20);
  for (int64_t i = 0; i < 20 * 32; ++i) EXPECT_EQ(std::isnan(y[static_cast<size_t>(i)]), i % 32 == 5) << i;
}

// What the library takes back later is our own kernel's, of the same copy of the weight.
TEST_F(Fp8Test, WithoutAnAlgorithmForSoManyRowsOurOwnKernelRuns) {
  Random random(6);
  for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
    const Stored m = Make(random, kind, 160, 320);
    const auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
    std::vector<float> x = random.Normal(40 * 320);
    TheFakeCublasLt().has_fp8 = false;
    const std::vector<float> y = Product(*ops_, *weight, x, 40);
    const int heuristics = TheFakeCublasLt().heuristics;
    EXPECT_TRUE(SameBits(y, Product(*ops_, *weight, x, 40)));
    EXPECT_EQ(TheFakeCublasLt().heuristics, heuristics) << "it is not asked again";
    Product(*ops_, *weight, random.Normal(44 * 320), 44);
    EXPECT_EQ(Lines("[warning]"), 1) << log_.str();
    EXPECT_EQ(Lines("has no algorithm for FP8 products of N 160, K 320, 40 rows"), 1) << log_.str();
    // Nor where rows of y begin anywhere.
    TheFakeCublasLt().has_fp8 = true;
    EXPECT_TRUE(SameBits(Product(*ops_, *weight, x, 40, true, {}, 3), y));
    EXPECT_THAT(TheFakeCublasLt().runs, testing::IsEmpty());
    x.resize(16 * 320);
    const std::vector<float> few = Product(*ops_, *weight, x, 16);
    for (size_t i = 0; i < few.size(); ++i) EXPECT_NEAR(few[i], y[i], 1e-4 * (1 + std::fabs(y[i])));
    // Offered, and then refused.
    TheFakeCublasLt().has_fp8 = true;
    TheFakeCublasLt().costs = {-1};
    x = random.Normal(24 * 320);
    const std::vector<float> refused = Product(*ops_, *weight, x, 24);
    x.resize(16 * 320);
    const std::vector<float> first = Product(*ops_, *weight, x, 16);
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_NEAR(first[i], refused[i], 1e-4 * (1 + std::fabs(first[i])));
    }
    EXPECT_THAT(TheFakeCublasLt().runs, testing::IsEmpty());
    TheFakeCublasLt().costs = {1};
    log_.str("");
    ops_ = Create();
  }
}

TEST_F(Fp8Test, SumsArePromotedWhereThereAreNoFastOnes) {
  Random random(7);
  TheFakeCublasLt().has_fast_sums = false;
  const Stored m = Make(random, Kind::kTensor, 32, 64);
  // As on the heuristic that says that there is none: then it is asked for promoted sums.
  const auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
  Product(*ops_, *weight, random.Normal(20 * 64), 20);
  EXPECT_THAT(TheFakeCublasLt().fast_sums, AllOf(Not(testing::IsEmpty()), Each(false)));
}

TEST_F(Fp8Test, NotANumberStaysInItsRow) {
  Random random(8);
  for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
    const Stored m = Make(random, kind, 128, 256);
    const auto weight = OrDie(ops_->PackWeight(Whole(m.source())));
    std::vector<float> x = random.Normal(20 * 256);
    x[3 * 256 + 200] = kNan;
    x[7 * 256 + 10] = std::numeric_limits<float>::infinity();
    const std::vector<float> y = Product(*ops_, *weight, x, 20);
    for (int64_t i = 0; i < 20 * 128; ++i) {
      const bool bad = i / 128 == 3 || i / 128 == 7;
      EXPECT_EQ(std::isfinite(y[static_cast<size_t>(i)]), !bad) << i;
    }
  }
}

TEST_F(Fp8Test, Experts) {
  Random random(9);
  const int64_t n = 64, k = 256, rows = 40;
  for (const Kind kind : {Kind::kRow, Kind::kBlock}) {
    std::vector<Stored> stored;
    std::vector<std::unique_ptr<PackedWeight>> weights;
    std::vector<const PackedWeight*> experts;
    for (int e = 0; e < 3; ++e) {
      stored.push_back(Make(random, kind, n, k));
      weights.push_back(OrDie(ops_->PackWeight(Whole(stored.back().source()))));
      experts.push_back(weights.back().get());
    }
    const std::vector<float> x = random.Normal(rows * k);
    std::vector<int32_t> ids;
    std::vector<float> want;
    for (int64_t t = 0; t < rows; ++t) {
      ids.push_back(static_cast<int32_t>(t * t % 3));
      const std::vector<float> row =
          Product(*ops_, *experts[static_cast<size_t>(ids.back())], Rows(x, k, t, t + 1), 1, false);
      want.insert(want.end(), row.begin(), row.end());
    }
    const auto y = GroupedProduct(*ops_, experts, x, ids);
    ASSERT_TRUE(y.ok()) << y.status().ToString();
    EXPECT_TRUE(SameBits(want, *y));
    const std::vector<float> plain = random.Normal(n * k);
    const Stored other = Make(random, kind == Kind::kRow ? Kind::kBlock : Kind::kRow, n, k);
    for (const WeightSource& source : {WeightSource{plain.data(), DType::kF32, n, k}, other.source()}) {
      const auto odd = OrDie(ops_->PackWeight(Whole(source)));
      experts[1] = odd.get();
      EXPECT_THAT(std::string(GroupedProduct(*ops_, experts, x, ids).status().message()),
                  HasSubstr("kept in several formats"));
    }
  }
}

}  // namespace
}  // namespace phalanx::cuda

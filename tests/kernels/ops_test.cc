// The conformance suite of Ops: every rung of this host, in both compute modes, against the reference. The
// only place with tolerances.
#include "kernels/ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/numeric.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {
namespace {

using testing::HasSubstr;

struct Tolerance {
  double absolute = 0;
  double relative = 0;
  double cosine = 0;  // 1 - cosine of the angle between the two, at most
};

void ExpectClose(const std::vector<float>& want, const std::vector<float>& got, const Tolerance& tolerance,
                 const std::string& what) {
  ASSERT_EQ(want.size(), got.size()) << what;
  double dot = 0, want2 = 0, got2 = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::isnan(want[i]), std::isnan(got[i]))
        << what << " at " << i << ": " << want[i] << " " << got[i];
    if (std::isnan(want[i])) continue;
    ASSERT_LE(std::fabs(double{want[i]} - got[i]),
              tolerance.absolute + tolerance.relative * std::fabs(want[i]))
        << what << " at " << i << ": reference " << want[i] << ", got " << got[i];
    dot += double{want[i]} * got[i];
    want2 += double{want[i]} * want[i];
    got2 += double{got[i]} * got[i];
  }
  if (want2 > 0) {
    ASSERT_LE(1 - dot / std::sqrt(want2 * got2), tolerance.cosine) << what;
  }
}

class OpsTest : public testing::TestWithParam<RungCase> {
 protected:
  OpsTest()
      : ops_(OrDie(CreateOps({GetParam().rung, GetParam().compute, 2}))),
        reference_(OrDie(CreateOps({"reference", GetParam().compute, 1}))) {}

  bool amx() const { return ops_->info().instruction_set == "amx-bf16"; }
  // Of a sum of k products of N(0, 1): fp32 sums differ by order, AMX rounds the activations to bf16.
  Tolerance ProductTolerance(int64_t k) const {
    const double root = std::sqrt(static_cast<double>(std::max<int64_t>(k, 1)));
    return amx() ? Tolerance{1.2e-2 * root, 1e-2, 1e-4} : Tolerance{4e-6 * root, 1e-5, 1e-9};
  }
  // Of attention: probabilities and values of order one.
  Tolerance AttentionTolerance() const { return {2e-5, 2e-5, 1e-9}; }

  void ExpectAgree(const Tolerance& tolerance, const std::string& what,
                   const std::function<std::vector<float>(Ops&)>& run) {
    ExpectClose(run(*reference_), run(*ops_), tolerance, what);
  }

  std::unique_ptr<Ops> ops_, reference_;
};

std::vector<float> RunMatmul(Ops& ops, const PackedWeight& weight, const std::vector<float>& x, int64_t rows,
                             const std::vector<float>& bias, int64_t padding) {
  DeviceMatrix x_m(ops, rows, weight.k(), x, padding);
  DeviceMatrix y_m(ops, rows, weight.n(), padding);
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

std::vector<float> RunSharded(Ops& ops, const PackedWeight& weight, const std::vector<float>& x, int64_t rows,
                              int64_t padding) {
  DeviceMatrix x_m(ops, rows, weight.k(), x, padding);
  DeviceArray<float> sums(
      ops, std::vector<float>(weight.subtrees().size() * static_cast<size_t>(rows * weight.n()), kNan));
  ShardedMatmulParams p;
  p.x = x_m.view();
  p.weight = &weight;
  p.sums = sums.data();
  const absl::Status status = ops.ShardedMatmul(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return sums.Get();
}

TEST_P(OpsTest, InfoNamesWhatRuns) {
  const OpsInfo& info = ops_->info();
  const bool fast = GetParam().compute == Compute::kFast;
  EXPECT_EQ(info.backend, GetParam().rung == "reference" ? "reference" : "cpu");
  EXPECT_EQ(info.weight_dtype, fast ? DType::kBF16 : DType::kF32);
  EXPECT_EQ(info.kv_dtype, fast ? DType::kBF16 : DType::kF32);
  EXPECT_EQ(ops_->activation_dtype(), DType::kF32);
  if (GetParam().rung == "amx") {
    EXPECT_EQ(info.instruction_set, fast ? "amx-bf16" : "avx2");
  }
  if (GetParam().rung == "avx2") {
    EXPECT_EQ(info.instruction_set, "avx2");
  }
  EXPECT_GE(info.kernel_version, 1);
}

TEST_P(OpsTest, AllocationsAreZeroAndSized) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{3} << 20}) {
    auto buffer = OrDie(ops_->Allocate(bytes));
    EXPECT_EQ(buffer->bytes(), bytes);
    std::vector<char> host(static_cast<size_t>(bytes), 1);
    ASSERT_TRUE(ops_->Copy(host.data(), buffer->data(), bytes, CopyKind::kToHost).ok());
    EXPECT_TRUE(std::all_of(host.begin(), host.end(), [](char c) { return c == 0; }));
  }
  EXPECT_EQ(ops_->Allocate(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ops_->Allocate(int64_t{1} << 62).status().code(), absl::StatusCode::kResourceExhausted);
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

// Raw bytes of every quantisation: blocks with random contents and sane scales.
std::vector<uint8_t> RandomBlocks(Random& random, DType dtype, int64_t elements) {
  std::vector<uint8_t> bytes(static_cast<size_t>(RowBytes(dtype, elements)));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.Below(256));
  const auto put_scale = [&](size_t at) {
    const uint16_t scale = static_cast<uint16_t>(0x2000 + random.Below(0x400));  // f16, about 0.01
    std::memcpy(bytes.data() + at, &scale, 2);
  };
  const auto block = static_cast<size_t>(BlockBytes(dtype));
  switch (dtype) {
    case DType::kF32:
      for (size_t i = 0; i < bytes.size(); i += 4) {
        const float v = random.Normal(1)[0];
        std::memcpy(bytes.data() + i, &v, 4);
      }
      break;
    case DType::kF16:
      for (size_t i = 0; i < bytes.size(); i += 2) put_scale(i);
      break;
    case DType::kBF16:
      for (size_t i = 0; i < bytes.size(); i += 2) {
        const uint16_t v = Bf16FromFloat(random.Normal(1)[0]);
        std::memcpy(bytes.data() + i, &v, 2);
      }
      break;
    case DType::kQ8_0:
    case DType::kQ4_0:
      for (size_t i = 0; i < bytes.size(); i += block) put_scale(i);
      break;
    case DType::kQ4_1:
      for (size_t i = 0; i < bytes.size(); i += block) {
        put_scale(i);
        put_scale(i + 2);
      }
      break;
  }
  return bytes;
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
  const std::vector<Case> cases = {
      {48, 576, 0, {0, 72, 144, 216, 288, 360, 432, 504, 576}},
      {33, 200, 0, {0, 0, 64, 65, 65, 130, 131, 200, 200}},  // empty and tiny shards
      {16, 100, 5, {0, 10, 40, 100}},
      {70, 0, 1, {0, 0, 0}},                        // nothing but empty shards
      {0, 64, 0, {0, 32, 64}},                      // no outputs
      {20, 90, 1, {0, 9, 20, 33, 41, 58, 66, 90}},  // subtrees of 1, 2, 4 shards
      {130, 640, 7, {0, 640}},
  };
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
      ExpectClose(RunSharded(*reference_, *theirs, x, rows, 0), RunSharded(*ops_, *ours, x, rows, 2),
                  ProductTolerance(c.k), "N=" + std::to_string(c.n) + " T=" + std::to_string(rows));
    }
  }
}

TEST_P(OpsTest, Embed) {
  Random random(7);
  const int64_t vocab = 20, hidden = 96;
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const std::vector<uint8_t> bytes = RandomBlocks(random, dtype, vocab * hidden);
    ExpectAgree({1e-6, 1e-6, 1e-9}, std::string(DTypeName(dtype)), [&](Ops& ops) {
      DeviceArray<int32_t> ids(ops, {3, -7, 19, 0, 1000, 5});
      DeviceArray<int32_t> from(ops, {-1, 1, -1, -1, 0, 2});
      DeviceArray<int32_t> sampled(ops, {8, 19, -1});
      DeviceMatrix x(ops, 6, hidden, 3);
      EmbedParams p;
      p.table = {bytes.data(), dtype, vocab, hidden};
      p.token_ids = ids.data();
      p.from_sampled = from.data();
      p.sampled = sampled.data();
      p.x = x.view();
      EXPECT_TRUE(ops.Embed(p).ok());
      const std::vector<float> got = x.Get();
      EXPECT_EQ(Rows(got, hidden, 5, 6), std::vector<float>(hidden, 0.0f)) << "the row of a failed sample";
      return got;
    });
  }
}

TEST_P(OpsTest, RmsNorm) {
  Random random(8);
  for (const int64_t hidden : {1, 7, 8, 33, 64, 576, 1003}) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      const std::vector<float> residual = random.Normal(rows * hidden, 3), add = random.Normal(rows * hidden),
                               weight = random.Normal(hidden);
      for (const bool with_add : {false, true}) {
        ExpectAgree({1e-5, 1e-5, 1e-9}, "hidden " + std::to_string(hidden), [&](Ops& ops) {
          DeviceMatrix r(ops, rows, hidden, residual, 5), y(ops, rows, hidden, 2);
          DeviceArray<float> add_a(ops, add), weight_a(ops, weight);
          RmsNormParams p;
          p.residual = r.view();
          p.add = with_add ? add_a.data() : nullptr;
          p.weight = weight_a.data();
          p.eps = 1e-5f;
          p.y = y.view();
          EXPECT_TRUE(ops.RmsNorm(p).ok());
          std::vector<float> both = y.Get();
          for (const float v : r.Get()) both.push_back(v);
          return both;
        });
      }
      if (rows < 3) continue;
      ExpectAgree({1e-5, 1e-5, 1e-9}, "chosen rows", [&](Ops& ops) {
        DeviceMatrix r(ops, rows, hidden, residual), y(ops, 4, hidden, 2);
        DeviceArray<float> add_a(ops, add), weight_a(ops, weight);
        DeviceArray<int32_t> chosen(ops, {2, 0, 2, static_cast<int32_t>(rows - 1)});
        RmsNormParams p;
        p.residual = r.view();
        p.add = add_a.data();
        p.weight = weight_a.data();
        p.rows = chosen.data();
        p.y = y.view();
        EXPECT_TRUE(ops.RmsNorm(p).ok());
        std::vector<float> both = y.Get();
        for (const float v : r.Get()) both.push_back(v);
        return both;
      });
    }
  }
}

TEST_P(OpsTest, SwiGlu) {
  Random random(9);
  for (const int64_t cols : {0, 1, 7, 8, 9, 100, 1536}) {
    for (const int64_t rows : {0, 1, 5, 33}) {
      std::vector<float> gate_up = random.Normal(rows * 2 * cols, 4);
      if (rows == 5 && cols >= 8) {
        gate_up[0] = 200;
        gate_up[1] = -200;
        gate_up[2] = kNan;
        gate_up[3] = -88.5f;
        gate_up[4] = 0;
      }
      ExpectAgree({1e-6, 1e-5, 1e-9}, "cols " + std::to_string(cols), [&](Ops& ops) {
        DeviceMatrix x(ops, rows, 2 * cols, gate_up, 7), y(ops, rows, cols, 1);
        EXPECT_TRUE(ops.SwiGlu({x.view(), y.view()}).ok());
        return y.Get();
      });
    }
  }
}

struct AttentionCase {
  int key_dim, value_dim, latent, block_size;
  std::vector<int32_t> kv_head_of;
  int num_kv_heads;
  int64_t length;   // positions of the sequence
  int64_t prefill;  // of them, stored and attended in one call; the others one by one
  int rotary_dim = 0;
  int rope_offset = 0;
  bool interleaved = false;
};

// Runs a sequence through RopeStoreKv and Attention; results of all its rows.
std::vector<float> RunAttention(Ops& ops, const AttentionCase& c, uint32_t seed) {
  Random random(seed);
  const KvCacheShape shape = {2, c.num_kv_heads, c.key_dim, c.value_dim, c.block_size};
  const int64_t used = (c.length + c.block_size - 1) / c.block_size;
  const int64_t num_blocks = used + 3;
  const RopeConfig rope = {10000.0, c.rotary_dim, c.interleaved, {}, 1.0f};
  PagedKv kv(ops, shape, num_blocks, rope, c.length);
  kv.set_rope_offset(c.rope_offset);
  std::vector<int32_t> table(static_cast<size_t>(num_blocks));
  for (int64_t b = 0; b < num_blocks; ++b) table[b] = static_cast<int32_t>(b);
  std::shuffle(table.begin(), table.end(), random.generator());
  std::vector<int32_t> shown = table;
  for (int64_t b = used; b < num_blocks; ++b) shown[b] = b % 2 == 0 ? 0x7fffffff : -5;
  const auto heads = static_cast<int>(c.kv_head_of.size());
  const std::vector<float> q = random.Normal(c.length * heads * c.key_dim);
  const std::vector<float> k = random.Normal(c.length * c.num_kv_heads * c.key_dim);
  const std::vector<float> v = random.Normal(c.length * c.num_kv_heads * c.value_dim);
  std::vector<float> result;
  for (int64_t begin = 0; begin < c.length;) {
    const int64_t end = begin < c.prefill ? c.prefill : begin + 1;
    const std::vector<float> rotated = kv.Store(
        1, heads, Rows(q, heads * c.key_dim, begin, end), Rows(k, c.num_kv_heads * c.key_dim, begin, end),
        Rows(v, c.num_kv_heads * c.value_dim, begin, end), Positions(begin, end),
        SlotsOf(table, c.block_size, begin, end), 3);
    const std::vector<float> out =
        kv.Attend(1, c.kv_head_of, rotated, begin, end - begin, shown, c.latent, 5);
    result.insert(result.end(), rotated.begin(), rotated.end());
    result.insert(result.end(), out.begin(), out.end());
    begin = end;
  }
  return result;
}

TEST_P(OpsTest, Attention) {
  const std::vector<AttentionCase> cases = {
      {64, 64, 0, 16, {0, 0, 0, 1, 1, 1}, 2, 100, 90, 64},
      {64, 64, 0, 32, {0, 0, 0, 1, 1}, 2, 300, 297, 64},  // unequal groups, across a chunk
      {128, 128, 0, 16, {0, 1, 1, 1}, 2, 270, 255, 96, 16, true},
      {64, 64, 0, 16, {1, 0, 1}, 3, 40, 33, 64},  // a KV head without queries, groups not in runs
      {40, 24, 0, 8, {0, 0}, 1, 70, 60, 20},      // widths that fill no vector
      {33, 17, 0, 4, {0}, 1, 30, 20, 32, 1},
      {16, 16, 0, 1, {0, 0}, 1, 20, 10, 16},  // a block per position
      {16, 16, 0, 2, {0, 0}, 1, 21, 11, 16},
      {32, 32, 0, 256, {0, 0, 0, 0, 0, 0, 0, 0}, 1, 600, 590, 32},
      {80, 80, 0, 64, {0, 0, 1, 1}, 2, 150, 149, 32, 0, true},
      {576, 0, 512, 16, {0, 0, 0, 0}, 1, 40, 35, 64, 512, true},  // MLA
      {48, 0, 20, 16, {0, 0, 0}, 1, 40, 35, 16, 32},              // MLA, odd latent
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    ExpectAgree(AttentionTolerance(), "case " + std::to_string(i),
                [&](Ops& ops) { return RunAttention(ops, cases[i], 100 + static_cast<uint32_t>(i)); });
  }
}

TEST_P(OpsTest, AttentionOfManySequences) {
  const KvCacheShape shape = {1, 2, 64, 64, 16};
  struct Sequence {
    int64_t first_position, num_rows;
  };
  const std::vector<Sequence> sequences = {{0, 1},   {299, 1}, {10, 17}, {0, 0},
                                           {255, 1}, {256, 1}, {0, 33},  {511, 2}};
  const std::vector<int32_t> kv_head_of = {0, 0, 0, 1, 1};
  ExpectAgree(AttentionTolerance(), "batch", [&](Ops& ops) {
    Random random(77);
    PagedKv kv(ops, shape, 200, {10000.0, 64, false, {}, 1.0f}, 600);
    std::vector<int32_t> free(200);
    for (int b = 0; b < 200; ++b) free[b] = b;
    std::shuffle(free.begin(), free.end(), random.generator());
    AttentionParams p;
    std::vector<std::unique_ptr<DeviceArray<int32_t>>> tables;
    std::vector<float> q;
    int64_t rows = 2;  // the first two belong to nobody
    std::vector<float> nobody(2 * 5 * 64, kNan);
    q.insert(q.end(), nobody.begin(), nobody.end());
    for (const Sequence& s : sequences) {
      const int64_t length = s.first_position + s.num_rows;
      std::vector<int32_t> table;
      for (int64_t b = 0; b * 16 < length; ++b) {
        table.push_back(free.back());
        free.pop_back();
      }
      const std::vector<float> all_q = random.Normal(length * 5 * 64);
      const std::vector<float> rotated =
          kv.Store(0, 5, all_q, random.Normal(length * 128), random.Normal(length * 128),
                   Positions(0, length), SlotsOf(table, 16, 0, length));
      const std::vector<float> own = Rows(rotated, 5 * 64, s.first_position, length);
      q.insert(q.end(), own.begin(), own.end());
      table.push_back(-1);
      tables.push_back(std::make_unique<DeviceArray<int32_t>>(ops, table));
      p.sequences.push_back({rows, s.num_rows, s.first_position, tables.back()->data()});
      rows += s.num_rows;
    }
    DeviceMatrix q_m(ops, rows, 5 * 64, q), out(ops, rows, 5 * 64, 4);
    p.q = q_m.view();
    p.num_heads = 5;
    p.kv_head_of = kv_head_of.data();
    p.cache = kv.cache();
    p.scale = 0.125f;
    p.out = out.view();
    EXPECT_TRUE(ops.Attention(p).ok());
    return out.Get();  // rows of nobody stay NaN
  });
}

TEST_P(OpsTest, AttentionWithoutHeads) {
  PagedKv kv(*ops_, {1, 0, 64, 64, 16}, 4, {10000.0, 64, false, {}, 1.0f}, 64);
  EXPECT_EQ(ops_->KvBlockBytes({1, 0, 64, 64, 16}), 0);
  EXPECT_TRUE(kv.Store(0, 0, {}, {}, {}, Positions(0, 5), SlotsOf({1}, 16, 0, 5)).empty());
  EXPECT_TRUE(kv.Attend(0, {}, {}, 0, 5, {1}).empty());
}

// Scores that would overflow an exponential without the running maximum.
TEST_P(OpsTest, AttentionWithHugeScores) {
  // Scores of some thousands: their last bits are worth 1e-4 in a weight.
  ExpectAgree({2e-3, 2e-3, 1e-6}, "huge", [](Ops& ops) {
    Random random(5);
    const std::vector<int32_t> table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
    PagedKv kv(ops, {1, 1, 16, 16, 16}, 20, {10000.0, 0, false, {}, 1.0f}, 320);
    const std::vector<float> q = random.Normal(320 * 16, 60), k = random.Normal(320 * 16, 60);
    const std::vector<float> rotated =
        kv.Store(0, 1, q, k, random.Normal(320 * 16), Positions(0, 320), SlotsOf(table, 16, 0, 320));
    EXPECT_EQ(rotated, q) << "nothing rotates with rotary_dim 0";
    return kv.Attend(0, {0}, q, 0, 320, table);
  });
}

// What is read back is what was stored, rounded to the cache's type: a row that sees one key gets its value.
TEST_P(OpsTest, ValuesAreRoundedToTheCache) {
  Random random(6);
  PagedKv kv(*ops_, {1, 1, 32, 40, 16}, 3, {10000.0, 32, false, {}, 1.0f}, 8);
  const std::vector<float> v = random.Normal(40), q = random.Normal(32);
  kv.Store(0, 1, q, random.Normal(32), v, {0}, {16});
  std::vector<float> want = v;
  if (ops_->info().kv_dtype == DType::kBF16) {
    for (float& x : want) x = RoundToBf16(x);
  }
  EXPECT_EQ(kv.Attend(0, {0}, q, 0, 1, {1}), want);
  // A negative slot stores nothing.
  kv.Store(0, 1, q, random.Normal(32), random.Normal(40), {0}, {-1});
  EXPECT_EQ(kv.Attend(0, {0}, q, 0, 1, {1}), want);
}

TEST_P(OpsTest, RopeModesAndFactors) {
  Random random(10);
  const std::vector<float> q = random.Normal(3 * 2 * 32), k = random.Normal(3 * 32),
                           v = random.Normal(3 * 32);
  ExpectAgree({1e-5, 1e-5, 1e-9}, "modes", [&](Ops& ops) {
    std::vector<float> factors(12);
    for (int i = 0; i < 12; ++i) factors[i] = 1.0f + 0.5f * static_cast<float>(i);
    auto plain = OrDie(ops.MakeRopeTable({10000.0, 32, false, {}, 1.0f}, 5000));
    auto longer = OrDie(ops.MakeRopeTable({500000.0, 24, true, factors, 1.25f}, 5000));
    EXPECT_EQ(longer->rotary_dim(), 24);
    EXPECT_EQ(longer->num_positions(), 5000);
    auto cache = OrDie(ops.CreateKvCache({1, 1, 32, 32, 16}, 2));
    DeviceMatrix q_m(ops, 3, 64, q), k_m(ops, 3, 32, k), v_m(ops, 3, 32, v);
    DeviceArray<int32_t> positions(ops, {4999, 4999, 1}), modes(ops, {0, 1, 1});
    DeviceArray<int64_t> slots(ops, {0, 1, 2});
    RopeStoreKvParams p;
    p.q = q_m.view();
    p.k = k_m.view();
    p.v = v_m.view();
    p.num_heads = 2;
    p.positions = positions.data();
    p.rope_mode = modes.data();
    p.tables = {plain.get(), longer.get()};
    p.cache = cache.get();
    p.slots = slots.data();
    EXPECT_TRUE(ops.RopeStoreKv(p).ok());
    return q_m.Get();
  });
}

TEST_P(OpsTest, Route) {
  Random random(11);
  struct Case {
    int experts, groups, top_groups, top_k;
    bool sigmoid, bias, normalize;
    float scale;
  };
  for (const Case& c :
       {Case{8, 1, 1, 2, false, false, true, 1.0f}, Case{64, 8, 3, 6, true, true, true, 2.5f},
        Case{16, 4, 2, 4, true, true, false, 1.0f}, Case{4, 4, 4, 4, false, false, false, 1.0f}}) {
    const int64_t tokens = 20;
    std::vector<float> scores = random.Normal(tokens * c.experts), bias = random.Normal(c.experts);
    for (int e = 0; e < c.experts; ++e) scores[e] = 0;  // ties
    ExpectAgree({1e-6, 1e-5, 1e-9}, "experts " + std::to_string(c.experts), [&](Ops& ops) {
      DeviceArray<float> scores_a(ops, scores), bias_a(ops, bias);
      DeviceArray<int32_t> ids(ops, std::vector<int32_t>(tokens * c.top_k, -1));
      DeviceArray<float> weights(ops, std::vector<float>(tokens * c.top_k, kNan));
      RouteParams p;
      p.scores = scores_a.data();
      p.num_tokens = tokens;
      p.num_experts = c.experts;
      p.bias = c.bias ? bias_a.data() : nullptr;
      p.sigmoid = c.sigmoid;
      p.num_groups = c.groups;
      p.top_groups = c.top_groups;
      p.top_k = c.top_k;
      p.normalize = c.normalize;
      p.scale = c.scale;
      p.ids = ids.data();
      p.weights = weights.data();
      EXPECT_TRUE(ops.Route(p).ok());
      std::vector<float> both = weights.Get();
      const std::vector<int32_t> got = ids.Get();
      for (int64_t t = 0; t < tokens; ++t) {
        for (int j = 0; j < c.top_k; ++j) {
          if (j > 0) {
            EXPECT_LT(got[t * c.top_k + j - 1], got[t * c.top_k + j]) << "ids rise";
          }
          both.push_back(static_cast<float>(got[t * c.top_k + j]));
        }
        if (c.normalize) {
          float sum = 0;
          for (int j = 0; j < c.top_k; ++j) sum += both[t * c.top_k + j];
          EXPECT_NEAR(sum, c.scale, 1e-4);
        }
      }
      return both;
    });
  }
}

TEST_P(OpsTest, GroupedMatmul) {
  Random random(12);
  const int64_t n = 40, k = 70, tokens = 13;
  const int top_k = 2, experts = 5;
  std::vector<std::vector<float>> w;
  for (int e = 0; e < experts; ++e) w.push_back(random.Normal(n * k));
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<int32_t>(random.Below(experts - 1));
    ids.push_back(first);
    ids.push_back(first + 1 + static_cast<int32_t>(random.Below(experts - 1 - first)));
  }
  const std::vector<float> weights = random.Normal(tokens * top_k), x = random.Normal(tokens * top_k * k);
  for (const bool per_choice : {false, true}) {
    for (const bool combine : {false, true}) {
      ExpectAgree(ProductTolerance(4 * k), "grouped", [&](Ops& ops) {
        std::vector<std::unique_ptr<PackedWeight>> packed;
        GroupedMatmulParams p;
        for (int e = 0; e < experts; ++e) {
          PackWeightParams pack;
          pack.pieces = {{{w[e].data(), DType::kF32, n, k}, {0, n}}};
          pack.cols = {0, k};
          packed.push_back(OrDie(ops.PackWeight(pack)));
          p.experts.push_back(e == 2 ? nullptr : packed.back().get());  // another rank holds expert 2
        }
        const int64_t x_rows = per_choice ? tokens * top_k : tokens;
        DeviceMatrix x_m(ops, x_rows, k, Rows(x, k, 0, x_rows), 3);
        DeviceMatrix y(ops, combine ? tokens : tokens * top_k, n, 2);
        DeviceArray<int32_t> ids_a(ops, ids);
        DeviceArray<float> weights_a(ops, weights);
        p.x = x_m.view();
        p.x_per_choice = per_choice;
        p.ids = ids_a.data();
        p.weights = combine ? weights_a.data() : nullptr;
        p.top_k = top_k;
        p.num_tokens = tokens;
        p.y = y.view();
        EXPECT_TRUE(ops.GroupedMatmul(p).ok());
        return y.Get();
      });
    }
  }
}

// ---- Sampling: the same ids on every rung, bit for bit
// --------------------------------------------------------

struct Sampled {
  std::vector<int32_t> ids, top_ids;
  std::vector<float> logprobs, top_logprobs;
};

Sampled RunSample(Ops& ops, const std::vector<float>& logits, int64_t vocab,
                  const std::vector<SampleRow>& rows, int num_shares) {
  const auto num = static_cast<int64_t>(rows.size());
  SampleParams p;
  p.num_rows = num;
  p.vocab_size = vocab;
  p.num_shares = num_shares;
  for (int s = 0; s <= num_shares; ++s) p.share_begin.push_back(vocab * s / num_shares);
  p.share_cols = (vocab + num_shares - 1) / num_shares + 2;
  std::vector<float> gathered(static_cast<size_t>(num_shares * num * p.share_cols), kNan);
  for (int s = 0; s < num_shares; ++s) {
    for (int64_t r = 0; r < num; ++r) {
      for (int64_t c = p.share_begin[s]; c < p.share_begin[s + 1]; ++c) {
        gathered[(s * num + r) * p.share_cols + c - p.share_begin[s]] = logits[r * vocab + c];
      }
    }
  }
  DeviceArray<float> logits_a(ops, gathered);
  DeviceArray<int32_t> ids(ops, std::vector<int32_t>(num, -9)),
      top_ids(ops, std::vector<int32_t>(num * 20, -9));
  DeviceArray<float> logprobs(ops, std::vector<float>(num, -9)), top(ops, std::vector<float>(num * 20, -9));
  p.logits = logits_a.data();
  p.rows = rows;
  p.ids = ids.data();
  p.logprobs = logprobs.data();
  p.top_ids = top_ids.data();
  p.top_logprobs = top.data();
  const absl::Status status = ops.Sample(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return {ids.Get(), top_ids.Get(), logprobs.Get(), top.Get()};
}

TEST_P(OpsTest, SampleAgreesWithTheReferenceExactly) {
  Random random(13);
  for (const int64_t vocab : {1, 3, 100, 1031, 5000}) {
    std::vector<SampleRow> rows;
    for (const float temperature : {0.0f, 0.3f, 1.0f, 5.0f, 1e-6f}) {
      for (const int32_t top_k : {0, 1, 5, 700}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f, 0.0f}) {
          SampleRow row;
          row.temperature = temperature;
          row.top_k = top_k;
          row.top_p = top_p;
          row.seed = 0x123456789abcdefull + rows.size();
          row.position = rows.size() * 7;
          row.choice = static_cast<uint32_t>(rows.size() % 3);
          row.num_top = static_cast<int32_t>(rows.size() % 4 == 0 ? -1 : rows.size() % 21);
          if (rows.size() % 10 == 9) row.target = static_cast<int32_t>(random.Below(vocab));
          rows.push_back(row);
        }
      }
    }
    const auto num = static_cast<int64_t>(rows.size());
    std::vector<float> logits = random.Normal(num * vocab, 3);
    for (int64_t i = 0; i < num * vocab; i += 5) logits[i] = std::round(logits[i]);  // ties
    const Sampled want = RunSample(*reference_, logits, vocab, rows, 1);
    for (const int shares : {1, 3}) {
      const Sampled got = RunSample(*ops_, logits, vocab, rows, shares);
      EXPECT_EQ(got.ids, want.ids) << "vocabulary " << vocab;
      EXPECT_EQ(got.top_ids, want.top_ids);
      EXPECT_EQ(got.logprobs, want.logprobs);
      EXPECT_EQ(got.top_logprobs, want.top_logprobs);
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].target >= 0) {
        EXPECT_EQ(want.ids[r], rows[r].target);
      }
      EXPECT_GE(want.ids[r], 0);
      EXPECT_LT(want.ids[r], vocab);
      for (int j = std::max(0, rows[r].num_top); j < 20; ++j) EXPECT_EQ(want.top_ids[r * 20 + j], -9);
      if (rows[r].num_top < 0) {
        EXPECT_EQ(want.logprobs[r], -9);
      }
    }
  }
}

TEST_P(OpsTest, SampleEdges) {
  const float inf = std::numeric_limits<float>::infinity();
  const int64_t vocab = 40;
  std::vector<float> logits(7 * vocab, 0.5f);
  logits[0 * vocab + 33] = kNan;
  logits[1 * vocab + 2] = inf;
  for (int64_t i = 0; i < vocab; ++i) logits[2 * vocab + i] = -inf;
  for (int64_t i = 0; i < vocab; ++i) logits[3 * vocab + i] = i == 39 ? -1000.0f : -inf;
  logits[4 * vocab + 17] = 0.5001f;
  std::vector<SampleRow> rows(7);
  for (SampleRow& row : rows) row.num_top = 2;
  rows[3].temperature = 1;  // one possible token
  rows[5].temperature = 1;  // all equal
  rows[5].top_k = 1;
  rows[6].temperature = 0;
  const Sampled got = RunSample(*ops_, logits, vocab, rows, 1);
  EXPECT_THAT(got.ids, testing::ElementsAre(-1, -1, -1, 39, 17, 0, 0)) << "ties go to the lowest id";
  EXPECT_TRUE(std::isnan(got.logprobs[0]));
  EXPECT_FLOAT_EQ(got.logprobs[3], 0.0f);
  EXPECT_NEAR(got.logprobs[6], -std::log(40.0), 1e-5);
  EXPECT_EQ(got.top_ids[6 * 20], 0);
  EXPECT_EQ(got.top_ids[6 * 20 + 1], 1);
}

// Draws follow the distribution: counts of 20000 draws within five standard deviations.
TEST_P(OpsTest, DrawsFollowTheDistribution) {
  const std::vector<float> one = {1.0f, 0.0f, -1.0f, 2.0f, 0.5f};
  const int draws = 20000;
  std::vector<SampleRow> rows(draws);
  std::vector<float> logits;
  for (int i = 0; i < draws; ++i) {
    rows[i].temperature = 0.8f;
    rows[i].seed = 42;
    rows[i].position = static_cast<uint64_t>(i);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  const Sampled got = RunSample(*ops_, logits, 5, rows, 1);
  double total = 0;
  for (const float l : one) total += std::exp(l / 0.8);
  for (int id = 0; id < 5; ++id) {
    const double probability = std::exp(one[id] / 0.8) / total;
    const auto count = std::count(got.ids.begin(), got.ids.end(), id);
    EXPECT_NEAR(static_cast<double>(count), draws * probability,
                5 * std::sqrt(draws * probability * (1 - probability)));
  }
}

// ---- Errors
// ---------------------------------------------------------------------------------------------------

TEST_P(OpsTest, ErrorsNameTheFieldAndBothValues) {
  const std::vector<float> w(20 * 30, 1.0f);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, 20, 30}, {0, 20}}};
  pack.cols = {0, 31};
  EXPECT_THAT(std::string(ops_->PackWeight(pack).status().message()),
              HasSubstr("cols.end is 31, must be at most pieces[0].source.cols = 30"));
  pack.cols = {0, 30};
  pack.shard_cuts = {0, 20, 10, 30};
  EXPECT_THAT(std::string(ops_->PackWeight(pack).status().message()),
              HasSubstr("shard_cuts[2] is 10, must be at least 20"));
  pack.shard_cuts = {0, 10, 30};
  auto sharded = OrDie(ops_->PackWeight(pack));
  pack.shard_cuts = {};
  auto whole = OrDie(ops_->PackWeight(pack));
  pack.pieces[0].source.dtype = DType::kQ8_0;
  EXPECT_THAT(std::string(ops_->PackWeight(pack).status().message()),
              HasSubstr("pieces[0].source.cols is 30, must be a multiple of the block of Q8_0 = 32"));

  DeviceMatrix x(*ops_, 4, 30, std::vector<float>(120, 1.0f)), y(*ops_, 4, 21);
  MatmulParams p;
  p.x = x.view();
  p.y = y.view();
  p.weight = whole.get();
  absl::Status status = ops_->Matmul(p);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("Matmul: y.cols is 21, must be weight N = 20"));
  p.weight = sharded.get();
  EXPECT_THAT(std::string(ops_->Matmul(p).message()), HasSubstr("K-sharded"));
  ShardedMatmulParams sp;
  sp.x = x.view();
  sp.weight = whole.get();
  EXPECT_THAT(std::string(ops_->ShardedMatmul(sp).message()), HasSubstr("not K-sharded"));
  sp.weight = sharded.get();
  EXPECT_THAT(std::string(ops_->ShardedMatmul(sp).message()), HasSubstr("sums is null"));

  EXPECT_THAT(std::string(ops_->CreateKvCache({1, 1, 8, 8, 24}, 1).status().message()),
              HasSubstr("block_size is 24, must divide 256"));
  EXPECT_THAT(std::string(ops_->MakeRopeTable({10000.0, 7, false, {}, 1.0f}, 1).status().message()),
              HasSubstr("rotary_dim is 7, must be even"));

  SampleParams s;
  const std::vector<float> logits(8, 0.0f);
  int32_t id = 0;
  s.logits = logits.data();
  s.num_rows = 1;
  s.vocab_size = 8;
  s.share_cols = 8;
  s.share_begin = {0, 8};
  s.ids = &id;
  s.rows = {SampleRow{}};
  s.rows[0].target = 8;
  EXPECT_THAT(std::string(ops_->Sample(s).message()),
              HasSubstr("rows[0].target is 8, must be in [-1, vocab_size = 8)"));
  s.rows[0] = SampleRow{};
  s.rows[0].temperature = kNan;
  EXPECT_THAT(std::string(ops_->Sample(s).message()), HasSubstr("rows[0].temperature is nan"));
}

// What would be read or written outside of an array is refused before anything is touched.
TEST_P(OpsTest, IndicesAreChecked) {
  const auto expect = [](const absl::Status& status, const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  const std::vector<float> table(8 * 4, 1.0f);
  DeviceMatrix x(*ops_, 2, 4);
  DeviceArray<int32_t> ids(*ops_, {7, 8}), from(*ops_, {-1, 0}), sampled(*ops_, {9});
  EmbedParams embed;
  embed.table = {table.data(), DType::kF32, 8, 4};
  embed.token_ids = ids.data();
  embed.x = x.view();
  expect(ops_->Embed(embed), "token_ids[1] is 8, must be in [0, 8)");
  embed.from_sampled = from.data();
  embed.sampled = sampled.data();
  expect(ops_->Embed(embed), "sampled[0] is 9");

  auto rope = OrDie(ops_->MakeRopeTable({10000.0, 8, false, {}, 1.0f}, 5));
  auto cache = OrDie(ops_->CreateKvCache({2, 1, 8, 8, 16}, 2));
  DeviceMatrix q(*ops_, 1, 8, std::vector<float>(8, 1.0f)), k(*ops_, 1, 8, std::vector<float>(8, 1.0f));
  const auto store = [&](int32_t position, int32_t mode, int64_t slot, int layer, int offset) {
    DeviceArray<int32_t> positions(*ops_, {position}), modes(*ops_, {mode});
    DeviceArray<int64_t> slots(*ops_, {slot});
    RopeStoreKvParams p;
    p.q = q.view();
    p.k = k.view();
    p.v = k.view();
    p.num_heads = 1;
    p.positions = positions.data();
    p.rope_mode = modes.data();
    p.tables = {rope.get()};
    p.rope_offset = offset;
    p.cache = cache.get();
    p.layer = layer;
    p.slots = slots.data();
    return ops_->RopeStoreKv(p);
  };
  expect(store(5, 0, 0, 0, 0), "positions[0] is 5, must be in [0, 5)");
  expect(store(0, 1, 0, 0, 0), "rope_mode[0] is 1, must be in [0, 1)");
  expect(store(0, 0, 32, 0, 0), "slots[0] is 32, must be below num_blocks * block_size = 32");
  expect(store(0, 0, 0, 2, 0), "layer is 2, must be in [0, num_layers = 2)");
  expect(store(0, 0, 0, 0, 1), "rope_offset + tables[0].rotary_dim is 9, must be at most key_dim = 8");
  EXPECT_EQ(q.Get(), std::vector<float>(8, 1.0f)) << "a refused call must not rotate";

  const auto attend = [&](int32_t block, int32_t kv_head, int64_t rows, int latent) {
    DeviceMatrix out(*ops_, 1, 8);
    DeviceArray<int32_t> blocks(*ops_, {block});
    AttentionParams p;
    p.q = q.view();
    p.num_heads = 1;
    p.kv_head_of = &kv_head;
    p.cache = cache.get();
    p.scale = 1;
    p.latent_value_dim = latent;
    p.sequences = {{0, rows, 0, blocks.data()}};
    p.out = out.view();
    return ops_->Attention(p);
  };
  expect(attend(2, 0, 1, 0), "sequences[0].block_table[0] is 2, must be in [0, num_blocks = 2)");
  expect(attend(-1, 0, 1, 0), "block_table[0] is -1");
  expect(attend(0, 1, 1, 0), "kv_head_of[0] is 1, must be in [0, 1)");
  expect(attend(0, 0, 2, 0), "takes rows [0, 2), must lie in [0, q.rows = 1)");
  expect(attend(0, 0, 1, 4), "latent_value_dim is 4, must be 0 for a cache with value_dim = 8");

  DeviceMatrix residual(*ops_, 3, 4, std::vector<float>(12, 1.0f)), y(*ops_, 1, 4);
  DeviceArray<int32_t> rows(*ops_, {3});
  RmsNormParams norm;
  norm.residual = residual.view();
  norm.weight = table.data();
  norm.rows = rows.data();
  norm.y = y.view();
  expect(ops_->RmsNorm(norm), "rows[0] is 3, must be in [0, 3)");
}

TEST(CreateOpsTest, RungsAndThreadsAreChecked) {
  EXPECT_THAT(AvailableRungs(), testing::Contains("reference"));
  const absl::Status unknown = CreateOps({"sse9", Compute::kFast, 1}).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("\"sse9\""));
  EXPECT_THAT(std::string(CreateOps({"auto", Compute::kFast, 0}).status().message()),
              HasSubstr("num_threads is 0"));
  for (const std::string& rung : AllRungs()) {
    const auto ops = CreateOps({rung, Compute::kFast, 1});
    const std::vector<std::string> here = AvailableRungs();
    if (std::find(here.begin(), here.end(), rung) != here.end()) {
      EXPECT_TRUE(ops.ok()) << ops.status().ToString();
    } else {
      EXPECT_EQ(ops.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_THAT(std::string(ops.status().message()), HasSubstr(rung));
    }
  }
  const auto best = CreateOps({"auto", Compute::kFast, 1});
  ASSERT_TRUE(best.ok());
  const auto last = CreateOps({AvailableRungs().back(), Compute::kFast, 1});
  EXPECT_EQ((*best)->info().instruction_set, (*last)->info().instruction_set);
  PrintRungs();
}

INSTANTIATE_TEST_SUITE_P(Rungs, OpsTest, testing::ValuesIn(RungCases()), RungCaseName);

}  // namespace
}  // namespace phalanx

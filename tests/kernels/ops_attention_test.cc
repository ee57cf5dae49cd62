// Conformance of attention over the paged cache, RoPE and the rounding to the cache.
#include "tests/kernels/ops_fixture.h"

#include "kernels/numeric.h"

namespace phalanx {
namespace {

// With every type of KV cache.
class AttentionTest : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(Rungs, AttentionTest, testing::ValuesIn(RungAndKvCases()), RungCaseName);

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

TEST_P(AttentionTest, Attention) {
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
      {576, 0, 512, 32, std::vector<int32_t>(17, 0), 1, 262, 258, 64, 512, true},
      {576, 0, 512, 32, {0, 0}, 1, 262, 258, 64, 512, true},
      {48, 0, 20, 16, {0, 0, 0}, 1, 40, 35, 16, 32},  // MLA, odd latent
      {40, 0, 32, 16, {0, 0, 0, 0, 0}, 1, 60, 55, 8, 32, true},
      {40, 0, 32, 16, std::vector<int32_t>(130, 0), 1, 12, 9, 8, 32, true},  // more heads than a task has
      {18, 0, 16, 16, {0}, 1, 300, 297, 2, 16},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    if (IsQuantised(kv_type()) && cases[i].value_dim == 0) continue;  // there is none for latents
    if (kTestsDevice && cases[i].length * static_cast<int64_t>(cases[i].kv_head_of.size()) > 1600) continue;
    ExpectAgree(AttentionTolerance(), "case " + std::to_string(i),
                [&](Ops& ops) { return RunAttention(ops, cases[i], 100 + static_cast<uint32_t>(i)); });
  }
}

TEST_P(AttentionTest, AttentionOfManySequences) {
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

TEST_P(AttentionTest, AttentionWithoutHeads) {
  PagedKv kv(*ops_, {1, 0, 64, 64, 16}, 4, {10000.0, 64, false, {}, 1.0f}, 64);
  EXPECT_EQ(ops_->KvBlockBytes({1, 0, 64, 64, 16}), 0);
  EXPECT_TRUE(kv.Store(0, 0, {}, {}, {}, Positions(0, 5), SlotsOf({1}, 16, 0, 5)).empty());
  EXPECT_TRUE(kv.Attend(0, {}, {}, 0, 5, {1}).empty());
}

// Scores that would overflow an exponential without the running maximum.
TEST_P(AttentionTest, AttentionWithHugeScores) {
  // Scores of some thousands: their last bits are worth 1e-4 in a weight.
  const Tolerance tolerance = rounds() ? AttentionTolerance() : Tolerance{2e-3, 2e-3, 1e-6};
  ExpectAgree(tolerance, "huge", [this](Ops& ops) {
    Random random(5);
    const std::vector<int32_t> table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
    PagedKv kv(ops, {1, 1, 16, 16, 16}, 20, {10000.0, 0, false, {}, 1.0f}, 320);
    std::vector<float> q = random.Normal(320 * 16, 60);
    for (float& x : q) x = RoundToBf16(x);  // an error of one part in 500 would be worth many units of score
    std::vector<float> k = random.Normal(320 * 16, 60);
    if (kv_type() == KvType::kInt8) {  // likewise: scales of 1, so that bf16 pairs round nothing
      for (float& x : k) x = std::clamp(std::nearbyint(x), -127.0f, 127.0f);
      for (size_t i = 0; i < k.size(); i += 16) k[i] = 127;
    }
    if (kv_type() == KvType::kFp8) {  // likewise, of 1/4
      for (float& x : k) x = std::clamp(x, -112.0f, 112.0f);
      for (size_t i = 0; i < k.size(); i += 16) k[i] = 112;
    }
    for (float& x : k) x = RoundToBf16(x);
    const std::vector<float> rotated =
        kv.Store(0, 1, q, k, random.Normal(320 * 16), Positions(0, 320), SlotsOf(table, 16, 0, 320));
    EXPECT_EQ(rotated, q) << "nothing rotates with rotary_dim 0";
    return kv.Attend(0, {0}, q, 0, 320, table);
  });
}

// Sums of values: 2^23 in the first chunk, -2^23 in the second, next to nothing in the third, which is lost
// in any other order.
TEST_P(AttentionTest, ChunksAreFoldedFromTheFirst) {
  const int64_t length = 600;
  std::vector<int32_t> table((length + 15) / 16);
  for (size_t b = 0; b < table.size(); ++b) table[b] = static_cast<int32_t>(b);
  PagedKv kv(*ops_, {1, 1, 16, 16, 16}, static_cast<int64_t>(table.size()), {10000.0, 0, false, {}, 1.0f},
             length);
  const std::vector<float> zero(length * 16, 0.0f);
  std::vector<float> v(length * 16, 0x1p-9f);
  std::fill_n(v.begin(), 256 * 16, 0x1p15f);
  std::fill_n(v.begin() + 256 * 16, 256 * 16, -0x1p15f);
  kv.Store(0, 1, zero, zero, v, Positions(0, length), SlotsOf(table, 16, 0, length));
  const float want = (length - 512) * 0x1p-9f / length;
  for (const int64_t rows : {1, 70}) {
    const std::vector<float> got = kv.Attend(0, {0}, std::vector<float>(static_cast<size_t>(rows * 16), 0.0f),
                                             length - rows, rows, table);
    for (int c = 0; c < 16; ++c) {
      EXPECT_NEAR(got[static_cast<size_t>((rows - 1) * 16 + c)], want, want / 50) << rows << " rows";
    }
  }
}

// The multiple of e4m3's step at y that is nearest to it, at most 448.
double NearestE4m3(double y) {
  const double step = std::exp2(std::max(std::floor(std::log2(std::fabs(y))), -6.0) - 3);
  return y == 0 ? 0 : std::clamp(std::nearbyint(y / step) * step, -448.0, 448.0);
}

// What a quantised cache holds of a head, in plain loops and doubles.
std::vector<float> ThroughCodes(KvType type, const std::vector<float>& x) {
  std::vector<float> held(x.size());
  for (size_t begin = 0; begin < x.size(); begin += 32) {
    const size_t end = std::min(x.size(), begin + 32);
    double largest = 0;
    bool finite = true;
    for (size_t i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      largest = std::max(largest, std::fabs(double{x[i]}));
    }
    for (size_t i = begin; i < end; ++i) {
      held[i] = finite ? 0 : kNan;
      if (!finite || largest < 0x1p-100) continue;
      const float scale = RoundToBf16(static_cast<float>(largest) / (type == KvType::kFp8 ? 448.0f : 127.0f));
      const double scaled = double{x[i] * (1.0f / scale)};
      const double number = type == KvType::kFp8 ? NearestE4m3(scaled) : std::nearbyint(scaled);
      held[i] = static_cast<float>(number * double{scale});
    }
  }
  return held;
}

// What is read back is what was stored, rounded to the cache's type: a row that sees one key gets its value.
TEST_P(AttentionTest, ValuesAreRoundedToTheCache) {
  const auto check = [this](Ops& ops) {
    const KvType type = ops.info().kv_type;
    Random random(6);
    PagedKv kv(ops, {1, 1, 32, 40, 16}, 3, {10000.0, 32, false, {}, 1.0f}, 8);
    std::vector<float> v = random.Normal(40);
    const std::vector<float> q = random.Normal(32);
    for (float& x : v) x = Rounded(device() && IsQuantised(type) ? RoundToBf16(x) : x);
    kv.Store(0, 1, q, random.Normal(32), v, {0}, {16});
    std::vector<float> want = v;
    if (IsQuantised(type)) want = ThroughCodes(type, v);
    // Bf16 pairs round what codes hold, too.
    const bool pairs = rounds() && !device() && GetParam().compute == Compute::kFast && IsQuantised(type);
    if ((type == KvType::kBf16 && !device()) || pairs) {
      for (float& x : want) x = RoundToBf16(x);
    }
    for (float& x : want) x = Rounded(x);
    EXPECT_EQ(kv.Attend(0, {0}, q, 0, 1, {1}), want);
    // A negative slot stores nothing.
    kv.Store(0, 1, q, random.Normal(32), random.Normal(40), {0}, {-1});
    EXPECT_EQ(kv.Attend(0, {0}, q, 0, 1, {1}), want);
  };
  check(*ops_);
  if (!GetParam().fp16) return;
  for (const KvType type : {KvType::kInt8, KvType::kFp8}) {  // which have no cases of fp16
    OpsOptions options = Options();
    options.kv_type = type;
    check(*OrDie(CreateOps(options)));
  }
}

// Near the largest number of fp16: 127 times the scale of 65280 (which is a bf16, too) is 65532, and rotated
// keys are larger still. What is read of a quantised cache stays finite.
TEST_P(AttentionTest, QuantisedNumbersNearTheLargestOfFp16) {
  const auto check = [this](Ops& ops) {
    const KvType type = ops.info().kv_type;
    PagedKv kv(ops, {1, 1, 32, 32, 16}, 3, {10000.0, 32, false, {}, 1.0f}, 8);
    std::vector<float> v(32, 65280.0f), k(32, 65280.0f);
    for (int i = 16; i < 32; ++i) v[i] = -1024.0f * static_cast<float>(i), k[i] = -65280.0f;
    const std::vector<float> q(32, 1.0f);
    kv.Store(0, 1, q, k, v, {1}, {17});
    kv.Store(0, 1, q, std::vector<float>(32, 0.0f), std::vector<float>(32, 0.0f), {0}, {16});
    std::vector<float> want = ThroughCodes(type, v);
    const bool bf16_tiles = rounds() && (device() || GetParam().compute == Compute::kFast);
    for (float& x : want) x = GetParam().fp16 ? std::min(x, 65504.0f) : bf16_tiles ? RoundToBf16(x) : x;
    for (float& x : want) x = Rounded(x);
    // The row of position 1 sees a key whose score is the largest by far: its value is what comes out.
    EXPECT_EQ(kv.Attend(0, {0}, q, 1, 1, {1}), want) << KvTypeName(type);
  };
  if (IsQuantised(kv_type())) check(*ops_);
  if (!GetParam().fp16) return;
  for (const KvType type : {KvType::kInt8, KvType::kFp8}) {  // which have no cases of fp16
    OpsOptions options = Options();
    options.kv_type = type;
    check(*OrDie(CreateOps(options)));
  }
}

// Groups of codes stand for themselves: tiny numbers, huge ones beside small ones, a NaN and an infinity.
TEST_P(AttentionTest, OddNumbersInTheCache) {
  Random random(8);
  PagedKv kv(*ops_, {1, 1, 32, 150, 16}, 3, {10000.0, 32, false, {}, 1.0f}, 8);
  std::vector<float> v = random.Normal(150), q = random.Normal(32);
  for (int i = 32; i < 64; ++i) v[i] *= 0x1p-120f;
  v[64] = 3e4f;
  v[100] = kNan;
  v[149] = -std::numeric_limits<float>::infinity();
  for (float& x : v) x = Rounded(x);
  kv.Store(0, 1, q, random.Normal(32), v, {0}, {16});
  const std::vector<float> got = kv.Attend(0, {0}, q, 0, 1, {1});
  const std::vector<float> held = ThroughCodes(kv_type(), v);
  for (int i = 0; i < 150; ++i) {
    if (IsQuantised(kv_type())) {
      ASSERT_EQ(std::isnan(got[i]), i >= 96) << i;
      if (i < 96) {
        EXPECT_NEAR(got[i], held[i], std::fabs(held[i]) * 0x1p-8f) << i;
      }
    } else {
      ASSERT_EQ(std::isfinite(got[i]), i != 100 && i != 149) << i;
    }
  }
}

// Attention over a quantised cache in double precision, written out.
TEST_P(AttentionTest, CodesAgreeWithPlainLoops) {
  if (!IsQuantised(kv_type())) GTEST_SKIP() << "another type";
  const int length = 300, heads = 4, dim = 72;
  for (const int block_size : {32, 16, 8, 256}) {
    Random random(9);
    PagedKv kv(*ops_, {1, 2, dim, dim, block_size}, 300 / block_size + 2, {10000.0, 0, false, {}, 1.0f},
               length);
    std::vector<int32_t> table(300 / block_size + 2);
    for (size_t b = 0; b < table.size(); ++b) table[b] = static_cast<int32_t>(table.size() - 1 - b);
    const std::vector<float> q = random.Normal(length * heads * dim);
    std::vector<float> k = random.Normal(length * 2 * dim), v = random.Normal(length * 2 * dim);
    for (float& x : k) x = Rounded(x);
    for (float& x : v) x = Rounded(x);
    kv.Store(0, heads, q, k, v, Positions(0, length), SlotsOf(table, block_size, 0, length));
    const std::vector<float> got = kv.Attend(0, {0, 0, 1, 1}, q, 0, length, table);
    std::vector<std::vector<float>> keys, values;
    for (int i = 0; i < length * 2; ++i) {
      keys.push_back(ThroughCodes(kv_type(), Rows(k, dim, i, i + 1)));
      values.push_back(ThroughCodes(kv_type(), Rows(v, dim, i, i + 1)));
    }
    std::vector<float> want;
    for (int t = 0; t < length; ++t) {
      for (int h = 0; h < heads; ++h) {
        std::vector<double> out(dim, 0.0);
        double sum = 0;
        for (int j = 0; j <= t; ++j) {
          double score = 0;
          for (int d = 0; d < dim; ++d)
            score += double{q[(t * heads + h) * dim + d]} * keys[j * 2 + h / 2][d];
          const double weight = std::exp(score / std::sqrt(double{dim}));
          sum += weight;
          for (int d = 0; d < dim; ++d) out[d] += weight * values[j * 2 + h / 2][d];
        }
        for (const double x : out) want.push_back(static_cast<float>(x / sum));
      }
    }
    ExpectClose(want, got, AttentionTolerance(), "blocks of " + std::to_string(block_size));
  }
}

TEST_P(AttentionTest, KvBlocksTakeTheirType) {
  const KvCacheShape shape = {2, 3, 64, 64, 32};
  const int64_t elements = 2 * 3 * 32 * 128;
  const int64_t bytes = ops_->KvBlockBytes(shape);
  if (GetParam().rung == "reference") {
    EXPECT_EQ(bytes, elements * 4) << "holds floats, whatever they were rounded to";
  } else {
    EXPECT_EQ(bytes, kv_type() == KvType::kF32    ? elements * 4
                     : kv_type() == KvType::kBf16 ? elements * 2
                                                  : elements + elements / 32 * 2);
  }
  const auto latents = ops_->CreateKvCache({1, 1, 576, 0, 32}, 2);
  EXPECT_EQ(latents.ok(), !IsQuantised(kv_type()));
  if (!latents.ok()) {
    EXPECT_THAT(std::string(latents.status().message()), HasSubstr("value_dim is 0 (latents, MLA)"));
  }
}

TEST_P(AttentionTest, RopeModesAndFactors) {
  Random random(10);
  const std::vector<float> q = random.Normal(3 * 2 * 32), k = random.Normal(3 * 32),
                           v = random.Normal(3 * 32);
  ExpectAgree(Elementwise({1e-5, 1e-5, 1e-9}), "modes", [&](Ops& ops) {
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

}  // namespace
}  // namespace phalanx

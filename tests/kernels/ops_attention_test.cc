// Conformance of attention over the paged cache, RoPE and the rounding to the cache.
#include "tests/kernels/ops_fixture.h"

#include "kernels/numeric.h"

namespace phalanx {
namespace {

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
      {576, 0, 512, 32, std::vector<int32_t>(17, 0), 1, 262, 258, 64, 512, true},
      {48, 0, 20, 16, {0, 0, 0}, 1, 40, 35, 16, 32},  // MLA, odd latent
      {40, 0, 32, 16, {0, 0, 0, 0, 0}, 1, 60, 55, 8, 32, true},
      {40, 0, 32, 16, std::vector<int32_t>(130, 0), 1, 12, 9, 8, 32, true},  // more heads than a task has
      {18, 0, 16, 16, {0}, 1, 300, 297, 2, 16},
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
  const Tolerance tolerance = amx() ? Tolerance{2e-2, 2e-2, 5e-5} : Tolerance{2e-3, 2e-3, 1e-6};
  ExpectAgree(tolerance, "huge", [](Ops& ops) {
    Random random(5);
    const std::vector<int32_t> table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
    PagedKv kv(ops, {1, 1, 16, 16, 16}, 20, {10000.0, 0, false, {}, 1.0f}, 320);
    std::vector<float> q = random.Normal(320 * 16, 60);
    for (float& x : q) x = RoundToBf16(x);  // an error of one part in 500 would be worth many units of score
    const std::vector<float> k = random.Normal(320 * 16, 60);
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

}  // namespace
}  // namespace phalanx

// The conformance suite of Ops, run over every rung of this host in both compute modes: what runs, memory,
// rows, experts, refused parameters. Products, attention and sampling have files of their own beside this
// one.
#include "tests/kernels/ops_fixture.h"

#include "kernels/numeric.h"

namespace phalanx {
namespace {

TEST_P(OpsTest, InfoNamesWhatRuns) {
  const OpsInfo& info = ops_->info();
  const bool fast = GetParam().compute == Compute::kFast;
  if (device()) {
    const DType dtype = GetParam().fp16 ? DType::kF16 : DType::kBF16;
    // The emulated module may stand in the device's place.
    EXPECT_THAT(info.backend, testing::StartsWith(GetParam().rung));
    EXPECT_EQ(info.weight_dtype, dtype);
    EXPECT_EQ(info.kv_type, KvType::kBf16);
    EXPECT_EQ(ops_->activation_dtype(), dtype);
    EXPECT_GE(info.kernel_version, 1);
    return;
  }
  EXPECT_EQ(info.backend, GetParam().rung == "reference" ? "reference" : "cpu");
  EXPECT_EQ(info.weight_dtype, fast ? DType::kBF16 : DType::kF32);
  EXPECT_EQ(info.kv_type, fast ? KvType::kBf16 : KvType::kF32);
  EXPECT_EQ(ops_->activation_dtype(), DType::kF32);
  if (GetParam().rung == "amx" || GetParam().rung == "avx512_bf16") {
    EXPECT_EQ(info.instruction_set, !fast ? "avx2" : GetParam().rung == "amx" ? "amx-bf16" : "avx512-bf16");
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

TEST_P(OpsTest, Embed) {
  Random random(7);
  const int64_t vocab = 20, hidden = 96;
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const std::vector<uint8_t> bytes = RandomBlocks(random, dtype, vocab * hidden);
    ExpectAgree(Elementwise({1e-6, 1e-6, 1e-9}), std::string(DTypeName(dtype)), [&](Ops& ops) {
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

// Of rows whose mean square is a tenth of it.
TEST_P(OpsTest, RmsNormAddsEps) {
  Random random(9);
  const int64_t rows = 3, hidden = 72;
  const std::vector<float> residual = random.Normal(rows * hidden, 1e-3f);
  ExpectAgree(Elementwise({1e-5, 1e-5, 1e-9}), "small rows", [&](Ops& ops) {
    DeviceMatrix r(ops, rows, hidden, residual), y(ops, rows, hidden);
    DeviceArray<float> weight(ops, std::vector<float>(hidden, 1.0f));
    RmsNormParams p;
    p.residual = r.view();
    p.weight = weight.data();
    p.eps = 1e-5f;
    p.y = y.view();
    EXPECT_TRUE(ops.RmsNorm(p).ok());
    return y.Get();
  });
}

TEST_P(OpsTest, RmsNorm) {
  Random random(8);
  for (const int64_t hidden : {1, 7, 8, 33, 64, 576, 1003}) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      const std::vector<float> residual = random.Normal(rows * hidden, 3), add = random.Normal(rows * hidden),
                               add2 = random.Normal(rows * hidden), weight = random.Normal(hidden);
      for (const int num_adds : {0, 1, 2}) {
        ExpectAgree(Elementwise({1e-5, 1e-5, 1e-9}), "hidden " + std::to_string(hidden), [&](Ops& ops) {
          DeviceMatrix r(ops, rows, hidden, residual, 5), y(ops, rows, hidden, 2);
          DeviceArray<float> add_a(ops, add), add2_a(ops, add2), weight_a(ops, weight);
          RmsNormParams p;
          p.residual = r.view();
          p.add = num_adds > 0 ? add_a.data() : nullptr;
          p.add2 = num_adds > 1 ? add2_a.data() : nullptr;
          p.weight = weight_a.data();
          p.eps = 1e-5f;
          p.y = y.view();
          EXPECT_TRUE(ops.RmsNorm(p).ok());
          std::vector<float> both = y.Get();
          for (const float v : r.Get()) both.push_back(v);
          return both;
        });
      }
      ExpectAgree(Elementwise({1e-5, 1e-5, 1e-9}), "in place", [&](Ops& ops) {
        DeviceMatrix r(ops, rows, hidden, residual, 3);
        DeviceArray<float> weight_a(ops, weight);
        RmsNormParams p;
        p.residual = r.view();
        p.weight = weight_a.data();
        p.y = r.view();
        EXPECT_TRUE(ops.RmsNorm(p).ok());
        return r.Get();
      });
      if (rows < 3) continue;
      ExpectAgree(Elementwise({1e-5, 1e-5, 1e-9}), "chosen rows", [&](Ops& ops) {
        DeviceMatrix r(ops, rows, hidden, residual), y(ops, 4, hidden, 2);
        DeviceArray<float> add_a(ops, add), add2_a(ops, add2), weight_a(ops, weight);
        DeviceArray<int32_t> chosen(ops, {2, 0, 2, static_cast<int32_t>(rows - 1)});
        RmsNormParams p;
        p.residual = r.view();
        p.add = add_a.data();
        p.add2 = add2_a.data();
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
      ExpectAgree(Elementwise({1e-6, 1e-5, 1e-9}), "cols " + std::to_string(cols), [&](Ops& ops) {
        DeviceMatrix x(ops, rows, 2 * cols, gate_up, 7), y(ops, rows, cols, 1);
        EXPECT_TRUE(ops.SwiGlu({x.view(), y.view()}).ok());
        return y.Get();
      });
    }
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

  const std::vector<float> ones(21, 1.0f);
  RmsNormParams norm;
  norm.residual = norm.y = y.view();
  norm.weight = ones.data();
  norm.read_by = whole.get();
  EXPECT_THAT(std::string(ops_->RmsNorm(norm).message()),
              HasSubstr("read_by's K is 30, must be y.cols = 21"));

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
  if (device()) GTEST_SKIP() << "what lies on a device is not read to be checked: see tests/cuda";
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

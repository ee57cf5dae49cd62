#include "worker/model_runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/forwarding_ops.h"
#include "tests/worker/plain_llama.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_model.h"
#include "worker/models/model.h"
#include "worker/step_batch.h"

namespace phalanx {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kBlockSize = 16;

TestGroupOptions Options(int num_ranks = 1) {
  TestGroupOptions options;
  options.num_ranks = num_ranks;
  options.ops = {.rung = "reference", .compute = Compute::kFp32, .num_threads = 1};
  options.runner = {.max_tokens_per_step = 64,
                    .max_logits_per_step = 32,
                    .context_length = 0,
                    .block_size = kBlockSize,
                    .kv_bytes = int64_t{1} << 28,
                    .max_kv_blocks = 40};
  options.timeout_ms = 10000;
  return options;
}

std::unique_ptr<TestGroup> MakeGroup(const Checkpoint& file, const TestGroupOptions& options) {
  absl::StatusOr<std::unique_ptr<TestGroup>> group = TestGroup::Create(file, options);
  EXPECT_TRUE(group.ok()) << group.status();
  return group.ok() ? *std::move(group) : nullptr;
}

TestTables Tables() {
  std::vector<int32_t> order(40);
  std::iota(order.begin(), order.end(), 0);
  return TestTables(40, kBlockSize, order);
}

// One row of sequence 0 with logits of all its tokens.
StepPlan Chunk(TestTables* tables, int32_t first_position, const std::vector<int32_t>& tokens,
               uint32_t sequence = 0) {
  StepPlan plan;
  tables->Grow(&plan, sequence, first_position + static_cast<int64_t>(tokens.size()));
  PlanRow row;
  row.sequence = sequence;
  row.first_position = first_position;
  row.tokens = tokens;
  row.logit_offsets.resize(tokens.size());
  std::iota(row.logit_offsets.begin(), row.logit_offsets.end(), 0);
  plan.rows.push_back(row);
  tables->Finish(&plan);
  return plan;
}

const std::vector<int32_t> kTokens = {5,  99, 0, 130, 5,  5, 17, 64, 3,  88,
                                      41, 2,  2, 120, 77, 9, 31, 8,  54, 100};

class ModelTest : public testing::TestWithParam<TinyModelOptions> {};

TEST_P(ModelTest, LogitsAreThoseOfAPlainImplementation) {
  const auto file = OpenTinyModel(GetParam());
  const Rows want = PlainLlama(*file, GetParam()).Logits(kTokens);
  for (const int num_ranks : {1, 3}) {
    const auto group = MakeGroup(*file, Options(num_ranks));
    ASSERT_NE(group, nullptr);
    TestTables tables = Tables();
    std::vector<float> logits;
    const auto result =
        group->Step(Chunk(&tables, 0, kTokens), std::vector<SampleRow>(kTokens.size()), &logits);
    ASSERT_TRUE(result.ok()) << result.status();
    double largest = 0;
    for (size_t t = 0; t < kTokens.size(); ++t) {
      for (int i = 0; i < GetParam().vocab; ++i) {
        ASSERT_NEAR(logits[t * GetParam().vocab + i], want[t][i], 1e-3)
            << "position " << t << ", logit " << i;
        largest = std::max(largest, std::fabs(want[t][i]));
      }
      const auto best = std::max_element(want[t].begin(), want[t].end()) - want[t].begin();
      EXPECT_EQ(result->ids[t], best) << "position " << t;
    }
    EXPECT_GT(largest, 1);  // the logits say something
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ModelTest,
                         testing::Values(TinyModelOptions(),
                                         TinyModelOptions{.tied = false, .qkv_bias = true},
                                         TinyModelOptions{.layers = 1,
                                                          .heads = 4,
                                                          .kv_heads = 4,
                                                          .key_dim = 32,
                                                          .value_dim = 24,
                                                          .output_dtype = DType::kQ4_1}));

// ---- Steps
// -----------------------------------------------------------------------------------------------------

class ModelRunnerTest : public testing::Test {
 protected:
  TinyModelOptions model_;
  std::unique_ptr<Checkpoint> file_ = OpenTinyModel(model_);
};

TEST_F(ModelRunnerTest, AReferenceToASampledIdIsThatId) {
  for (const int num_ranks : {1, 3}) {
    const auto group = MakeGroup(*file_, Options(num_ranks));
    ASSERT_NE(group, nullptr);
    TestTables tables = Tables();
    const auto first = group->Step(Chunk(&tables, 0, {1, 2, 3}), std::vector<SampleRow>(3));
    ASSERT_TRUE(first.ok()) << first.status();
    std::vector<float> by_reference, literal;
    ASSERT_TRUE(group->Step(Chunk(&tables, 3, {-3}), std::vector<SampleRow>(1), &by_reference).ok());
    ASSERT_TRUE(group->Step(Chunk(&tables, 0, {1, 2, 3}, 1), std::vector<SampleRow>(3)).ok());
    ASSERT_TRUE(group->Step(Chunk(&tables, 3, {first->ids[2]}, 1), std::vector<SampleRow>(1), &literal).ok());
    EXPECT_EQ(by_reference, literal) << num_ranks << " ranks";
  }
}

TEST_F(ModelRunnerTest, LogprobsAreOfTheRawDistribution) {
  for (const int num_ranks : {1, 2}) {
    const auto group = MakeGroup(*file_, Options(num_ranks));
    ASSERT_NE(group, nullptr);
    TestTables tables = Tables();
    std::vector<SampleRow> samples(4);
    samples[1].num_top = 3;
    samples[2].num_top = 0;
    samples[2].target = 42;
    samples[3].num_top = kMaxTopLogprobs;
    samples[3].temperature = 0.5f;
    samples[3].top_k = 1;
    std::vector<float> logits;
    const auto result = group->Step(Chunk(&tables, 0, {7, 8, 9, 10}), samples, &logits);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->logprobs.size(), 4u);
    EXPECT_TRUE(result->logprobs[0].top.empty());
    EXPECT_EQ(result->ids[2], 42);
    for (const int r : {1, 2, 3}) {
      const float* row = &logits[r * model_.vocab];
      double sum = 0;
      for (int i = 0; i < model_.vocab; ++i) sum += std::exp(static_cast<double>(row[i]));
      const TokenLogprobs& got = result->logprobs[r];
      EXPECT_EQ(got.id, result->ids[r]);
      EXPECT_NEAR(got.logprob, row[got.id] - std::log(sum), 1e-4);
      ASSERT_EQ(static_cast<int>(got.top.size()), samples[r].num_top);
      for (size_t i = 0; i < got.top.size(); ++i) {
        EXPECT_NEAR(got.top[i].second, row[got.top[i].first] - std::log(sum), 1e-4);
        if (i > 0) {
          EXPECT_LE(got.top[i].second, got.top[i - 1].second);
        }
      }
      if (!got.top.empty()) {
        EXPECT_EQ(got.top[0].first, std::max_element(row, row + model_.vocab) - row);
      }
    }
  }
}

TEST_F(ModelRunnerTest, AStepWithoutRowsOrLogitsIsFine) {
  const auto group = MakeGroup(*file_, Options(2));
  ASSERT_NE(group, nullptr);
  TestTables tables = Tables();
  StepPlan prefill = Chunk(&tables, 0, {1, 2});
  prefill.rows[0].logit_offsets.clear();
  const auto result = group->Step(prefill, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->ids.empty());
  StepPlan over;
  tables.Release(&over, 0);
  tables.Finish(&over);
  EXPECT_TRUE(group->Step(over, {}).ok());
  EXPECT_TRUE(group->runner(0).ReadLogits()->empty());
}

TEST_F(ModelRunnerTest, AStepAllocatesNoDeviceMemory) {
  class CountingOps : public ForwardingOps {
   public:
    CountingOps(std::unique_ptr<Ops> inner, int* count) : ForwardingOps(std::move(inner)), count_(count) {}
    absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override {
      ++*count_;
      return inner_->Allocate(bytes);
    }

   private:
    int* count_;
  };
  int count = 0;
  TestGroupOptions options = Options();
  options.wrap_ops = [&](int, std::unique_ptr<Ops> ops) {
    return std::make_unique<CountingOps>(std::move(ops), &count);
  };
  const auto group = MakeGroup(*file_, options);
  ASSERT_NE(group, nullptr);
  EXPECT_GT(count, 0);
  count = 0;
  TestTables tables = Tables();
  ASSERT_TRUE(group->Step(Chunk(&tables, 0, {1, 2, 3}), std::vector<SampleRow>(3)).ok());
  EXPECT_EQ(count, 0);
}

// ---- Bad plans
// ---------------------------------------------------------------------------------------------------

struct BadPlan {
  const char* name;
  std::function<void(StepPlan*)> change;
  const char* message;
};

// Not done in time, so often.
class SlowOps : public ForwardingOps {
 public:
  SlowOps(std::unique_ptr<Ops> inner, std::atomic<int>* late)
      : ForwardingOps(std::move(inner)), late_(late) {}
  absl::Status Wait(int64_t mark, int64_t timeout_ms) override {
    if (*late_ <= 0) return ForwardingOps::Wait(mark, timeout_ms);
    --*late_;
    return absl::DeadlineExceededError("not done in time");
  }

 private:
  std::atomic<int>* const late_;
};

// It may wait for a peer's; a group of one has none.
TEST_F(ModelRunnerTest, ADeviceIsWaitedForWhileThePeersLive) {
  for (const int num_ranks : {1, 2}) {
    std::atomic<int> late{0};
    TestGroupOptions options = Options(num_ranks);
    options.wrap_ops = [&](int rank, std::unique_ptr<Ops> ops) -> std::unique_ptr<Ops> {
      if (rank != 0) return ops;
      return std::make_unique<SlowOps>(std::move(ops), &late);
    };
    const auto group = MakeGroup(*file_, options);
    ASSERT_NE(group, nullptr);
    TestTables tables = Tables();
    late = 3;
    const auto result = group->Step(Chunk(&tables, 0, kTokens), std::vector<SampleRow>(kTokens.size()));
    if (num_ranks == 1) {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded) << result.status();
    } else {
      EXPECT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(late, 0);
    }
  }
}

class BadPlanTest : public testing::TestWithParam<BadPlan> {};

TEST_P(BadPlanTest, IsAnErrorThatEndsTheRunner) {
  const TinyModelOptions model;
  const auto file = OpenTinyModel(model);
  const auto group = MakeGroup(*file, Options());
  ASSERT_NE(group, nullptr);
  TestTables tables = Tables();
  ASSERT_TRUE(group->Step(Chunk(&tables, 0, {1, 2}), std::vector<SampleRow>(2)).ok());
  StepPlan plan = Chunk(&tables, 2, {3, 4});
  GetParam().change(&plan);
  const absl::Status status = group->runner(0).Launch(plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_EQ(group->runner(0).Launch(StepPlan()), status);
  EXPECT_EQ(group->runner(0).Sample({}).status(), status);
  EXPECT_EQ(group->runner(0).ShareSampled(), status);
}

INSTANTIATE_TEST_SUITE_P(
    All, BadPlanTest,
    testing::Values(
        BadPlan{"Sequence", [](StepPlan* p) { p->rows[0].sequence = 7; }, "sequence 7"},
        BadPlan{"Checksum", [](StepPlan* p) { ++p->checksum; }, "checksum"},
        BadPlan{"NoTokens",
                [](StepPlan* p) {
                  p->rows[0].tokens.clear();
                  p->rows[0].logit_offsets.clear();
                },
                "no tokens"},
        BadPlan{"BeforeZero", [](StepPlan* p) { p->rows[0].first_position = -1; }, "positions -1 to 1"},
        BadPlan{"BehindTheBlocks", [](StepPlan* p) { p->rows[0].first_position = 15; },
                "positions 15 to 17, must be 0 to 16"},
        BadPlan{"FarPosition", [](StepPlan* p) { p->rows[0].first_position = 2147483647; },
                "positions 2147483647"},
        BadPlan{"Token", [](StepPlan* p) { p->rows[0].tokens[1] = 131; }, "token 131, must be below 131"},
        BadPlan{"Reference", [](StepPlan* p) { p->rows[0].tokens[0] = -3; }, "logits row 2"},
        BadPlan{"FarReference", [](StepPlan* p) { p->rows[0].tokens[0] = -2147483647 - 1; },
                "logits row 2147483647"},
        BadPlan{"RopeMode", [](StepPlan* p) { p->rows[0].rope_mode = 1; }, "RoPE mode 1, must be below 1"},
        BadPlan{"Offset", [](StepPlan* p) { p->rows[0].logit_offsets = {2}; }, "logits offset 2"},
        BadPlan{"FallingOffsets",
                [](StepPlan* p) {
                  p->rows[0].logit_offsets = {1, 0};
                },
                "logits offset 0"},
        BadPlan{"NegativeOffset", [](StepPlan* p) { p->rows[0].logit_offsets = {-1}; }, "logits offset -1"},
        BadPlan{"TooManyTokens", [](StepPlan* p) { p->rows[0].tokens.assign(65, 1); }, "65 tokens"},
        BadPlan{"TooManyLogits", [](StepPlan* p) { p->rows[0].logit_offsets.assign(33, 0); },
                "33 logits rows"}),
    [](const auto& info) { return info.param.name; });

TEST_F(ModelRunnerTest, WrongNumberOfSamplesIsAnError) {
  const auto group = MakeGroup(*file_, Options());
  ASSERT_NE(group, nullptr);
  TestTables tables = Tables();
  EXPECT_THAT(
      std::string(group->Step(Chunk(&tables, 0, {1, 2}), std::vector<SampleRow>(1)).status().message()),
      HasSubstr("1 samples for the 2 logits rows"));
}

// ---- Meeting the other ranks
// --------------------------------------------------------------------------------------

TEST_F(ModelRunnerTest, TheGroupHasTheFewestBlocksOfItsRanks) {
  TestGroupOptions options = Options(3);
  // Two layers, at most 2 of 3 KV heads, 16 + 16 channels in fp32, 16 positions.
  const int64_t block_bytes = 2 * 2 * 32 * 4 * kBlockSize;
  options.change_runner = [&](int rank, ModelRunnerOptions* runner) {
    if (rank == 2) runner->kv_bytes = 7 * block_bytes + 1;
  };
  const auto group = MakeGroup(*file_, options);
  ASSERT_NE(group, nullptr);
  for (int r = 0; r < 3; ++r) {
    EXPECT_GE(group->runner(r).num_kv_blocks(), 7);
    EXPECT_LE(group->runner(r).num_kv_blocks(), 14);  // where the rank holds one KV head
    EXPECT_EQ(group->runner(r).num_kv_blocks(), group->runner(0).num_kv_blocks());
    EXPECT_GT(group->runner(r).memory_bytes(), group->runner(r).weight_bytes());
  }
}

TEST_F(ModelRunnerTest, RanksWithOtherKernelsDoNotFormAGroup) {
  class OtherOps : public ForwardingOps {
   public:
    explicit OtherOps(std::unique_ptr<Ops> inner) : ForwardingOps(std::move(inner)), info_(inner_->info()) {
      info_.instruction_set = "abacus";
    }
    const OpsInfo& info() const override { return info_; }

   private:
    OpsInfo info_;
  };
  TestGroupOptions options = Options(2);
  options.wrap_ops = [](int rank, std::unique_ptr<Ops> ops) -> std::unique_ptr<Ops> {
    if (rank == 0) return ops;
    return std::make_unique<OtherOps>(std::move(ops));
  };
  const absl::Status status = TestGroup::Create(*file_, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("rank 0 has"), HasSubstr("isa=scalar"),
                                                   HasSubstr("rank 1 has"), HasSubstr("isa=abacus")));
}

TEST_F(ModelRunnerTest, RanksWithOtherOptionsDoNotFormAGroup) {
  TestGroupOptions options = Options(2);
  options.change_runner = [](int rank, ModelRunnerOptions* runner) {
    runner->block_size = rank == 0 ? 16 : 32;
  };
  const absl::Status status = TestGroup::Create(*file_, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("block_size=16"), HasSubstr("block_size=32")));
}

TEST_F(ModelRunnerTest, ARankThatFailsTellsTheOthers) {
  TestGroupOptions options = Options(3);
  options.change_runner = [](int rank, ModelRunnerOptions* runner) {
    if (rank == 2) runner->kv_bytes = 1;
  };
  // The first error is rank 0's, which is well itself.
  const absl::Status status = TestGroup::Create(*file_, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("rank 2: kv_bytes is 1,"), HasSubstr("one block")));
}

TEST_F(ModelRunnerTest, BadOptionsAreNamed) {
  const auto message = [&](const std::function<void(ModelRunnerOptions*)>& change) {
    TestGroupOptions options = Options();
    change(&options.runner);
    const absl::Status status = TestGroup::Create(*file_, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message([](auto* o) { o->block_size = 48; }), HasSubstr("block_size is 48, must divide 256"));
  EXPECT_THAT(message([](auto* o) { o->context_length = 513; }),
              HasSubstr("513, must be 1 to the model's 512"));
  EXPECT_THAT(message([](auto* o) { o->max_kv_blocks = 0; }), HasSubstr("max_kv_blocks is 0"));
  EXPECT_THAT(message([](auto* o) { o->max_logits_per_step = 0; }), HasSubstr("max_logits_per_step is 0"));
}

TEST_F(ModelRunnerTest, AWrongFileIsNamedTensorByTensor) {
  std::vector<TinyTensor> tensors = TinyTensors(model_);
  std::erase_if(tensors, [](const TinyTensor& t) { return t.name == "blk.1.ffn_up.weight"; });
  tensors.push_back({"blk.0.attn_output.bias", DType::kF32, {96}, std::vector<float>(96)});
  const auto file = OpenTinyModel(model_, tensors, "wrong");
  const absl::Status status = TestGroup::Create(*file, Options()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("2 tensors"), HasSubstr("blk.1.ffn_up.weight is missing"),
                    HasSubstr("blk.0.attn_output.bias [96] is not known")));
}

TEST_F(ModelRunnerTest, AnUnknownArchitectureIsNamed) {
  ModelConfig config = file_->config();
  config.architecture = "abacus";
  ModelContext context;
  context.checkpoint = file_.get();
  context.config = &config;
  const absl::Status status = CreateModel(context).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("'abacus'"), HasSubstr("llama")));
}

TEST_F(ModelRunnerTest, TheFingerprintSaysWhatTheTokensDependOn) {
  const OpsInfo info = {.backend = "cpu",
                        .instruction_set = "avx2",
                        .device = "a CPU",
                        .weight_dtype = DType::kBF16,
                        .kv_type = KvType::kInt8,
                        .kernel_version = 3};
  const std::string fingerprint = Fingerprint(*file_, info, 8);
  EXPECT_THAT(fingerprint, AllOf(HasSubstr("dtype=BF16"), HasSubstr("kv=int8"), HasSubstr("backend=cpu"),
                                 HasSubstr("isa=avx2"), HasSubstr("kernels=3"), HasSubstr("shards=8"),
                                 Not(HasSubstr("a CPU"))));
  EXPECT_NE(Fingerprint(*file_, info, 9), fingerprint);
  TinyModelOptions other = model_;
  other.seed = 2;
  EXPECT_NE(Fingerprint(*OpenTinyModel(other), info, 8), fingerprint);
}

TEST(RowsToReplayTest, IsTheSmallestThatHoldsAStepOfFewTokensASequence) {
  const std::vector<int> recorded = {1, 2, 4, 20};
  const auto of = [&](const std::vector<int>& tokens, bool logits = true) {
    StepPlan plan;
    for (const int n : tokens) {
      PlanRow row;
      row.tokens.assign(static_cast<size_t>(n), 7);
      if (logits) row.logit_offsets = {n - 1};
      plan.rows.push_back(row);
    }
    return RowsToReplay(plan, recorded);
  };
  EXPECT_EQ(of({}), 0);
  EXPECT_EQ(of({1}), 1);
  EXPECT_EQ(of({1, 1}), 2);
  EXPECT_EQ(of({1, 1, 1}), 4);
  EXPECT_EQ(of({4}), 4);
  EXPECT_EQ(of({2, 3}), 20);
  EXPECT_EQ(of({16, 4}), 20);
  EXPECT_EQ(of({16, 5}), 0) << "more than were recorded";
  EXPECT_EQ(of({17}), 0) << "a chunk of a prompt";
  EXPECT_EQ(of({1, 17}), 0);
  EXPECT_EQ(of({3}, /*logits=*/false), 0) << "a chunk of a prompt, however short";
}

TEST_F(ModelRunnerTest, TheCacheIsWhatPackedWeightsLeave) {
  const auto file = OpenTinyModel({});
  TestGroupOptions options = Options();
  int64_t packed = -1;
  options.runner.on_packed = [&](int64_t bytes) {
    packed = bytes;
    return int64_t{1} << 17;
  };
  const auto group = MakeGroup(*file, options);
  ASSERT_NE(group, nullptr);
  EXPECT_EQ(packed, group->runner(0).weight_bytes());
  EXPECT_GT(group->runner(0).num_kv_blocks(), 0);
  EXPECT_LT(group->runner(0).num_kv_blocks(), options.runner.max_kv_blocks);
}

}  // namespace
}  // namespace phalanx

// Steps that are replayed give the bits of steps that are enqueued: an engine of two layers on a device, with
// sequences that join and leave, on one and two ranks; and what goes wrong with replays shows.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <optional>

#include "kernels/backends.h"
#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/runtime.h"
#include "tests/cuda/device_group.h"
#include "tests/kernels/ops_testing.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_classes.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

using simt::Fault;

constexpr int kBlockSize = 16;
constexpr int kNumBlocks = 40;
constexpr int kVocab = 131;
constexpr const char* kLazyRung = "cuda-lazy";

bool OnEmulator() { return TestedDevice() == kEmulatedCudaRung; }

const bool registered = [] {
  RegisterBackend(kLazyRung, [](const OpsOptions& options) -> absl::StatusOr<std::unique_ptr<Ops>> {
    return cuda::CreateCudaOps(cuda::CreateEmulatedRuntime(/*lazy=*/true), options);
  });
  return true;
}();

std::unique_ptr<TestGroup> MakeGroup(const Checkpoint& file, DeviceGraphs graphs, int num_ranks,
                                     const std::string& rung = TestedDevice(),
                                     std::optional<ExchangePath> path = std::nullopt, int max_tokens = 64) {
  TestGroupOptions options;
  options.num_ranks = num_ranks;
  options.ops = {.rung = rung, .compute = Compute::kFast, .num_threads = 1};
  options.ops.graphs = graphs;
  options.runner = {.max_tokens_per_step = max_tokens,
                    .max_logits_per_step = max_tokens,
                    .context_length = 0,
                    .block_size = kBlockSize,
                    .kv_bytes = int64_t{1} << 24,
                    .max_kv_blocks = kNumBlocks};
  options.runner.replay_rows = {1, 2, 4, 8};
  if (path) {
    options.create_collectives = [path](const auto& ops, const CollectiveOptions& collective) {
      return CreateDeviceGroup(ops, collective, *path);
    };
  }
  absl::StatusOr<std::unique_ptr<TestGroup>> group = TestGroup::Create(file, options);
  EXPECT_TRUE(group.ok()) << group.status();
  return group.ok() ? *std::move(group) : nullptr;
}

// Plans of a batch that changes: a sequence of several chunks of keys, others that join, one that leaves, and
// one that has several tokens at once. Decoding takes the ids from the step before.
std::vector<StepPlan> Plans(int prompt_steps = 4, int vocab = kVocab) {
  std::vector<int32_t> order(kNumBlocks);
  std::iota(order.rbegin(), order.rend(), 0);  // block 0 comes first
  TestTables tables(kNumBlocks, kBlockSize, order);
  std::vector<StepPlan> plans;
  std::vector<int32_t> length(5, 0), last_logit(5, -1);
  struct Part {
    uint32_t sequence;
    int tokens;  // the first is the last step's, where there is one
    int logits = 1;
  };
  const auto step = [&](const std::vector<Part>& parts, int released = -1) {
    StepPlan plan;
    if (released >= 0) tables.Release(&plan, static_cast<uint32_t>(released));
    std::vector<int32_t> logits(5, -1);
    int32_t num_logits = 0;
    for (const Part& part : parts) {
      PlanRow row;
      row.sequence = part.sequence;
      row.first_position = length[part.sequence];
      for (int i = 0; i < part.tokens; ++i) {
        const int32_t known = (length[part.sequence] + i) * 29 + static_cast<int32_t>(part.sequence);
        const bool sampled = i == 0 && last_logit[part.sequence] >= 0;
        row.tokens.push_back(sampled ? -1 - last_logit[part.sequence] : known % vocab);
      }
      for (int i = part.tokens - part.logits; i < part.tokens; ++i) row.logit_offsets.push_back(i);
      num_logits += part.logits;
      logits[part.sequence] = part.logits > 0 ? num_logits - 1 : -1;
      length[part.sequence] += part.tokens;
      tables.Grow(&plan, part.sequence, length[part.sequence]);
      plan.rows.push_back(row);
    }
    last_logit = logits;
    tables.Finish(&plan);
    plans.push_back(plan);
  };
  for (int i = 1; i <= prompt_steps; ++i) step({{0, 64, i == prompt_steps ? 1 : 0}});
  step({{0, 1}});
  step({{0, 1}, {1, 5}});  // six rows, filled up to eight
  step({{0, 1}, {1, 1}});
  step({{0, 1}, {1, 1}, {2, 3}, {3, 2}});
  step({{0, 1}, {1, 1}, {2, 1}, {3, 1}});
  step({{0, 1}, {2, 1}, {3, 1}}, 1);  // three rows of four
  step({{3, 4, 4}, {0, 1}, {2, 1}});  // six of eight
  step({{2, 1}, {3, 1}});
  step({{3, 1}}, 0);
  step({{3, 1}, {4, 1}, {2, 30, 1}});  // a chunk of a prompt: enqueued
  step({{4, 1}, {2, 1}, {3, 1}});
  return plans;
}
constexpr int kReplayed = 10;  // of these steps

struct Outcome {
  std::vector<std::vector<int32_t>> ids;
  std::vector<float> logits;
};

Outcome RunAll(TestGroup& group, const std::vector<StepPlan>& plans) {
  Outcome run;
  for (const StepPlan& plan : plans) {
    std::vector<float> logits;
    const auto result =
        group.Step(plan, std::vector<SampleRow>(static_cast<size_t>(plan.num_logits())), &logits);
    if (!result.ok()) {
      ADD_FAILURE() << "step " << plan.step << ": " << result.status();
      return run;
    }
    run.ids.push_back(result->ids);
    run.logits.insert(run.logits.end(), logits.begin(), logits.end());
  }
  return run;
}

bool Same(const Outcome& a, const Outcome& b) {
  return a.ids == b.ids && a.logits.size() == b.logits.size() &&
         std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0;
}

class ReplayTest : public testing::Test {
 protected:
  ~ReplayTest() override { simt::SetFault(Fault::kNone); }
  static const Checkpoint& File() {
    static const auto& file = *OpenTinyModel(TinyModelOptions(), "replay").release();
    return file;
  }
  // The run without replays.
  static const Outcome& Want() {
    static const Outcome& want = *new Outcome(RunAll(*MakeGroup(File(), DeviceGraphs::kOff, 1), Plans()));
    return want;
  }
};

TEST_F(ReplayTest, GivesTheBitsOfEnqueuedSteps) {
  struct Case {
    int ranks, pieces;
    std::optional<ExchangePath> path = std::nullopt;
  };
  // Exchanges that cannot be recorded leave a piece between each two: of two layers with two, and the head.
  std::vector<Case> cases = {{1, 1}, {2, 5, ExchangePath::kVirtual}};
  // Kernels that wait for each other are for ranks that are processes, but for the emulator's.
  if (OnEmulator()) cases.push_back({2, 1, ExchangePath::kPeer});
  for (const auto& [ranks, pieces, path] : cases) {
    SCOPED_TRACE(path ? static_cast<int>(*path) : -1);
    const auto group = MakeGroup(File(), DeviceGraphs::kOn, ranks, TestedDevice(), path);
    ASSERT_NE(group, nullptr);
    EXPECT_TRUE(Same(RunAll(*group, Plans()), Want()));
    for (int r = 0; r < ranks; ++r) {
      const ReplayStats stats = group->ops(r).replay_stats();
      EXPECT_EQ(stats.recorded, 4 * pieces) << "rank " << r;
      EXPECT_EQ(stats.replayed, kReplayed * pieces) << "rank " << r;
      EXPECT_EQ(stats.not_recorded, 0);
      if (OnEmulator()) {
        EXPECT_GT(stats.bytes, 0);
      }
    }
  }
}

TEST_F(ReplayTest, LatentAttentionAndExperts) {
  const auto file = TinyDeepseek({});
  const std::vector<StepPlan> plans = Plans(1, static_cast<int>(file->config().vocab_size));
  const auto enqueued = MakeGroup(*file, DeviceGraphs::kOff, 1),
             replayed = MakeGroup(*file, DeviceGraphs::kOn, 1);
  ASSERT_TRUE(enqueued != nullptr && replayed != nullptr);
  EXPECT_TRUE(Same(RunAll(*replayed, plans), RunAll(*enqueued, plans)));
  EXPECT_EQ(replayed->ops(0).replay_stats().replayed, kReplayed);
}

TEST_F(ReplayTest, TheLargestStepIsRecordedToo) {
  const auto group = MakeGroup(File(), DeviceGraphs::kOn, 1, TestedDevice(), std::nullopt, /*max_tokens=*/4);
  ASSERT_NE(group, nullptr);
  EXPECT_EQ(group->ops(0).replay_stats().recorded, 3) << "of 1, 2 and 4 rows";
}

TEST_F(ReplayTest, ASecondStepMayBeLaunchedBeforeTheFirstOnesIdsAreWaitedFor) {
  const auto group = MakeGroup(File(), DeviceGraphs::kOn, 1, OnEmulator() ? kLazyRung : TestedDevice());
  ASSERT_NE(group, nullptr);
  ModelRunner& runner = group->runner(0);
  ASSERT_TRUE(runner.runs_ahead());
  const std::vector<StepPlan> plans = Plans();
  std::vector<std::vector<int32_t>> ids;
  ASSERT_TRUE(runner.Launch(plans[0]).ok());
  for (size_t i = 0; i < plans.size(); ++i) {
    ASSERT_TRUE(runner.StartSample(std::vector<SampleRow>(static_cast<size_t>(plans[i].num_logits()))).ok());
    ASSERT_TRUE(runner.ShareSampled().ok());
    if (i + 1 < plans.size()) {
      ASSERT_TRUE(runner.Launch(plans[i + 1]).ok());
    }
    absl::StatusOr<StepResult> result = runner.FinishSample();
    ASSERT_TRUE(result.ok()) << result.status();
    ids.push_back(result->ids);
  }
  EXPECT_EQ(ids, Want().ids);
}

TEST_F(ReplayTest, ItemsOfTheStepBeforeAndStoredPaddingShow) {
  if (!OnEmulator()) GTEST_SKIP() << "faults are planted in the emulator";
  for (const Fault fault : {Fault::kAttentionStaleItems, Fault::kRopeStoresPadding}) {
    const auto group = MakeGroup(File(), DeviceGraphs::kOn, 1);
    ASSERT_NE(group, nullptr);
    const std::vector<StepPlan> plans = Plans();
    const std::vector<StepPlan> prefill(plans.begin(), plans.begin() + 4),
        decode(plans.begin() + 4, plans.end());
    RunAll(*group, prefill);
    simt::SetFault(fault);
    Outcome got = RunAll(*group, decode);
    simt::SetFault(Fault::kNone);
    const size_t missing = Want().logits.size() - got.logits.size();
    ASSERT_EQ(missing, size_t{kVocab}) << "the prompt's";
    got.logits.insert(got.logits.begin(), Want().logits.begin(),
                      Want().logits.begin() + static_cast<std::ptrdiff_t>(missing));
    got.ids.insert(got.ids.begin(), Want().ids.begin(), Want().ids.begin() + 4);
    EXPECT_FALSE(Same(got, Want())) << static_cast<int>(fault);
  }
}

// ---- Attention alone --------------------------------------------------------------------------------

class ReplayedAttentionTest : public testing::Test {
 protected:
  static constexpr int64_t kHeads = 2, kWidth = 16, kLength = 600, kMost = 60;

  ReplayedAttentionTest() {
    OpsOptions options{TestedDevice(), Compute::kFast, 1};
    options.graphs = DeviceGraphs::kOn;
    ops_ = OrDie(CreateOps(options));
    std::vector<int32_t> table((kLength + 15) / 16);
    std::iota(table.rbegin(), table.rend(), 0);
    kv_ = std::make_unique<PagedKv>(*ops_, KvCacheShape{1, kHeads, kWidth, kWidth, 16},
                                    static_cast<int64_t>(table.size()),
                                    RopeConfig{10000.0, 0, false, {}, 1.0f}, kLength);
    Random random(4);
    kv_->Store(0, kHeads, random.Normal(kLength * kHeads * kWidth), random.Normal(kLength * kHeads * kWidth),
               random.Normal(kLength * kHeads * kWidth), Positions(0, kLength),
               SlotsOf(table, 16, 0, kLength));
    table_ = std::make_unique<DeviceArray<int32_t>>(*ops_, table);
    q_ =
        std::make_unique<DeviceMatrix>(*ops_, kMost, kHeads * kWidth, random.Normal(kMost * kHeads * kWidth));
    replayed_out_ = std::make_unique<DeviceMatrix>(*ops_, kMost, kHeads * kWidth);
    enqueued_out_ = std::make_unique<DeviceMatrix>(*ops_, kMost, kHeads * kWidth);
  }
  ~ReplayedAttentionTest() override { simt::SetFault(Fault::kNone); }

  // Of `count` sequences of one row each, that end `back` positions before the last and the ones before it.
  std::vector<float> Attend(bool replay, int64_t count, int64_t back) {
    DeviceMatrix& out = replay ? *replayed_out_ : *enqueued_out_;
    std::vector<AttentionSequence> sequences;
    for (int64_t i = 0; i < count; ++i) {
      sequences.push_back({i, 1, kLength - 1 - back - i, table_->data()});
    }
    AttentionParams p;
    p.q = q_->view();
    p.num_heads = kHeads;
    p.kv_head_of = kv_head_of_;
    p.cache = kv_->cache();
    p.scale = 0.25f;
    p.sequences = sequences;
    p.out = out.view();
    const auto enqueue = [&] { return ops_->Attention(p); };
    const absl::Status status =
        replay ? ops_->Replay({.key = {1, 2, 3}, .sequences = sequences}, enqueue) : enqueue();
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> values = out.Get();
    values.resize(static_cast<size_t>(count * kHeads * kWidth));
    return values;
  }

  const int kv_head_of_[kHeads] = {0, 1};
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<PagedKv> kv_;
  std::unique_ptr<DeviceArray<int32_t>> table_;
  std::unique_ptr<DeviceMatrix> q_, replayed_out_, enqueued_out_;
};

// 60 sequences make 360 items, more than a fixed grid has blocks.
TEST_F(ReplayedAttentionTest, GridsAndPlacesStayAndItemsChange) {
  EXPECT_TRUE(SameBits(Attend(true, 2, 0), Attend(false, 2, 0)));
  EXPECT_TRUE(SameBits(Attend(true, kMost, 5), Attend(false, kMost, 5)));
  EXPECT_TRUE(SameBits(Attend(true, 3, 400), Attend(false, 3, 400)));
  // Last chunks of less than a stage of keys, whose values lie where the next item's keys come first.
  EXPECT_TRUE(SameBits(Attend(true, kMost, 40), Attend(false, kMost, 40)));
  EXPECT_EQ(ops_->replay_stats().replayed, 3);
  const std::vector<float> want = Attend(false, kMost, 6);
  if (!OnEmulator()) return;
  simt::SetFault(Fault::kAttentionOneItem);
  EXPECT_FALSE(SameBits(Attend(true, kMost, 6), want));
}

TEST_F(ReplayedAttentionTest, WhatCannotBeRecordedIsAnErrorOrCounted) {
  DeviceArray<int32_t> to(*ops_, {0});
  const int32_t from = 7;
  const auto copies = [&] { return ops_->Copy(to.data(), &from, 4, CopyKind::kToDevice); };
  const absl::Status status = ops_->Replay({.key = {9, 9, 9}, .sequences = {}}, copies);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("cannot be recorded"), std::string::npos) << status;
  EXPECT_EQ(to.Get(), std::vector<int32_t>{7});
  // Outside of a recording all is as before.
  EXPECT_TRUE(SameBits(Attend(true, 2, 0), Attend(false, 2, 0)));
  ops_->StopReplays();
  EXPECT_FALSE(ops_->info().replays);
  EXPECT_EQ(ops_->replay_stats().recorded, 0);
  EXPECT_TRUE(SameBits(Attend(true, 2, 1), Attend(false, 2, 1)));
}

}  // namespace
}  // namespace phalanx

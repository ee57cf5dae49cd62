// Same request, same tokens: the logits of a sequence have the same bits alone and in any batch, in any
// chunking, prefilled or decoded, on any blocks, with any number of threads and ranks. One property, run over
// every backend of this host; and two planted faults that it must find.
#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/forwarding_ops.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_classes.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

constexpr int kBlockSize = 16;
constexpr int kNumBlocks = 256;
constexpr int kMaxTokens = 320;

// How sequences are run: the first `batch` of them together, in random chunks, rows in random order.
struct Variation {
  int num_ranks = 1;
  int num_threads = 1;
  int batch = 1;
};

struct Sequence {
  std::vector<int32_t> tokens;  // prompt, then what the model said to it alone, greedily
  int64_t prompt_size = 0;
  std::vector<std::vector<float>> logits;  // of every position but the last, alone
};

// The first sequence crosses a border of attention chunks; the rest are short.
std::vector<Sequence> MakeSequences(int count, int vocab_size, std::mt19937* random) {
  std::vector<Sequence> sequences(count);
  for (int i = 0; i < count; ++i) {
    const int size = i == 0 ? kAttentionChunk + 5 : i == 1 ? 40 : 1 + static_cast<int>((*random)() % 9);
    for (int j = 0; j < size; ++j)
      sequences[i].tokens.push_back(static_cast<int32_t>((*random)() % vocab_size));
    sequences[i].prompt_size = size;
  }
  return sequences;
}

std::vector<int32_t> ShuffledBlocks(std::mt19937* random) {
  std::vector<int32_t> order(kNumBlocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), *random);
  return order;
}

std::vector<int32_t> AllOffsets(int64_t n) {
  std::vector<int32_t> offsets(n);
  std::iota(offsets.begin(), offsets.end(), 0);
  return offsets;
}

class Property {
 public:
  Property(const Checkpoint& file, OpsOptions ops) : file_(file) {
    options_.ops = std::move(ops);
    options_.runner = {.max_tokens_per_step = kMaxTokens,
                       .max_logits_per_step = kMaxTokens,
                       .context_length = 0,
                       .block_size = kBlockSize,
                       .kv_bytes = int64_t{1} << 30,
                       .max_kv_blocks = kNumBlocks};
  }
  TestGroupOptions& options() { return options_; }

  // What the first variation to break the property did and where the bits parted; empty where it holds.
  absl::StatusOr<std::string> FindViolation(const std::vector<Variation>& variations) {
    int count = 1;
    for (const Variation& v : variations) count = std::max(count, v.batch);
    PHX_RETURN_IF_ERROR(RunAlone(count));
    for (const Variation& v : variations) {
      PHX_ASSIGN_OR_RETURN(const std::string violation, RunTogether(v));
      if (!violation.empty()) {
        return absl::StrCat("ranks ", v.num_ranks, ", threads ", v.num_threads, ", batch of ", v.batch, ": ",
                            violation);
      }
    }
    return std::string();
  }

 private:
  // Neighbours have different ones where there are several.
  static uint32_t ModeOf(uint32_t sequence, const TestGroup& group) {
    return sequence % static_cast<uint32_t>(group.config().rope.size());
  }

  // Fills in sequences_: each prefilled at once, then decoded token by token from what was sampled.
  absl::Status RunAlone(int count) {
    PHX_ASSIGN_OR_RETURN(const auto group, TestGroup::Create(file_, options_));
    const int vocab = group->config().vocab_size;
    sequences_ = MakeSequences(count, vocab, &random_);
    TestTables tables(kNumBlocks, kBlockSize, ShuffledBlocks(&random_));
    for (int i = 0; i < count; ++i) {
      Sequence& sequence = sequences_[i];
      const auto id = static_cast<uint32_t>(i);
      const int generated = i < 2 ? 6 : 3;
      std::vector<int32_t> input = sequence.tokens;
      for (int g = 0; g < generated; ++g) {
        StepPlan plan;
        const auto size = static_cast<int64_t>(input.size());
        const auto position = static_cast<int64_t>(sequence.logits.size());
        tables.Grow(&plan, id, position + size);
        PlanRow row;
        row.sequence = id;
        row.first_position = static_cast<int32_t>(position);
        row.tokens = input;
        row.logit_offsets = AllOffsets(size);
        row.rope_mode = ModeOf(id, *group);
        plan.rows.push_back(std::move(row));
        tables.Finish(&plan);
        std::vector<float> logits;
        PHX_ASSIGN_OR_RETURN(const StepResult result,
                             group->Step(plan, std::vector<SampleRow>(size), &logits));
        for (int64_t r = 0; r < size; ++r) {
          sequence.logits.emplace_back(logits.begin() + r * vocab, logits.begin() + (r + 1) * vocab);
        }
        sequence.tokens.push_back(result.ids.back());
        input = {-static_cast<int32_t>(size)};  // the last logits row of this step
      }
      StepPlan over;
      tables.Release(&over, id);
      tables.Finish(&over);
      PHX_RETURN_IF_ERROR(group->Step(over, {}).status());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> RunTogether(const Variation& v) {
    TestGroupOptions options = options_;
    options.num_ranks = v.num_ranks;
    options.ops.num_threads = v.num_threads;
    PHX_ASSIGN_OR_RETURN(const auto group, TestGroup::Create(file_, options));
    const int vocab = group->config().vocab_size;
    TestTables tables(kNumBlocks, kBlockSize, ShuffledBlocks(&random_));
    std::vector<int64_t> done(v.batch, 0);  // positions run
    std::vector<int32_t> last_logits(v.batch,
                                     -1);  // row of the step before with the logits of position done - 1
    std::vector<uint32_t> live(v.batch);
    std::iota(live.begin(), live.end(), 0);
    struct Asked {
      uint32_t sequence;
      int64_t position;
    };
    while (!live.empty()) {
      std::shuffle(live.begin(), live.end(), random_);
      StepPlan plan;
      std::vector<Asked> asked;
      std::vector<int32_t> logits_of(v.batch, -1);
      int64_t budget = kMaxTokens;
      for (const uint32_t id : live) {
        if (!plan.rows.empty() && random_() % 5 == 0) continue;
        const Sequence& sequence = sequences_[id];
        const auto end = static_cast<int64_t>(sequence.logits.size());
        const int64_t sizes[] = {1, 1, 2, 5, 17, 64, end};
        const int64_t size = std::min({sizes[random_() % 7], end - done[id], budget});
        if (size == 0) continue;
        PlanRow row;
        row.sequence = id;
        row.first_position = static_cast<int32_t>(done[id]);
        row.rope_mode = ModeOf(id, *group);
        row.tokens.assign(sequence.tokens.begin() + done[id], sequence.tokens.begin() + done[id] + size);
        if (done[id] >= sequence.prompt_size && last_logits[id] >= 0 && random_() % 2 == 0) {
          row.tokens[0] = -1 - last_logits[id];
        }
        const int which = static_cast<int>(random_() % 4);  // all, all, some, the last
        for (int64_t i = 0; i < size; ++i) {
          if (which == 3 ? i + 1 < size : which == 2 && random_() % 2 == 0) continue;
          row.logit_offsets.push_back(static_cast<int32_t>(i));
          if (i + 1 == size) logits_of[id] = static_cast<int32_t>(asked.size());
          asked.push_back({id, done[id] + i});
        }
        done[id] += size;
        budget -= size;
        tables.Grow(&plan, id, done[id]);
        plan.rows.push_back(std::move(row));
      }
      std::erase_if(
          live, [&](uint32_t id) { return done[id] == static_cast<int64_t>(sequences_[id].logits.size()); });
      last_logits = logits_of;
      tables.Finish(&plan);
      std::vector<float> logits;
      PHX_RETURN_IF_ERROR(group->Step(plan, std::vector<SampleRow>(asked.size()), &logits).status());
      for (size_t r = 0; r < asked.size(); ++r) {
        const std::vector<float>& want = sequences_[asked[r].sequence].logits[asked[r].position];
        for (int i = 0; i < vocab; ++i) {
          const float got = logits[r * vocab + i];
          if (std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(want[i])) continue;
          return absl::StrCat("sequence ", asked[r].sequence, ", position ", asked[r].position, ", logit ", i,
                              " is ", got, " among ", plan.num_tokens(), " tokens, and ", want[i], " alone");
        }
      }
    }
    return std::string();
  }

  const Checkpoint& file_;
  TestGroupOptions options_;
  std::mt19937 random_{7};
  std::vector<Sequence> sequences_;
};

const std::vector<Variation>& AllVariations() {
  static const auto* variations = new std::vector<Variation>{
      {.batch = 1},
      {.batch = 2},
      {.num_threads = 3, .batch = 7},
      {.batch = 64},
      {.num_ranks = 2, .batch = 9},
      {.num_ranks = 3, .batch = 9},
      {.num_ranks = 5, .batch = 9},
      {.num_ranks = 8, .batch = 9},
  };
  return *variations;
}

struct Backend {
  std::string rung;
  Compute compute;
  KvType kv_type = KvType::kAuto;
  std::string name() const {
    return absl::StrCat(rung, compute == Compute::kFp32 ? "_fp32" : "_fast",
                        IsQuantised(kv_type) ? absl::StrCat("_", KvTypeName(kv_type), "_kv") : "");
  }
};
void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name(); }

std::vector<Backend> Backends() {
  std::vector<Backend> backends;
  for (const std::string& rung : TestedRungs()) {
    for (const Compute compute : {Compute::kFp32, Compute::kFast}) backends.push_back({rung, compute});
    // The rungs that read codes in ways of their own.
    if (rung == "avx2") backends.push_back({rung, Compute::kFast, KvType::kFp8});
    if (rung == TestedRungs().back()) backends.push_back({rung, Compute::kFast, KvType::kInt8});
  }
  return backends;
}

class InvarianceTest : public testing::TestWithParam<Backend> {
 protected:
  OpsOptions ops() const { return {GetParam().rung, GetParam().compute, 1, GetParam().kv_type}; }
};

TEST_P(InvarianceTest, LogitsDependOnTheSequenceOnly) {
  const auto file = OpenTinyModel(TinyModelOptions());
  Property property(*file, ops());
  const absl::StatusOr<std::string> violation = property.FindViolation(AllVariations());
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

// Heads of 16 channels cut blocks of 32 in two; some ranks have no heads, no FFN columns and no vocabulary at
// all.
TEST_P(InvarianceTest, EvenWhereShardsAreEmptyOrCutBlocks) {
  TinyModelOptions model;
  model.heads = 4;
  model.kv_heads = 1;
  model.ffn = 96;
  model.vocab = 6;
  model.tied = false;
  model.qkv_bias = true;
  model.output_dtype = DType::kQ4_1;
  const auto file = OpenTinyModel(model);
  Property property(*file, ops());
  const absl::StatusOr<std::string> violation = property.FindViolation({{.batch = 5},
                                                                        {.num_ranks = 3, .batch = 5},
                                                                        {.num_ranks = 7, .batch = 5},
                                                                        {.num_ranks = 8, .batch = 5}});
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

// A number of shards that is no power of two.
TEST_P(InvarianceTest, EvenWithElevenShards) {
  const auto file = OpenTinyModel(TinyModelOptions());
  Property property(*file, ops());
  property.options().num_shards = 11;
  const absl::StatusOr<std::string> violation =
      property.FindViolation({{.batch = 3}, {.num_ranks = 2, .batch = 3}, {.num_ranks = 4, .batch = 3}});
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

// Every number of ranks. The first two sequences are long.
std::vector<Variation> EveryNumberOfRanks() {
  std::vector<Variation> variations = {{.num_threads = 2, .batch = 4}};
  for (int ranks = 1; ranks <= kDefaultShards; ++ranks) {
    variations.push_back({.num_ranks = ranks, .batch = 4});
  }
  return variations;
}

TEST_P(InvarianceTest, OfPhi3WithBothRopeModesInOneBatch) {
  const auto model = TinyPhi3();
  Property property(*model, ops());
  const absl::StatusOr<std::string> violation = property.FindViolation(EveryNumberOfRanks());
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

TEST_P(InvarianceTest, OfQwen2) {
  const auto model = TinyQwen2();
  Property property(*model, ops());
  const absl::StatusOr<std::string> violation = property.FindViolation(EveryNumberOfRanks());
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

TEST_P(InvarianceTest, OfDeepseek) {
  if (IsQuantised(GetParam().kv_type)) GTEST_SKIP() << "codes are not for latents";
  const auto model = TinyDeepseek({});
  Property property(*model, ops());
  const absl::StatusOr<std::string> violation = property.FindViolation(EveryNumberOfRanks());
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

// Ranks without heads, which hold no cache; without experts; no latent of the queries, no shared experts.
TEST_P(InvarianceTest, OfDeepseekWhereRanksHoldNothing) {
  if (IsQuantised(GetParam().kv_type)) GTEST_SKIP() << "codes are not for latents";
  TinyDeepseekOptions options;
  options.heads = 3;
  options.mla.q_lora_rank = 0;
  options.moe = {.num_experts = 5,
                 .experts_per_token = 5,
                 .expert_ffn_size = 20,
                 .num_shared_experts = 0,
                 .first_dense_layers = 0,
                 .num_groups = 1,
                 .topk_groups = 1,
                 .normalize = false,
                 .scaling_factor = 1};
  const auto model = TinyDeepseek(options);
  Property property(*model, ops());
  property.options().num_shards = 11;
  const absl::StatusOr<std::string> violation = property.FindViolation({{.batch = 3},
                                                                        {.num_ranks = 2, .batch = 3},
                                                                        {.num_ranks = 5, .batch = 3},
                                                                        {.num_ranks = 11, .batch = 3}});
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_EQ(*violation, "");
}

INSTANTIATE_TEST_SUITE_P(Rungs, InvarianceTest, testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.name(); });

// ---- Planted faults
// ------------------------------------------------------------------------------------------

// Sums the two halves of K apart once there are four rows or more, as a split-K kernel chosen by a heuristic
// does.
class SplitKOps : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;

  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& p) override {
    if (!p.shard_cuts.empty()) return inner_->PackWeight(p);
    auto weight = std::make_unique<Weight>();
    PackWeightParams half = p;
    PHX_ASSIGN_OR_RETURN(weight->whole, inner_->PackWeight(p));
    half.cols.end = p.cols.begin + p.cols.size() / 2;
    PHX_ASSIGN_OR_RETURN(weight->left, inner_->PackWeight(half));
    half.cols = {half.cols.end, p.cols.end};
    PHX_ASSIGN_OR_RETURN(weight->right, inner_->PackWeight(half));
    return weight;
  }

  absl::Status Matmul(const MatmulParams& p) override {
    const auto& weight = static_cast<const Weight&>(*p.weight);
    MatmulParams part = p;
    part.weight = weight.whole.get();
    if (p.x.rows < 4) return inner_->Matmul(part);
    part.weight = weight.left.get();
    part.x.cols = weight.left->k();
    PHX_RETURN_IF_ERROR(inner_->Matmul(part));
    std::vector<float> right(p.y.rows * p.y.cols);
    part.weight = weight.right.get();
    part.x.data = static_cast<float*>(p.x.data) + weight.left->k();
    part.x.cols = weight.right->k();
    part.bias = nullptr;
    part.y = {.data = right.data(), .rows = p.y.rows, .cols = p.y.cols, .stride = p.y.cols};
    PHX_RETURN_IF_ERROR(inner_->Matmul(part));
    for (int64_t r = 0; r < p.y.rows; ++r) {
      for (int64_t c = 0; c < p.y.cols; ++c) {
        static_cast<float*>(p.y.data)[r * p.y.stride + c] += right[r * p.y.cols + c];
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Weight : PackedWeight {
    std::unique_ptr<PackedWeight> whole, left, right;
    int64_t n() const override { return whole->n(); }
    int64_t k() const override { return whole->k(); }
    int64_t bytes() const override { return whole->bytes(); }
    const std::vector<Subtree>& subtrees() const override { return whole->subtrees(); }
  };
};

// Adds up a rank's sums first and then the ranks', as an all-reduce of ready sums does.
class RankOrderCollective : public ForwardingCollective {
 public:
  explicit RankOrderCollective(std::unique_ptr<Collective> inner) : ForwardingCollective(std::move(inner)) {
    const int begin = kDefaultShards * rank() / size();
    num_subtrees_ = SubtreesOf(begin, kDefaultShards * (rank() + 1) / size()).size();
  }
  absl::StatusOr<float*> SumsBuffer(int64_t count) override {
    sums_.resize(num_subtrees_ * count);
    return sums_.data();
  }
  absl::Status TreeAllReduce(int64_t count, float* out) override {
    for (size_t s = 1; s < num_subtrees_; ++s) {
      for (int64_t i = 0; i < count; ++i) sums_[i] += sums_[s * count + i];
    }
    std::vector<float> all(size() * count);
    PHX_RETURN_IF_ERROR(
        inner_->AllGather(sums_.data(), count * static_cast<int64_t>(sizeof(float)), all.data()));
    std::copy_n(all.begin(), count, out);
    for (int r = 1; r < size(); ++r) {
      for (int64_t i = 0; i < count; ++i) out[i] += all[r * count + i];
    }
    return absl::OkStatus();
  }

 private:
  size_t num_subtrees_ = 0;
  std::vector<float> sums_;
};

constexpr char kSlowest[] = "reference";

TEST(PlantedFaultTest, AKernelWhoseOrderDependsOnTheNumberOfRowsIsFound) {
  const auto file = OpenTinyModel(TinyModelOptions());
  Property property(*file, {.rung = kSlowest, .compute = Compute::kFp32, .num_threads = 1});
  property.options().wrap_ops = [](int, std::unique_ptr<Ops> ops) {
    return std::make_unique<SplitKOps>(std::move(ops));
  };
  const absl::StatusOr<std::string> violation = property.FindViolation({{.batch = 3}});
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_THAT(*violation, HasSubstr("ranks 1, threads 1, batch of 3: sequence"));
}

TEST(PlantedFaultTest, AReductionWhoseOrderDependsOnTheNumberOfRanksIsFound) {
  const auto file = OpenTinyModel(TinyModelOptions());
  Property property(*file, {.rung = kSlowest, .compute = Compute::kFp32, .num_threads = 1});
  property.options().wrap_collective = [](int, std::unique_ptr<Collective> collective) {
    return std::make_unique<RankOrderCollective>(std::move(collective));
  };
  // Two ranks hold one subtree each: the order is the tree's.
  const absl::StatusOr<std::string> violation =
      property.FindViolation({{.batch = 3}, {.num_ranks = 2, .batch = 3}, {.num_ranks = 3, .batch = 3}});
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_THAT(*violation, HasSubstr("ranks 3, threads 1, batch of 3: sequence"));
}

// The property compares something: logits differ from token to token and are numbers.
TEST(PlantedFaultTest, ACacheThatForgetsIsFound) {
  class ForgetfulOps : public ForwardingOps {
   public:
    using ForwardingOps::ForwardingOps;
    absl::Status RopeStoreKv(const RopeStoreKvParams& p) override {
      RopeStoreKvParams changed = p;
      std::vector<int64_t> slots(p.slots, p.slots + p.q.rows);
      if (slots.size() == 2) slots[0] = -1;
      changed.slots = slots.data();
      return inner_->RopeStoreKv(changed);
    }
  };
  const auto file = OpenTinyModel(TinyModelOptions());
  Property property(*file, {.rung = kSlowest, .compute = Compute::kFp32, .num_threads = 1});
  property.options().wrap_ops = [](int, std::unique_ptr<Ops> ops) {
    return std::make_unique<ForgetfulOps>(std::move(ops));
  };
  const absl::StatusOr<std::string> violation = property.FindViolation({{.batch = 2}, {.batch = 20}});
  ASSERT_TRUE(violation.ok()) << violation.status();
  EXPECT_THAT(*violation, HasSubstr("sequence"));
}

}  // namespace
}  // namespace phalanx

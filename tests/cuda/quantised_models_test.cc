// Tiny quantised models (tests/golden/models) whole on the emulated device, which keeps their weights as they
// are: logits near transformers' in fp32, with the same bits on every number of ranks, and as near with a KV
// cache of int8.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>

#include "kernels/backends.h"
#include "tests/golden/model_references.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/test_group.h"
#include "worker/checkpoint.h"

namespace phalanx {
namespace {

constexpr int kBlockSize = 32, kNumBlocks = 16, kMaxTokens = 40;

const std::vector<ModelReference>& References() {
  static const auto* const references =
      new std::vector<ModelReference>(ReadModelReferences(PHALANX_SOURCE_DIR "/tests/golden/models"));
  return *references;
}

class QuantisedModelsTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    for (const ModelReference& reference : References()) {
      if (reference.name == GetParam()) reference_ = &reference;
    }
    ASSERT_NE(reference_, nullptr);
    auto checkpoint = Checkpoint::Open(reference_->checkpoints[0]);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    const std::vector<int32_t>& ids = reference_->prompts[0].ids;
    ids_.assign(ids.begin(), ids.begin() + std::min<int64_t>(static_cast<int64_t>(ids.size()), kMaxTokens));
  }

  // Logits of the prompt.
  std::vector<float> Run(int num_ranks, KvType kv_type) {
    TestGroupOptions options;
    options.num_ranks = num_ranks;
    options.ops = {.rung = TestedDevice(), .compute = Compute::kFast, .num_threads = 1, .kv_type = kv_type};
    options.runner = {.max_tokens_per_step = kMaxTokens,
                      .max_logits_per_step = kMaxTokens,
                      .block_size = kBlockSize,
                      .kv_bytes = int64_t{1} << 24,
                      .max_kv_blocks = kNumBlocks};
    const auto group = TestGroup::Create(*checkpoint_, options);
    EXPECT_TRUE(group.ok()) << group.status();
    if (!group.ok()) return {};
    std::vector<int32_t> order(kNumBlocks);
    std::iota(order.begin(), order.end(), 0);
    TestTables tables(kNumBlocks, kBlockSize, order);
    StepPlan plan;
    tables.Grow(&plan, 0, static_cast<int64_t>(ids_.size()));
    PlanRow row;
    row.sequence = 0;
    row.rope_mode = reference_->prompts[0].rope_mode;
    row.tokens = ids_;
    row.logit_offsets.resize(ids_.size());
    std::iota(row.logit_offsets.begin(), row.logit_offsets.end(), 0);
    plan.rows.push_back(row);
    tables.Finish(&plan);
    std::vector<float> logits;
    const auto result = (*group)->Step(plan, std::vector<SampleRow>(ids_.size()), &logits);
    EXPECT_TRUE(result.ok()) << result.status();
    return logits;
  }

  // Of the angle to the reference's.
  double Cosine(const std::vector<float>& logits) const {
    double dot = 0, a = 0, b = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double want = reference_->prompts[0].logits[i];
      dot += want * logits[i], a += want * want, b += double{logits[i]} * logits[i];
    }
    return dot / std::sqrt(a * b);
  }

  const ModelReference* reference_ = nullptr;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<int32_t> ids_;
};

TEST_P(QuantisedModelsTest, LogitsAreNearTransformersOnAnyNumberOfRanks) {
  const std::vector<float> alone = Run(1, KvType::kAuto);
  ASSERT_EQ(alone.size(), ids_.size() * static_cast<size_t>(checkpoint_->config().vocab_size));
  EXPECT_GT(Cosine(alone), 0.9995);
  if (TestedDevice() == kEmulatedCudaRung) {
    const std::vector<float> ranks = Run(3, KvType::kAuto);
    ASSERT_EQ(ranks.size(), alone.size());
    EXPECT_EQ(std::memcmp(ranks.data(), alone.data(), alone.size() * 4), 0) << "on three ranks";
  }
  if (checkpoint_->config().mla) return;
  EXPECT_GT(Cosine(Run(1, KvType::kInt8)), 0.999) << "with a KV cache of int8";
  if (std::string(GetParam()) != "llama_fp8") return;
  const double fp8 = Cosine(Run(1, KvType::kFp8));
  std::printf("with a KV cache of fp8: cosine 1 - %.2g\n", 1 - fp8);
  EXPECT_GT(fp8, 0.997);
}

INSTANTIATE_TEST_SUITE_P(Golden, QuantisedModelsTest,
                         testing::Values("phi3_awq", "llama_gptq_act", "qwen2_gptq_sym", "llama_fp8",
                                         "deepseek_fp8", "qwen2_q4_q8"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace phalanx

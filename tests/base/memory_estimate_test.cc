#include "base/memory_estimate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/hf_config.h"
#include "tests/base/known_configs.h"

namespace phalanx {
namespace {

constexpr double kGiB = 1073741824.0;

ModelConfig Known(const std::string& name) {
  const auto object = ParseJson(KnownConfigText(name), name);
  EXPECT_TRUE(object.ok()) << name;
  auto config = HfConfigFromJson(*object, name);
  EXPECT_TRUE(config.ok()) << config.status();
  return config->model;
}

TEST(MemoryEstimateTest, ParametersOfKnownModels) {
  for (const KnownConfig& known : kKnownConfigs) {
    const auto sizes = WeightSizesOf(Known(known.name), WeightFormat::kBf16);
    ASSERT_TRUE(sizes.ok()) << sizes.status();
    EXPECT_EQ(sizes->total().parameters, known.parameters) << known.name;
    EXPECT_EQ(sizes->total().bytes, 2 * known.parameters) << known.name;
  }
}

TEST(MemoryEstimateTest, Formats) {
  const ModelConfig phi = Known("phi-4");
  const int64_t outer = 2 * int64_t{100352} * 5120 + 81 * 5120;  // tables and norms
  const int64_t matrices = 14'659'507'200 - outer;
  const auto bytes = [](const ModelConfig& c, WeightFormat f) { return WeightSizesOf(c, f)->total().bytes; };
  EXPECT_EQ(bytes(phi, WeightFormat::kF32), 4 * 14'659'507'200);
  EXPECT_EQ(bytes(phi, WeightFormat::kFp8), 2 * outer + matrices);
  EXPECT_EQ(bytes(phi, WeightFormat::kInt4), 2 * outer + matrices * 17 / 32);
  // A scale for 128 x 128.
  const ModelConfig r1 = Known("deepseek-r1");
  EXPECT_NEAR(static_cast<double>(bytes(r1, WeightFormat::kFp8)), 673.0e9, 0.3e9);
}

struct Expected {
  const char* name;
  int ranks;
  double weights_gib;
  int64_t kv_bytes;
  int64_t sequences;
};

// 79.1 GiB, bf16, whole sequences of 32,768 tokens.
TEST(MemoryEstimateTest, RanksOfKnownModels) {
  const Expected cases[] = {
      {"phi-4-reasoning", 1, 27.31, 204800, 6},
      {"phi-4-reasoning", 2, 14.13, 102400, 17},
      {"phi-4-reasoning", 3, 10.96, 102400, 18},
      {"phi-4-reasoning", 4, 7.59, 61440, 32},
      {"phi-4-reasoning", 8, 4.32, 40960, 51},
      {"phi-4-mini-instruct", 1, 7.15, 131072, 15},
      {"phi-4-mini-instruct", 2, 4.15, 65536, 32},
      {"phi-4-mini-instruct", 3, 3.40, 49152, 43},
      {"phi-4-mini-instruct", 4, 2.65, 32768, 66},
      {"phi-4-mini-instruct", 8, 1.90, 16384, 134},
      {"deepseek-r1-distill-llama-70b", 1, 131.42, 327680, 0},
      {"deepseek-r1-distill-llama-70b", 2, 66.69, 163840, 0},
      {"deepseek-r1-distill-llama-70b", 3, 50.51, 122880, 4},
      {"deepseek-r1-distill-llama-70b", 4, 34.32, 81920, 13},
      {"deepseek-r1-distill-llama-70b", 8, 18.14, 40960, 40},
      {"deepseek-r1-distill-llama-8b", 1, 14.96, 131072, 13},
      {"deepseek-r1-distill-llama-8b", 2, 7.97, 65536, 30},
      {"deepseek-r1-distill-llama-8b", 3, 6.22, 49152, 41},
      {"deepseek-r1-distill-llama-8b", 4, 4.47, 32768, 64},
      {"deepseek-r1-distill-llama-8b", 8, 2.73, 16384, 132},
      {"deepseek-r1-distill-qwen-7b", 1, 14.19, 57344, 31},
      {"deepseek-r1-distill-qwen-7b", 2, 7.60, 28672, 70},
      {"deepseek-r1-distill-qwen-7b", 3, 6.00, 28672, 72},
      {"deepseek-r1-distill-qwen-7b", 4, 4.31, 14336, 148},
      {"deepseek-r1-distill-qwen-7b", 8, 2.71, 14336, 151},
      {"llama-3.2-3b-instruct", 1, 5.98, 114688, 18},
      {"llama-3.2-3b-instruct", 2, 3.36, 57344, 37},
      {"llama-3.2-3b-instruct", 3, 2.70, 43008, 50},
      {"llama-3.2-3b-instruct", 4, 2.05, 28672, 76},
      {"llama-3.2-3b-instruct", 8, 1.39, 14336, 154},
  };
  for (const Expected& e : cases) {
    const ModelConfig config = Known(e.name);
    const auto sizes = WeightSizesOf(config, WeightFormat::kBf16);
    ASSERT_TRUE(sizes.ok());
    const MemoryOptions options{.device_bytes = static_cast<int64_t>(79.1 * kGiB)};
    const auto estimate = EstimateMemory(config, *sizes, options, e.ranks);
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    EXPECT_NEAR(estimate->weight_bytes / kGiB, e.weights_gib, 0.005) << e.name << " on " << e.ranks;
    EXPECT_EQ(estimate->kv_bytes_per_token, e.kv_bytes) << e.name << " on " << e.ranks;
    EXPECT_EQ(estimate->sequences, e.sequences) << e.name << " on " << e.ranks;
    EXPECT_EQ(estimate->tokens % kKvBlockTokens, 0);
    EXPECT_GE(estimate->tokens, e.sequences * 32768);
    EXPECT_LT(estimate->tokens, (e.sequences + 1) * 32768);
  }
}

// The latent cache is whole on every rank, and so are the matrices into it; experts are cut by number.
TEST(MemoryEstimateTest, LatentAttentionAndExperts) {
  const ModelConfig config = Known("deepseek-r1");
  const auto sizes = WeightSizesOf(config, WeightFormat::kBf16);
  ASSERT_TRUE(sizes.ok());
  const MemoryOptions options{.num_shards = 16, .device_bytes = int64_t{141} << 30};
  for (const int ranks : {1, 3, 16}) {
    const auto estimate = EstimateMemory(config, *sizes, options, ranks);
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    EXPECT_EQ(estimate->kv_bytes_per_token, 61 * 576 * 2);
    const int64_t shards = (16 + ranks - 1) / ranks;  // of the fullest rank
    const auto bytes = [&](WeightPart part) { return (*sizes)[part].bytes; };
    const int64_t whole =
        bytes(WeightPart::kEmbedding) + bytes(WeightPart::kLatent) + bytes(WeightPart::kSmall);
    EXPECT_EQ(estimate->weight_bytes, whole + (sizes->total().bytes - whole) * shards / 16) << ranks;
  }
}

// Int8 and fp8 have two bytes for each 32 channels of a head beside them.
TEST(MemoryEstimateTest, QuantisedKvCountsItsScales) {
  ModelConfig config = Known("phi-4");
  const auto sizes = WeightSizesOf(config, WeightFormat::kBf16);
  ASSERT_TRUE(sizes.ok());
  MemoryOptions options{.device_bytes = int64_t{80} << 30};
  const auto bf16 = EstimateMemory(config, *sizes, options, 4);
  options.kv_element_bytes = 1;
  options.kv_scale_bytes = 2;
  const auto int8 = EstimateMemory(config, *sizes, options, 4);
  ASSERT_TRUE(bf16.ok() && int8.ok());
  EXPECT_EQ(int8->kv_bytes_per_token * 32, bf16->kv_bytes_per_token * 17);
  EXPECT_GT(int8->tokens, bf16->tokens * 18 / 10);
  config.key_dim = 80;  // three groups
  const auto odd = EstimateMemory(config, *sizes, options, 1);
  ASSERT_TRUE(odd.ok());
  EXPECT_EQ(odd->kv_bytes_per_token, config.num_layers * config.num_kv_heads * (80 + 6 + 128 + 8));
}

TEST(MemoryEstimateTest, MoreRanksThanHeads) {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden_size = 64;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.key_dim = config.value_dim = 32;
  config.ffn_size = 32;
  config.vocab_size = 8;
  const auto sizes = WeightSizesOf(config, WeightFormat::kBf16);
  ASSERT_TRUE(sizes.ok());
  const MemoryOptions options{.device_bytes = int64_t{4} << 30, .tokens = 33};
  const auto estimate = EstimateMemory(config, *sizes, options, 8);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->kv_bytes_per_token, 2 * 64 * 2) << "two ranks have a head, and both the KV head";
  // 33 tokens take two blocks; a rank with a head decides.
  EXPECT_EQ(estimate->sequences, estimate->tokens / 64);
  EXPECT_LE(estimate->tokens * 256, int64_t{4} * (1 << 30) * 9 / 10 - kReservedBytes);
}

TEST(MemoryEstimateTest, Refuses) {
  ModelConfig config = Known("phi-4");
  const auto sizes = WeightSizesOf(config, WeightFormat::kBf16);
  ASSERT_TRUE(sizes.ok());
  EXPECT_FALSE(EstimateMemory(config, *sizes, {}, 9).ok());
  EXPECT_FALSE(EstimateMemory(config, *sizes, {.num_shards = 65}, 1).ok());
  EXPECT_FALSE(EstimateMemory(config, *sizes, {.tokens = 0}, 1).ok());
  EXPECT_FALSE(EstimateMemory(config, *sizes, {.device_bytes = -1}, 1).ok());
  const auto small = EstimateMemory(config, *sizes, {.device_bytes = 1}, 1);
  ASSERT_TRUE(small.ok());
  EXPECT_EQ(small->sequences, 0);
  EXPECT_EQ(small->tokens, 0);
  config.num_layers = 4096;
  config.hidden_size = config.ffn_size = config.vocab_size = 1 << 30;
  config.num_heads = config.num_kv_heads = config.key_dim = config.value_dim = 65536;
  EXPECT_THAT(std::string(WeightSizesOf(config, WeightFormat::kInt4).status().message()),
              ::testing::HasSubstr("more than 2^62"));
}

TEST(MemoryEstimateTest, PartsByName) {
  const std::pair<const char*, WeightPart> names[] = {
      {"token_embd.weight", WeightPart::kEmbedding},
      {"model.embed_tokens.weight", WeightPart::kEmbedding},
      {"output.weight", WeightPart::kHead},
      {"lm_head.weight", WeightPart::kHead},
      {"output_norm.weight", WeightPart::kSmall},
      {"model.norm.weight", WeightPart::kSmall},
      {"blk.3.attn_norm.weight", WeightPart::kSmall},
      {"blk.3.attn_q.bias", WeightPart::kQuery},
      {"blk.3.attn_qkv.weight", WeightPart::kQuery},
      {"blk.3.attn_output.weight", WeightPart::kQuery},
      {"blk.3.attn_k.weight", WeightPart::kKeyValue},
      {"blk.3.attn_v.bias", WeightPart::kKeyValue},
      {"blk.3.attn_q_a.weight", WeightPart::kLatent},
      {"blk.3.attn_q_a_norm.weight", WeightPart::kSmall},
      {"blk.3.attn_q_b.weight", WeightPart::kQuery},
      {"blk.3.attn_kv_a_mqa.weight", WeightPart::kLatent},
      {"blk.3.attn_kv_b.weight", WeightPart::kQuery},
      {"blk.3.ffn_gate.weight", WeightPart::kFfn},
      {"blk.3.ffn_gate_inp.weight", WeightPart::kSmall},
      {"blk.3.ffn_gate_exps.weight", WeightPart::kExperts},
      {"blk.3.ffn_down_shexp.weight", WeightPart::kSharedExperts},
      {"model.layers.3.self_attn.qkv_proj.weight", WeightPart::kQuery},
      {"model.layers.3.self_attn.q_proj.bias", WeightPart::kQuery},
      {"model.layers.3.self_attn.v_proj.weight", WeightPart::kKeyValue},
      {"model.layers.3.self_attn.o_proj.weight", WeightPart::kQuery},
      {"model.layers.3.self_attn.q_a_proj.weight_scale_inv", WeightPart::kLatent},
      {"model.layers.3.self_attn.kv_a_proj_with_mqa.weight", WeightPart::kLatent},
      {"model.layers.3.self_attn.kv_a_layernorm.weight", WeightPart::kSmall},
      {"model.layers.3.self_attn.kv_b_proj.weight", WeightPart::kQuery},
      {"model.layers.3.mlp.gate_up_proj.weight", WeightPart::kFfn},
      {"model.layers.3.mlp.down_proj.weight", WeightPart::kFfn},
      {"model.layers.3.mlp.gate.weight", WeightPart::kSmall},
      {"model.layers.3.mlp.gate.e_score_correction_bias", WeightPart::kSmall},
      {"model.layers.3.mlp.experts.12.gate_proj.weight", WeightPart::kExperts},
      {"model.layers.3.mlp.shared_experts.up_proj.weight", WeightPart::kSharedExperts},
  };
  for (const auto& [name, part] : names) EXPECT_EQ(WeightPartOf(name), part) << name;
}

}  // namespace
}  // namespace phalanx

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

}  // namespace
}  // namespace phalanx

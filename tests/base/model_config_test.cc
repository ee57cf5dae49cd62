#include "base/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/base/gguf_writer.h"
#include "tests/testing/test_data.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What a test changes in a good file. A key set to null is left out.
struct Changes {
  std::string architecture = "llama";
  uint32_t heads = 4, kv_heads = 2, hidden = 32, rows = 8;
  bool output = false;
  std::string omit = {};
  std::function<void(GgufWriter&)> more = [](GgufWriter&) {};
};

class ModelConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Read(const Changes& c) {
    GgufWriter w;
    const auto set = [&](std::string_view key, uint32_t v) {
      if (key != c.omit) w.SetU32(key, v);
    };
    w.SetString("general.architecture", c.architecture);
    w.SetString("general.name", "tiny");
    set("llama.block_count", 3);
    set("llama.context_length", 128);
    set("llama.embedding_length", c.hidden);
    set("llama.feed_forward_length", 64);
    set("llama.attention.head_count", c.heads);
    set("llama.attention.head_count_kv", c.kv_heads);
    if (c.omit != "llama.attention.layer_norm_rms_epsilon") {
      w.SetF32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    }
    if (c.omit != "token_embd.weight") {
      w.AddTensor("token_embd.weight", DType::kF32, {32, c.rows}, std::vector<float>(32 * c.rows));
    }
    if (c.output) w.AddTensor("output.weight", DType::kF32, {32, c.rows}, std::vector<float>(32 * c.rows));
    c.more(w);
    EXPECT_TRUE(w.Write(path_));
    const auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return ModelConfigFromGguf(**file);
  }
  void ExpectError(const Changes& c, absl::StatusCode code, const std::string& message) {
    const absl::Status status = Read(c).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }
  void TearDown() override { std::filesystem::remove(path_); }
  const std::string path_ =
      ::testing::TempDir() + "/model_config_test_" + std::to_string(::getpid()) + ".gguf";
};

TEST_F(ModelConfigTest, ReadsAndDefaults) {
  const auto config = Read({});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->name, "tiny");
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->hidden_size, 32);
  EXPECT_EQ(config->num_heads, 4);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->key_dim, 8);
  EXPECT_EQ(config->value_dim, 8);
  EXPECT_EQ(config->ffn_size, 64);
  EXPECT_EQ(config->vocab_size, 8);
  EXPECT_EQ(config->context_length, 128);
  EXPECT_EQ(config->rms_eps, 1e-5f);
  EXPECT_TRUE(config->tied_embeddings);
  ASSERT_EQ(config->rope.size(), 1u);
  EXPECT_TRUE(config->rope[0].interleaved);
  EXPECT_EQ(config->rope[0].rotary_dim, 8);
  EXPECT_EQ(config->rope[0].theta, 10000);
  EXPECT_TRUE(config->rope[0].freq_factors.empty());
  EXPECT_EQ(config->rope[0].attention_factor, 1.0f);
}

TEST_F(ModelConfigTest, HonoursOptionalKeys) {
  const auto config =
      Read({.hidden = 32, .output = true, .omit = "llama.attention.head_count_kv", .more = [](GgufWriter& w) {
              w.SetU32("llama.attention.key_length", 6);
              w.SetU32("llama.attention.value_length", 10);
              w.SetU32("llama.rope.dimension_count", 4);
              w.SetF32("llama.rope.freq_base", 5e5f);
              w.SetU32("llama.vocab_size", 8);
              w.SetString("llama.rope.scaling.type", "none");
              w.AddTensor("rope_freqs.weight", DType::kF32, {2}, {1, 8});
            }});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->key_dim, 6);
  EXPECT_EQ(config->value_dim, 10);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->rope[0].rotary_dim, 4);
  EXPECT_EQ(config->rope[0].theta, 5e5);
  EXPECT_THAT(config->rope[0].freq_factors, ElementsAre(1, 8));
}

TEST_F(ModelConfigTest, RefusesWhatItDoesNotRun) {
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  ExpectError({.architecture = "mamba"}, unimplemented, "'mamba' is not supported; supported: llama");
  ExpectError({.more = [](GgufWriter& w) { w.SetString("llama.rope.scaling.type", "su"); }}, unimplemented,
              "llama.rope.scaling.type 'su'");
  ExpectError({.more = [](GgufWriter& w) { w.SetU32("llama.expert_count", 8); }}, unimplemented,
              "llama.expert_count");
  ExpectError({.more = [](GgufWriter& w) { w.SetU32("llama.attention.sliding_window", 64); }}, unimplemented,
              "llama.attention.sliding_window");
  ExpectError({.more = [](GgufWriter& w) { w.SetF32("llama.rope.scale_linear", 4); }}, unimplemented,
              "llama.rope.scale_linear");
  EXPECT_TRUE(Read({.more = [](GgufWriter& w) { w.SetU32("llama.expert_count", 0); }}).ok());
}

TEST_F(ModelConfigTest, NamesMissingAndImpossibleKeys) {
  for (const char* key :
       {"llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon", "token_embd.weight"}) {
    ExpectError({.omit = key}, absl::StatusCode::kNotFound, key);
  }
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError({.heads = 0}, invalid, "llama.attention.head_count is 0");
  ExpectError({.heads = 5, .kv_heads = 5}, invalid, "no multiple of llama.attention.head_count 5");
  ExpectError({.heads = 4, .kv_heads = 3}, invalid, "head_count_kv 3");
  ExpectError({.heads = 4, .kv_heads = 8}, invalid, "head_count_kv is 8");
  ExpectError({.hidden = 1u << 31}, invalid, "llama.embedding_length is 2147483648");
  ExpectError({.hidden = 64}, invalid, "token_embd.weight must have two dimensions");
  const auto with = [&](std::function<void(GgufWriter&)> more, const std::string& message) {
    ExpectError({.more = std::move(more)}, invalid, message);
  };
  with([](GgufWriter& w) { w.SetU32("llama.vocab_size", 9); }, "llama.vocab_size is 9");
  with([](GgufWriter& w) { w.SetStrings("tokenizer.ggml.tokens", {"a"}); }, "tokenizer.ggml.tokens");
  with([](GgufWriter& w) { w.SetU32("llama.rope.dimension_count", 9); }, "llama.rope.dimension_count is 9");
  with([](GgufWriter& w) { w.SetU32("llama.rope.dimension_count", 3); }, "even");
  with([](GgufWriter& w) { w.SetF32("llama.rope.freq_base", -1); }, "llama.rope.freq_base is -1");
  with([](GgufWriter& w) { w.SetF32("llama.rope.freq_base", NAN); }, "llama.rope.freq_base");
  with([](GgufWriter& w) { w.SetString("llama.rope.freq_base", "x"); }, "holds a string, must be a float");
  with(
      [](GgufWriter& w) {
        w.AddTensor("rope_freqs.weight", DType::kF32, {3}, {1, 1, 1});
      },
      "rope_freqs.weight");
  with(
      [](GgufWriter& w) {
        w.AddTensor("rope_freqs.weight", DType::kF32, {4}, {1, 1, 0, 1});
      },
      "rope_freqs.weight[2] is 0");
}

TEST(RealModelTest, SmolLM2) {
  const auto path = FindTestData("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!path) GTEST_SKIP() << MissingTestData("SmolLM2-135M-Instruct.Q4_1.gguf");
  const auto file = GgufFile::Open(*path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 272u);
  const auto config = ModelConfigFromGguf(**file);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 30);
  EXPECT_EQ(config->hidden_size, 576);
  EXPECT_EQ(config->num_heads, 9);
  EXPECT_EQ(config->num_kv_heads, 3);
  EXPECT_EQ(config->key_dim, 64);
  EXPECT_EQ(config->ffn_size, 1536);
  EXPECT_EQ(config->vocab_size, 49152);
  EXPECT_EQ(config->context_length, 8192);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_EQ(config->rope[0].theta, 100000);
  EXPECT_EQ(config->rope[0].rotary_dim, 64);
}

}  // namespace
}  // namespace phalanx

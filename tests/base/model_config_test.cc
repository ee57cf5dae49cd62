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

// The keys that other architectures add.
class OtherArchitecturesTest : public ModelConfigTest {
 protected:
  using Change = std::function<void(GgufWriter&)>;

  absl::StatusOr<ModelConfig> Phi3(const Change& change) {
    return Make("phi3", [&](GgufWriter& w) {
      w.SetU32("phi3.rope.dimension_count", 4);
      change(w);
    });
  }
  // Two heads of 6 + 2 channels; groups of two experts. A key in `without` is left out.
  absl::StatusOr<ModelConfig> Deepseek(const Change& change, const std::string& without = "") {
    return Make("deepseek2", [&](GgufWriter& w) {
      const std::pair<const char*, uint32_t> keys[] = {
          {"attention.kv_lora_rank", 16},  {"attention.q_lora_rank", 12},
          {"attention.key_length", 18},    {"attention.value_length", 16},
          {"attention.key_length_mla", 8}, {"attention.value_length_mla", 5},
          {"rope.dimension_count", 2},     {"expert_count", 8},
          {"expert_used_count", 4},        {"expert_feed_forward_length", 24},
          {"expert_shared_count", 1},      {"expert_group_count", 4},
          {"expert_group_used_count", 2},  {"expert_gating_func", 2},
          {"leading_dense_block_count", 1}};
      for (const auto& [key, value] : keys) {
        if (key != without) w.SetU32(std::string("deepseek2.") + key, value);
      }
      change(w);
    });
  }
  absl::StatusOr<ModelConfig> Make(const std::string& architecture, const Change& change) {
    GgufWriter w;
    const auto key = [&](const char* name) { return architecture + "." + name; };
    w.SetString("general.architecture", architecture);
    w.SetU32(key("block_count"), 3);
    w.SetU32(key("context_length"), 128);
    w.SetU32(key("embedding_length"), 32);
    w.SetU32(key("feed_forward_length"), 64);
    w.SetU32(key("attention.head_count"), 2);
    w.SetU32(key("attention.head_count_kv"), 1);
    w.SetF32(key("attention.layer_norm_rms_epsilon"), 1e-5f);
    w.AddTensor("token_embd.weight", DType::kF32, {32, 8}, std::vector<float>(32 * 8));
    change(w);
    EXPECT_TRUE(w.Write(path_));
    const auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return ModelConfigFromGguf(**file);
  }
  static std::string Message(const absl::StatusOr<ModelConfig>& config) {
    return std::string(config.status().message());
  }
};

TEST_F(OtherArchitecturesTest, LongRope) {
  const auto factors = [](GgufWriter& w) {
    w.AddTensor("rope_factors_short.weight", DType::kF32, {2}, {1, 1.5f});
    w.AddTensor("rope_factors_long.weight", DType::kF32, {2}, {2, 8});
  };
  const auto with_context = [&](GgufWriter& w) {
    factors(w);
    w.SetU32("phi3.rope.scaling.original_context_length", 32);
    w.SetU32("phi3.attention.sliding_window", 128);
  };
  const auto config = Phi3(with_context);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_scaling, RopeScaling::kLongRope);
  EXPECT_EQ(config->original_context_length, 32);
  EXPECT_EQ(config->rope_factor, 4);
  ASSERT_EQ(config->rope.size(), 2u);
  EXPECT_FALSE(config->rope[0].interleaved);
  EXPECT_THAT(config->rope[0].freq_factors, ElementsAre(1, 1.5f));
  EXPECT_THAT(config->rope[1].freq_factors, ElementsAre(2, 8));
  EXPECT_FLOAT_EQ(config->rope[1].attention_factor, std::sqrt(1 + std::log(4.0) / std::log(32.0)));
  const auto given = Phi3([&](GgufWriter& w) {
    with_context(w);
    w.SetF32("phi3.rope.scaling.attn_factor", 1.25f);
  });
  EXPECT_EQ(given->rope[0].attention_factor, 1.25f);
  EXPECT_EQ(given->rope[1].attention_factor, 1.25f);
  EXPECT_THAT(Message(Phi3(factors)), HasSubstr("phi3.rope.scaling.original_context_length"));
  EXPECT_THAT(Message(Phi3([](GgufWriter& w) { w.SetString("phi3.rope.scaling.type", "longrope"); })),
              HasSubstr("needs both tensors"));
  EXPECT_THAT(
      Message(Phi3([](GgufWriter& w) { w.SetU32("phi3.attention.sliding_window", 127); })),
      HasSubstr("phi3.attention.sliding_window is 127, which is not supported; supported: 0, or at least"));
  const auto plain = Phi3([](GgufWriter& w) { w.SetU32("phi3.attention.sliding_window", 0); });
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->rope.size(), 1u);
  EXPECT_EQ(plain->original_context_length, 0);
}

TEST_F(OtherArchitecturesTest, Qwen2HasBiases) {
  const auto config = Make("qwen2", [](GgufWriter&) {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->qkv_bias);
  EXPECT_FALSE(config->rope[0].interleaved);
}

TEST_F(OtherArchitecturesTest, Deepseek2) {
  const auto config = Deepseek([](GgufWriter& w) {
    w.SetU32("deepseek2.nextn_predict_layers", 1);
    w.SetF32("deepseek2.expert_weights_scale", 2.5f);
    w.SetBool("deepseek2.expert_weights_norm", true);
    w.SetString("deepseek2.rope.scaling.type", "yarn");
    w.SetF32("deepseek2.rope.scaling.factor", 4);
    w.SetU32("deepseek2.rope.scaling.original_context_length", 32);
    w.SetF32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1f);
  });
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 2) << "the last block predicts further tokens";
  EXPECT_EQ(config->num_mtp_layers, 1);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->key_dim, 8);
  EXPECT_EQ(config->value_dim, 5);
  EXPECT_EQ(config->mla, (MlaConfig{.q_lora_rank = 12, .kv_lora_rank = 16, .nope_dim = 6, .rope_dim = 2}));
  EXPECT_EQ(config->moe, (MoeConfig{.num_experts = 8,
                                    .experts_per_token = 4,
                                    .expert_ffn_size = 24,
                                    .num_shared_experts = 1,
                                    .first_dense_layers = 1,
                                    .num_groups = 4,
                                    .topk_groups = 2,
                                    .normalize = true,
                                    .scaling_factor = 2.5}));
  EXPECT_TRUE(config->rope[0].interleaved);
  EXPECT_EQ(config->rope_scaling, RopeScaling::kYarn);
  EXPECT_EQ(config->rope[0].attention_factor, 1.0f);
  const double scale = 1 + 0.1 * std::log(4.0);
  EXPECT_NEAR(config->softmax_factor, scale * scale, 1e-7);
}

TEST_F(OtherArchitecturesTest, Deepseek2KeysThatCannotBe) {
  const auto none = [](GgufWriter&) {};
  EXPECT_THAT(Message(Deepseek(none, "expert_gating_func")), HasSubstr("there is no such key"));
  EXPECT_THAT(Message(Deepseek(none, "attention.kv_lora_rank")), HasSubstr("kv_lora_rank"));
  EXPECT_THAT(Message(Deepseek(none, "rope.dimension_count")), HasSubstr("rope.dimension_count"));
  const auto with = [&](const char* key, uint32_t value) {
    return Message(Deepseek([&](GgufWriter& w) { w.SetU32(std::string("deepseek2.") + key, value); }, key));
  };
  EXPECT_THAT(with("expert_gating_func", 1), HasSubstr("expert_gating_func is 1, which is not supported"));
  EXPECT_THAT(with("expert_group_count", 3), HasSubstr("expert_group_count is 3, must be a divisor"));
  EXPECT_THAT(with("expert_used_count", 5), HasSubstr("expert_used_count is 5, must be at most 4"));
  EXPECT_THAT(with("rope.dimension_count", 8), HasSubstr("must be below the 8 channels"));
  EXPECT_THAT(with("nextn_predict_layers", 3), HasSubstr("nextn_predict_layers is 3, must be 0 to 2"));
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

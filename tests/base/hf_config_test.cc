#include "base/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/base/known_configs.h"

namespace phalanx {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<HfConfig> Parse(const std::string& text) {
  const auto object = ParseJson(text, "dir/config.json");
  if (!object.ok()) return object.status();
  return HfConfigFromJson(*object, "dir/config.json");
}

// A known config with the keys of `patch` replaced (null: taken out).
absl::StatusOr<HfConfig> Patched(const std::string& known, const std::string& patch) {
  json object = json::parse(KnownConfigText(known));
  object.merge_patch(json::parse(patch));
  return HfConfigFromJson(object, "dir/config.json");
}

TEST(HfConfigTest, Phi4) {
  const auto config = Parse(KnownConfigText("phi-4-reasoning"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->class_name, "Phi3ForCausalLM");
  EXPECT_EQ(config->dtype, "bfloat16");
  EXPECT_EQ(config->bos, 100257);
  EXPECT_THAT(config->eos, ElementsAre(100265));
  const ModelConfig& m = config->model;
  EXPECT_EQ(m.architecture, "phi3");
  EXPECT_EQ(m.num_layers, 40);
  EXPECT_EQ(m.hidden_size, 5120);
  EXPECT_EQ(m.num_heads, 40);
  EXPECT_EQ(m.num_kv_heads, 10);
  EXPECT_EQ(m.key_dim, 128);
  EXPECT_EQ(m.value_dim, 128);
  EXPECT_EQ(m.ffn_size, 17920);
  EXPECT_EQ(m.vocab_size, 100352);
  EXPECT_EQ(m.context_length, 32768);
  EXPECT_EQ(m.rms_eps, 1e-5f);
  EXPECT_FALSE(m.tied_embeddings);
  EXPECT_FALSE(m.qkv_bias);
  ASSERT_EQ(m.rope.size(), 1u);
  EXPECT_EQ(m.rope[0].theta, 500000);
  EXPECT_EQ(m.rope[0].rotary_dim, 128);
  EXPECT_FALSE(m.rope[0].interleaved);
  EXPECT_THAT(m.rope[0].freq_factors, IsEmpty());
  EXPECT_EQ(m.rope[0].attention_factor, 1.0f);
  EXPECT_EQ(m.rope_scaling, RopeScaling::kNone);
  EXPECT_EQ(m.softmax_factor, 1);
  EXPECT_FALSE(m.mla || m.moe || m.fp8);
}

void ExpectMini(const ModelConfig& m) {
  EXPECT_TRUE(m.tied_embeddings);
  EXPECT_EQ(m.rope_scaling, RopeScaling::kLongRope);
  EXPECT_EQ(m.original_context_length, 4096);
  EXPECT_EQ(m.rope_factor, 32);
  ASSERT_EQ(m.rope.size(), 2u);
  for (const RopeConfig& rope : m.rope) {
    EXPECT_EQ(rope.rotary_dim, 96);
    EXPECT_EQ(rope.theta, 10000);
    EXPECT_NEAR(rope.attention_factor, 1.1902380714, 1e-7);
    EXPECT_EQ(rope.freq_factors.size(), 48u);
  }
  EXPECT_THAT(m.rope[0].freq_factors, Each(1.0f));
  EXPECT_EQ(m.rope[1].freq_factors[1], 1.118320672f);
  EXPECT_EQ(m.rope[1].freq_factors[47], 47.77f);
}

TEST(HfConfigTest, LongRopeInBothDialects) {
  const std::string text = KnownConfigText("phi-4-mini-reasoning");
  const auto four = Parse(text);
  ASSERT_TRUE(four.ok()) << four.status();
  ExpectMini(four->model);

  // As transformers 5 writes it.
  json five = json::parse(text);
  five["rope_parameters"] = five["rope_scaling"];
  five["rope_parameters"].update({{"rope_theta", 10000.0},
                                  {"rope_type", "longrope"},
                                  {"partial_rotary_factor", 0.75},
                                  {"original_max_position_embeddings", 4096}});
  five["dtype"] = five["torch_dtype"];
  for (const char* key : {"rope_scaling", "rope_theta", "partial_rotary_factor", "torch_dtype",
                          "original_max_position_embeddings"}) {
    five.erase(key);
  }
  const auto config = HfConfigFromJson(five, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  ExpectMini(config->model);
  EXPECT_EQ(config->dtype, "bfloat16");
}

// Divisors: what transformers computes (plain frequencies over its own).
TEST(HfConfigTest, Llama3Scaling) {
  const auto config = Parse(KnownConfigText("llama-3.2-3b-instruct"));
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelConfig& m = config->model;
  EXPECT_EQ(m.architecture, "llama");
  EXPECT_THAT(config->eos, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(m.rope_scaling, RopeScaling::kLlama3);
  EXPECT_EQ(m.rope_factor, 32);
  EXPECT_EQ(m.original_context_length, 8192);
  ASSERT_EQ(m.rope.size(), 1u);
  const std::vector<float>& f = m.rope[0].freq_factors;
  ASSERT_EQ(f.size(), 64u);
  EXPECT_EQ(f[28], 1.0f);
  EXPECT_NEAR(f[30], 1.65133, 1e-5);
  EXPECT_NEAR(f[31], 2.27666, 1e-5);
  EXPECT_EQ(f[35], 32.0f);
  EXPECT_EQ(m.rope[0].attention_factor, 1.0f);

  // transformers 5.
  const auto five = Patched("llama-3.2-3b-instruct", R"({"rope_theta": null, "rope_scaling": null,
      "torch_dtype": null, "dtype": "bfloat16", "rope_parameters": {"factor": 8.0, "high_freq_factor": 4.0,
      "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
      "rope_type": "llama3"}})");
  ASSERT_TRUE(five.ok()) << five.status();
  EXPECT_EQ(five->model.rope[0].theta, 500000);
  EXPECT_NEAR(five->model.rope[0].freq_factors[30], 1.55341, 1e-5);
  EXPECT_NEAR(five->model.rope[0].freq_factors[31], 2.02631, 1e-5);
}

TEST(HfConfigTest, Qwen2) {
  const auto config = Parse(KnownConfigText("deepseek-r1-distill-qwen-7b"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->model.qkv_bias);
  EXPECT_EQ(config->model.architecture, "qwen2");
  EXPECT_EQ(config->model.key_dim, 128);
  EXPECT_EQ(config->model.rope[0].theta, 10000);

  std::string types = "\"full_attention\"";
  for (int i = 1; i < 28; ++i) types += ", \"full_attention\"";
  const auto five = Patched("deepseek-r1-distill-qwen-7b",
                            R"({"rope_theta": null, "sliding_window": null, "layer_types": [)" + types +
                                R"(], "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}})");
  ASSERT_TRUE(five.ok()) << five.status();
  EXPECT_EQ(five->model.rope[0].theta, 10000);
  EXPECT_EQ(five->model.rope_scaling, RopeScaling::kNone);

  // Qwen's own recipe for long contexts.
  const auto yarn = Patched("bespoke-stratos-7b", R"({"rope_scaling": {"type": "yarn", "factor": 4.0,
      "original_max_position_embeddings": 32768}})");
  ASSERT_TRUE(yarn.ok()) << yarn.status();
  const RopeConfig& rope = yarn->model.rope[0];
  EXPECT_NEAR(rope.attention_factor, 1.138629436, 1e-6);
  EXPECT_EQ(rope.freq_factors[23], 1.0f);
  EXPECT_NEAR(rope.freq_factors[24], 1.04615, 1e-5);
  EXPECT_NEAR(rope.freq_factors[39], 3.4, 1e-5);
  EXPECT_EQ(rope.freq_factors[40], 4.0f);
  EXPECT_EQ(yarn->model.softmax_factor, 1);
}

TEST(HfConfigTest, DeepseekR1) {
  for (
      const std::string patch :
      {R"({})",
       R"({"rope_theta": null, "rope_scaling": null, "torch_dtype": null, "dtype": "bfloat16", "head_dim": 64,
            "qk_head_dim": 192, "rope_interleave": true, "rope_parameters": {"beta_fast": 32, "beta_slow": 1,
            "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
            "rope_theta": 10000, "rope_type": "yarn", "type": "yarn"}})"}) {
    const auto config = Patched("deepseek-r1", patch);
    ASSERT_TRUE(config.ok()) << config.status();
    const ModelConfig& m = config->model;
    EXPECT_EQ(m.architecture, "deepseek2");
    EXPECT_EQ(m.key_dim, 192);
    EXPECT_EQ(m.value_dim, 128);
    EXPECT_EQ(m.num_kv_heads, 128);
    EXPECT_EQ(m.mla, (MlaConfig{1536, 512, 128, 64}));
    EXPECT_EQ(m.moe, (MoeConfig{256, 8, 2048, 1, 3, 8, 4, true, 2.5}));
    EXPECT_EQ(m.fp8, (Fp8Blocks{128, 128}));
    EXPECT_EQ(m.num_mtp_layers, 1);
    EXPECT_EQ(m.rope_scaling, RopeScaling::kYarn);
    EXPECT_EQ(m.rope_factor, 40);
    EXPECT_EQ(m.original_context_length, 4096);
    ASSERT_EQ(m.rope.size(), 1u);
    const RopeConfig& rope = m.rope[0];
    EXPECT_TRUE(rope.interleaved);
    EXPECT_EQ(rope.rotary_dim, 64);
    EXPECT_EQ(rope.attention_factor, 1.0f);
    ASSERT_EQ(rope.freq_factors.size(), 32u);
    EXPECT_EQ(rope.freq_factors[10], 1.0f);
    EXPECT_NEAR(rope.freq_factors[11], 1.08108, 1e-5);
    EXPECT_NEAR(rope.freq_factors[20], 4.0, 1e-5);
    EXPECT_NEAR(rope.freq_factors[22], 10.0, 1e-5);
    EXPECT_EQ(rope.freq_factors[23], 40.0f);
    EXPECT_NEAR(m.softmax_factor / std::sqrt(m.key_dim), 0.1352338, 1e-7);
  }
}

TEST(HfConfigTest, DefaultsOfTheClasses) {
  const auto llama =
      Parse(R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
      "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 128, "num_attention_heads": 4})");
  ASSERT_TRUE(llama.ok()) << llama.status();
  EXPECT_EQ(llama->model.num_kv_heads, 4);
  EXPECT_EQ(llama->model.key_dim, 16);
  EXPECT_EQ(llama->model.rms_eps, 1e-6f);
  EXPECT_EQ(llama->model.rope[0].theta, 10000);
  EXPECT_FALSE(llama->model.tied_embeddings);
  EXPECT_EQ(llama->dtype, "float32");
  EXPECT_FALSE(llama->bos.has_value());
  EXPECT_THAT(llama->eos, IsEmpty());

  // A width of heads of its own, and no number of groups that divides the hidden size.
  const auto wide =
      Patched("llama-3.2-3b-instruct", R"({"num_attention_heads": 18, "num_key_value_heads": 6})");
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_EQ(wide->model.key_dim, 128);
}

TEST(HfConfigTest, WindowsCountOnlyWhereInEffect) {
  EXPECT_TRUE(Patched("phi-4", R"({"sliding_window": 16384})").ok());
  EXPECT_TRUE(Patched("deepseek-r1-distill-qwen-7b", R"({"use_sliding_window": true})").ok())
      << "all 28 layers lie below max_window_layers";
  EXPECT_TRUE(Patched("llama-3.2-3b-instruct", R"({"sliding_window": 4096})").ok()) << "Llama has none";
}

TEST(HfConfigTest, LeavesOutTokenIdsPastTheVocabulary) {
  const auto config = Patched("phi-4", R"({"eos_token_id": [100352, 7], "bos_token_id": 100352})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos, ::testing::ElementsAre(7));
  EXPECT_FALSE(config->bos.has_value());
}

struct BadCase {
  const char* known;
  const char* patch;
  absl::StatusCode code;
  const char* message;
};

TEST(HfConfigTest, NamesWhatIsWrong) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  const BadCase cases[] = {
      {"phi-4", R"({"architectures": ["GemmaForCausalLM"]})", kUnimplemented,
       "architectures[0] is 'GemmaForCausalLM', which is not supported; supported: LlamaForCausalLM, "
       "Phi3ForCausalLM, Qwen2ForCausalLM, DeepseekV3ForCausalLM"},
      {"phi-4", R"({"architectures": null})", kInvalid, "architectures is missing"},
      {"phi-4", R"({"architectures": []})", kInvalid, "architectures is an array"},
      {"phi-4", R"({"architectures": [7]})", kInvalid, "architectures is an array"},
      {"phi-4", R"({"model_type": "llama"})", kInvalid, "model_type is 'llama', must be 'phi3'"},
      {"phi-4", R"({"hidden_act": "gelu"})", kUnimplemented, "hidden_act is 'gelu'"},
      {"phi-4", R"({"attention_bias": true})", kUnimplemented, "attention_bias is true"},
      {"llama-3.2-3b-instruct", R"({"mlp_bias": true})", kUnimplemented, "mlp_bias is true"},
      {"phi-4", R"({"hidden_size": null})", kInvalid, "hidden_size is missing"},
      {"phi-4", R"({"hidden_size": "5120"})", kInvalid, "hidden_size is '5120', must be an integer"},
      {"phi-4", R"({"hidden_size": 5120.5})", kInvalid, "hidden_size is 5120.5"},
      {"phi-4", R"({"hidden_size": -5120})", kInvalid, "hidden_size is -5120"},
      {"phi-4", R"({"hidden_size": 5121})", kInvalid, "hidden_size 5121 is no multiple of"},
      {"phi-4", R"({"num_hidden_layers": 0})", kInvalid, "num_hidden_layers is 0"},
      {"phi-4", R"({"num_hidden_layers": 1e18})", kInvalid, "num_hidden_layers is 1e+18"},
      {"phi-4", R"({"num_hidden_layers": 1000000000000000000})", kInvalid, "1 to 4096"},
      {"phi-4", R"({"vocab_size": 18446744073709551615})", kInvalid, "vocab_size is 18446744073709551615"},
      {"phi-4", R"({"intermediate_size": [1]})", kInvalid, "intermediate_size is an array"},
      {"phi-4", R"({"num_key_value_heads": 7})", kInvalid, "num_key_value_heads 7"},
      {"phi-4", R"({"num_key_value_heads": 80})", kInvalid, "num_key_value_heads is 80"},
      {"phi-4", R"({"head_dim": 0})", kInvalid, "head_dim is 0"},
      {"phi-4", R"({"rms_norm_eps": 0})", kInvalid, "rms_norm_eps is 0"},
      {"phi-4", R"({"tie_word_embeddings": "yes"})", kInvalid, "tie_word_embeddings is 'yes'"},
      {"phi-4", R"({"torch_dtype": "int8"})", kUnimplemented, "torch_dtype is 'int8'"},
      {"phi-4", R"({"eos_token_id": [1, -1]})", kInvalid, "eos_token_id is -1"},
      {"phi-4", R"({"bos_token_id": "x"})", kInvalid, "bos_token_id is 'x'"},
      {"phi-4", R"({"sliding_window": 2048})", kUnimplemented, "sliding_window is 2048"},
      {"deepseek-r1-distill-qwen-7b", R"({"use_sliding_window": true, "max_window_layers": 20})",
       kUnimplemented, "sliding_window is 4096"},
      {"phi-4", R"({"layer_types": ["full_attention"]})", kInvalid, "layer_types is an array, must be an"},
      {"phi-4", R"({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]})", kUnimplemented,
       "layer_types[0] is 'chunked_attention'"},
      {"phi-4", R"({"rope_theta": 0})", kInvalid, "rope_theta is 0"},
      {"phi-4", R"({"rope_theta": "NaN"})", kInvalid, "rope_theta is 'NaN'"},
      {"phi-4", R"({"partial_rotary_factor": 1.5})", kInvalid, "partial_rotary_factor is 1.5"},
      {"phi-4", R"({"partial_rotary_factor": 0.7})", kInvalid, "89 rotating channels"},
      {"llama-3.2-3b-instruct", R"({"partial_rotary_factor": 0.5})", kUnimplemented,
       "partial_rotary_factor is 0.5, must be 1"},
      {"phi-4", R"({"rope_scaling": "longrope"})", kInvalid, "rope_scaling is 'longrope'"},
      {"phi-4", R"({"rope_scaling": {"type": "dynamic", "factor": 2}})", kUnimplemented,
       "rope_scaling.type is 'dynamic', which is not supported; supported: default, longrope"},
      {"deepseek-r1", R"({"rope_scaling": {"rope_type": "linear"}})", kUnimplemented,
       "rope_scaling.rope_type is 'linear', which is not supported; supported: default, llama3, yarn"},
      {"deepseek-r1", R"({"rope_scaling": {"surprise": 1}})", kUnimplemented, "rope_scaling.surprise is 1"},
      {"deepseek-r1", R"({"rope_scaling": {"factor": -1}})", kInvalid, "rope_scaling.factor is -1"},
      {"deepseek-r1", R"({"rope_scaling": {"beta_fast": 0.5}})", kInvalid, "rope_scaling.beta_fast is 0.5"},
      {"deepseek-r1", R"({"rope_theta": 1})", kInvalid, "rope_theta is 1, must be above 1"},
      {"llama-3.2-3b-instruct", R"({"rope_scaling": {"factor": null}})", kInvalid,
       "rope_scaling.factor is missing"},
      {"llama-3.2-3b-instruct", R"({"rope_scaling": {"high_freq_factor": 1}})", kInvalid,
       "rope_scaling.high_freq_factor is 1"},
      {"llama-3.2-3b-instruct", R"({"rope_scaling": {"original_max_position_embeddings": 0}})", kInvalid,
       "rope_scaling.original_max_position_embeddings is 0"},
      {"phi-4-mini-instruct", R"({"rope_scaling": {"short_factor": [1, 2]}})", kInvalid,
       "rope_scaling.short_factor has 2 elements, must be an array of 48"},
      {"phi-4-mini-instruct", R"({"rope_scaling": {"long_factor": null}})", kInvalid,
       "rope_scaling.long_factor is missing"},
      {"phi-4-mini-instruct", R"({"original_max_position_embeddings": 1})", kInvalid, "must be at least 2"},
      {"phi-4", R"({"quantization_config": {"quant_method": "bitsandbytes"}})", kUnimplemented,
       "quantization_config.quant_method is 'bitsandbytes', which is not supported; supported: fp8, awq"},
      {"phi-4", R"({"quantization_config": {"quant_method": "gptq"}})", kInvalid, "bits is missing"},
      {"phi-4", R"({"quantization_config": {"quant_method": "gptq", "bits": 8}})", kUnimplemented,
       "bits is 8"},
      {"phi-4", R"({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}})", kInvalid,
       "group_size is 0, must be -1"},
      {"phi-4",
       R"({"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}})",
       kUnimplemented, "checkpoint_format is 'marlin'"},
      {"phi-4", R"({"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": {"a": {}}}})",
       kUnimplemented, "dynamic is an object"},
      {"phi-4", R"({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}})",
       kUnimplemented, "version is 'gemv'"},
      {"phi-4", R"({"quantization_config": {"quant_method": "awq", "bits": 4, "zero_point": false}})",
       kUnimplemented, "zero_point is false"},
      {"phi-4",
       R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}})",
       kUnimplemented, "format is 'pack-quantized'"},
      {"phi-4", R"({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g":
          {"weights": {"num_bits": 4}}}}})",
       kUnimplemented, "quantization_config.config_groups.g.weights.num_bits is 4"},
      {"phi-4", R"({"quantization_config": {}})", kInvalid, "quantization_config.quant_method is missing"},
      {"deepseek-r1", R"({"quantization_config": {"weight_block_size": [0, 128]}})", kInvalid,
       "quantization_config.weight_block_size[0] is 0"},
      {"deepseek-r1", R"({"quantization_config": {"fmt": "e5m2"}})", kUnimplemented, "fmt is 'e5m2'"},
      {"deepseek-r1", R"({"scoring_func": "softmax"})", kUnimplemented, "scoring_func is 'softmax'"},
      {"deepseek-r1", R"({"topk_method": "greedy"})", kUnimplemented, "topk_method is 'greedy'"},
      {"deepseek-r1", R"({"n_group": 7})", kInvalid, "n_group is 7"},
      {"deepseek-r1", R"({"n_group": 256, "topk_group": 8})", kInvalid, "n_group is 256"},
      {"deepseek-r1", R"({"topk_group": 9})", kInvalid, "topk_group is 9"},
      {"deepseek-r1", R"({"num_experts_per_tok": 200})", kInvalid, "num_experts_per_tok is 200"},
      {"deepseek-r1", R"({"num_key_value_heads": 8})", kUnimplemented, "num_key_value_heads is 8"},
      {"deepseek-r1", R"({"kv_lora_rank": null})", kInvalid, "kv_lora_rank is missing"},
      {"deepseek-r1", R"({"first_k_dense_replace": 62})", kInvalid, "first_k_dense_replace is 62"},
  };
  for (const BadCase& c : cases) {
    const absl::Status status = Patched(c.known, c.patch).status();
    EXPECT_EQ(status.code(), c.code) << c.patch << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.patch;
    EXPECT_THAT(std::string(status.message()), HasSubstr("dir/config.json: ")) << c.patch;
  }
}

TEST(HfConfigTest, Quantisation) {
  const auto read = [](const std::string& quantisation) {
    const auto config = Patched("phi-4", R"({"quantization_config": )" + quantisation + "}");
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? config->model : ModelConfig();
  };
  ModelConfig m = read("null");
  EXPECT_EQ(m.quantisation, Quantisation::kNone);
  EXPECT_EQ(m.ffn_unit, kFfnUnit);
  m = read(R"({"quant_method": "fp8", "activation_scheme": "static"})");
  EXPECT_EQ(m.quantisation, Quantisation::kFp8);
  EXPECT_FALSE(m.fp8 || m.int4);
  m = read(R"({"quant_method": "fp8", "weight_block_size": [64, 128]})");
  EXPECT_EQ(m.fp8, (Fp8Blocks{64, 128}));
  EXPECT_EQ(m.ffn_unit, 128);
  m = read(R"({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": {
      "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}})");
  EXPECT_EQ(m.quantisation, Quantisation::kFp8);
  m = read(R"({"quant_method": "awq", "bits": 4, "version": "GEMM", "group_size": 64, "zero_point": true})");
  EXPECT_EQ(m.quantisation, Quantisation::kAwq);
  EXPECT_EQ(m.int4, (Int4Groups{64, 0}));
  EXPECT_EQ(m.ffn_unit, 64);
  m = read(R"({"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": true, "desc_act": true})");
  EXPECT_EQ(m.quantisation, Quantisation::kGptq);
  EXPECT_EQ(m.int4, (Int4Groups{0, 1}));
  EXPECT_EQ(m.ffn_unit, kFfnUnit);
  m = read(R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"})");
  EXPECT_EQ(m.int4, (Int4Groups{128, 0}));
}

TEST(HfConfigTest, TextThatIsNoConfig) {
  const auto message = [](const std::string& text) { return std::string(Parse(text).status().message()); };
  EXPECT_THAT(message(""), HasSubstr("dir/config.json: not valid JSON"));
  EXPECT_THAT(message("{\"a\": NaN}"), HasSubstr("not valid JSON at byte 7"));
  EXPECT_THAT(message("{\"a\": 1e999}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("{\"a\": \"\xff\"}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("holds an array, must be an object"));
  EXPECT_THAT(message(std::string(100000, '[')), HasSubstr("nested deeper than 64"));
}

TEST(HfConfigTest, Files) {
  const std::string dir = ::testing::TempDir() + "/hf_config_test_" + std::to_string(::getpid());
  std::filesystem::create_directories(dir);
  EXPECT_EQ(ModelConfigFromHf(dir).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ModelConfigFromHf(dir).status().message()), HasSubstr(dir + "/config.json"));
  std::ofstream(dir + "/config.json") << KnownConfigText("phi-4");
  const auto config = ModelConfigFromHf(dir);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 40);
  std::filesystem::resize_file(dir + "/config.json", kMaxConfigBytes + 1);  // sparse
  EXPECT_THAT(std::string(ModelConfigFromHf(dir).status().message()), HasSubstr("must be at most 4194304"));
  std::filesystem::remove(dir + "/config.json");
  std::filesystem::create_directories(dir + "/config.json");
  EXPECT_THAT(std::string(ModelConfigFromHf(dir).status().message()), HasSubstr("not a regular file"));
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace phalanx

#include "client/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/base/gguf_writer.h"
#include "tests/base/known_configs.h"

namespace phalanx {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::Not;

class InspectTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(dir_); }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& name, std::string_view text) {
    ASSERT_TRUE(GgufWriter::WriteBytes(dir_ + "/" + name, text));
  }
  // Tensors: name, type, shape; all zero.
  void WriteSafetensors(const std::string& name, const json& header, size_t data_bytes) {
    const std::string text = header.dump();
    Write(name, GgufWriter::Raw(uint64_t{text.size()}) + text + std::string(data_bytes, '\0'));
  }
  absl::StatusOr<ordered_json> Report(const std::string& path, const ClientConfig& config = {}) {
    const auto facts = ReadModelFacts(path);
    if (!facts.ok()) return facts.status();
    return InspectReport(*facts, config);
  }
  std::string Error(const std::string& path) {
    const auto report = Report(path);
    EXPECT_FALSE(report.ok());
    return std::string(report.status().message());
  }

  const std::string dir_ = ::testing::TempDir() + "/inspect_test_" + std::to_string(::getpid());
};

// A llama of two layers: 4 query heads on 2 KV heads of 8 channels, FFN 64, 8 tokens.
GgufWriter TinyLlama(const std::string& architecture = "llama") {
  GgufWriter w;
  const auto key = [&](const char* name) { return architecture + "." + name; };
  w.SetString("general.architecture", architecture);
  w.SetString("general.name", "tiny \x1b[31m");
  w.SetU32(key("block_count"), 2);
  w.SetU32(key("context_length"), 128);
  w.SetU32(key("embedding_length"), 32);
  w.SetU32(key("feed_forward_length"), 64);
  w.SetU32(key("attention.head_count"), 4);
  w.SetU32(key("attention.head_count_kv"), 2);
  w.SetF32(key("attention.layer_norm_rms_epsilon"), 1e-5f);
  w.SetF32(key("rope.freq_base"), 10000);
  w.SetU32(key("rope.dimension_count"), 8);
  w.SetString("tokenizer.ggml.model", "gpt2");
  w.SetString("tokenizer.ggml.pre", "smollm");
  w.SetStrings("tokenizer.ggml.tokens", {"<s>", "</s>", "a", "b", "ab", "<think>", "</think>", "c"});
  w.SetStrings("tokenizer.ggml.merges", {"a b"});
  w.SetU32("tokenizer.ggml.bos_token_id", 0);
  w.SetU32("tokenizer.ggml.eos_token_id", 1);
  w.SetString("tokenizer.chat_template", "{% if tools %}{% endif %}{{ messages }}");
  w.SetF32("general.sampling.temp", 0.5f);
  const auto add = [&](const std::string& name, DType type, const std::vector<int64_t>& dims) {
    w.AddTensor(name, type, dims, std::vector<float>(dims[0] * (dims.size() > 1 ? dims[1] : 1)));
  };
  add("token_embd.weight", DType::kQ8_0, {32, 8});
  add("output_norm.weight", DType::kF32, {32});
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    add(layer + "attn_norm.weight", DType::kF32, {32});
    add(layer + "attn_q.weight", DType::kBF16, {32, 32});
    add(layer + "attn_k.weight", DType::kBF16, {32, 16});
    add(layer + "attn_v.weight", DType::kBF16, {32, 16});
    add(layer + "attn_output.weight", DType::kBF16, {32, 32});
    add(layer + "ffn_norm.weight", DType::kF32, {32});
    add(layer + "ffn_gate.weight", DType::kBF16, {32, 64});
    add(layer + "ffn_up.weight", DType::kBF16, {32, 64});
    add(layer + "ffn_down.weight", DType::kBF16, {64, 32});
  }
  return w;
}

TEST_F(InspectTest, TextOfAGgufFile) {
  const std::string path = dir_ + "/tiny.gguf";
  ASSERT_TRUE(TinyLlama().Write(path));
  ClientConfig config;
  config.device_memory = "3GiB";
  config.shards = 4;
  const auto report = Report(path, config);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(RenderReport(*report), path + R"golden( (GGUF)
  architecture      llama
  servable          yes
  name              tiny \x1b[31m
  parameters        18,848
  layers            2
  hidden size       32
  attention         4 query heads, 2 KV heads, heads of 8
  FFN               64
  vocabulary        8, embeddings tied to the head
  context           128
  RoPE              theta 10000
  weights           36.89 KiB
    BF16            36.00 KiB in 14 tensors
    F32             640 B in 5 tensors
    Q8_0            272 B in 1 tensor
  tokenizer         gpt2, pre-tokenizer smollm, 8 tokens, 1 merge
    bos             0  <s>
    eos             1  </s>
  chat template     tokenizer.chat_template, 39 bytes, speaks of tools
  reasoning         <think> ... </think> in tokens 5 and 6
  generation        temp 0.5
memory of the fullest rank: weights as stored, KV cache in bf16, 4 shards, devices of 3.00 GiB
  RANKS    WEIGHTS  KV A TOKEN  KV OF 128 TOKENS  SEQUENCES OF THEM  TOKENS IN ALL
      1  36.89 KiB       128 B         16.00 KiB             45,872      5,871,712
      2  18.89 KiB        64 B          8.00 KiB             91,748     11,743,744
      3  18.89 KiB        64 B          8.00 KiB             91,748     11,743,744
      4  16.89 KiB        64 B          8.00 KiB             91,748     11,743,776
  (90 % of a device, less 2 GiB and the weights, is for the cache)
what each rank holds:
    RANK  SHARDS  QUERY HEADS  KV HEADS  FFN COLUMNS  VOCABULARY ROWS    WEIGHTS  KV A TOKEN
  0 of 1     0-3          0-3       0-1         0-63              0-7  36.89 KiB       128 B
  0 of 2     0-1          0-1         0         0-31              0-3  18.89 KiB        64 B
  1 of 2     2-3          2-3         1        32-63              4-7  18.89 KiB        64 B
  0 of 3       0            0         0            -              0-1   4.89 KiB        64 B
  1 of 3       1            1         0         0-31              2-3  16.89 KiB        64 B
  2 of 3     2-3          2-3         1        32-63              4-7  18.89 KiB        64 B
  0 of 4       0            0         0            -              0-1   4.89 KiB        64 B
  1 of 4       1            1         0         0-31              2-3  16.89 KiB        64 B
  2 of 4       2            2         1            -              4-5   4.89 KiB        64 B
  3 of 4       3            3         1        32-63              6-7  16.89 KiB        64 B
note: sequences of 128 tokens, the model's context, not 32768
)golden");
}

TEST_F(InspectTest, GgufThatThisBuildCannotServe) {
  const std::string path = dir_ + "/other.gguf";
  ASSERT_TRUE(TinyLlama("gemma3").Write(path));
  const auto report = Report(path);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE((*report)["servable"].get<bool>());
  EXPECT_THAT((*report)["not_servable_because"].get<std::string>(), HasSubstr("'gemma3' is not supported"));
  EXPECT_EQ((*report)["architecture"], "gemma3");
  EXPECT_EQ((*report)["layers"], 2);
  EXPECT_EQ((*report)["attention"]["kv_heads"], 2);
  EXPECT_EQ((*report)["attention"]["key_channels"], 8);
  EXPECT_EQ((*report)["rope"]["theta"], 10000.0);
  EXPECT_EQ((*report)["memory"]["ranks"].size(), 8u);
  EXPECT_EQ((*report)["memory"]["ranks"][0]["kv_bytes_per_token"], 2 * 2 * 16 * 2);

  // A type whose blocks nobody here reads: its size is known all the same.
  GgufWriter w = TinyLlama();
  w.AddRawTensor("output.weight", 11, {256, 8}, std::string(8 * 110, '\0'));
  ASSERT_TRUE(w.Write(path));
  const auto quantised = Report(path);
  ASSERT_TRUE(quantised.ok()) << quantised.status();
  EXPECT_THAT((*quantised)["not_servable_because"].get<std::string>(),
              HasSubstr("type Q3_K is not supported"));
  EXPECT_EQ((*quantised)["weights"]["types"]["Q3_K"]["bytes"], 8 * 110);
  EXPECT_FALSE((*quantised)["tied_embeddings"].get<bool>());
}

// DeepSeek's keys: the cache is the latent, whatever head_count_kv says.
TEST_F(InspectTest, GgufWithLatentAttention) {
  GgufWriter w;
  w.SetString("general.architecture", "deepseek2");
  const std::pair<const char*, uint32_t> keys[] = {
      {"block_count", 3},
      {"context_length", 64},
      {"embedding_length", 32},
      {"feed_forward_length", 64},
      {"attention.head_count", 4},
      {"attention.head_count_kv", 1},
      {"attention.key_length", 24},
      {"attention.value_length", 16},
      {"attention.key_length_mla", 12},
      {"attention.value_length_mla", 8},
      {"attention.kv_lora_rank", 16},
      {"attention.q_lora_rank", 20},
      {"rope.dimension_count", 8},
      {"expert_count", 8},
      {"expert_used_count", 2},
      {"expert_feed_forward_length", 32},
      {"expert_shared_count", 1},
      {"leading_dense_block_count", 1},
      {"rope.scaling.original_context_length", 16},
  };
  for (const auto& [key, value] : keys) w.SetU32(std::string("deepseek2.") + key, value);
  w.SetF32("deepseek2.rope.freq_base", 10000);
  w.SetString("deepseek2.rope.scaling.type", "yarn");
  w.SetF32("deepseek2.rope.scaling.factor", 4);
  w.AddTensor("token_embd.weight", DType::kF32, {32, 8}, std::vector<float>(256));
  const std::string path = dir_ + "/mla.gguf";
  ASSERT_TRUE(w.Write(path));
  const auto report = Report(path);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ((*report)["attention"]["key_channels"], 12);
  EXPECT_EQ((*report)["attention"]["mla"]["kv_latent"], 16);
  EXPECT_EQ((*report)["experts"]["first_dense_layers"], 1);
  EXPECT_EQ((*report)["rope"]["kind"], "yarn");
  EXPECT_EQ((*report)["rope"]["factor"], 4.0);
  for (const ordered_json& rank : (*report)["memory"]["ranks"]) {
    EXPECT_EQ(rank["kv_bytes_per_token"], 3 * (16 + 8) * 2);
  }
  EXPECT_THAT(RenderReport(*report), HasSubstr("MLA: a latent of 16 + 8 channels a token"));

  w.SetU32("deepseek2.expert_group_count", 2'000'000'000);
  ASSERT_TRUE(w.Write(path));
  EXPECT_THAT(Error(path), HasSubstr("deepseek2.expert_group_count is 2000000000"));
}

TEST_F(InspectTest, HuggingFaceConfigAlone) {
  Write("config.json", KnownConfigText("phi-4-reasoning"));
  ClientConfig config;
  config.device_memory = "79.1GiB";
  const auto report = Report(dir_, config);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ((*report)["parameters"], 14659507200);
  EXPECT_EQ((*report)["class"], "Phi3ForCausalLM");
  EXPECT_EQ((*report)["weights"]["source"], "config");
  EXPECT_EQ((*report)["weights"]["bytes"], 2 * 14659507200);
  EXPECT_EQ((*report)["memory"]["ranks"][1]["sequences"], 17);
  EXPECT_EQ((*report)["special_tokens"][1]["id"], 100265);
  EXPECT_THAT(RenderReport(*report), HasSubstr("note: there is no tokenizer.json"));

  // The model's own context bounds the sequences.
  Write("config.json", KnownConfigText("phi-4"));
  const auto shorter = Report(dir_, config);
  ASSERT_TRUE(shorter.ok());
  EXPECT_EQ((*shorter)["memory"]["tokens"], 16384);
  EXPECT_THAT(RenderReport(*shorter),
              HasSubstr("note: sequences of 16384 tokens, the model's context, not 32768"));
}

TEST_F(InspectTest, HuggingFaceFolder) {
  json config = {{"architectures", {"Qwen2ForCausalLM"}},
                 {"num_hidden_layers", 1},
                 {"hidden_size", 16},
                 {"intermediate_size", 32},
                 {"vocab_size", 8},
                 {"max_position_embeddings", 64},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"tie_word_embeddings", true},
                 {"dtype", "bfloat16"},
                 {"bos_token_id", 0},
                 {"eos_token_id", 1}};
  Write("config.json", config.dump());
  const auto tensor = [](std::vector<int64_t> shape, int64_t begin, int64_t end) {
    return json{{"dtype", "BF16"}, {"shape", std::move(shape)}, {"data_offsets", {begin, end}}};
  };
  WriteSafetensors("a.safetensors",
                   {{"__metadata__", {{"format", "pt"}}},
                    {"model.embed_tokens.weight", tensor({8, 16}, 0, 256)},
                    {"model.layers.0.self_attn.q_proj.weight", tensor({16, 16}, 256, 768)},
                    {"model.layers.1.self_attn.q_proj.weight", tensor({16, 16}, 768, 1280)}},
                   1280);
  WriteSafetensors("b.safetensors", {{"model.layers.0.mlp.up_proj.weight", tensor({32, 16}, 0, 1024)}}, 1024);
  Write("generation_config.json", R"({"eos_token_id": [1, 2], "temperature": 0.6, "top_k": 20, "x": {}})");
  Write("chat_template.jinja", "<think></think>{{ system }}");
  const auto report = Report(dir_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ((*report)["weights"]["source"], "tensors");
  EXPECT_EQ((*report)["weights"]["types"]["BF16"]["tensors"], 4);
  EXPECT_EQ((*report)["weights"]["types"]["BF16"]["bytes"], 2304);
  EXPECT_EQ((*report)["parameters"], 8 * 16 + 16 * 16 + 32 * 16);
  EXPECT_EQ((*report)["mtp_parameters"], 16 * 16) << "layer 1 of a model with one layer";
  EXPECT_EQ((*report)["special_tokens"].size(), 3u) << "bos, and both of the generation config";
  EXPECT_EQ((*report)["generation"]["temperature"], 0.6);
  EXPECT_FALSE((*report)["generation"].contains("x"));
  EXPECT_EQ((*report)["chat_template"]["source"], "chat_template.jinja");
  EXPECT_TRUE((*report)["chat_template"]["system"].get<bool>());
  EXPECT_FALSE((*report)["chat_template"]["tools"].get<bool>());
  EXPECT_EQ((*report)["reasoning"]["family"], "think");
  EXPECT_EQ((*report)["reasoning"]["found_in"], "the chat template");

  // An index says which files count; one that is not here leaves the config's shapes.
  Write("model.safetensors.index.json", R"({"weight_map": {"x": "b.safetensors", "y": "gone.safetensors"}})");
  const auto partial = Report(dir_);
  ASSERT_TRUE(partial.ok()) << partial.status();
  EXPECT_EQ((*partial)["weights"]["source"], "config");
  EXPECT_THAT(RenderReport(*partial), HasSubstr("1 of 2 files of weights"));
  Write("model.safetensors.index.json", R"({"weight_map": {"x": "../b.safetensors"}})");
  EXPECT_THAT(Error(dir_), HasSubstr("'../b.safetensors', must be a file of this folder"));
}

TEST_F(InspectTest, NamesWhatIsWrong) {
  EXPECT_THAT(Error(dir_ + "/none.gguf"), HasSubstr("none.gguf"));
  EXPECT_THAT(Error(dir_), HasSubstr("config.json: no such file; a model is a GGUF file or"));
  Write("bad.gguf", "GGUX");
  EXPECT_THAT(Error(dir_ + "/bad.gguf"), HasSubstr("bad.gguf: not a GGUF file"));
  Write("cut.gguf", TinyLlama().Serialize().substr(0, 1000));
  EXPECT_THAT(Error(dir_ + "/cut.gguf"), HasSubstr("cut.gguf: "));
  Write("config.json", "{");
  EXPECT_THAT(Error(dir_), HasSubstr("config.json: not valid JSON"));
}

TEST_F(InspectTest, WhatCannotBeComputedIsANote) {
  GgufWriter w;
  w.SetString("general.architecture", "strange");
  w.SetU32("strange.block_count", 3);
  w.SetI32s("strange.attention.head_count", {1, 2, 3});
  const std::string path = dir_ + "/strange.gguf";
  ASSERT_TRUE(w.Write(path));
  const auto report = Report(path);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE((*report)["memory"].is_null());
  EXPECT_TRUE((*report)["attention"]["query_heads"].is_null());
  EXPECT_THAT(RenderReport(*report),
              HasSubstr("note: memory is not computed: the file does not give one number "
                        "for its query heads"));
}

TEST_F(InspectTest, SizesThatCannotBeRight) {
  json config = json::parse(KnownConfigText("llama-3.2-3b-instruct"));
  for (const char* key : {"hidden_size", "intermediate_size", "vocab_size"}) config[key] = 1 << 30;
  config["num_hidden_layers"] = 4096;
  Write("config.json", config.dump());
  EXPECT_THAT(Error(dir_), HasSubstr("config.json: the model's sizes multiply to more than 2^62"));
  Write("config.json", KnownConfigText("phi-4"));
  ClientConfig options;
  options.shards = 65;
  EXPECT_THAT(std::string(Report(dir_, options).status().message()),
              HasSubstr(dir_ + ": number of shards is 65"));

  GgufWriter w = TinyLlama("strange");
  w.SetU32("strange.attention.key_length", 65536);
  const std::string path = dir_ + "/strange.gguf";
  ASSERT_TRUE(w.Write(path));
  EXPECT_TRUE(Report(path).ok());
  w.SetU32("strange.attention.value_length", 65537);
  ASSERT_TRUE(w.Write(path));
  EXPECT_THAT(Error(path), HasSubstr("strange.attention.value_length is 65537, must be 0 to 65536"));
}

TEST(ByteSizeTest, Units) {
  EXPECT_EQ(*ParseByteSize("80GB"), 80'000'000'000);
  EXPECT_EQ(*ParseByteSize("79.5GiB"), 85'362'475'008);
  EXPECT_EQ(*ParseByteSize("512 MiB"), 536'870'912);
  EXPECT_EQ(*ParseByteSize("1B"), 1);
  for (const char* bad : {"", "80", "GB", "-1GB", "0GB", "nanGB", "infGiB", "1e9TB", "80gigs", "80GBx"}) {
    EXPECT_FALSE(ParseByteSize(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace phalanx

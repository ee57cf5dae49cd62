#include "worker/checkpoint.h"

#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/base/gguf_writer.h"
#include "worker/weights.h"

namespace phalanx {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A Hugging Face directory with made-up tensors.
class HfCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(dir_);
    config_ = {{"architectures", {"LlamaForCausalLM"}},
               {"model_type", "llama"},
               {"hidden_size", 4},
               {"intermediate_size", 8},
               {"num_hidden_layers", 1},
               {"num_attention_heads", 2},
               {"num_key_value_heads", 1},
               {"vocab_size", 3},
               {"max_position_embeddings", 16}};
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  struct Tensor {
    std::string name, dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  static Tensor F32(const std::string& name, std::vector<int64_t> shape) {
    int64_t elements = 1;
    for (const int64_t dim : shape) elements *= dim;
    std::string bytes;
    for (int64_t i = 0; i < elements; ++i) bytes += GgufWriter::Raw(static_cast<float>(i));
    return {name, "F32", std::move(shape), bytes};
  }
  void Write(const std::string& name, std::string_view text) {
    ASSERT_TRUE(GgufWriter::WriteBytes(dir_ + "/" + name, text));
  }
  void WriteTensors(const std::string& file, const std::vector<Tensor>& tensors) {
    json header = json::object();
    std::string data;
    for (const Tensor& t : tensors) {
      header[t.name] = {{"dtype", t.dtype},
                        {"shape", t.shape},
                        {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
      data += t.bytes;
    }
    const std::string text = header.dump();
    Write(file, GgufWriter::Raw(uint64_t{text.size()}) + text + data);
  }
  void WriteIndex(const json& map) {
    Write("model.safetensors.index.json", json{{"metadata", json::object()}, {"weight_map", map}}.dump());
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() {
    Write("config.json", config_.dump());
    return Checkpoint::Open(dir_);
  }
  std::string Error() { return std::string(Open().status().message()); }

  json config_;
  const std::string dir_ = ::testing::TempDir() + "/checkpoint_test_" + std::to_string(::getpid());
};

TEST_F(HfCheckpointTest, ReadsShardsByTheIndex) {
  WriteTensors("model-00001-of-00002.safetensors", {F32("model.embed_tokens.weight", {3, 4})});
  WriteTensors("model-00002-of-00002.safetensors",
               {{"model.norm.weight", "BF16", {4}, std::string("\x80\x3f\x00\x40\x40\x40\x80\x40", 8)},
                {"x.g_idx", "I32", {2}, std::string(8, '\0')}});
  Write("consolidated.safetensors", "not one of the model's files");
  WriteIndex({{"model.embed_tokens.weight", "model-00001-of-00002.safetensors"},
              {"model.norm.weight", "model-00002-of-00002.safetensors"},
              {"x.g_idx", "model-00002-of-00002.safetensors"}});
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->path(), dir_);
  EXPECT_EQ((*checkpoint)->config().architecture, "llama");
  EXPECT_FALSE((*checkpoint)->config().rope[0].interleaved);
  EXPECT_EQ((*checkpoint)->tensors().size(), 3u);
  EXPECT_EQ((*checkpoint)->FindTensor("x.g_idx")->dtype, std::nullopt);
  EXPECT_EQ((*checkpoint)->FindTensor("x.g_idx")->type, "I32");
  EXPECT_EQ((*checkpoint)->gguf(), nullptr);

  TensorFinder finder(**checkpoint);
  const WeightSource matrix = finder.Matrix("model.embed_tokens", 3, 4);
  EXPECT_EQ(finder.Vector("model.norm.weight", 4), (std::vector<float>{1, 2, 3, 4}));
  finder.Allow("x.");
  ASSERT_TRUE(finder.Finish().ok()) << finder.Finish();
  EXPECT_EQ(matrix.dtype, DType::kF32);
  EXPECT_EQ(std::memcmp(matrix.data, F32("", {12}).bytes.data(), 48), 0);
}

TEST_F(HfCheckpointTest, TheHashIsOfConfigAndWeights) {
  WriteTensors("model.safetensors", {F32("model.norm.weight", {4})});
  const uint64_t hash = (*Open())->ContentHash();
  EXPECT_EQ((*Open())->ContentHash(), hash);
  config_["rope_theta"] = 20000.0;
  EXPECT_NE((*Open())->ContentHash(), hash);
  config_.erase("rope_theta");
  Tensor other = F32("model.norm.weight", {4});
  other.bytes[15] = 7;
  WriteTensors("model.safetensors", {other});
  EXPECT_NE((*Open())->ContentHash(), hash);
}

TEST_F(HfCheckpointTest, SomeTensorsAreExpectedAndUnused) {
  config_["tie_word_embeddings"] = true;
  WriteTensors("model.safetensors",
               {F32("lm_head.weight", {3, 4}), F32("model.layers.0.self_attn.rotary_emb.inv_freq", {1}),
                F32("model.layers.1.self_attn.q_proj.weight", {1})});
  const auto tied = Open();
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_THAT(
      std::string(TensorFinder(**tied).Finish().message()),
      AllOf(HasSubstr("1 tensor not"), HasSubstr("model.layers.1.self_attn.q_proj.weight [1] is not")));
  config_["tie_word_embeddings"] = false;
  const auto untied = Open();
  EXPECT_THAT(std::string(TensorFinder(**untied).Finish().message()), HasSubstr("lm_head.weight [3, 4]"));
}

TEST_F(HfCheckpointTest, NamesWhatIsWrongWithTheFiles) {
  EXPECT_THAT(Error(), HasSubstr("has no weights: neither model.safetensors.index.json nor"));
  Write("pytorch_model.bin", "x");
  EXPECT_THAT(Error(), HasSubstr("pytorch_model.bin is not read"));
  WriteTensors("a.safetensors", {F32("x", {4})});
  WriteTensors("b.safetensors", {F32("y", {4})});
  WriteIndex({{"x", "a.safetensors"}, {"y", "c.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("index.json: names 'c.safetensors', which is missing"));
  WriteIndex({{"x", "a.safetensors"}, {"y", "a.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("places 'y' in 'a.safetensors', which has no such tensor"));
  WriteIndex({{"x", "b.safetensors"}, {"y", "a.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("a.safetensors: holds 'x', which"));
  WriteTensors("b.safetensors", {F32("y", {4}), F32("z", {4})});
  WriteTensors("a.safetensors", {F32("x", {4}), F32("z", {4})});
  WriteIndex({{"x", "a.safetensors"}, {"y", "b.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("tensor 'z' is in more than one of its files"));
  Write("b.safetensors", "\x08");
  EXPECT_THAT(Error(), HasSubstr("b.safetensors: 1 bytes are too short"));
  EXPECT_THAT(std::string(Checkpoint::Open(dir_ + "/a.safetensors").status().message()),
              HasSubstr("the directory that holds both is wanted"));
  EXPECT_EQ(Checkpoint::Open(dir_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HfCheckpointTest, HostileHeaders) {
  const auto error = [&](std::string_view header, size_t data_bytes = 32) {
    Write("model.safetensors",
          GgufWriter::Raw(uint64_t{header.size()}) + std::string(header) + std::string(data_bytes, '\0'));
    return Error();
  };
  constexpr const char* kX = R"("x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})";
  EXPECT_EQ(
      error(absl::StrCat("{", kX, R"(, "e": {"dtype": "F32", "shape": [0, 9], "data_offsets": [8, 8]}})")),
      "");
  EXPECT_THAT(error(absl::StrCat("{", kX, ", ", kX, "}")), HasSubstr("tensor 'x' appears twice"));
  EXPECT_THAT(
      error(absl::StrCat("{", kX, R"(, "y": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]}})")),
      HasSubstr("tensors 'x' and 'y' overlap"));
  EXPECT_THAT(error(absl::StrCat("{", kX, "}"), 15), HasSubstr("0 and 16 in data of 15 bytes"));
  EXPECT_THAT(error("[]"), HasSubstr("its header is no object"));
  EXPECT_THAT(error("{\"x"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error(R"({"x": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}})"),
              HasSubstr("product is below 2^63"));
}

// The models of tests/golden: names, shapes and configs of all of them fit.
TEST(GoldenModelsTest, OneModelIsTheSameInBothFormats) {
  const std::string models = PHALANX_SOURCE_DIR "/tests/golden/models/";
  for (const std::string name : {"llama_9_3", "phi3_20_5", "phi3_longrope", "qwen2_14_2"}) {
    SCOPED_TRACE(name);
    const auto hf = Checkpoint::Open(models + name);
    ASSERT_TRUE(hf.ok()) << hf.status();
    const auto gguf = Checkpoint::Open(absl::StrCat(models, "gguf/", name, ".gguf"));
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    const ModelConfig &a = (*hf)->config(), &b = (*gguf)->config();
    EXPECT_EQ(a.architecture, b.architecture);
    EXPECT_EQ(a.num_layers, b.num_layers);
    EXPECT_EQ(a.num_heads, b.num_heads);
    EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
    EXPECT_EQ(a.key_dim, b.key_dim);
    EXPECT_EQ(a.value_dim, b.value_dim);
    EXPECT_EQ(a.ffn_size, b.ffn_size);
    EXPECT_EQ(a.vocab_size, b.vocab_size);
    EXPECT_EQ(a.context_length, b.context_length);
    EXPECT_EQ(a.rms_eps, b.rms_eps);
    EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
    EXPECT_EQ(a.qkv_bias, b.qkv_bias);
    EXPECT_EQ(a.softmax_factor, b.softmax_factor);
    ASSERT_EQ(a.rope.size(), b.rope.size());
    for (size_t i = 0; i < a.rope.size(); ++i) {
      EXPECT_EQ(a.rope[i].theta, b.rope[i].theta);
      EXPECT_EQ(a.rope[i].rotary_dim, b.rope[i].rotary_dim);
      EXPECT_EQ(a.rope[i].attention_factor, b.rope[i].attention_factor);
      EXPECT_EQ(b.rope[i].interleaved, a.architecture == "llama");
      ASSERT_EQ(a.rope[i].freq_factors.size(), b.rope[i].freq_factors.size());
      for (size_t f = 0; f < a.rope[i].freq_factors.size(); ++f) {
        EXPECT_FLOAT_EQ(a.rope[i].freq_factors[f], b.rope[i].freq_factors[f]) << f;
      }
    }
    if (a.rope_scaling == RopeScaling::kLongRope) {
      EXPECT_EQ(a.original_context_length, b.original_context_length);
    }
  }
}

}  // namespace
}  // namespace phalanx

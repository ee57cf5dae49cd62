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
                F32("model.layers.0.mlp.shared_experts.up_proj.weight", {0, 4}),
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

// The tensors of quantised matrices.
class QuantisedTest : public HfCheckpointTest {
 protected:
  static Tensor Words(const std::string& name, std::vector<int64_t> shape, int32_t value = 0) {
    Tensor tensor = F32(name, std::move(shape));
    tensor.dtype = "I32";
    for (size_t i = 0; i < tensor.bytes.size(); i += 4) {
      tensor.bytes.replace(i, 4, GgufWriter::Raw(value));
    }
    return tensor;
  }
  static Tensor F8(const std::string& name, std::vector<int64_t> shape) {
    Tensor tensor = F32(name, std::move(shape));
    tensor.dtype = "F8_E4M3";
    tensor.bytes.resize(tensor.bytes.size() / 4);
    return tensor;
  }
  // What the finder says of a matrix "m" [rows, cols] of these files.
  std::string Find(const std::vector<Tensor>& tensors, int64_t rows, int64_t cols) {
    WriteTensors("model.safetensors", tensors);
    checkpoint_ = nullptr;
    auto checkpoint = Open();
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    TensorFinder finder(*checkpoint_);
    source_ = finder.Matrix("m", rows, cols);
    return std::string(finder.Finish().message());
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  WeightSource source_;
};

TEST_F(QuantisedTest, Fp8) {
  config_["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {2, 4}}};
  const Tensor weight = F8("m.weight", {5, 6});
  EXPECT_EQ(Find({weight, F32("m.weight_scale_inv", {3, 2}), F32("m.input_scale", {})}, 5, 6), "");
  EXPECT_EQ(source_.scales.block_rows, 2);
  EXPECT_EQ(source_.scales.block_cols, 4);
  EXPECT_EQ(source_.scales.stride, 2);
  for (const auto& [shape, block_rows] :
       {std::pair{std::vector<int64_t>{}, 5}, std::pair{std::vector<int64_t>{1}, 5},
        std::pair{std::vector<int64_t>{5}, 1}, std::pair{std::vector<int64_t>{5, 1}, 1}}) {
    EXPECT_EQ(Find({weight, F32("m.weight_scale", shape)}, 5, 6), "");
    EXPECT_EQ(source_.scales.block_rows, block_rows);
    EXPECT_EQ(source_.scales.block_cols, 6);
  }
  EXPECT_THAT(Find({weight}, 5, 6), HasSubstr("m.weight_scale_inv or .weight_scale is missing"));
  EXPECT_THAT(
      Find({weight, F32("m.weight_scale", {2, 2})}, 5, 6),
      HasSubstr("m.weight_scale has the shape [2, 2], must be one number, one a block [3, 2] or one"));
  EXPECT_THAT(Find({weight, Words("m.weight_scale", {1})}, 5, 6), HasSubstr("m.weight_scale is I32"));
  EXPECT_THAT(Find({weight, F32("m.weight_scale", {1}), F32("m.weight_scale_inv", {1})}, 5, 6),
              HasSubstr("has two scales"));
  EXPECT_EQ(Find({F32("m.weight", {5, 6})}, 5, 6), "") << "a matrix that was left as it is";
  config_.erase("quantization_config");
  EXPECT_EQ(Find({weight}, 5, 6), "") << "plain numbers";
  EXPECT_EQ(source_.scales.data, nullptr);
}

TEST_F(QuantisedTest, Awq) {
  config_["quantization_config"] = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 4}};
  const std::vector<Tensor> good = {Words("m.qweight", {12, 2}), Words("m.qzeros", {3, 2}),
                                    F32("m.scales", {3, 16})};
  EXPECT_EQ(Find(good, 16, 12), "");
  EXPECT_EQ(source_.dtype, DType::kAwq);
  EXPECT_EQ(source_.stored_rows, 16);
  EXPECT_EQ(source_.groups.group_size, 4);
  EXPECT_EQ(source_.groups.zero_offset, 0);
  EXPECT_EQ(Find({F32("m.weight", {16, 12})}, 16, 12), "");
  EXPECT_THAT(Find({good[0], F32("m.qzeros", {3, 2}), F32("m.scales", {2, 16})}, 16, 12),
              AllOf(HasSubstr("m.qzeros is F32, must be I32"),
                    HasSubstr("m.scales has the shape [2, 16], must be [3, 16]")));
  EXPECT_THAT(Find(good, 17, 12), HasSubstr("multiple of 8 rows"));
  std::vector<Tensor> with_bias = good;
  with_bias.push_back(Words("m.bias", {16}));
  EXPECT_EQ(Find(with_bias, 16, 12), "") << "zeros";
  with_bias.back() = F32("m.bias", {16});
  EXPECT_THAT(Find(with_bias, 16, 12), HasSubstr("m.bias [16] is not known"));
  EXPECT_THAT(Find({good[0]}, 16, 12), HasSubstr("m.qzeros is missing; m.scales is missing"));
}

TEST_F(QuantisedTest, Gptq) {
  config_["quantization_config"] = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 8}};
  const std::vector<Tensor> good = {Words("m.qweight", {2, 8}), Words("m.qzeros", {2, 1}),
                                    F32("m.scales", {2, 8})};
  EXPECT_EQ(Find(good, 8, 16), "");
  EXPECT_EQ(source_.dtype, DType::kGptq);
  EXPECT_EQ(source_.groups.zero_offset, 1);
  EXPECT_EQ(source_.groups.group_of, nullptr);
  auto with_groups = [&](int32_t group) {
    std::vector<Tensor> tensors = good;
    tensors.push_back(Words("m.g_idx", {16}, group));
    return tensors;
  };
  EXPECT_EQ(Find(with_groups(1), 8, 16), "");
  EXPECT_NE(source_.groups.group_of, nullptr);
  EXPECT_THAT(Find(with_groups(2), 8, 16), HasSubstr("m.g_idx [0] is 2, must be a group, 0 to 1"));
  EXPECT_THAT(Find(with_groups(-1), 8, 16), HasSubstr("m.g_idx [0] is -1"));
  EXPECT_THAT(Find(good, 8, 20), HasSubstr("multiple of 8 rows and columns"));
}

// What two formats say of one model of tests/golden.
TEST(GoldenModelsTest, OneModelIsTheSameInBothFormats) {
  const std::string models = PHALANX_SOURCE_DIR "/tests/golden/models/";
  for (const std::string name : {"llama_9_3", "phi3_20_5", "phi3_longrope", "qwen2_14_2", "deepseek_mla"}) {
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
    EXPECT_FLOAT_EQ(static_cast<float>(a.softmax_factor), static_cast<float>(b.softmax_factor));
    ASSERT_EQ(a.rope.size(), b.rope.size());
    for (size_t i = 0; i < a.rope.size(); ++i) {
      EXPECT_EQ(a.rope[i].theta, b.rope[i].theta);
      EXPECT_EQ(a.rope[i].rotary_dim, b.rope[i].rotary_dim);
      EXPECT_EQ(a.rope[i].attention_factor, b.rope[i].attention_factor);
      EXPECT_EQ(b.rope[i].interleaved, a.architecture == "llama" || a.architecture == "deepseek2");
      ASSERT_EQ(a.rope[i].freq_factors.size(), b.rope[i].freq_factors.size());
      for (size_t f = 0; f < a.rope[i].freq_factors.size(); ++f) {
        EXPECT_FLOAT_EQ(a.rope[i].freq_factors[f], b.rope[i].freq_factors[f]) << f;
      }
    }
    EXPECT_EQ(a.mla, b.mla);
    EXPECT_EQ(a.moe, b.moe);
    if (a.rope_scaling == RopeScaling::kLongRope) {
      EXPECT_EQ(a.original_context_length, b.original_context_length);
    }
  }
}

TEST(SplitGgufTest, AnyPartOpensAll) {
  const std::string stem = PHALANX_SOURCE_DIR "/tests/golden/models/gguf/llama_9_3_split-0000";
  const auto first = Checkpoint::Open(stem + "1-of-00003.gguf");
  ASSERT_TRUE(first.ok()) << first.status();
  const auto last = Checkpoint::Open(stem + "3-of-00003.gguf");
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ((*first)->tensors().size(), (*last)->tensors().size());
  EXPECT_EQ((*first)->ContentHash(), (*last)->ContentHash());
  EXPECT_EQ((*last)->config().num_layers, (*first)->config().num_layers);

  const std::string folder = ::testing::TempDir() + "/split_test_" + std::to_string(::getpid());
  std::filesystem::create_directories(folder);
  const auto error = [&](const std::string& from, const std::string& to) {
    std::filesystem::copy_file(stem + from, folder + "/" + to,
                               std::filesystem::copy_options::overwrite_existing);
    return std::string(Checkpoint::Open(folder + "/" + to).status().message());
  };
  EXPECT_THAT(error("1-of-00003.gguf", "x.gguf"), HasSubstr("must end in -00001-of-00003.gguf"));
  EXPECT_THAT(error("1-of-00003.gguf", "x-00001-of-00003.gguf"),
              HasSubstr("part 1 of 3; " + folder + "/x-00002-of-00003.gguf is missing"));
  error("2-of-00003.gguf", "x-00003-of-00003.gguf");
  EXPECT_THAT(error("2-of-00003.gguf", "x-00002-of-00003.gguf"),
              HasSubstr("x-00003-of-00003.gguf: split.no is 1, must be 2 to 2"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace phalanx

#include "worker/weights.h"
#include "worker/models/model.h"

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::unique_ptr<Checkpoint> SmallFile() {
  const std::vector<TinyTensor> tensors = {
      {"token_embd.weight", DType::kQ8_0, {32, 4}, std::vector<float>(128, 0.5f)},
      {"output_norm.weight", DType::kF32, {3}, {1, 2, 3}},
      {"blk.0.attn_norm.weight", DType::kF16, {3}, {1, 2, 3}},
      {"blk.0.attn_q.bias", DType::kQ8_0, {32}, std::vector<float>(32, 1)},
  };
  TinyModelOptions options;
  options.hidden = 32;
  return OpenTinyModel(options, tensors, "weights");
}

TEST(TensorFinderTest, FindsMatricesAndVectors) {
  const auto file = SmallFile();
  TensorFinder finder(*file);
  const WeightSource matrix = finder.Matrix("model.embed_tokens", 4, 32);
  EXPECT_EQ(finder.Vector("model.norm.weight", 3), (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(finder.Vector("model.layers.0.input_layernorm.weight", 3), (std::vector<float>{1, 2, 3}));
  EXPECT_TRUE(finder.OptionalVector("model.layers.0.self_attn.k_proj.bias", 3).empty());
  finder.Allow("blk.0.attn_q");
  ASSERT_TRUE(finder.Finish().ok()) << finder.Finish();
  EXPECT_EQ(matrix.rows, 4);
  EXPECT_EQ(matrix.cols, 32);
  EXPECT_EQ(matrix.dtype, DType::kQ8_0);
  EXPECT_EQ(matrix.data, file->FindTensor("token_embd.weight")->data);
}

TEST(TensorFinderTest, NamesAllThatIsWrongInOneError) {
  const auto file = SmallFile();
  TensorFinder finder(*file);
  finder.Matrix("model.embed_tokens", 32, 4);
  finder.Matrix("model.layers.0.self_attn.q_proj", 8, 8);
  finder.Vector("model.layers.0.self_attn.q_proj.bias", 32);
  finder.Vector("model.layers.0.post_attention_layernorm.weight", 3);
  finder.Vector("model.layers.0.input_layernorm.weight", 3);
  const absl::Status status = finder.Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr(file->path()), HasSubstr("5 tensors"),
            HasSubstr("token_embd.weight has the shape [4, 32], must be [32, 4]"),
            HasSubstr("blk.0.attn_q.weight is missing"), HasSubstr("blk.0.ffn_norm.weight is missing"),
            HasSubstr("blk.0.attn_q.bias is Q8_0, must be F32"),
            HasSubstr("output_norm.weight [3] is not known")));
}

TEST(TensorFinderTest, AnOptionalTensorOfTheWrongShapeIsAnError) {
  const auto file = SmallFile();
  TensorFinder finder(*file);
  finder.Allow("token_embd.weight");
  finder.Allow("blk.");
  EXPECT_TRUE(finder.OptionalVector("model.norm.weight", 4).empty());
  EXPECT_THAT(std::string(finder.Finish().message()),
              HasSubstr("output_norm.weight has the shape [3], must be [4]"));
}

TEST(TensorFinderTest, AnotherModelsFileDoesNotFillTheLog) {
  std::vector<TinyTensor> tensors = {{"token_embd.weight", DType::kF32, {96, 1}, std::vector<float>(96, 1)}};
  for (int i = 0; i < 100; ++i) tensors.push_back({absl::StrCat("t", i), DType::kF32, {1}, {1}});
  const auto file = OpenTinyModel({}, tensors, "many");
  const std::string message(TensorFinder(*file).Finish().message());
  EXPECT_THAT(message, AllOf(HasSubstr("101 tensors"), HasSubstr("and 81 more"), Not(HasSubstr("t99 "))));
}

TEST(CreateModelTest, NamesAnUnknownArchitectureAndTheKnownOnes) {
  ModelConfig config;
  config.architecture = "gemma3";
  ModelContext context;
  context.config = &config;
  const absl::Status status = CreateModel(context).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status.message(),
            "architecture 'gemma3' is not supported; supported: llama, phi3, qwen2, deepseek2");
}

TEST(ReleasePagesTest, TheWeightsReadTheSameAfterwards) {
  TinyModelOptions options;
  options.vocab = 1000;  // 100 KB
  const auto file = OpenTinyModel(options);
  const StoredTensor* tensor = file->FindTensor("token_embd.weight");
  const std::string before(reinterpret_cast<const char*>(tensor->data), tensor->bytes);
  const WeightSource source = {
      .data = tensor->data, .dtype = *tensor->dtype, .rows = 1000, .cols = options.hidden};
  ReleasePages(source, {1, 999});
  ReleasePages(source, {0, 1000});
  ReleasePages(source, {5, 5});
  EXPECT_EQ(std::memcmp(before.data(), tensor->data, tensor->bytes), 0);
}

}  // namespace
}  // namespace phalanx

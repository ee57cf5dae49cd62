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

std::unique_ptr<GgufFile> SmallFile() {
  const std::vector<TinyTensor> tensors = {
      {"token_embd.weight", DType::kQ8_0, {32, 4}, std::vector<float>(128, 0.5f)},
      {"norm", DType::kF32, {3}, {1, 2, 3}},
      {"half", DType::kF16, {3}, {1, 2, 3}},
  };
  TinyModelOptions options;
  return OpenTinyModel(options, tensors, "weights");
}

TEST(TensorFinderTest, FindsMatricesAndVectors) {
  const auto file = SmallFile();
  TensorFinder finder(*file);
  const WeightSource matrix = finder.Matrix("token_embd.weight", 4, 32);
  const float* norm = finder.Vector("norm", 3);
  EXPECT_EQ(finder.OptionalVector("bias", 3), nullptr);
  finder.Allow("half");
  ASSERT_TRUE(finder.Finish().ok()) << finder.Finish();
  EXPECT_EQ(matrix.rows, 4);
  EXPECT_EQ(matrix.cols, 32);
  EXPECT_EQ(matrix.dtype, DType::kQ8_0);
  EXPECT_EQ(matrix.data, file->FindTensor("token_embd.weight")->data);
  EXPECT_EQ(norm[2], 3);
}

TEST(TensorFinderTest, NamesAllThatIsWrongInOneError) {
  const auto file = SmallFile();
  TensorFinder finder(*file);
  finder.Matrix("token_embd.weight", 32, 4);
  finder.Matrix("blk.0.attn_q.weight", 8, 8);
  finder.Vector("output_norm.weight", 3);
  finder.Vector("half", 3);
  const absl::Status status = finder.Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(file->path()), HasSubstr("5 tensors"),
                    HasSubstr("token_embd.weight has the shape [32, 4], must be [4, 32]"),
                    HasSubstr("blk.0.attn_q.weight is missing"), HasSubstr("output_norm.weight is missing"),
                    HasSubstr("half is F16, must be F32"), HasSubstr("norm [3] is not known")));
}

TEST(TensorFinderTest, AnOptionalTensorOfTheWrongShapeIsAnError) {
  const auto file = SmallFile();
  TensorFinder finder(*file);
  finder.Allow("token_embd.weight");
  finder.Allow("half");
  EXPECT_EQ(finder.OptionalVector("norm", 4), nullptr);
  EXPECT_THAT(std::string(finder.Finish().message()), HasSubstr("norm has the shape [3], must be [4]"));
}

TEST(TensorFinderTest, AnotherModelsFileDoesNotFillTheLog) {
  std::vector<TinyTensor> tensors = {{"token_embd.weight", DType::kF32, {1}, {1}}};
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
  EXPECT_EQ(status.message(), "architecture 'gemma3' is not supported; supported: llama");
}

TEST(ReleasePagesTest, TheWeightsReadTheSameAfterwards) {
  TinyModelOptions options;
  options.vocab = 1000;  // 100 KB
  const auto file = OpenTinyModel(options);
  const GgufTensor* tensor = file->FindTensor("token_embd.weight");
  const std::string before(reinterpret_cast<const char*>(tensor->data), tensor->bytes);
  const WeightSource source = {
      .data = tensor->data, .dtype = tensor->dtype, .rows = 1000, .cols = options.hidden};
  ReleasePages(source, {1, 999});
  ReleasePages(source, {0, 1000});
  ReleasePages(source, {5, 5});
  EXPECT_EQ(std::memcmp(before.data(), tensor->data, tensor->bytes), 0);
}

}  // namespace
}  // namespace phalanx

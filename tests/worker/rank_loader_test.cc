#include "worker/rank_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/base/gguf_writer.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

class LoadTokenBytesTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<GgufFile> File(const std::string& model) {
    GgufWriter writer;
    writer.SetString("tokenizer.ggml.model", model);
    writer.SetStrings("tokenizer.ggml.tokens", {"<eos>", "a",
                                                "\xc4\xa0"
                                                "b"});
    writer.SetI32s("tokenizer.ggml.token_type", {3, 1, 1});
    EXPECT_TRUE(writer.Write(path_));
    absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }

  const std::string folder_ = absl::StrCat(::testing::TempDir(), "/rank_loader_test_", getpid());
  const std::string path_ = folder_ + "/tokens.gguf";
};

TEST_F(LoadTokenBytesTest, IdsWithoutATokenHaveNoBytes) {
  const auto file = File("gpt2");
  const auto tokens = LoadTokenBytes(file->path(), file.get(), "", 5);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_NE(*tokens, nullptr);
  EXPECT_THAT((*tokens)->bytes, ::testing::ElementsAre("<eos>", "a", " b", "", ""));
  EXPECT_THAT((*tokens)->is_control, ::testing::ElementsAre(true, false, false, true, true));
}

TEST_F(LoadTokenBytesTest, MoreTokensThanTheModelHasIsAnError) {
  const auto file = File("gpt2");
  const absl::Status status = LoadTokenBytes(path_, file.get(), "", 2).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("the tokenizer of ", path_, " has 3 tokens, but the vocabulary of ",
                                     path_, " has 2")));
}

TEST_F(LoadTokenBytesTest, AFileWithATokenizerOfAnotherKindServesWithoutIt) {
  const auto file = File("llama");
  const auto tokens = LoadTokenBytes(path_, file.get(), "", 5);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*tokens, nullptr);
}

TEST_F(LoadTokenBytesTest, AFolderThatIsGivenGoesFirstAndMustBeReadable) {
  const auto file = File("gpt2");
  const absl::Status status = LoadTokenBytes(file->path(), file.get(), folder_, 5).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_));
  std::ofstream(folder_ + "/tokenizer.json")
      << R"({"added_tokens": [], "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"x": 0, "y": 1, )"
      << R"("xy": 2, "z": 3}, "merges": ["x y"]}})";
  const auto tokens = LoadTokenBytes(file->path(), file.get(), folder_, 4);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT((*tokens)->bytes, ::testing::ElementsAre("x", "y", "xy", "z"));
  EXPECT_EQ(LoadTokenBytes(file->path(), file.get(), folder_, 3).status().code(),
            absl::StatusCode::kInvalidArgument);
}

class LoadRankTest : public ::testing::Test {
 protected:
  LoadRankTest() {
    std::filesystem::create_directories(folder_ + "/shared");
    config_.shared_weights = folder_ + "/shared";
    config_.min_shared_weight_bytes = 1;
    config_.threads = 2;
    spec_.path = folder_ + "/model.gguf";
    spec_.collective = "shm";
    spec_.collective_id = "none";
  }
  ~LoadRankTest() override { std::filesystem::remove_all(folder_); }

  // A model whose matrices are all of this type, where it is given.
  void WriteModel(std::optional<DType> dtype = std::nullopt) const {
    TinyModelOptions options;
    options.heads = 8;  // shards have whole blocks, and padding is little
    options.kv_heads = 4;
    options.key_dim = options.value_dim = 32;
    options.ffn = 512;
    options.vocab = 640;
    options.tied = false;
    std::vector<TinyTensor> tensors = TinyTensors(options);
    for (TinyTensor& tensor : tensors) {
      if (dtype && tensor.dims.size() == 2) tensor.dtype = *dtype;
    }
    WriteTinyModel(options, tensors, "tiny", spec_.path);
  }
  std::unique_ptr<LoadedRank> Load() const {
    absl::StatusOr<std::unique_ptr<LoadedRank>> rank = LoadRank(
        spec_, config_, [] { return false; }, [](Collective*) {});
    EXPECT_TRUE(rank.ok()) << rank.status();
    return rank.ok() ? *std::move(rank) : nullptr;
  }
  // Of a prompt of a few tokens.
  static std::vector<float> Logits(LoadedRank* rank) {
    StepPlan plan;
    TestTables tables(4, rank->options.block_size, {3, 1, 2, 0});
    tables.Grow(&plan, 0, 5);
    PlanRow row;
    row.sequence = 0;
    row.tokens = {5, 99, 0, 130, 7};
    row.logit_offsets = {0, 1, 2, 3, 4};
    plan.rows.push_back(row);
    tables.Finish(&plan);
    EXPECT_TRUE(rank->runner->Launch(plan).ok());
    absl::StatusOr<std::vector<float>> logits = rank->runner->ReadLogits();
    EXPECT_TRUE(logits.ok()) << logits.status();
    return logits.ok() ? *logits : std::vector<float>();
  }
  size_t NumFiles() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(config_.shared_weights), {}));
  }

  const std::string folder_ = absl::StrCat(::testing::TempDir(), "/load_rank_test_", getpid());
  WorkerConfig config_;
  RankSpec spec_;
};

TEST_F(LoadRankTest, TwoWorkersOfOneSliceHoldOneCopy) {
  for (const std::string& rung : TestedRungs()) {
    if (rung == "reference") continue;
    for (const auto& dtype : {std::optional<DType>(), std::optional(DType::kQ8_0)}) {
      SCOPED_TRACE(rung);
      WriteModel(dtype);
      config_.rung = rung;
      std::unique_ptr<LoadedRank> first = Load(), second = Load();
      ASSERT_TRUE(first != nullptr && first->shared_weights != nullptr);
      ASSERT_TRUE(second != nullptr && second->shared_weights != nullptr);
      EXPECT_FALSE(first->shared_weights->was_packed());
      EXPECT_TRUE(second->shared_weights->was_packed());
      EXPECT_EQ(second->shared_weights->path(), first->shared_weights->path());
      EXPECT_EQ(second->shared_weights->bytes(), first->shared_weights->bytes());
      EXPECT_EQ(second->runner->weight_bytes(), first->runner->weight_bytes());
      // But for norms.
      EXPECT_GE(second->shared_weights->bytes(), second->runner->weight_bytes() * 9 / 10);
      EXPECT_EQ(NumFiles(), 1);
      WorkerConfig own = config_;
      std::swap(own, config_);
      config_.shared_weights = "off";
      std::unique_ptr<LoadedRank> alone = Load();
      std::swap(own, config_);
      ASSERT_NE(alone, nullptr);
      EXPECT_EQ(alone->shared_weights, nullptr);
      const std::vector<float> logits = Logits(alone.get());
      EXPECT_EQ(Logits(first.get()), logits);
      first = nullptr;
      EXPECT_EQ(Logits(second.get()), logits);
      second = nullptr;
      EXPECT_EQ(NumFiles(), 0);
    }
  }
}

TEST_F(LoadRankTest, OtherArithmeticFilesAndShardsAreOtherWeights) {
  if (TestedRungs().back() == "reference") GTEST_SKIP() << "no rung whose weights can be shared";
  WriteModel();
  std::vector<std::unique_ptr<LoadedRank>> ranks;
  const auto expect_new = [&](const char* what) {
    ranks.push_back(Load());
    ASSERT_TRUE(ranks.back() != nullptr && ranks.back()->shared_weights != nullptr) << what;
    EXPECT_FALSE(ranks.back()->shared_weights->was_packed()) << what;
  };
  expect_new("the first");
  spec_.compute = Compute::kFp32;
  expect_new("fp32");
  spec_.compute = Compute::kFast;
  spec_.num_shards = 4;
  expect_new("4 shards");
  spec_.num_shards = kDefaultShards;
  std::filesystem::remove(spec_.path);
  WriteModel();
  expect_new("another file of the same content");
}

TEST_F(LoadRankTest, SmallWeightsThoseOfTheReferenceAndThoseWithoutRoomAreOwn) {
  WriteModel();
  config_.min_shared_weight_bytes = int64_t{1} << 30;
  EXPECT_EQ(Load()->shared_weights, nullptr);
  config_.min_shared_weight_bytes = 1;
  config_.shared_weights = folder_ + "/missing";
  EXPECT_EQ(Load()->shared_weights, nullptr);
  config_.shared_weights = folder_ + "/shared";
  config_.rung = "reference";
  EXPECT_EQ(Load()->shared_weights, nullptr);
  EXPECT_EQ(NumFiles(), 0);
}

TEST_F(LoadRankTest, SizesThatTheEmbeddingHasNotAreAnErrorBeforeMemoryIsTaken) {
  spec_.path = folder_ + "/hf";
  std::filesystem::copy(PHALANX_SOURCE_DIR "/tests/golden/models/llama_9_3", spec_.path);
  const std::string config_path = spec_.path + "/config.json";
  const nlohmann::json right = nlohmann::json::parse(std::ifstream(config_path));
  EXPECT_NE(Load(), nullptr);
  for (const auto& [key, size] : {std::pair{"vocab_size", 1 << 30}, std::pair{"hidden_size", 144}}) {
    nlohmann::json config = right;
    config[key] = size;
    std::ofstream(config_path) << config;
    const absl::Status status = LoadRank(
                                    spec_, config_, [] { return false; }, [](Collective*) {})
                                    .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("tensor model.embed_tokens.weight has the shape ["));
  }
}

TEST_F(LoadRankTest, TheEstimateKnowsWhatStaysQuantised) {
  config_.shared_weights = "off";
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kBF16, DType::kF16}) {
    WriteModel(dtype);
    for (const std::string& rung : TestedRungs()) {
      for (const Compute compute : {Compute::kFast, Compute::kFp32}) {
        if (rung == "reference" && compute == Compute::kFast) continue;  // holds bf16 in fp32
        SCOPED_TRACE(absl::StrCat("type ", static_cast<int>(dtype), ", rung ", rung, ", compute ",
                                  static_cast<int>(compute)));
        config_.rung = rung;
        spec_.compute = compute;
        const std::unique_ptr<LoadedRank> rank = Load();
        ASSERT_NE(rank, nullptr);
        const auto estimate =
            static_cast<double>(EstimateWeightBytes(*rank->checkpoint, rank->ops->info(), 1));
        const auto real = static_cast<double>(rank->runner->weight_bytes());
        EXPECT_GE(estimate, real * 0.95);
        EXPECT_LE(estimate, real * 1.05);
      }
    }
  }
}

}  // namespace
}  // namespace phalanx

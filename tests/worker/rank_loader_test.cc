#include "worker/rank_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/base/gguf_writer.h"

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

}  // namespace
}  // namespace phalanx

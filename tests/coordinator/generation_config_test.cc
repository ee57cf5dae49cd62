#include "coordinator/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace phalanx::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name) << text;
  }
  absl::StatusOr<GenerationConfig> Read(const std::string& text) const {
    Write("generation_config.json", text);
    return ReadGenerationConfig(folder_ + "/generation_config.json", 100);
  }
  const std::string folder_ = ::testing::TempDir() + "folder_" + std::to_string(::getpid());
};

TEST_F(FolderTest, ReadsDefaultsAndEnds) {
  const auto config = Read(R"({"_from_model_config": true, "bos_token_id": 1, "do_sample": true,
      "eos_token_id": [7, 3, 7], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0,
      "repetition_penalty": 1.05, "transformers_version": "4.51.0"})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FLOAT_EQ(config->sampling.temperature, 0.6f);
  EXPECT_EQ(config->sampling.top_k, 20);
  EXPECT_FLOAT_EQ(config->sampling.top_p, 0.95f);
  EXPECT_EQ(config->sampling.min_p, 0);
  EXPECT_FLOAT_EQ(config->sampling.repetition_penalty, 1.05f);
  EXPECT_THAT(config->end_ids, ElementsAre(3, 7));
}

TEST_F(FolderTest, KeepsDefaultsWhereNothingIsSaid) {
  const auto config = Read(R"({"temperature": null, "eos_token_id": null})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->sampling.temperature, 1);
  EXPECT_EQ(config->sampling.top_p, 1);
  EXPECT_THAT(config->end_ids, IsEmpty());
  EXPECT_THAT(Read(R"({"eos_token_id": 99})")->end_ids, ElementsAre(99));
  EXPECT_THAT(Read(R"({"eos_token_id": [100, 3, 18446744073709551615]})")->end_ids, ElementsAre(3));
}

TEST_F(FolderTest, WithoutSamplingTheBestTokenIsTaken) {
  EXPECT_EQ(Read(R"({"do_sample": false, "temperature": 0.6})")->sampling.temperature, 0);
}

TEST_F(FolderTest, NamesBadValues) {
  for (const auto& [text, key] : std::vector<std::pair<std::string, std::string>>{
           {R"({"temperature": -1})", "temperature"},
           {R"({"temperature": "hot"})", "temperature"},
           {R"({"temperature": 1e300})", "temperature"},
           {R"({"top_k": -1})", "top_k"},
           {R"({"top_k": 1.5})", "top_k"},
           {R"({"top_p": 0})", "top_p"},
           {R"({"top_p": 1.01})", "top_p"},
           {R"({"min_p": 2})", "min_p"},
           {R"({"repetition_penalty": 0})", "repetition_penalty"},
           {R"({"do_sample": 1})", "do_sample"},
           {R"({"eos_token_id": -1})", "eos_token_id"},
           {R"({"eos_token_id": [1, "2"]})", "eos_token_id"},
           {R"([1])", "object"},
           {R"({"a")", "JSON"}}) {
    const auto config = Read(text);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("generation_config.json")) << text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(key)) << text;
  }
  EXPECT_TRUE(absl::IsNotFound(ReadGenerationConfig(folder_ + "/none.json", 100).status()));
}

TEST_F(FolderTest, FindsTheTemplate) {
  EXPECT_TRUE(absl::IsNotFound(ReadFolderTemplate(folder_).status()));
  Write("tokenizer_config.json", R"({"model_max_length": 5})");
  EXPECT_TRUE(absl::IsNotFound(ReadFolderTemplate(folder_).status()));
  Write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(*ReadFolderTemplate(folder_), "one");
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "x"},
                                     {"name": "default", "template": "two"}]})");
  EXPECT_EQ(*ReadFolderTemplate(folder_), "two");
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "x"}]})");
  EXPECT_THAT(std::string(ReadFolderTemplate(folder_).status().message()),
              HasSubstr("tokenizer_config.json: chat_template"));
  Write("chat_template.jinja", "three");
  EXPECT_EQ(*ReadFolderTemplate(folder_), "three");
}

}  // namespace
}  // namespace phalanx::coordinator

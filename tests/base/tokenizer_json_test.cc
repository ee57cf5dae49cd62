#include "base/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/testing/test_data.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

class TokenizerJsonTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name) << text;
  }
  absl::StatusOr<TokenizerJson> Read(const std::string& text) {
    Write("tokenizer.json", text);
    return ReadTokenizerJson(folder_);
  }
  void ExpectError(const std::string& text, absl::StatusCode code, const std::string& message) {
    const absl::Status status = Read(text).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_ + "/tokenizer.json"));
  }
  // A file with this vocabulary, these merges and added tokens.
  static std::string File(const std::string& vocab, const std::string& merges, const std::string& added) {
    return R"({"added_tokens": )" + added +
           R"(, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", )" + R"("vocab": )" + vocab +
           R"(, "merges": )" + merges + "}}";
  }

  const std::string folder_ = ::testing::TempDir() + "/tokenizer_json_test_" + std::to_string(::getpid());
};

TEST_F(TokenizerJsonTest, ReadsTheVocabulary) {
  const auto file =
      Read(File(R"({"a": 0, "b": 1, "Ġ": 2, "ab": 4, "日": 5, "<e>": 6})", R"(["a b", ["Ġ", "a b"]])",
                R"([{"id": 6, "content": "<e>", "special": true, "lstrip": true},
                                  {"id": 8, "content": "<think>", "special": false, "normalized": true}])"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->vocab_size, 9);
  EXPECT_THAT(file->merges, ElementsAre(Pair("a", "b"), Pair("Ġ", "a b")));
  ASSERT_EQ(file->added.size(), 2u);
  EXPECT_TRUE(file->added[0].special && file->added[0].lstrip && !file->added[0].rstrip);
  EXPECT_TRUE(file->added[1].normalized && !file->added[1].special);
  EXPECT_TRUE(file->config.is_null());
  const auto table = TokenBytesFromTokenizerJson(folder_);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->bytes, ElementsAre("a", "b", " ", "", "ab", "日", "<e>", "", "<think>"));
  EXPECT_EQ(table->is_control,
            (std::vector<bool>{false, false, false, true, false, false, true, true, false}));
}

TEST_F(TokenizerJsonTest, NamesWhatIsWrong) {
  const auto invalid = absl::StatusCode::kInvalidArgument, unimplemented = absl::StatusCode::kUnimplemented;
  EXPECT_EQ(ReadTokenizerJson(folder_ + "/nowhere").status().code(), absl::StatusCode::kNotFound);
  ExpectError("", invalid, "not valid JSON");
  ExpectError("{\"a\": \"\xff\"}", invalid, "not valid JSON");
  ExpectError("[]", invalid, "must be a JSON object");
  ExpectError("{}", invalid, "model is missing");
  ExpectError(R"({"model": {}, "model": {}})", invalid, "'model' appears twice");
  ExpectError(std::string(1 << 20, '['), invalid, "nested more than 64 deep");
  ExpectError(R"({"model": {"type": "Unigram", "vocab": [["a", -1.5]]}})", unimplemented,
              "model.type 'Unigram'");
  ExpectError(R"({"model": {"vocab": [1]}})", invalid, "model.vocab must be an object");
  ExpectError(R"({"model": {"vocab": {"a": 0}, "merges": {}}})", invalid, "model.merges must be an array");
  ExpectError(R"({"model": {"vocab": {"a": 0}, "merges": []}})", unimplemented, "decoder");
  ExpectError(R"({"model": {"vocab": {"a": 0}, "merges": []}, "decoder": {"type": "Metaspace"}})",
              unimplemented, "decoder 'Metaspace' is not supported");
  ExpectError(R"({"model": {"vocab": {"a": 0}}})", invalid, "model.merges must be an array");
  ExpectError(R"({"version": "2.0", "model": {"vocab": {"a": 0}, "merges": []}})", unimplemented,
              "version '2.0' is not supported");
  ExpectError(File("{}", "[]", "[]"), invalid, "model.vocab");
  ExpectError(File(R"({"a": -1})", "[]", "[]"), invalid, "model.vocab: 'a' must have a whole number");
  ExpectError(File(R"({"a": 1.5})", "[]", "[]"), invalid, "model.vocab: 'a' must have a whole number");
  ExpectError(File(R"({"a": [1]})", "[]", "[]"), invalid, "model.vocab: 'a' must have a whole number");
  ExpectError(File(R"({"a": 4000000000})", "[]", "[]"), invalid, "model.vocab: 'a' has id 4000000000");
  ExpectError(File(R"({"a": 4000000})", "[]", "[]"), invalid, "the last id is 4000000, which a file of");
  ExpectError(File(R"({"a": 0, "a": 1})", "[]", "[]"), invalid, "'a' is both token 0 and token 1");
  ExpectError(File(R"({"a": 0, "b": 0})", "[]", "[]"), invalid, "'b' and 'a' are both token 0");
  for (const char* merge : {R"("ab")", R"("a b c")", R"(" b")", R"(["a"])", R"(["a", "b", "c"])", "1",
                            R"([1, 2])", R"([["a", "b"]])", R"([{"a": 1}])"}) {
    ExpectError(File(R"({"a": 0})", std::string(R"(["a b", )") + merge + "]", "[]"), invalid,
                "model.merges: number 1");
  }
  ExpectError(File(R"({"a": 0})", "[]", "{}"), invalid, "added_tokens must be an array");
  ExpectError(File(R"({"a": 0})", "[]", "[1]"), invalid, "added_tokens[0] must be an object");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": -1, "content": "x"}])"), invalid, "added_tokens[0].id");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": 1, "content": ""}])"), invalid, "added_tokens[0].content");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": 1, "content": "x", "special": 1}])"), invalid,
              "added_tokens[0].special must be true or false");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": 1, "content": "x"}, {"id": 2, "content": "x"}])"), invalid,
              "'x' appears twice");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": 1, "content": "x"}, {"id": 1, "content": "y"}])"), invalid,
              "added_tokens[1].id of 'y' is 1, which is another token's");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": 0, "content": "x"}])"), invalid,
              "which is another token's");
  ExpectError(File(R"({"a": 0})", "[]", R"([{"id": 1, "content": "a"}])"), invalid, "model.vocab gives it 0");
  Write("tokenizer_config.json", "{");
  Write("tokenizer.json", File(R"({"a": 0})", "[]", "[]"));
  EXPECT_THAT(std::string(ReadTokenizerJson(folder_).status().message()),
              HasSubstr("tokenizer_config.json: not valid JSON"));
}

TEST_F(TokenizerJsonTest, TakesNoMemoryBeyondTheFile) {
  const auto repeated = [](std::string_view piece, int times) {
    std::string text;
    for (int i = 0; i < times; ++i) text += piece;
    return text;
  };
  ExpectError(absl::StrCat("{\"x\":[", repeated("[],", 1'000'000), "1]}"), absl::StatusCode::kInvalidArgument,
              "bytes of memory");
  ExpectError(File(absl::StrCat("{", repeated("\"\":0,", 2'000'000), "\"a\":1}"), "[]", "[]"),
              absl::StatusCode::kInvalidArgument, "bytes of memory");
  ExpectError(File("{\"a\":1}", absl::StrCat("[", repeated("\"a b\",", 1'500'000), "\"a b\"]"), "[]"),
              absl::StatusCode::kInvalidArgument, "bytes of memory");
}

TEST_F(TokenizerJsonTest, ReadsPublishedFiles) {
  for (const auto& [name, size] :
       {std::pair("llama3_1", 128256), std::pair("qwen3", 151669), std::pair("deepseek_v3", 128815)}) {
    const auto folder = FindTestData(std::string("tokenizers/") + name);
    if (!folder) GTEST_SKIP() << MissingTestData(std::string("tokenizers/") + name);
    const auto table = TokenBytesFromTokenizerJson(*folder);
    ASSERT_TRUE(table.ok()) << table.status();
    EXPECT_EQ(table->bytes.size(), static_cast<size_t>(size)) << name;
  }
}

}  // namespace
}  // namespace phalanx

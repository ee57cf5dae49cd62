#include "coordinator/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "coordinator/text/detokenizer.h"
#include "tests/base/gguf_writer.h"
#include "tests/testing/test_data.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Ids = std::vector<int32_t>;

struct Vocabulary {
  std::string model = "gpt2", pre = "smollm";
  std::vector<std::string> tokens = {"<|end|>", "<think>",  "a", "b", "c", "Ġ", "ab", "bc", "Ġab",  "abab",
                                     "1",       "<|end|>!", "<", "|", "e", "n", "d",  ">",  "[PAD]"};
  std::vector<int32_t> types = {3, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 5};
  std::vector<std::string> merges = {"a b", "b c", "Ġ ab", "ab ab"};
  uint32_t eos = 0;
};

class TokenizerTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> Make(const Vocabulary& v, void (*more)(GgufWriter&) = nullptr) {
    GgufWriter w;
    w.SetString("tokenizer.ggml.model", v.model);
    w.SetString("tokenizer.ggml.pre", v.pre);
    w.SetStrings("tokenizer.ggml.tokens", v.tokens);
    w.SetI32s("tokenizer.ggml.token_type", v.types);
    w.SetStrings("tokenizer.ggml.merges", v.merges);
    w.SetU32("tokenizer.ggml.eos_token_id", v.eos);
    if (more != nullptr) more(w);
    EXPECT_TRUE(w.Write(path_));
    const auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return TokenizerFromGguf(**file);
  }
  void ExpectError(const Vocabulary& v, absl::StatusCode code, const std::string& message) {
    const absl::Status status = Make(v).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }
  void TearDown() override { std::filesystem::remove(path_); }
  const std::string path_ = ::testing::TempDir() + "/tokenizer_test_" + std::to_string(::getpid()) + ".gguf";
};

TEST_F(TokenizerTest, MergesInOrderOfRank) {
  const auto tokenizer = Make({});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto encode = [&](std::string_view text, bool special = true) {
    return (*tokenizer)->Encode(text, special).value();
  };
  EXPECT_THAT(encode(""), IsEmpty());
  EXPECT_EQ(encode("abc"), (Ids{6, 4}));  // "a b" goes before "b c"
  EXPECT_EQ(encode("bc"), (Ids{7}));
  EXPECT_EQ(encode("ababab"), (Ids{9, 6}));  // equal ranks: leftmost first
  EXPECT_EQ(encode("a ab"), (Ids{2, 8}));
  EXPECT_EQ(encode("a  ab1ab"), (Ids{2, 5, 8, 10, 6}));
  EXPECT_EQ(encode("axb"), (Ids{6}));  // no token for x: left out, as Hugging Face does
  EXPECT_THAT(encode("[PAD]"), IsEmpty());
}

TEST_F(TokenizerTest, NamesOfTokens) {
  const auto tokenizer = Make({});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.Encode("a<|end|>b", true).value(), (Ids{2, 0, 3}));
  EXPECT_EQ(t.Encode("<|end|>!", true).value(), (Ids{11}));  // the longest
  EXPECT_EQ(t.Encode("<|end|><|end|>", true).value(), (Ids{0, 0}));
  EXPECT_EQ(t.Encode("<|<|end|>", true).value(), (Ids{12, 13, 0}));
  EXPECT_EQ(t.Encode("<|end|>", false).value(), (Ids{12, 13, 14, 15, 16, 13, 17}));
  EXPECT_EQ(t.Encode("a<think>a", false).value(), (Ids{2, 1, 2}));  // user-defined: always
}

TEST_F(TokenizerTest, UserDefinedMarksAreNotForUsers) {
  Vocabulary v;
  v.types[0] = v.types[11] = 4;  // <|end|> is a mark, <|end|>! is not
  const auto tokenizer = Make(v);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("a<|end|>b", true).value(), (Ids{2, 0, 3}));
  EXPECT_EQ((*tokenizer)->Encode("<|end|>", false).value(), (Ids{12, 13, 14, 15, 16, 13, 17}));
  EXPECT_EQ((*tokenizer)->Encode("<|end|>!", false).value(), (Ids{11}));
  EXPECT_FALSE((*tokenizer)->token_bytes().is_control[0]);
}

TEST_F(TokenizerTest, InvalidUtf8) {
  const auto tokenizer = Make({});
  ASSERT_TRUE(tokenizer.ok());
  const absl::Status status = (*tokenizer)->Encode("ab\xc3", true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("offset 2"));
}

TEST_F(TokenizerTest, Ends) {
  const auto plain = Make({});
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ((*plain)->vocab_size(), 19);
  EXPECT_EQ((*plain)->bos_id(), std::nullopt);
  EXPECT_EQ((*plain)->eos_id(), 0);
  EXPECT_THAT((*plain)->stop_ids(), ElementsAre(0));
  EXPECT_FALSE((*plain)->add_bos());
  const auto full = Make({.eos = 11}, [](GgufWriter& w) {
    w.SetU32("tokenizer.ggml.bos_token_id", 1);
    w.SetU32("tokenizer.ggml.eot_token_id", 0);
    w.SetU32("tokenizer.ggml.eom_token_id", 11);
    w.SetBool("tokenizer.ggml.add_bos_token", true);
  });
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ((*full)->bos_id(), 1);
  EXPECT_THAT((*full)->stop_ids(), ElementsAre(0, 11));
  EXPECT_TRUE((*full)->add_bos());
  const auto no_bos = Make({}, [](GgufWriter& w) { w.SetBool("tokenizer.ggml.add_bos_token", true); });
  EXPECT_EQ(no_bos.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TokenizerTest, NamesWhatIsWrong) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError({.model = "llama"}, absl::StatusCode::kUnimplemented, "'llama' is not supported");
  ExpectError({.pre = "falcon"}, absl::StatusCode::kUnimplemented,
              "tokenizer.ggml.pre: pre-tokenizer 'falcon'");
  ExpectError({.eos = 19}, invalid, "tokenizer.ggml.eos_token_id is 19");
  ExpectError({.merges = {"a b", "ab"}}, invalid, "number 1, 'ab': must be two tokens");
  ExpectError({.merges = {" b"}}, invalid, "must be two tokens");
  ExpectError({.merges = {"a "}}, invalid, "must be two tokens");
  ExpectError({.merges = {"a z"}}, invalid, "'z' is no normal token");
  ExpectError({.merges = {"a c"}}, invalid, "'ac' is no normal token");
  ExpectError({.merges = {"a b", "a b"}}, invalid, "appears twice");
  ExpectError({.tokens = {"<e>", "a", "a"}, .types = {3, 1, 1}, .merges = {}}, invalid,
              "both token 1 and token 2");
}

TEST_F(TokenizerTest, LongWordsAreFast) {
  const auto tokenizer = Make({});
  ASSERT_TRUE(tokenizer.ok());
  for (const char* unit : {"a", "ab", "abc", "<", "<|end|"}) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const auto ids = (*tokenizer)->Encode(text, true);
    ASSERT_TRUE(ids.ok());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took.count(), 60) << unit;
    RecordProperty("seconds", std::to_string(took.count()));
  }
}

// The real vocabulary and the reference made with Hugging Face's tokenizers.
class SmolLM2Test : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ifstream fixture(PHALANX_SOURCE_DIR "/tests/golden/smollm2_reference.json");
    ASSERT_TRUE(fixture);
    const auto path = FindTestData("SmolLM2-135M-Instruct.Q4_1.gguf");
    if (!path) GTEST_SKIP() << MissingTestData("SmolLM2-135M-Instruct.Q4_1.gguf");
    reference_ = nlohmann::json::parse(fixture);
    const auto file = GgufFile::Open(*path);
    ASSERT_TRUE(file.ok()) << file.status();
    auto tokenizer = TokenizerFromGguf(**file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  std::string Decode(const Ids& ids, bool keep_control) {
    Detokenizer detokenizer(&tokenizer_->token_bytes(), keep_control);
    std::string text;
    for (const int32_t id : ids) EXPECT_TRUE(detokenizer.Feed(id, &text).ok());
    detokenizer.Finish(&text);
    return text;
  }
  nlohmann::json reference_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(SmolLM2Test, EncodesAndDecodesAsTheReference) {
  ASSERT_GT(reference_["tokenizer"].size(), 100u);
  for (const nlohmann::json& c : reference_["tokenizer"]) {
    const auto text = c["text"].get<std::string>();
    const Ids ids = c["ids"].get<Ids>();
    EXPECT_EQ(tokenizer_->Encode(text, true).value(), ids) << c;
    EXPECT_EQ(tokenizer_->Encode(text, false).value(), c.value("plain_ids", ids)) << c;
    EXPECT_EQ(Decode(ids, true), c.value("decoded", text)) << c;
  }
  const nlohmann::json& prompt = reference_["prompt_logprobs"];
  EXPECT_EQ(tokenizer_->Encode(prompt["text"].get<std::string>(), true).value(), prompt["ids"].get<Ids>());
  for (const nlohmann::json& g : reference_["greedy"]) {
    EXPECT_EQ(tokenizer_->Encode(g["prompt"].get<std::string>(), true).value(), g["prompt_ids"].get<Ids>());
    Ids said = g["ids"].get<Ids>();
    said.erase(std::find(said.begin(), said.end(), tokenizer_->eos_id().value()), said.end());
    EXPECT_EQ(Decode(said, false), g["text"].get<std::string>());
  }
}

TEST_F(SmolLM2Test, Ends) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  EXPECT_THAT(tokenizer_->stop_ids(), ElementsAre(2));
  EXPECT_FALSE(tokenizer_->add_bos());
}

TEST_F(SmolLM2Test, Throughput) {
  std::string prose;
  while (prose.size() < 1 << 20) prose += reference_["prompt_logprobs"]["text"].get<std::string>();
  for (const std::string& text :
       {prose, std::string(1 << 20, 'a'), std::string(1 << 20, ' '), std::string(1 << 20, '1')}) {
    const auto start = std::chrono::steady_clock::now();
    const size_t tokens = tokenizer_->Encode(text, true).value().size();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::cout << "1 MiB of '" << text.substr(0, 4) << "...': " << tokens << " tokens in " << took.count()
              << " s\n";
    EXPECT_LT(took.count(), 60);
  }
}

}  // namespace
}  // namespace phalanx

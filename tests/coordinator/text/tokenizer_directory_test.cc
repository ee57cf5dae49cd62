// Tokenizers from folders with tokenizer.json: the published ones against vectors of llama.cpp and tiktoken,
// what ends a turn, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/byte_alphabet.h"
#include "base/tokenizer_json.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "tests/base/gguf_writer.h"
#include "tests/testing/test_data.h"

namespace phalanx {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

std::string Slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

std::vector<std::string> Cut(const std::string& text, const std::string& mark) {
  std::vector<std::string> parts;
  for (size_t at = 0;;) {
    const size_t next = text.find(mark, at);
    parts.push_back(text.substr(at, next - at));
    if (next == std::string::npos) return parts;
    at = next + mark.size();
  }
}

std::string Decode(const Tokenizer& tokenizer, const Ids& ids, bool keep_control) {
  Detokenizer detokenizer(&tokenizer.token_bytes(), keep_control);
  std::string text;
  for (const int32_t id : ids) EXPECT_TRUE(detokenizer.Feed(id, &text).ok());
  detokenizer.Finish(&text);
  return text;
}

class TokenizerDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    json vocab = json::object();
    for (const std::string& character : ByteAlphabet()) vocab.emplace(character, vocab.size());
    vocab["ab"] = 256;
    byte_level_ = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    file_ = {{"added_tokens",
              json::array({Added(257, "<s>", true), Added(258, "</s>", true), Added(259, "<t>", false)})},
             {"pre_tokenizer", byte_level_},
             {"decoder", byte_level_},
             {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b"}}}}};
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  static json Added(int id, const std::string& content, bool special) {
    return {{"id", id}, {"content", content}, {"special", special}};
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const json& file, const json& config = nullptr) {
    std::ofstream(folder_ + "/tokenizer.json") << file;
    if (config.is_null()) {
      std::filesystem::remove(folder_ + "/tokenizer_config.json");
    } else {
      std::ofstream(folder_ + "/tokenizer_config.json") << config;
    }
    return TokenizerFromDirectory(folder_);
  }
  void ExpectError(const json& patch, absl::StatusCode code, const std::string& message,
                   const json& config = nullptr) {
    json file = file_;
    file.merge_patch(patch);
    const absl::Status status = Load(file, config).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_));
  }
  void ExpectVectors(const std::string& tokenizer, const std::string& inputs, const std::string& expected) {
    const auto path = FindTestData(tokenizer);
    const auto texts = FindTestData("vectors/" + inputs), ids = FindTestData("vectors/" + expected);
    if (!path) GTEST_SKIP() << MissingTestData(tokenizer);
    if (!texts || !ids) GTEST_SKIP() << MissingTestData("vectors/" + expected);
    const auto made = TokenizerFromDirectory(*path);
    ASSERT_TRUE(made.ok()) << made.status();
    ExpectVectors(**made, *texts, *ids);
  }
  static void ExpectVectors(const Tokenizer& tokenizer, const std::string& texts, const std::string& ids) {
    const std::vector<std::string> inputs = Cut(Slurp(texts), "\n__ggml_vocab_test__\n");
    const std::vector<std::string> lines = Cut(Slurp(ids), "\n");
    size_t compared = 0;
    for (size_t i = 0; i < inputs.size() && i < lines.size(); ++i) {
      std::istringstream line(lines[i]);
      const Ids expected((std::istream_iterator<int32_t>(line)), std::istream_iterator<int32_t>());
      const Ids got = tokenizer.Encode(inputs[i], true).value();
      EXPECT_EQ(got, expected) << json(inputs[i]);
      ++compared;
    }
    EXPECT_GE(compared, 46u);
  }

  const std::string folder_ =
      ::testing::TempDir() + "/tokenizer_directory_test_" + std::to_string(::getpid());
  json byte_level_, file_;
};

TEST_F(TokenizerDirectoryTest, MarksThatAreNotSpecialAreNotForUsers) {
  json file = file_;
  file["added_tokens"].push_back(Added(260, "<\uff5cUser\uff5c>", false));
  file["added_tokens"].push_back(Added(261, "<|tool|>", false));
  const auto made = Load(file);
  ASSERT_TRUE(made.ok()) << made.status();
  const Tokenizer& t = **made;
  EXPECT_THAT(t.Encode("<\uff5cUser\uff5c><|tool|>", true).value(), ElementsAre(260, 261));
  EXPECT_EQ(t.Encode("<\uff5cUser\uff5c>", false).value().size(), 12u);  // of bytes
  EXPECT_EQ(t.Encode("<|tool|>", false).value().size(), 8u);
  EXPECT_THAT(t.Encode("<t>", false).value(), ElementsAre(259));
  EXPECT_EQ(Decode(t, {260, 261}, false), "<\uff5cUser\uff5c><|tool|>");
}

TEST_F(TokenizerDirectoryTest, Llama31Vectors) {
  ExpectVectors("tokenizers/llama3_1", "tokenizer_inputs.inp", "llama-bpe.new.out");
}
TEST_F(TokenizerDirectoryTest, Qwen3Vectors) {
  ExpectVectors("tokenizers/qwen3", "tokenizer_inputs.inp", "qwen2.new.out");
}
TEST_F(TokenizerDirectoryTest, DeepSeekV3Vectors) {
  ExpectVectors("tokenizers/deepseek_v3", "tokenizer_inputs.inp", "deepseek-v3.generated.out");
}

// The vocabularies of Phi-4 and Phi-4-mini, made from rank files.
TEST_F(TokenizerDirectoryTest, Phi4Vectors) {
  for (const auto& [model, ranks, inputs, expected] :
       {std::tuple("phi-4", "cl100k_base", "tokenizer_inputs.inp", "cl100k.generated.out"),
        std::tuple("phi-4-reasoning", "cl100k_base", "tokenizer_inputs.inp", "cl100k.generated.out"),
        std::tuple("phi-4-mini", "o200k_base", "tokenizer_inputs.old.inp", "o200k.old-inputs.out")}) {
    const std::string file = std::string("tokenizers/") + ranks + ".tiktoken";
    const auto path = FindTestData(file), texts = FindTestData(std::string("vectors/") + inputs),
               ids = FindTestData(std::string("vectors/") + expected);
    if (!path || !texts || !ids) GTEST_SKIP() << MissingTestData(file + " or vectors/" + expected);
    const std::string command = std::string("python3 " PHALANX_SOURCE_DIR "/deploy/make_tokenizer_json ") +
                                model + " '" + *path + "' '" + folder_ + "' >/dev/null";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    const auto tokenizer = TokenizerFromDirectory(folder_);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const Tokenizer& t = **tokenizer;
    ExpectVectors(t, *texts, *ids);
    EXPECT_FALSE(t.add_bos());
    if (std::string_view(model) == "phi-4-mini") {
      EXPECT_EQ(t.vocab_size(), 200029);
      EXPECT_EQ(t.Encode("<|user|>Hi<|end|><think>", true).value(),
                (Ids{200021, 12194, 200020, 33313, 881, 29}));
      EXPECT_EQ(t.eos_id(), 199999);
      continue;
    }
    EXPECT_EQ(t.vocab_size(), 100352);
    EXPECT_EQ(t.Encode("<|im_start|>Hello<|im_sep|> World<|im_end|><|dummy_85|>", true).value(),
              (Ids{100264, 9906, 100266, 4435, 100265, 100349}));
    EXPECT_THAT(t.stop_ids(), ElementsAre(100265));
    const bool reasoning = std::string_view(model) == "phi-4-reasoning";
    EXPECT_EQ(t.Encode("<think>", false).value(), reasoning ? Ids{100350} : (Ids{14023, 771, 29}));
  }
}

// The same vocabulary as a GGUF file, whose pre-tokenizer is only a name.
TEST_F(TokenizerDirectoryTest, GgufSaysTheSame) {
  const auto texts = FindTestData("vectors/tokenizer_inputs.inp");
  if (!texts) GTEST_SKIP() << MissingTestData("vectors/tokenizer_inputs.inp");
  const std::string text = Slurp(*texts) + "e\u0301 \uac00\u11a8 't's'\u017f 12345 日本カ語\r\n";
  for (const auto& [name, pres] :
       {std::pair("llama3_1", std::vector<std::string>{"llama-bpe", "llama3", "llama-v3"}),
        std::pair("qwen3", std::vector<std::string>{"qwen2", "deepseek-r1-qwen"}),
        std::pair("deepseek_v3", std::vector<std::string>{"deepseek-v3"})}) {
    const auto folder = FindTestData(std::string("tokenizers/") + name);
    if (!folder) GTEST_SKIP() << MissingTestData(std::string("tokenizers/") + name);
    const auto json_file = ReadTokenizerJson(*folder);
    ASSERT_TRUE(json_file.ok()) << json_file.status();
    const auto size = static_cast<size_t>(json_file->vocab_size);
    std::vector<std::string> tokens(size), merges;
    std::vector<int32_t> types(size, 5);
    for (const auto& [piece, id] : json_file->vocab) {
      tokens[static_cast<size_t>(id)] = piece;
      types[static_cast<size_t>(id)] = 1;
    }
    for (const TokenizerJson::AddedToken& added : json_file->added) {
      tokens[static_cast<size_t>(added.id)] = added.content;
      types[static_cast<size_t>(added.id)] = added.special ? 3 : 4;
    }
    for (const auto& [left, right] : json_file->merges) merges.push_back(left + " " + right);
    const auto expected = TokenizerFromDirectory(*folder);
    ASSERT_TRUE(expected.ok()) << expected.status();
    for (const std::string& pre : pres) {
      GgufWriter w;
      w.SetString("tokenizer.ggml.model", "gpt2");
      w.SetString("tokenizer.ggml.pre", pre);
      w.SetStrings("tokenizer.ggml.tokens", tokens);
      w.SetI32s("tokenizer.ggml.token_type", types);
      w.SetStrings("tokenizer.ggml.merges", merges);
      const std::string path = folder_ + "/tokenizer.gguf";
      ASSERT_TRUE(w.Write(path));
      const auto file = GgufFile::Open(path);
      ASSERT_TRUE(file.ok()) << file.status();
      const auto tokenizer = TokenizerFromGguf(**file);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      for (const bool special : {true, false}) {
        EXPECT_EQ((*tokenizer)->Encode(text, special).value(), (*expected)->Encode(text, special).value())
            << pre;
      }
    }
  }
}

TEST_F(TokenizerDirectoryTest, PublishedEnds) {
  struct Expected {
    const char* name;
    std::optional<int32_t> bos, eos;
    bool add_bos;
  };
  for (const Expected& e :
       {Expected{"llama3_1", 128000, 128009, true}, Expected{"qwen3", std::nullopt, 151645, false},
        Expected{"deepseek_v3", 0, 1, true}}) {
    const auto path = FindTestData(std::string("tokenizers/") + e.name);
    if (!path) GTEST_SKIP() << MissingTestData(std::string("tokenizers/") + e.name);
    const auto start = std::chrono::steady_clock::now();
    const auto t = TokenizerFromDirectory(*path);
    std::cout << e.name << " loads in "
              << std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() << " s\n";
    ASSERT_TRUE(t.ok()) << t.status();
    EXPECT_EQ((*t)->bos_id(), e.bos) << e.name;
    EXPECT_EQ((*t)->eos_id(), e.eos) << e.name;
    EXPECT_THAT((*t)->stop_ids(), ElementsAre(e.eos.value())) << e.name;
    EXPECT_EQ((*t)->add_bos(), e.add_bos) << e.name;
    const std::string text = "Ünï日本 \xf0\x9f\xab\xa8 x<|end_of_text|>";
    const Ids ids = (*t)->Encode(text, false).value();
    EXPECT_EQ(Decode(**t, ids, false), text) << e.name;
  }
}

TEST_F(TokenizerDirectoryTest, EncodesAndDecodes) {
  const auto tokenizer = Load(file_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.vocab_size(), 260);
  EXPECT_EQ(t.Encode("abab<s><t>", true).value(), (Ids{256, 256, 257, 259}));
  EXPECT_EQ(t.Encode("<s><t>", false).value(), (Ids{'<', 's', '>', 259}));
  EXPECT_EQ(Decode(t, {257, 256, 259, 258}, false), "ab<t>");
  EXPECT_EQ(Decode(t, {257, 256, 259, 258}, true), "<s>ab<t></s>");
  EXPECT_EQ(t.eos_id(), std::nullopt);
  EXPECT_TRUE(t.stop_ids().empty());
  EXPECT_FALSE(t.add_bos());
}

TEST_F(TokenizerDirectoryTest, EndsOfTexts) {
  const json bos = {{"type", "TemplateProcessing"},
                    {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                    {"special_tokens", {{"<s>", {{"ids", {257}}}}}}};
  json file = file_;
  file["post_processor"] = {{"type", "Sequence"}, {"processors", {byte_level_, bos}}};
  const auto by_template = Load(file, {{"eos_token", "</s>"}});
  ASSERT_TRUE(by_template.ok()) << by_template.status();
  EXPECT_EQ((*by_template)->bos_id(), 257);
  EXPECT_TRUE((*by_template)->add_bos());
  EXPECT_THAT((*by_template)->stop_ids(), ElementsAre(258));
  const auto by_config =
      Load(file_, {{"add_bos_token", true}, {"bos_token", {{"content", "<s>"}}}, {"eos_token", nullptr}});
  ASSERT_TRUE(by_config.ok()) << by_config.status();
  EXPECT_EQ((*by_config)->bos_id(), 257);
  EXPECT_TRUE((*by_config)->add_bos());
  const auto against = Load(file, {{"add_bos_token", false}});
  ASSERT_TRUE(against.ok()) << against.status();
  EXPECT_FALSE((*against)->add_bos());
}

TEST_F(TokenizerDirectoryTest, NamesWhatIsNotSupported) {
  const auto invalid = absl::StatusCode::kInvalidArgument, unimplemented = absl::StatusCode::kUnimplemented;
  const auto pre = [](const json& stage) { return json{{"pre_tokenizer", stage}}; };
  const auto sequence = [&](const json& stage) {
    return json{{"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {stage, byte_level_}}}}};
  };
  ExpectError({{"normalizer", {{"type", "NFKC"}}}}, unimplemented,
              "normalizer: stage 'NFKC' is not supported");
  ExpectError({{"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}}}},
              unimplemented, "normalizer.normalizers[0]: stage 'Lowercase'");
  ExpectError({{"normalizer", 5}}, unimplemented, "normalizer: stage without a type");
  ExpectError(pre({{"type", "Metaspace"}}), unimplemented,
              "pre_tokenizer: stage 'Metaspace' is not supported");
  ExpectError(pre(nullptr), unimplemented, "pre_tokenizer does not end with 'ByteLevel'");
  ExpectError(pre({{"type", "Digits"}}), unimplemented, "pre_tokenizer does not end with 'ByteLevel'");
  ExpectError(pre({{"type", "Sequence"}, {"pretokenizers", json::array()}}), unimplemented, "does not end");
  ExpectError(pre({{"type", "Sequence"}}), invalid, "pre_tokenizer.pretokenizers must be an array");
  ExpectError(pre(3), invalid, "pre_tokenizer.type must be a string");
  ExpectError(sequence(byte_level_), unimplemented, "pretokenizers[0]: 'ByteLevel' must be the last");
  ExpectError(sequence({{"type", "Whitespace"}}), unimplemented,
              "pre_tokenizer.pretokenizers[0]: stage 'Whitespace'");
  ExpectError(sequence({{"type", "Split"}, {"behavior", "Isolated"}}), invalid,
              "pretokenizers[0].pattern must be");
  ExpectError(sequence({{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}),
              invalid, "pretokenizers[0].pattern: regular expression '(a': missing");
  for (const auto& [pattern, what] :
       {std::pair("a)", "at 1: an unmatched ')'"), std::pair("\\w+", "at 0: the escape \\w"),
        std::pair("a\\", "the escape"), std::pair("\\pL", "the escape \\p"),
        std::pair("\\p{L", "a property without an end"), std::pair("\\u12", "an escape without"),
        std::pair("[a-z&&[^b]]", "'&&' in a class"), std::pair("[[:alpha:]]", "a class or '[' in a class"),
        std::pair("[abc", "a class without an end"), std::pair("(?m)a", "this kind of group"),
        std::pair("a{,3}", "a '{' that is no interval"), std::pair("a{3}?", "'?' behind {n}"),
        std::pair("a+*", "a quantifier of a quantifier")}) {
    ExpectError(sequence({{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}}),
                unimplemented, what);
  }
  ExpectError(sequence({{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Eaten"}}), invalid,
              "pretokenizers[0].behavior must be");
  ExpectError(sequence({{"type", "Digits"}, {"individual_digits", 1}}), invalid,
              "individual_digits must be true");
  ExpectError({{"post_processor", {{"type", "BertProcessing"}}}}, unimplemented,
              "post_processor: stage 'BertProcessing'");
  ExpectError({{"post_processor",
                {{"type", "TemplateProcessing"},
                 {"single", {{{"Sequence", {{"id", "A"}}}}, {{"SpecialToken", {{"id", "</s>"}}}}}}}}},
              unimplemented, "post_processor.single[1]: a token behind the text, '</s>'");
  ExpectError({{"model", {{"dropout", 0.1}}}}, unimplemented, "model.dropout");
  ExpectError({{"model", {{"end_of_word_suffix", "</w>"}}}}, unimplemented, "model.end_of_word_suffix");
  ExpectError({{"model", {{"continuing_subword_prefix", "##"}}}}, unimplemented,
              "model.continuing_subword_prefix");
  ExpectError({{"model", {{"ignore_merges", "yes"}}}}, invalid, "model.ignore_merges must be true or false");
  ExpectError({{"model", {{"something", 1}}}}, unimplemented, "model.something is not supported");
  ExpectError({{"model", {{"unk_token", 1}}}}, invalid, "model.unk_token must be a string");
  ExpectError({{"model", {{"unk_token", "<unk>"}, {"vocab", {{"x", nullptr}}}}}}, invalid,
              "model.unk_token '<unk>' is not in model.vocab");
  ExpectError({{"model", {{"merges", {"a b", "a z"}}}}}, invalid,
              "model.merges: number 1, 'a' and 'z': 'az' is not in model.vocab");
  ExpectError(json::object(), invalid, "tokenizer_config.json: eos_token '<x>' is no token of",
              {{"eos_token", "<x>"}});
  ExpectError(json::object(), invalid, "tokenizer_config.json: bos_token must name a token",
              {{"bos_token", 3}});
  ExpectError(json::object(), invalid, "add_bos_token is true but there is no bos_token",
              {{"add_bos_token", true}});
  ExpectError(json::object(), invalid, "add_bos_token must be true or false", {{"add_bos_token", "no"}});
  ExpectError(json::object(), unimplemented, "add_eos_token is true", {{"add_eos_token", true}});
}

TEST_F(TokenizerDirectoryTest, PatternsThatTakeTooLongAreNamed) {
  for (const auto& [pattern, text] : {std::pair("(a+)+$", std::string(100, 'a') + "!"),
                                      std::pair("(?=[ab]*[0-9])a", std::string(600'000, 'a'))}) {
    json file = file_;
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}}, byte_level_}}};
    const auto tokenizer = Load(file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const absl::Status status = (*tokenizer)->Encode(text, true).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("regular expression '") + pattern));
  }
}

TEST_F(TokenizerDirectoryTest, ManyThreadsSeeTheSame) {
  const auto tokenizer = Load(file_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::string text;
  for (int i = 0; i < 3000; ++i)
    text += "ab" + std::string(static_cast<size_t>(i % 90), 'a') + "b<t> x" + std::to_string(i);
  std::vector<Ids> ids(4);
  std::vector<std::thread> threads;
  for (Ids& mine : ids) threads.emplace_back([&] { mine = (*tokenizer)->Encode(text, true).value(); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& mine : ids) EXPECT_EQ(mine, ids[0]);
  EXPECT_EQ(Decode(**tokenizer, ids[0], true), text);
}

}  // namespace
}  // namespace phalanx

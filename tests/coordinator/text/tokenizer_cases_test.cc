// Every stage against Hugging Face's tokenizers: tests/golden/tokenizer_cases.json, which
// make_tokenizer_cases.py describes and writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "coordinator/text/nfc.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer.h"

namespace phalanx {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const json& Cases() {
  static const auto* const kCases = [] {
    std::ifstream file(PHALANX_SOURCE_DIR "/tests/golden/tokenizer_cases.json");
    return new json(json::parse(file, nullptr, false));
  }();
  return *kCases;
}

std::vector<std::string> Words(const Pretokenizer& pretokenizer, std::string_view text) {
  std::vector<std::string> words;
  const absl::Status status = pretokenizer.Split(text, [&](std::string_view w) { words.emplace_back(w); });
  EXPECT_TRUE(status.ok()) << status;
  return words;
}

std::string Utf8(uint32_t c) {
  std::string out;
  if (c < 0x80) {
    out = {static_cast<char>(c)};
  } else if (c < 0x800) {
    out = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
  } else if (c < 0x10000) {
    out = {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
           static_cast<char>(0x80 | (c & 0x3f))};
  } else {
    out = {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3f)),
           static_cast<char>(0x80 | (c >> 6 & 0x3f)), static_cast<char>(0x80 | (c & 0x3f))};
  }
  return out;
}

bool IsSampled(uint32_t c) {
  return c < 0x3400 || (0x9f00 < c && c < 0xac80) || (0xd790 < c && c < 0xd800) ||
         (0xf900 <= c && c < 0x20000 && c % 3 == 0) || (c % 256 == 16 && !(0xd800 <= c && c < 0xe000));
}

class Fnv {
 public:
  void Add(std::string_view bytes) {
    for (const char c : bytes) Byte(static_cast<unsigned char>(c));
    Byte(0xff);
  }
  std::string Hex() const {
    std::ostringstream out;
    out << std::hex << std::setw(16) << std::setfill('0') << state_;
    return out.str();
  }

 private:
  void Byte(unsigned char byte) { state_ = (state_ ^ byte) * 0x100000001b3; }
  uint64_t state_ = 0xcbf29ce484222325;
};

TEST(TokenizerCasesTest, KnownPatternsCutAsTheReference) {
  const auto texts = Cases()["texts"].get<std::vector<std::string>>();
  ASSERT_GT(texts.size(), 80u);
  for (const auto& [name, known] : Cases()["known"].items()) {
    const auto from_json = Pretokenizer::FromJson(known["pre_tokenizer"]);
    ASSERT_TRUE(from_json.ok()) << from_json.status();
    std::vector<const Pretokenizer*> all = {from_json->get()};
    const auto by_name = Pretokenizer::Create(name == "cl100k" ? "dbrx" : name == "o200k" ? "gpt-4o" : name);
    if (name == "digits") {
      EXPECT_FALSE(by_name.ok());
    } else {
      ASSERT_TRUE(by_name.ok()) << by_name.status();
      all.push_back(by_name->get());
    }
    for (const Pretokenizer* pretokenizer : all) {
      for (size_t i = 0; i < texts.size(); ++i) {
        std::string lengths, whole;
        for (const std::string& word : Words(*pretokenizer, texts[i])) {
          if (!lengths.empty()) lengths += ' ';
          lengths += std::to_string(word.size());
          whole += word;
        }
        EXPECT_EQ(lengths, known["lengths"][i].get<std::string>()) << name << ": " << json(texts[i]);
        EXPECT_EQ(whole, texts[i]);
      }
    }
    Fnv hash;
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (!IsSampled(c)) continue;
      const std::string x = Utf8(c);
      for (const std::string& word :
           Words(**from_json, x + "a" + x + x + "A1" + x + " " + x + "\n" + x + "'" + x)) {
        hash.Add(word);
      }
    }
    EXPECT_EQ(hash.Hex(), known["hash"].get<std::string>()) << name;
  }
}

TEST(TokenizerCasesTest, StagesCutAsTheReference) {
  const auto texts = Cases()["stage_texts"].get<std::vector<std::string>>();
  ASSERT_GT(Cases()["stages"].size(), 40u);
  for (const json& stage : Cases()["stages"]) {
    const auto pretokenizer = Pretokenizer::FromJson(stage[0]);
    ASSERT_TRUE(pretokenizer.ok()) << pretokenizer.status();
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(json(Words(**pretokenizer, texts[i])), stage[1][i]) << stage[0] << json(texts[i]);
    }
  }
}

TEST(TokenizerCasesTest, NfcIsTheReferences) {
  std::string storage;
  ASSERT_GT(Cases()["nfc"].size(), 50u);
  for (const json& c : Cases()["nfc"]) {
    EXPECT_EQ(NormalizeNfc(c[0].get<std::string>(), &storage), c[1].get<std::string>()) << c;
  }
  Fnv hash;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (!IsSampled(c)) continue;
    const std::string x = Utf8(c);
    const std::string text = x + x + "\u0301\u1161" + x + "\u0323\u0334" + x;
    hash.Add(NormalizeNfc(text, &storage));
  }
  EXPECT_EQ(hash.Hex(), Cases()["nfc_hash"].get<std::string>());
  const std::string same = "As it is: é, 日本, 각.";
  EXPECT_EQ(NormalizeNfc(same, &storage).data(), same.data());
}

TEST(TokenizerCasesTest, WholeTokenizersEncodeAsTheReference) {
  const std::string folder = ::testing::TempDir() + "/tokenizer_cases_test_" + std::to_string(::getpid());
  std::filesystem::create_directories(folder);
  const auto texts = Cases()["tokenizer_texts"].get<std::vector<std::string>>();
  ASSERT_GT(Cases()["tokenizers"].size(), 4u);
  for (const json& c : Cases()["tokenizers"]) {
    std::ofstream(folder + "/tokenizer.json") << c["file"];
    const auto tokenizer = TokenizerFromDirectory(folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ((*tokenizer)->Encode(texts[i], true).value(), c["ids"][i].get<Ids>())
          << json(texts[i]) << " " << c["file"]["added_tokens"];
      EXPECT_EQ((*tokenizer)->Encode(texts[i], false).value(), c["plain_ids"][i].get<Ids>())
          << json(texts[i]) << " " << c["file"]["added_tokens"];
    }
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace phalanx

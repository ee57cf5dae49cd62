#include "coordinator/text/pretokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

namespace phalanx {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Words(std::string_view text) {
  const auto pretokenizer = Pretokenizer::Create("smollm");
  EXPECT_TRUE(pretokenizer.ok()) << pretokenizer.status();
  std::vector<std::string> words;
  const absl::Status status =
      (*pretokenizer)->Split(text, [&](std::string_view w) { words.emplace_back(w); });
  EXPECT_TRUE(status.ok()) << status;
  return words;
}

TEST(PretokenizerTest, SmollmCutsDigitsThenAsGpt2) {
  EXPECT_THAT(Words(""), ElementsAre());
  EXPECT_THAT(Words("Hello world"), ElementsAre("Hello", " world"));
  EXPECT_THAT(Words("a  1 23"), ElementsAre("a", "  ", "1", " ", "2", "3"));
  EXPECT_THAT(Words("a   b  "), ElementsAre("a", "  ", " b", "  "));
  EXPECT_THAT(Words("we're 'RE it's't"), ElementsAre("we", "'re", " '", "RE", " it", "'s", "'t"));
  EXPECT_THAT(Words("x\n\n y"), ElementsAre("x", "\n\n", " y"));
  EXPECT_THAT(Words(" !? é日"), ElementsAre(" !?", " é日"));
  EXPECT_THAT(Words("²Ⅷ٣"), ElementsAre("²", "Ⅷ", "٣"));
  // U+3000 and U+0085 are white space, U+180E and U+200B are not.
  EXPECT_THAT(Words("a\u3000\u0085b"), ElementsAre("a", "\u3000", "\u0085", "b"));
  EXPECT_THAT(Words("a\u180e\u200bb"), ElementsAre("a", "\u180e\u200b", "b"));
}

TEST(PretokenizerTest, LinearForEveryKindOfRun) {
  for (const char* unit : {"a", " ", "1", "'", "a ", " \n", "日", " '", "'s", "\u00a0"}) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    for (const std::string& whole : {text, text + "a", "a" + text + "1"}) {
      const auto start = std::chrono::steady_clock::now();
      size_t bytes = 0;
      for (const std::string& word : Words(whole)) bytes += word.size();
      EXPECT_EQ(bytes, whole.size());
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60)) << unit;
    }
  }
}

TEST(PretokenizerTest, UnknownNameIsNamed) {
  const absl::Status status = Pretokenizer::Create("falcon").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()),
              ::testing::HasSubstr("'falcon' is not supported; supported: 'smollm'"));
}

}  // namespace
}  // namespace phalanx

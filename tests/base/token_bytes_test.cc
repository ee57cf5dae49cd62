#include "base/token_bytes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/base/gguf_writer.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

// Feeds `text` cut into pieces of `step` bytes; what was passed on, then '|' and the match if there was one.
std::string Match(std::vector<std::string> stops, std::string_view text, size_t step) {
  StopMatcher matcher(std::move(stops));
  std::string out;
  bool found = false;
  for (size_t i = 0; i < text.size(); i += step) found = matcher.Feed(text.substr(i, step), &out);
  matcher.Finish(&out);
  EXPECT_EQ(found, !matcher.matched().empty());
  return found ? out + "|" + matcher.matched() : out;
}

TEST(StopMatcherTest, FindsTheFirstWhateverTheCut) {
  for (size_t step = 1; step < 12; ++step) {
    EXPECT_EQ(Match({"stop"}, "go on stop here", step), "go on |stop");
    EXPECT_EQ(Match({"stop"}, "go on sto", step), "go on sto");
    EXPECT_EQ(Match({"aab"}, "aaaab", step), "aa|aab");
    EXPECT_EQ(Match({"abcd", "bc"}, "xabcd", step), "xa|bc");
    EXPECT_EQ(Match({"bc", "abc"}, "xabcd", step), "x|abc");
    EXPECT_EQ(Match({"\n\n", "</s>"}, "a\n</s\n\n</s>", step), "a\n</s|\n\n");
    EXPECT_EQ(Match({"", "b"}, "abc", step), "a|b");
    EXPECT_EQ(Match({""}, "abc", step), "abc");
    EXPECT_EQ(Match({}, "abc", step), "abc");
    EXPECT_EQ(Match({"abc"}, "", step), "");
  }
}

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBeginAMatch) {
  StopMatcher matcher({"abac"});
  std::string out;
  EXPECT_FALSE(matcher.Feed("xaba", &out));
  EXPECT_EQ(out, "x");
  EXPECT_FALSE(matcher.Feed("b", &out));  // "abab": its end "ab" may still begin a match
  EXPECT_EQ(out, "xab");
  EXPECT_TRUE(matcher.Feed("ac!", &out));
  EXPECT_EQ(out, "xab");
  EXPECT_TRUE(matcher.Feed("more", &out));
  matcher.Finish(&out);
  EXPECT_EQ(out, "xab");
  EXPECT_EQ(matcher.matched(), "abac");
}

TEST(StopMatcherTest, AgreesWithAPlainSearch) {
  std::mt19937 random(7);
  const auto word = [&random](size_t length) {
    std::string s;
    for (size_t i = 0; i < length; ++i) s.push_back(static_cast<char>('a' + random() % 2));
    return s;
  };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops;
    for (int i = 0; i < 3; ++i) stops.push_back(word(3 + random() % 5));
    const std::string text = word(random() % 40);
    size_t first_end = std::string::npos;
    std::string expected = text;
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      const size_t end = at + stop.size();
      if (first_end == std::string::npos || end < first_end ||
          (end == first_end && at < expected.find('|'))) {
        first_end = end;
        expected = text.substr(0, at) + "|" + stop;
      }
    }
    EXPECT_EQ(Match(stops, text, 1 + random() % 7), expected) << text;
  }
}

TEST(StopMatcherTest, LongStreamsAreLinear) {
  const std::string text(4 << 20, 'a');
  EXPECT_EQ(Match({std::string(100, 'a') + "b"}, text, 3).size(), text.size());
}

class TokenBytesTest : public ::testing::Test {
 protected:
  absl::StatusOr<TokenBytes> Read(const GgufWriter& writer) {
    EXPECT_TRUE(writer.Write(path_));
    const auto file = GgufFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    return TokenBytesFromGguf(**file);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  const std::string path_ =
      ::testing::TempDir() + "/token_bytes_test_" + std::to_string(::getpid()) + ".gguf";
};

TEST_F(TokenBytesTest, DecodesTheByteAlphabet) {
  GgufWriter w;
  w.SetString("tokenizer.ggml.model", "gpt2");
  w.SetStrings("tokenizer.ggml.tokens", {"<|im_end|>", "Ġa", "Ċ", "Ã©", "<think>", "ĀŃ", "日", "Ń"});
  w.SetI32s("tokenizer.ggml.token_type", {3, 1, 1, 1, 4, 1, 1, 5});
  const auto table = Read(w);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->bytes, ::testing::ElementsAre("<|im_end|>", " a", "\n", "\xc3\xa9", "<think>",
                                                   std::string("\0\xad", 2), "日", "Ń"));
  EXPECT_EQ(table->is_control, (std::vector<bool>{true, false, false, false, false, false, false, true}));
}

TEST_F(TokenBytesTest, NamesWhatIsWrong) {
  GgufWriter w;
  w.SetString("tokenizer.ggml.model", "llama");
  EXPECT_EQ(Read(w).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(Read(w).status().message()),
              HasSubstr("'llama' is not supported; supported is 'gpt2'"));
  w = {};
  EXPECT_EQ(Read(w).status().code(), absl::StatusCode::kNotFound);
  w.SetString("tokenizer.ggml.model", "gpt2");
  w.SetStrings("tokenizer.ggml.tokens", {"a", "b"});
  EXPECT_THAT(std::string(Read(w).status().message()), HasSubstr("'tokenizer.ggml.token_type' is missing"));
  GgufWriter short_types = w;
  short_types.SetI32s("tokenizer.ggml.token_type", {1});
  EXPECT_THAT(std::string(Read(short_types).status().message()), HasSubstr("token_type has 1 entries"));
  GgufWriter byte_type = w;
  byte_type.SetI32s("tokenizer.ggml.token_type", {1, 6});
  EXPECT_THAT(std::string(Read(byte_type).status().message()), HasSubstr("of token 1 is 6"));
}

}  // namespace
}  // namespace phalanx

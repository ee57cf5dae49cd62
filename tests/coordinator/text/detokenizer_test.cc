#include "coordinator/text/detokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "coordinator/text/utf8.h"

namespace phalanx {
namespace {

std::string Stream(std::string_view bytes, size_t step) {
  Utf8Stream stream;
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += step) {
    stream.Feed(bytes.substr(i, step), &out);
    EXPECT_EQ(ValidUtf8Prefix(out), out.size());
  }
  stream.Finish(&out);
  return out;
}

TEST(Utf8StreamTest, WholeCharactersWhateverTheCut) {
  struct Case {
    std::string bytes, text;
  };
  // The invalid ones are those of Unicode 15, section 3.9, tables 3-8 to 3-11.
  const Case cases[] = {
      {"plain", "plain"},
      {"é日\U0001f642", "é日\U0001f642"},
      {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", "\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA"},
      {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", "\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA"},
      {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", "\ufffd\ufffd\ufffd\ufffd\ufffdA\ufffd\ufffdB"},
      {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "\ufffd\ufffd\ufffd\ufffdA"},
      {"end\xe1\x80", "end\ufffd"},
      {"end\xf0\x9f\x99", "end\ufffd"},
      {std::string("\0x", 2), std::string("\0x", 2)},
      {"\xf4\x8f\xbf\xbf\xef\xbf\xbf", "\U0010ffff\uffff"},
  };
  for (const Case& c : cases) {
    for (size_t step = 1; step < 12; ++step) EXPECT_EQ(Stream(c.bytes, step), c.text) << step;
  }
}

TEST(Utf8Test, ValidPrefix) {
  EXPECT_EQ(ValidUtf8Prefix(""), 0u);
  EXPECT_EQ(ValidUtf8Prefix("aé"), 3u);
  EXPECT_EQ(ValidUtf8Prefix("aé\xc3"), 3u);
  EXPECT_EQ(ValidUtf8Prefix("a\xff"
                            "b"),
            1u);
}

TEST(DetokenizerTest, HoldsCharactersBackAndSkipsControl) {
  TokenBytes table;
  table.bytes = {"<|end|>", " a", "\xf0\x9f", "\x99\x82", "b"};
  table.is_control = {true, false, false, false, false};
  Detokenizer skip(&table);
  std::string out;
  const auto feed = [&out](Detokenizer& d, int32_t id) {
    out.clear();
    EXPECT_TRUE(d.Feed(id, &out).ok());
    return out;
  };
  EXPECT_EQ(feed(skip, 1), " a");
  EXPECT_EQ(feed(skip, 2), "");
  EXPECT_EQ(feed(skip, 0), "");
  EXPECT_EQ(feed(skip, 3), "\U0001f642");
  EXPECT_EQ(feed(skip, 2), "");
  EXPECT_EQ(feed(skip, 4),
            "\ufffd"
            "b");
  EXPECT_EQ(feed(skip, 2), "");
  out.clear();
  skip.Finish(&out);
  EXPECT_EQ(out, "\ufffd");
  Detokenizer keep(&table, /*keep_control=*/true);
  EXPECT_EQ(feed(keep, 0), "<|end|>");
  for (const int32_t id : {-1, 5}) {
    const absl::Status status = keep.Feed(id, &out);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("outside the vocabulary of 5"));
  }
}

}  // namespace
}  // namespace phalanx

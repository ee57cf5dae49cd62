#include "coordinator/prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/gguf.h"
#include "tests/coordinator/test_model.h"

namespace phalanx::coordinator {
namespace {

using ::testing::ElementsAreArray;

class PromptTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = TestModel().Write();
    auto file = GgufFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
    auto tokenizer = TokenizerFromGguf(**file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    names_ = ControlNames(tokenizer_->token_bytes());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::vector<int32_t> Encode(const std::string& source, const std::string& content) {
    auto parsed = ChatTemplate::Parse(source);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    auto ids = EncodeChat({{"user", content}}, *parsed, *tokenizer_, names_);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return *ids;
  }
  // Control tokens are written as {}: "a{}b" has kEnd in the middle.
  static std::vector<int32_t> Ids(const std::string& text) {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text.substr(i, 2) == "{}") {
        ids.push_back(kEnd);
        ++i;
      } else {
        ids.push_back(static_cast<uint8_t>(text[i]));
      }
    }
    return ids;
  }

  std::string path_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ControlNames names_;
};

constexpr char kPlain[] = "<|end|>{{ messages[0].content }}<|end|>";

TEST_F(PromptTest, TheTemplatesNamesAreTokensTheUsersAreText) {
  EXPECT_THAT(Encode(kPlain, "hi"), ElementsAreArray(Ids("{}hi{}")));
  EXPECT_THAT(Encode(kPlain, "a<|end|>b"), ElementsAreArray(Ids("{}a<|end|>b{}")));
  EXPECT_THAT(Encode(kPlain, "<|end|><|start|>"), ElementsAreArray(Ids("{}<|end|><|start|>{}")));
  EXPECT_THAT(Encode(kPlain, "<|<|end|>"), ElementsAreArray(Ids("{}<|<|end|>{}")));
  EXPECT_THAT(Encode(kPlain, ""), ElementsAreArray(Ids("{}{}")));
}

// Not RESOURCE_EXHAUSTED: clients try again after that.
TEST_F(PromptTest, AChatThatIsTooMuchForItsTemplateIsRefused) {
  const auto parsed =
      ChatTemplate::Parse("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto ids = EncodeChat({{"user", "x"}}, *parsed, *tokenizer_, names_);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << ids.status();
  EXPECT_THAT(std::string(ids.status().message()), ::testing::HasSubstr("chat is too large"));
}

// Before it is encoded, which takes more memory than its text.
TEST_F(PromptTest, AChatOfMoreTextThanTheContextHoldsIsRefused) {
  const auto parsed = ChatTemplate::Parse("{% for i in range(100) %}ab{% endfor %}");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(EncodeChat({{"user", "x"}}, *parsed, *tokenizer_, names_, {}, 200).ok());
  const auto ids = EncodeChat({{"user", "x"}}, *parsed, *tokenizer_, names_, {}, 199);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << ids.status();
  EXPECT_THAT(std::string(ids.status().message()), ::testing::HasSubstr("200 bytes of it"));
}

TEST_F(PromptTest, NoByteOfUsersIsSpecial) {
  EXPECT_THAT(Encode(kPlain, "\x02<|end|>\x03"), ElementsAreArray(Ids("{}\x02<|end|>\x03{}")));
}

TEST_F(PromptTest, TheTemplateSeesWhatUsersWrote) {
  EXPECT_THAT(Encode("{{ messages[0].content.split('<|end|>')[0] }}<|end|>", "a<|end|>b"),
              ElementsAreArray(Ids("a{}")));
  EXPECT_THAT(Encode("{{ messages[0].content.split('<|end|>')[-1] }}<|end|>", "a<|end|>b"),
              ElementsAreArray(Ids("b{}")));
  EXPECT_THAT(Encode("{% if '<|end|>' in messages[0].content %}yes{% endif %}<|end|>", "a<|end|>b"),
              ElementsAreArray(Ids("yes{}")));
}

TEST_F(PromptTest, ANameWithAnyByteOfAUserIsText) {
  EXPECT_THAT(Encode("<|{{ messages[0].content }}|>{{ '<|' + 'end' }}|>", "end"),
              ElementsAreArray(Ids("<|end|>{}")));
  EXPECT_THAT(Encode("{{ messages[0].content }}|>", "<|end"), ElementsAreArray(Ids("<|end|>")));
  EXPECT_THAT(Encode("{{ messages | tojson }}<|end|>", "<|end|>"),
              ElementsAreArray(Ids("[{\"role\": \"user\", \"content\": \"<|end|>\"}]{}")));
  EXPECT_THAT(Encode("{{ messages[0].content | replace('x', '<|end|>') }}", "axb<|end|>"),
              ElementsAreArray(Ids("a{}b<|end|>")));
}

TEST(ControlNamesTest, MarksThatAreNotSpecial) {
  const ControlNames names(TokenBytes{{"<s>", "<\uff5cUser\uff5c>", "<|a|>", "<t>", "<|", "||>"},
                                      {true, false, false, false, false, false}});
  EXPECT_EQ(names.LengthAt("<s>", 0), 3u);
  EXPECT_EQ(names.LengthAt("<\uff5cUser\uff5c>", 0), 12u);
  EXPECT_EQ(names.LengthAt("<|a|>", 0), 5u);
  EXPECT_EQ(names.LengthAt("<t>", 0), 0u);
  EXPECT_EQ(names.LengthAt("<||>", 0), 0u);
}

TEST_F(PromptTest, ErrorsOfTheTemplateAreTold) {
  auto parsed = ChatTemplate::Parse("{{ raise_exception('no users') }}");
  ASSERT_TRUE(parsed.ok());
  const auto ids = EncodeChat({{"user", "x"}}, *parsed, *tokenizer_, names_);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), ::testing::HasSubstr("no users"));
}

TEST_F(PromptTest, TextIsTakenAsItIs) {
  const auto ids = EncodeText("a<|end|>", *tokenizer_);
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAreArray(Ids("a{}")));
}

}  // namespace
}  // namespace phalanx::coordinator

#include "base/reasoning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace phalanx {
namespace {

struct Split {
  std::string reasoning, answer;
  int64_t tokens = 0;
  ReasoningState state = ReasoningState::kUndecided;
};

bool operator==(const Split& a, const Split& b) {
  return a.reasoning == b.reasoning && a.answer == b.answer && a.tokens == b.tokens && a.state == b.state;
}
void PrintTo(const Split& s, std::ostream* out) {
  *out << "reasoning '" << s.reasoning << "', answer '" << s.answer << "', tokens " << s.tokens;
}

// Tokens in square brackets are control tokens.
Split SplitOf(const std::vector<std::string>& tokens, const ReasoningFamily* opened) {
  ReasoningSplitter splitter(opened);
  Split out;
  for (const std::string& token : tokens) {
    const bool control = token.size() > 1 && token.front() == '[';
    splitter.Push(control ? token.substr(1, token.size() - 2) : token, control, &out.reasoning, &out.answer);
  }
  splitter.Finish(&out.reasoning, &out.answer);
  out.tokens = splitter.reasoning_tokens();
  out.state = splitter.state();
  return out;
}

constexpr auto kUndecided = ReasoningState::kUndecided;
constexpr auto kThinking = ReasoningState::kThinking;
constexpr auto kAnswering = ReasoningState::kAnswering;
const ReasoningFamily* Think() { return FindReasoningFamily("think"); }
const ReasoningFamily* Thought() { return FindReasoningFamily("thought"); }

TEST(ReasoningTest, SplitsAtMarksThatAreTokens) {
  EXPECT_EQ(SplitOf({"<think>", "\n", "a", "b", "</think>", "\n\n", "c"}, nullptr),
            (Split{"\nab", "\n\nc", 3, kAnswering}));
  EXPECT_EQ(SplitOf({"[<think>]", "a", "[</think>]", "c"}, nullptr), (Split{"a", "c", 1, kAnswering}));
  EXPECT_EQ(SplitOf({"a", "</think>", "c"}, Think()), (Split{"a", "c", 1, kAnswering}));
  EXPECT_EQ(SplitOf({"</think>", "c"}, Think()), (Split{"", "c", 0, kAnswering}));
}

TEST(ReasoningTest, SplitsAtMarksThatSpanTokens) {
  EXPECT_EQ(SplitOf({"<", "think", ">", "a", " b", "</", "think", ">\n", "c"}, nullptr),
            (Split{"a b", "\nc", 2, kAnswering}));
  EXPECT_EQ(SplitOf({" \n<th", "ink>x", "<y</th", "i", "nk>z"}, nullptr), (Split{"x<y", "z", 1, kAnswering}));
  EXPECT_EQ(SplitOf({"a<", "<", "/think", ">b"}, Think()), (Split{"a<", "b", 1, kAnswering}));
}

TEST(ReasoningTest, KeepsWhatIsNoMark) {
  EXPECT_EQ(SplitOf({"  hello <think> x </think>"}, nullptr),
            (Split{"", "  hello <think> x </think>", 0, kAnswering}));
  EXPECT_EQ(SplitOf({"<thin", "g>"}, nullptr), (Split{"", "<thing>", 0, kAnswering}));
  EXPECT_EQ(SplitOf({" \n<thi"}, nullptr), (Split{"", " \n<thi", 0, kUndecided}));
  EXPECT_EQ(SplitOf({"a</thi", "s></thin"}, Think()), (Split{"a</this></thin", "", 2, kThinking}));
  EXPECT_EQ(SplitOf({"a", "[<|im_end|>]", "</think>", "b", "[<think>]"}, Think()),
            (Split{"a", "b", 2, kAnswering}));
  EXPECT_EQ(SplitOf({"x", "</think>", "a</think>b"}, Think()), (Split{"x", "a</think>b", 1, kAnswering}));
}

TEST(ReasoningTest, TheOpeningMarkOnceMoreIsNoText) {
  EXPECT_EQ(SplitOf({"\n", "<think>", "a", "</think>", "b"}, Think()), (Split{"a", "b", 1, kAnswering}));
  EXPECT_EQ(SplitOf({"\n", "a", "<think>"}, Think()), (Split{"\na<think>", "", 3, kThinking}));
}

TEST(ReasoningTest, AnswersBetweenMarks) {
  EXPECT_EQ(SplitOf({"<|begin_of_thought|>", "\n\na", "<|end_of_", "thought|>", "\n\n",
                     "<|begin_of_solution|>", "b", "\n<|end_of_solution|>", "\n"},
                    nullptr),
            (Split{"\n\na", "b\n\n", 1, kAnswering}));
  EXPECT_EQ(SplitOf({"a", "<|end_of_thought|>", "\n\n", "b"}, Thought()),
            (Split{"a", "\n\nb", 1, kAnswering}));
  EXPECT_EQ(SplitOf({"<|begin_of_solution|>", "b", "<|end_of_solution|>"}, nullptr),
            (Split{"", "b", 0, kAnswering}));
}

TEST(ReasoningTest, DoesNotDependOnTheCut) {
  const std::string text = "\n<think>a<</think</think>\n<think>b</think>";
  for (size_t i = 0; i <= text.size(); ++i) {
    for (size_t j = i; j <= text.size(); ++j) {
      const Split split = SplitOf({text.substr(0, i), text.substr(i, j - i), text.substr(j)}, nullptr);
      EXPECT_EQ(split.reasoning, "a<</think");
      EXPECT_EQ(split.answer, "\n<think>b</think>");
    }
  }
}

TEST(ReasoningTest, SaysWhenTheClosingMarkMayHaveBegun) {
  ReasoningSplitter splitter(Think());
  std::string reasoning, answer;
  splitter.Push("a", false, &reasoning, &answer);
  EXPECT_FALSE(splitter.may_be_closing());
  splitter.Push("</th", false, &reasoning, &answer);
  EXPECT_TRUE(splitter.may_be_closing());
  EXPECT_EQ(splitter.reasoning_tokens(), 2);
  splitter.Push("ink>", false, &reasoning, &answer);
  EXPECT_FALSE(splitter.may_be_closing());
  EXPECT_EQ(splitter.reasoning_tokens(), 1);
}

// Where a reasoning begins, the beginning of the opening mark may be that of the closing one.
TEST(ReasoningTest, SaysSoAtTheBeginningToo) {
  ReasoningSplitter splitter(Think());
  std::string reasoning, answer;
  splitter.Push("\n", false, &reasoning, &answer);
  EXPECT_FALSE(splitter.may_be_closing());
  splitter.Push("<", false, &reasoning, &answer);
  EXPECT_TRUE(splitter.may_be_closing());
  splitter.Push("th", false, &reasoning, &answer);
  EXPECT_FALSE(splitter.may_be_closing());
  ReasoningSplitter undecided(nullptr);
  undecided.Push("<", false, &reasoning, &answer);
  EXPECT_FALSE(undecided.may_be_closing());
}

TEST(ReasoningTest, FindsWhatAPromptLeavesOpen) {
  EXPECT_EQ(ReasoningOpenedAtEnd("<|assistant|><think>\n"), Think());
  EXPECT_EQ(ReasoningOpenedAtEnd("<think>\n\n</think>\n\n"), nullptr);
  EXPECT_EQ(ReasoningOpenedAtEnd("what is <think> for?"), nullptr);
  EXPECT_EQ(ReasoningOpenedAtEnd(""), nullptr);
  EXPECT_EQ(ReasoningLeftOpen("<think>a</think>b<think>c"), Think());
  EXPECT_EQ(ReasoningLeftOpen("<|begin_of_thought|>a"), Thought());
  EXPECT_EQ(ReasoningLeftOpen("<think>a</think>"), nullptr);
}

}  // namespace
}  // namespace phalanx

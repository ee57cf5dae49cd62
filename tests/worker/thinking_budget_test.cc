#include "worker/thinking_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/worker/fake_runner.h"
#include "tests/worker/scheduler_driver.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Text(const TokenBytes& tokens, const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += tokens.bytes[id];
  return text;
}

// Every mark as one token, as several, and tokens that hold a piece of one beside text.
const std::shared_ptr<const TokenBytes>& Vocabulary() {
  static const auto* const kTokens = new std::shared_ptr<const TokenBytes>(MakeTokenBytes(
      {"<think>", "</think>", "[<|begin_of_thought|>]", "[<|end_of_thought|>]", "[end]", "<", "</", "think",
       ">", "/think>", "y</th", "ink>", "x</think>\n", "\n", "<|", "end_of_thought", "|>", "<think"},
      40));
  return *kTokens;
}

ThinkingBudget Budget(int32_t max_tokens, const std::string& opened,
                      std::initializer_list<std::string_view> close, const std::string& family = "think") {
  return {max_tokens, opened, {{family, IdsOf(*Vocabulary(), close)}}};
}

// What is decided with the log "given" in front of each token of it and for the token after it.
std::string Decisions(const ThinkingBudget& budget, std::initializer_list<std::string_view> given) {
  const ThinkingTokens tokens(Vocabulary());
  ThinkingTracker tracker(budget, &tokens);
  const std::vector<int32_t> log = IdsOf(*Vocabulary(), given);
  std::string out;
  for (size_t p = 0; p <= log.size(); ++p) {
    // What it may not read is not there.
    const std::vector<int32_t> known(log.begin(), log.begin() + (p == 0 ? 0 : p - 1));
    const ThinkingTracker::Decision d = tracker.Decide(static_cast<int64_t>(p), known);
    const ReasoningFamily& think = *FindReasoningFamily("think");
    if (d.forced >= 0) out += "[" + Vocabulary()->bytes[d.forced] + "]";
    out += d.forced >= 0                      ? ""
           : d.banned == nullptr              ? "."
           : d.banned == tokens.any_closing() ? "u"
           : d.banned == tokens.completing(think) ||
                   d.banned == tokens.completing(*FindReasoningFamily("thought"))
               ? "C"
               : "b";
  }
  return out;
}

TEST(ThinkingBudget, TheTokensThatMayClose) {
  const ThinkingTokens tokens(Vocabulary());
  const ReasoningFamily& think = *FindReasoningFamily("think");
  const auto texts = [](const ThinkingTokens::Ids& ids) {
    std::vector<std::string> out;
    for (int32_t id : *ids) out.push_back(Vocabulary()->bytes[id]);
    return out;
  };
  EXPECT_THAT(texts(tokens.closing(think)), ElementsAre("</think>", "x</think>\n"));
  EXPECT_THAT(texts(tokens.completing(think)),
              ElementsAre("</think>", ">", "/think>", "ink>", "x</think>\n"));
  EXPECT_THAT(texts(tokens.any_closing()), ElementsAre("</think>", "x</think>\n", "<|end_of_thought|>"));
  EXPECT_EQ(ThinkingTokens(MakeTokenBytes({"a"}, 3)).closing(think), nullptr);
}

TEST(ThinkingBudget, ForcesTheMarkAfterNTokens) {
  EXPECT_EQ(Decisions(Budget(0, "think", {"</think>"}), {"</think>", "aa"}), "[</think>]..");
  EXPECT_EQ(Decisions(Budget(1, "think", {"</think>"}), {"aa", "</think>"}), "b[</think>].");
  EXPECT_EQ(Decisions(Budget(3, "think", {"</", "think", ">"}), {"aa", "ab", "ac", "</", "think", ">", "ad"}),
            "..b[</][think][>]..");
  EXPECT_EQ(Decisions(Budget(2, "", {"</think>"}), {"<think>", "aa", "ab", "</think>", "ac"}),
            "..b[</think>]..");
  EXPECT_EQ(Decisions(Budget(2, "", {"</think>"}), {"\n", "<think", ">", "aa", "ab", "</think>"}),
            "....b[</think>].");
}

TEST(ThinkingBudget, NothingIsForcedWhereTheModelOpensNothingOrClosesItself) {
  EXPECT_EQ(Decisions(Budget(2, "", {"</think>"}), {"aa", "ab", "ac", "ad"}), ".....");
  EXPECT_EQ(
      Decisions(Budget(5, "think", {"</think>"}), {"aa", "</think>", "ac", "ad", "ae", "af", "ag", "ah"}),
      ".........");
  // The other family is not limited.
  EXPECT_EQ(Decisions(Budget(1, "", {"</think>"}), {"<|begin_of_thought|>", "aa", "ab", "ac"}), "uu...");
  EXPECT_EQ(Decisions(Budget(1, "", {"<|", "end_of_thought", "|>"}, "thought"),
                      {"<|begin_of_thought|>", "aa", "<|"}),
            "uu[<|][end_of_thought]");
}

TEST(ThinkingBudget, AMarkThatTheModelWritesIsNotSaidTwice) {
  // Closed by token 1, which is not yet read where the end would be forced: so it may not be.
  EXPECT_EQ(Decisions(Budget(2, "think", {"</think>"}), {"aa", "ab", "</think>"}), ".b[</think>].");
  // Begun in token 1: put off until it is complete ...
  EXPECT_EQ(Decisions(Budget(3, "think", {"</think>"}), {"aa", "</", "think", ">", "ab", "ac"}), "..bbb..");
  // ... or is none.
  EXPECT_EQ(Decisions(Budget(3, "think", {"</think>"}), {"aa", "</", "think", "ad", "</think>", "ac"}),
            "..bbb[</think>].");
  // The first token may begin either mark.
  EXPECT_EQ(Decisions(Budget(2, "think", {"</think>"}), {"<", "/think>", "ab"}), ".bb.");
  // Put off eight times at most.
  EXPECT_EQ(Decisions(Budget(2, "think", {"</think>"}),
                      {"<", "<", "<", "<", "<", "<", "<", "<", "<", "<", "</think>"}),
            ".bbbbbbbbC[</think>].");
}

TEST(ThinkingBudget, ADecisionIsTheSameWhereTheLogIsReadAtOnce) {
  const ThinkingTokens tokens(Vocabulary());
  const ThinkingBudget budget = Budget(3, "think", {"</", "think", ">"});
  const std::vector<int32_t> log = IdsOf(*Vocabulary(), {"aa", "<", "x</think>\n", "aa", "ab"});
  for (const std::vector<int32_t>& ids :
       {log, IdsOf(*Vocabulary(), {"aa", "<", "<", "aa", "</", "think", ">", "aa"})}) {
    ThinkingTracker steps(budget, &tokens);
    for (int64_t p = 0; p <= static_cast<int64_t>(ids.size()); ++p) {
      ThinkingTracker at_once(budget, &tokens);
      const ThinkingTracker::Decision a = steps.Decide(p, ids), b = at_once.Decide(p, ids);
      EXPECT_EQ(a.forced, b.forced) << p;
      EXPECT_EQ(a.banned, b.banned) << p;
    }
  }
}

TEST(ThinkingBudget, ErrorsNameTheField) {
  const int64_t vocab = static_cast<int64_t>(Vocabulary()->bytes.size());
  const auto error = [&](const std::function<void(ThinkingBudget*)>& spoil) {
    ThinkingBudget budget = Budget(5, "think", {"</", "think", ">"});
    spoil(&budget);
    const absl::Status status = CheckThinkingBudget(budget, Vocabulary().get(), vocab);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(error([](ThinkingBudget* b) { b->max_tokens = -1; }), HasSubstr("thinking.max_tokens is -1"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->opened = "thonk"; }),
              HasSubstr("thinking.opened is 'thonk'; it must be empty or one of 'think', 'thought'"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close.clear(); }), HasSubstr("thinking.close is empty"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close[0].family = "x"; }),
              HasSubstr("close[0].family is 'x'"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close[0].ids.clear(); }), HasSubstr("close[0].ids is empty"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close[0].ids[1] = 58; }), HasSubstr("close[0].ids[1] is 58"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close[0].ids[1] = -1; }), HasSubstr("close[0].ids[1] is -1"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close[0].ids.pop_back(); }),
              HasSubstr("close[0].ids are [6 7], which do not say </think>"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->close.push_back(b->close[0]); }),
              HasSubstr("close[1].family is 'think', as close[0]'s"));
  EXPECT_THAT(error([](ThinkingBudget* b) { b->opened = "thought"; }),
              HasSubstr("close has no mark of 'thought'"));
  const ThinkingBudget good = Budget(5, "think", {"</", "think", ">"});
  EXPECT_TRUE(CheckThinkingBudget(good, Vocabulary().get(), vocab).ok());
  const absl::Status none = CheckThinkingBudget(good, nullptr, vocab);
  EXPECT_EQ(none.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(none.message()), HasSubstr("tokenizer"));
}

// ---- Through the scheduler ----

SchedulerOptions Options(const std::shared_ptr<const TokenBytes>& tokens) {
  SchedulerOptions o;
  o.num_blocks = 400;
  o.block_size = 4;
  o.context_length = 160;
  o.vocab_size = static_cast<int64_t>(tokens->bytes.size());
  o.max_tokens_per_step = 11;  // prompts come in several chunks
  o.max_sequences = 8;
  o.max_logits_per_step = 11;
  o.token_bytes = tokens;
  return o;
}

std::map<uint64_t, DrivenRequest> RunFake(const SchedulerOptions& o,
                                          const std::vector<SequenceRequest>& requests, bool ahead) {
  FakeRunner runner(o);
  return Drive(o, requests, ahead, [&](const PlannedStep& step) -> absl::StatusOr<StepResult> {
    PHX_RETURN_IF_ERROR(runner.Launch(step.plan));
    PHX_ASSIGN_OR_RETURN(StepResult result, runner.Sample(step.samples));
    PHX_RETURN_IF_ERROR(runner.ShareSampled());
    return result;
  });
}

// What any log under a budget must be.
void CheckLog(const TokenBytes& tokens, const ThinkingBudget& budget, const DrivenRequest& run,
              int* num_exact) {
  ReasoningSplitter splitter(FindReasoningFamily(budget.opened));
  std::string reasoning, answer;
  bool maybe_closing = false;  // after some token from budget - 1 on
  for (size_t i = 0; i < run.tokens.size(); ++i) {
    if (!run.forced.empty() && i == run.forced[0]) {
      EXPECT_EQ(splitter.state(), ReasoningState::kThinking) << "closed twice, at " << i;
    }
    splitter.Push(tokens.bytes[run.tokens[i]], tokens.is_control[run.tokens[i]], &reasoning, &answer);
    const bool before = run.forced.empty() || i < run.forced[0];
    maybe_closing |=
        before && splitter.reasoning_tokens() >= budget.max_tokens - 1 && splitter.may_be_closing();
    if (run.forced.empty() || i != run.forced[0] + budget.close[0].ids.size() - 1) continue;
    EXPECT_EQ(splitter.state(), ReasoningState::kAnswering);
    for (size_t j = 0; j < budget.close[0].ids.size(); ++j) {
      EXPECT_EQ(run.forced[j], run.forced[0] + j);
      EXPECT_EQ(run.tokens[run.forced[j]], budget.close[0].ids[j]);
    }
    const bool repeats = !budget.opened.empty() && Text(tokens, run.tokens).find("<think>") < 12;
    const int64_t n = std::max(budget.max_tokens, budget.opened.empty() ? 1 : 0);
    if (!repeats && !maybe_closing) {
      EXPECT_EQ(splitter.reasoning_tokens(), n) << Text(tokens, run.tokens);
      ++*num_exact;
    }
  }
  const int64_t most = std::max(budget.max_tokens, 1) + kMaxPutOff;
  EXPECT_LE(splitter.reasoning_tokens(), most) << Text(tokens, run.tokens);
  EXPECT_LE(run.forced.size(), budget.close[0].ids.size());
}

struct BudgetCase {
  const char* name;
  int fillers;  // the fewer, the more often the fake model says marks and pieces of them
  std::vector<std::string_view> close;
  int least_exact;
};

class BudgetTest : public ::testing::TestWithParam<BudgetCase> {};

TEST_P(BudgetTest, SameTokensAheadOrNotInAnyBatchAndResumedAnywhere) {
  const auto tokens = MakeTokenBytes({"<think>", "</think>", "[end]", "<", "</", "think", ">", "/think>",
                                      "y</th", "ink>", "x</think>\n", "\n", "<th"},
                                     GetParam().fillers);
  const SchedulerOptions o = Options(tokens);
  int num_exact = 0, num_forced = 0;
  for (const int32_t budget : {0, 1, 2, 3, 7, 50}) {
    for (const bool opened : {false, true}) {
      std::vector<SequenceRequest> requests;
      for (uint64_t i = 1; i <= 8; ++i) {
        SequenceRequest r;
        r.source = 1;
        r.request = i;
        for (uint64_t j = 0; j < 1 + i * 5 % 17; ++j)
          r.prompt.push_back(static_cast<int32_t>(j * 7 + i) % 13);
        r.sampling.seed = i + static_cast<uint64_t>(budget) * 100;
        r.max_tokens = budget + 24;
        // The fake model seldom opens a reasoning: the log begins with it.
        if (!opened)
          r.generated = i % 2 == 0 ? IdsOf(*tokens, {"<think>"}) : IdsOf(*tokens, {"\n", "<th", "ink>"});
        if (i % 3 == 0) r.sampling.repetition_penalty = 1.5f;
        if (i % 4 == 0) r.sampling.frequency_penalty = 0.5f;
        if (i % 5 == 0) r.stop_ids = IdsOf(*tokens, {"end"});
        if (i == 5) r.min_tokens = 10;
        r.thinking =
            ThinkingBudget{budget, opened ? "think" : "", {{"think", IdsOf(*tokens, GetParam().close)}}};
        if (i == 8) r.thinking.reset();
        requests.push_back(r);
      }
      const auto want = RunFake(o, requests, /*ahead=*/false);
      for (const SequenceRequest& r : requests) {
        if (r.thinking) CheckLog(*tokens, *r.thinking, want.at(r.request), &num_exact);
        num_forced += !want.at(r.request).forced.empty();
      }
      EXPECT_EQ(RunFake(o, requests, /*ahead=*/true), want) << "budget " << budget;
      for (size_t batch : {1, 2, 3, 4, 5, 6, 7}) {
        for (size_t first = 0; first < requests.size(); first += batch) {
          const std::vector<SequenceRequest> some(
              requests.begin() + first, requests.begin() + std::min(first + batch, requests.size()));
          for (const auto& [request, run] : RunFake(o, some, first % 2 == 0))
            EXPECT_EQ(run, want.at(request));
        }
      }
      for (size_t i = 0; i < 3; ++i) {
        SequenceRequest r = requests[i];
        DrivenRequest whole = want.at(r.request);
        while (r.generated.size() + 1 < whole.tokens.size()) {
          r.generated.push_back(whole.tokens[r.generated.size()]);
          DrivenRequest resumed = RunFake(o, {r}, r.generated.size() % 2 == 0).at(r.request);
          EXPECT_EQ(resumed.tokens, whole.tokens) << "resumed after " << r.generated.size();
          EXPECT_EQ(resumed.finish, whole.finish);
        }
      }
      if (HasFailure()) return;
    }
  }
  std::printf("%d forced, %d of them after exactly the budget\n", num_forced, num_exact);
  EXPECT_GT(num_exact, GetParam().least_exact);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, BudgetTest,
                         ::testing::Values(BudgetCase{"one_token", 300, {"</think>"}, 60},
                                           BudgetCase{"three_tokens", 300, {"</", "think", ">"}, 60},
                                           BudgetCase{"many_marks", 30, {"</think>"}, 30},
                                           BudgetCase{"hardly_anything_else", 1, {"</", "think", ">"}, 5}),
                         [](const auto& info) { return info.param.name; });

TEST(ThinkingBudget, AForcedStopIdEndsTheSequenceButNotBeforeMinTokens) {
  const auto tokens = MakeTokenBytes({"</think>"}, 60);
  SequenceRequest r;
  r.prompt = {5};
  r.max_tokens = 12;
  r.stop_ids = {0};
  r.thinking = ThinkingBudget{3, "think", {{"think", {0}}}};
  const DrivenRequest stopped = RunFake(Options(tokens), {r}, true).at(0);
  EXPECT_EQ(stopped.tokens.size(), 4u);
  EXPECT_EQ(stopped.stop_id, 0);
  r.min_tokens = 10;
  const DrivenRequest later = RunFake(Options(tokens), {r}, true).at(0);
  EXPECT_EQ(later.tokens.size(), 12u);
  EXPECT_THAT(later.forced, ElementsAre(3));
  EXPECT_EQ(later.finish, Finish::kLength);
}

TEST(ThinkingBudget, MaxTokensMayCutTheMark) {
  SequenceRequest r;
  r.prompt = {20};
  r.max_tokens = 4;
  r.thinking = Budget(2, "think", {"</", "think", ">"});
  for (const bool ahead : {false, true}) {
    const DrivenRequest run = RunFake(Options(Vocabulary()), {r}, ahead).at(0);
    EXPECT_EQ(run.tokens.size(), 4u);
    EXPECT_EQ(run.finish, Finish::kLength);
    EXPECT_THAT(run.forced, ElementsAre(2, 3));
  }
}

}  // namespace
}  // namespace phalanx

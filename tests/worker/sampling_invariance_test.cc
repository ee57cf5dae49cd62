// The whole path of sampling on a real model: a request with every control and a thinking budget says the
// same alone and in a batch, planned ahead or not, resumed anywhere, on any number of ranks; and what it says
// keeps to what was asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/reasoning.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/forwarding_ops.h"
#include "tests/worker/scheduler_driver.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

constexpr int kVocab = 131;
constexpr int32_t kEnd = 2;

const std::shared_ptr<const TokenBytes>& Vocabulary() {
  static const auto* const kTokens = new std::shared_ptr<const TokenBytes>(
      MakeTokenBytes({"<think>", "</think>", "[end]", "</", "think", ">"}, kVocab - 6));
  return *kTokens;
}

TestGroupOptions GroupOptions(const std::string& rung, int num_ranks) {
  TestGroupOptions o;
  o.num_ranks = num_ranks;
  o.ops = {.rung = rung, .compute = Compute::kFast, .num_threads = 1};
  o.runner = {.max_tokens_per_step = 24,
              .max_logits_per_step = 16,
              .context_length = 128,
              .block_size = 16,
              .kv_bytes = int64_t{1} << 26,
              .max_kv_blocks = 100};
  return o;
}

std::map<uint64_t, DrivenRequest> RunModel(const Checkpoint& file, const TestGroupOptions& group_options,
                                           const std::vector<SequenceRequest>& requests, bool ahead) {
  auto group = TestGroup::Create(file, group_options);
  PHX_CHECK(group.ok(), group.status().ToString());
  SchedulerOptions o;
  o.num_blocks = (*group)->runner(0).num_kv_blocks();
  o.block_size = 16;
  o.context_length = 128;
  o.vocab_size = kVocab;
  o.max_tokens_per_step = 24;
  o.max_sequences = 8;
  o.max_logits_per_step = 16;
  o.token_bytes = Vocabulary();
  return Drive(o, requests, ahead,
               [&](const PlannedStep& step) { return (*group)->Step(step.plan, step.samples); });
}

std::vector<SequenceRequest> Requests() {
  std::vector<SequenceRequest> requests;
  for (uint64_t i = 1; i <= 6; ++i) {
    SequenceRequest r;
    r.request = i;
    for (uint64_t j = 0; j < 3 + i * 11 % 40; ++j)
      r.prompt.push_back(static_cast<int32_t>((j * 29 + i * 7) % kVocab));
    r.max_tokens = 30;
    r.sampling.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    r.sampling.top_p = i == 4 ? 0.9f : 1.0f;
    r.sampling.top_k = i == 5 ? 20 : 0;
    r.sampling.min_p = i % 2 == 0 ? 0.01f : 0;
    r.sampling.seed = 100 + i;
    r.sampling.repetition_penalty = i % 2 == 0 ? 1.2f : 1.0f;
    r.sampling.frequency_penalty = i % 3 == 0 ? 0.7f : 0;
    r.sampling.presence_penalty = i % 3 == 1 ? 1.5f : 0;
    r.sampling.bias = std::make_shared<const std::vector<TokenBias>>(
        std::vector<TokenBias>{{kEnd, 3}, {50, -100}, {60 + static_cast<int32_t>(i), 2}});
    r.stop_ids = {kEnd};
    r.min_tokens = 20;
    r.logprobs = i == 2 ? 3 : -1;
    const std::vector<int32_t> close =
        i % 2 == 0 ? IdsOf(*Vocabulary(), {"</", "think", ">"}) : IdsOf(*Vocabulary(), {"</think>"});
    r.thinking = ThinkingBudget{static_cast<int32_t>(i + 2), "think", {{"think", close}}};
    requests.push_back(r);
  }
  return requests;
}

class SamplingInvariance : public testing::TestWithParam<std::string> {};

TEST_P(SamplingInvariance, SameTokensOnAnyRanksInAnyBatchAheadOrNotResumedAnywhere) {
  TinyModelOptions tiny;
  const auto file = OpenTinyModel(tiny, "sampling_invariance");
  const std::vector<SequenceRequest> requests = Requests();
  const auto want = RunModel(*file, GroupOptions(GetParam(), 1), requests, /*ahead=*/false);
  int num_exact = 0;
  for (const SequenceRequest& r : requests) {
    const DrivenRequest& said = want.at(r.request);
    EXPECT_GE(said.tokens.size(), 20u);
    EXPECT_EQ(std::count(said.tokens.begin(), said.tokens.end(), 50), 0);
    for (size_t i = 0; i < 20; ++i) EXPECT_NE(said.tokens[i], kEnd);
    EXPECT_EQ(said.finish,
              said.tokens.size() == 30 && said.tokens.back() != kEnd ? Finish::kLength : Finish::kStop);
    ReasoningSplitter splitter(FindReasoningFamily("think"));
    std::string text;
    for (int32_t id : said.tokens) splitter.Push(Vocabulary()->bytes[id], id == kEnd, &text, &text);
    EXPECT_EQ(splitter.state(), ReasoningState::kAnswering);
    num_exact += splitter.reasoning_tokens() == r.thinking->max_tokens;
  }
  EXPECT_GE(num_exact, 4) << "the others closed by themselves";
  for (const int ranks : {1, 2, 3}) {
    EXPECT_EQ(RunModel(*file, GroupOptions(GetParam(), ranks), requests, /*ahead=*/true), want)
        << ranks << " ranks";
  }
  for (const SequenceRequest& r : {requests[1], requests[2]}) {
    EXPECT_EQ(RunModel(*file, GroupOptions(GetParam(), 1), {r}, true).at(r.request), want.at(r.request));
    for (const size_t resumed : {1, 4, 5, 6, 7, 15}) {
      SequenceRequest again = r;
      const std::vector<int32_t>& tokens = want.at(r.request).tokens;
      again.generated.assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(resumed));
      EXPECT_EQ(RunModel(*file, GroupOptions(GetParam(), 2), {again}, true).at(r.request).tokens, tokens)
          << "request " << r.request << " resumed after " << resumed;
    }
  }
}

// A NaN in one sequence's logits, on the device: its neighbours say what they say without it.
TEST_P(SamplingInvariance, ANanFailsItsSequenceAlone) {
  class NanOps : public ForwardingOps {
   public:
    using ForwardingOps::ForwardingOps;
    absl::Status Sample(const SampleParams& p) override {
      for (int64_t r = 0; r < p.num_rows; ++r) {
        if (p.rows[r].seed != 103 || p.rows[r].position < 60) continue;
        const_cast<float*>(p.logits)[r * p.share_cols + 1] = std::nanf("");
      }
      return inner_->Sample(p);
    }
  };
  TinyModelOptions tiny;
  const auto file = OpenTinyModel(tiny, "sampling_nan");
  std::vector<SequenceRequest> requests = Requests();
  for (SequenceRequest& r : requests) r.prompt.resize(45, 9);
  TestGroupOptions options = GroupOptions(GetParam(), 2);
  const auto want = RunModel(*file, options, requests, true);
  options.wrap_ops = [](int, std::unique_ptr<Ops> ops) { return std::make_unique<NanOps>(std::move(ops)); };
  auto got = RunModel(*file, options, requests, true);
  EXPECT_THAT(std::string(got.at(3).error.message()),
              HasSubstr("request 3: the logits for position 60 hold a NaN"));
  EXPECT_EQ(got.at(3).tokens.size(), 15u);
  got.at(3) = want.at(3);
  EXPECT_EQ(got, want);
}

INSTANTIATE_TEST_SUITE_P(Rungs, SamplingInvariance, testing::ValuesIn(TestedRungs()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace phalanx

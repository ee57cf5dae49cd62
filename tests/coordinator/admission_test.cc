#include "coordinator/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace phalanx::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelLimits Model() {
  ModelLimits model;
  model.name = "m";
  model.vocab_size = 100;
  model.context_length = 64;
  model.has_tokenizer = true;
  model.has_chat_template = true;
  model.longest_token_bytes = 4;
  model.end_ids = {7, 9};
  return model;
}

RequestFields Tokens(std::vector<int32_t> ids) {
  RequestFields fields;
  fields.prompt = PromptKind::kTokens;
  fields.tokens = std::move(ids);
  return fields;
}

absl::Status Check(const std::function<void(RequestFields*)>& change, const ModelLimits& model = Model()) {
  RequestFields fields = Tokens({1, 2, 3});
  change(&fields);
  return CheckRequest(fields, model);
}

void ExpectError(const absl::Status& status, absl::StatusCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) EXPECT_THAT(std::string(status.message()), HasSubstr(part));
}

TEST(CheckRequest, NamesEveryBadField) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  struct Case {
    std::function<void(RequestFields*)> change;
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {[&](auto* f) { f->sampling.temperature = nan; }, {"sampling.temperature", "nan", "at least 0"}},
      {[&](auto* f) { f->sampling.temperature = inf; }, {"sampling.temperature", "inf"}},
      {[](auto* f) { f->sampling.temperature = -0.5f; }, {"sampling.temperature", "-0.5"}},
      {[](auto* f) { f->sampling.top_k = -1; }, {"sampling.top_k", "-1", "at least 0"}},
      {[](auto* f) { f->sampling.top_p = 0.0f; }, {"sampling.top_p", "0", "greater than 0"}},
      {[](auto* f) { f->sampling.top_p = 1.5f; }, {"sampling.top_p", "1.5"}},
      {[](auto* f) { f->sampling.top_p = -0.1f; }, {"sampling.top_p"}},
      {[&](auto* f) { f->sampling.top_p = nan; }, {"sampling.top_p", "nan"}},
      {[](auto* f) { f->sampling.max_tokens = -1; }, {"sampling.max_tokens", "-1"}},
      {[](auto* f) { f->sampling.stop.assign(17, "x"); }, {"sampling.stop", "17", "16"}},
      {[](auto* f) {
         f->sampling.stop = {"a", ""};
       },
       {"sampling.stop[1]", "empty"}},
      {[](auto* f) { f->sampling.stop = {std::string(1025, 'x')}; }, {"sampling.stop[0]", "1025", "1024"}},
      {[](auto* f) {
         f->sampling.stop_token_ids = {5, 100};
       },
       {"sampling.stop_token_ids[1]", "100", "0 to 99"}},
      {[](auto* f) { f->sampling.stop_token_ids = {-1}; }, {"sampling.stop_token_ids[0]", "-1"}},
      {[](auto* f) { f->sampling.stop_token_ids.assign(257, 1); }, {"sampling.stop_token_ids", "257"}},
      {[](auto* f) { f->logprobs = -1; }, {"logprobs", "-1", "0 to 20"}},
      {[](auto* f) { f->logprobs = 21; }, {"logprobs", "21"}},
      {[](auto* f) { f->prompt_logprobs = 21; }, {"prompt_logprobs", "21"}},
      {[](auto* f) { f->prompt_logprobs = -2; }, {"prompt_logprobs", "-2"}},
      {[](auto* f) { f->prompt = PromptKind::kNone; }, {"no prompt", "chat, text, tokens"}},
      {[](auto* f) { f->tokens.clear(); }, {"tokens.ids", "empty"}},
      {[](auto* f) {
         f->tokens = {1, 100};
       },
       {"tokens.ids[1]", "100", "0 to 99"}},
      {[](auto* f) { f->tokens = {-5}; }, {"tokens.ids[0]", "-5"}},
      {[](auto* f) { f->prompt = PromptKind::kText; }, {"text is empty"}},
      {[](auto* f) {
         f->prompt = PromptKind::kText;
         f->text = std::string(64 * 4 + 1, 'x');
       },
       {"257 bytes", "context of 64"}},
      {[](auto* f) { f->prompt = PromptKind::kChat; }, {"chat.messages", "empty"}},
      {[](auto* f) {
         f->prompt = PromptKind::kChat;
         f->chat = {{"user", "a"}, {"robot", "b"}};
       },
       {"chat.messages[1].role", "'robot'", "system, user or assistant"}},
      {[](auto* f) { f->request_id = std::string(129, 'r'); }, {"request_id", "129", "128"}},
  };
  for (const Case& c : cases) ExpectError(Check(c.change), absl::StatusCode::kInvalidArgument, c.parts);
}

TEST(CheckRequest, TakesTheBordersOfEveryRange) {
  const std::vector<std::function<void(RequestFields*)>> cases = {
      [](auto* f) { f->sampling.temperature = 0.0f; },
      [](auto* f) { f->sampling.temperature = 1e30f; },
      [](auto* f) { f->sampling.top_k = 0; },
      [](auto* f) { f->sampling.top_k = std::numeric_limits<int32_t>::max(); },
      [](auto* f) { f->sampling.top_p = 1.0f; },
      [](auto* f) { f->sampling.top_p = 1e-9f; },
      [](auto* f) { f->sampling.max_tokens = 0; },
      [](auto* f) { f->sampling.stop.assign(16, std::string(1024, 'x')); },
      [](auto* f) {
        f->sampling.stop_token_ids = {0, 99};
      },
      [](auto* f) { f->logprobs = 0; },
      [](auto* f) { f->logprobs = 20; },
      [](auto* f) { f->prompt_logprobs = 20; },
      [](auto* f) {
        f->tokens = {0, 99};
      },
      [](auto* f) {
        f->prompt = PromptKind::kText;
        f->text = std::string(64 * 4, 'x');
      },
      [](auto* f) {
        f->prompt = PromptKind::kChat;
        f->chat = {{"system", "s"}, {"user", ""}, {"assistant", "a"}};
      },
      [](auto* f) { f->request_id = std::string(128, 'r'); },
  };
  for (size_t i = 0; i < cases.size(); ++i) EXPECT_TRUE(Check(cases[i]).ok()) << i << ": " << Check(cases[i]);
}

TEST(CheckRequest, SaysWhatTheModelLacks) {
  ModelLimits model = Model();
  model.has_chat_template = false;
  model.missing_template = "has no chat template";
  const auto chat = [](RequestFields* f) {
    f->prompt = PromptKind::kChat;
    f->chat = {{"user", "hi"}};
  };
  const auto text = [](RequestFields* f) {
    f->prompt = PromptKind::kText;
    f->text = "hi";
  };
  ExpectError(Check(chat, model), absl::StatusCode::kFailedPrecondition, {"'m'", "has no chat template"});
  EXPECT_TRUE(Check(text, model).ok());
  model.has_tokenizer = false;
  model.missing_text = "has no tokenizer";
  ExpectError(Check(text, model), absl::StatusCode::kFailedPrecondition, {"'m'", "has no tokenizer"});
  ExpectError(Check(chat, model), absl::StatusCode::kFailedPrecondition, {"'m'", "has no tokenizer"});
  ExpectError(Check([](RequestFields* f) { f->sampling.stop = {"x"}; }, model),
              absl::StatusCode::kFailedPrecondition, {"sampling.stop", "has no tokenizer"});
  EXPECT_TRUE(Check([](RequestFields*) {}, model).ok());
}

TEST(ResolveSampling, FillsInDefaults) {
  ModelLimits model = Model();
  model.temperature = 0.6f;
  model.top_p = 0.95f;
  const auto resolved = ResolveSampling(Tokens({1}), 10, model, 1000, 42);
  ASSERT_TRUE(resolved.ok());
  EXPECT_FLOAT_EQ(resolved->temperature, 0.6f);
  EXPECT_FLOAT_EQ(resolved->top_p, 0.95f);
  EXPECT_EQ(resolved->top_k, 0);
  EXPECT_EQ(resolved->seed, 42u);
  EXPECT_EQ(resolved->max_tokens, 54);  // the rest of the context
  EXPECT_THAT(resolved->end_ids, ElementsAre(7, 9));
  EXPECT_EQ(resolved->logprobs, -1);
  EXPECT_EQ(resolved->prompt_logprobs, -1);
  EXPECT_EQ(ResolveSampling(Tokens({1}), 10, model, 20, 42)->max_tokens, 20);  // the cap
}

TEST(ResolveSampling, TakesWhatIsAsked) {
  RequestFields fields = Tokens({1});
  fields.sampling.temperature = 0.0f;
  fields.sampling.top_k = 5;
  fields.sampling.seed = 0;
  fields.sampling.max_tokens = 54;
  fields.sampling.stop_token_ids = {9, 3, 9};
  fields.logprobs = 0;
  auto resolved = ResolveSampling(fields, 10, Model(), 20, 42);
  ASSERT_TRUE(resolved.ok());
  EXPECT_EQ(resolved->temperature, 0);
  EXPECT_EQ(resolved->top_k, 5);
  EXPECT_EQ(resolved->seed, 0u);
  EXPECT_EQ(resolved->max_tokens, 54);  // the cap is for absent values
  EXPECT_THAT(resolved->end_ids, ElementsAre(3, 7, 9));
  EXPECT_EQ(resolved->logprobs, 0);
  fields.sampling.ignore_eos = true;
  EXPECT_THAT(ResolveSampling(fields, 10, Model(), 20, 42)->end_ids, ElementsAre(3, 9));
}

TEST(ResolveSampling, KeepsPromptAndTokensWithinTheContext) {
  RequestFields fields = Tokens({1});
  const auto resolve = [&fields](int64_t prompt) {
    return ResolveSampling(fields, prompt, Model(), 20, 42).status();
  };
  ExpectError(resolve(0), absl::StatusCode::kInvalidArgument, {"no tokens"});
  EXPECT_TRUE(resolve(63).ok());
  ExpectError(resolve(64), absl::StatusCode::kInvalidArgument, {"64 tokens", "fills the context of 64"});
  ExpectError(resolve(65), absl::StatusCode::kInvalidArgument, {"65 tokens", "context of 64"});
  fields.sampling.max_tokens = 0;
  EXPECT_TRUE(resolve(64).ok());  // only reads the prompt
  fields.sampling.max_tokens = 54;
  EXPECT_TRUE(resolve(10).ok());
  ExpectError(resolve(11), absl::StatusCode::kInvalidArgument, {"sampling.max_tokens", "54", "room for 53"});
}

TEST(InFlightLimit, RefusesBeyondTheLimit) {
  InFlightLimit limit(2);
  EXPECT_TRUE(limit.Enter().ok());
  EXPECT_TRUE(limit.Enter().ok());
  ExpectError(limit.Enter(), absl::StatusCode::kResourceExhausted, {"2 requests"});
  EXPECT_EQ(limit.count(), 2);
  limit.Leave();
  EXPECT_TRUE(limit.Enter().ok());
}

}  // namespace
}  // namespace phalanx::coordinator

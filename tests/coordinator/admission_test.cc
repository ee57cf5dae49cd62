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
  model.chat_template = "{% if m.role == 'ipython' %}";
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
      {[](auto* f) { f->sampling.min_p = -0.1f; }, {"sampling.min_p", "-0.1", "0 to 1"}},
      {[](auto* f) { f->sampling.min_p = 1.1f; }, {"sampling.min_p", "1.1"}},
      {[&](auto* f) { f->sampling.min_p = nan; }, {"sampling.min_p", "nan"}},
      {[](auto* f) { f->sampling.repetition_penalty = 0.0f; },
       {"sampling.repetition_penalty", "greater than 0"}},
      {[&](auto* f) { f->sampling.repetition_penalty = inf; },
       {"sampling.repetition_penalty", "inf", "1000"}},
      {[&](auto* f) { f->sampling.repetition_penalty = nan; }, {"sampling.repetition_penalty", "nan"}},
      {[](auto* f) { f->sampling.presence_penalty = 2.1f; }, {"sampling.presence_penalty", "2.1", "-2 to 2"}},
      {[&](auto* f) { f->sampling.presence_penalty = nan; }, {"sampling.presence_penalty", "nan"}},
      {[](auto* f) { f->sampling.frequency_penalty = -2.1f; }, {"sampling.frequency_penalty", "-2.1"}},
      {[&](auto* f) { f->sampling.frequency_penalty = nan; }, {"sampling.frequency_penalty", "nan"}},
      {[](auto* f) {
         f->sampling.logit_bias = {{-1, 1.0f}};
       },
       {"sampling.logit_bias", "token -1", "0 to 99"}},
      {[](auto* f) {
         f->sampling.logit_bias = {{5, 1.0f}, {100, 1.0f}};
       },
       {"sampling.logit_bias", "token 100", "0 to 99"}},
      {[](auto* f) {
         f->sampling.logit_bias = {{5, 100.5f}};
       },
       {"sampling.logit_bias[5]", "100.5", "-100 to 100"}},
      {[&](auto* f) {
         f->sampling.logit_bias = {{5, nan}};
       },
       {"sampling.logit_bias[5]", "nan"}},
      {[](auto* f) { f->sampling.n = 0; }, {"sampling.n is 0", "1 to 128"}},
      {[](auto* f) { f->sampling.n = 1000000000; }, {"sampling.n is 1000000000", "1 to 128"}},
      {[](auto* f) { f->sampling.min_tokens = -1; }, {"sampling.min_tokens", "-1"}},
      {[](auto* f) {
         f->sampling.min_tokens = 5;
         f->sampling.max_tokens = 4;
       },
       {"sampling.min_tokens is 5", "sampling.max_tokens", "4"}},
      {[](auto* f) { f->sampling.max_reasoning_tokens = -1; }, {"sampling.max_reasoning_tokens", "-1"}},
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
      {[](auto* f) { f->prompt = PromptKind::kChat; }, {"chat.messages", "empty"}},
      {[](auto* f) {
         f->prompt = PromptKind::kChat;
         f->chat = {{"user", "a"}, {"robot", "b"}};
       },
       {"chat.messages[1].role", "'robot'", "system, user, assistant or tool"}},
      {[](auto* f) {
         f->prompt = PromptKind::kChat;
         f->chat = {{"m.role", "a"}};  // in the template, but not as a name of a role
       },
       {"chat.messages[0].role"}},
      {[](auto* f) { f->request_id = "a\nb"; }, {"request_id", "a\\nb", "control characters"}},
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
      [](auto* f) { f->sampling.min_p = 0.0f; },
      [](auto* f) { f->sampling.min_p = 1.0f; },
      [](auto* f) { f->sampling.repetition_penalty = 1e-6f; },
      [](auto* f) { f->sampling.repetition_penalty = 1000.0f; },
      [](auto* f) { f->sampling.presence_penalty = -2.0f; },
      [](auto* f) { f->sampling.frequency_penalty = 2.0f; },
      [](auto* f) {
        f->sampling.logit_bias = {{0, -100.0f}, {99, 100.0f}};
      },
      [](auto* f) { f->sampling.n = 1; },
      [](auto* f) { f->sampling.n = 128; },
      [](auto* f) {
        f->sampling.min_tokens = 4;
        f->sampling.max_tokens = 4;
      },
      [](auto* f) { f->sampling.max_reasoning_tokens = 0; },
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
        f->chat = {{"system", "s"}, {"user", ""}, {"assistant", "a"}, {"tool", "t"}, {"ipython", "i"}};
      },
      [](auto* f) { f->request_id = std::string(128, 'r'); },
  };
  for (size_t i = 0; i < cases.size(); ++i) EXPECT_TRUE(Check(cases[i]).ok()) << i << ": " << Check(cases[i]);
}

TEST(CheckSizes, RefusesWhatNeedNotBeCopied) {
  const auto check = [](const std::function<void(RequestSizes*)>& change) {
    RequestSizes sizes;
    change(&sizes);
    return CheckSizes(sizes, Model());
  };
  const auto bad = [&](const std::function<void(RequestSizes*)>& change,
                       const std::vector<std::string>& parts) {
    ExpectError(check(change), absl::StatusCode::kInvalidArgument, parts);
  };
  bad([](auto* s) { s->request_id_bytes = 129; }, {"request_id", "129", "128"});
  bad([](auto* s) { s->stop_strings = 17; }, {"sampling.stop", "17", "16"});
  bad([](auto* s) { s->stop_token_ids = 257; }, {"sampling.stop_token_ids", "257", "256"});
  bad([](auto* s) { s->logit_bias = 1025; }, {"sampling.logit_bias", "1025", "1024"});
  bad([](auto* s) { s->tools = 1025; }, {"chat.tools", "1025", "1024"});
  bad([](auto* s) { s->tool_calls = 16385; }, {"tool_calls", "16385", "16384"});
  const auto prompt = [](PromptKind kind, size_t bytes, size_t tokens, size_t messages) {
    return [=](RequestSizes* s) {
      s->prompt = kind;
      s->prompt_bytes = bytes;
      s->prompt_tokens = tokens;
      s->messages = messages;
    };
  };
  bad(prompt(PromptKind::kText, 257, 0, 0), {"257 bytes", "context of 64"});
  bad(prompt(PromptKind::kTokens, 0, 65, 0), {"65 tokens", "context of 64"});
  bad(prompt(PromptKind::kChat, 1025, 0, 1), {"1025 bytes", "context of 64"});
  bad(prompt(PromptKind::kChat, 0, 0, 257), {"257 messages", "context of 64"});
  for (const auto& fits : {prompt(PromptKind::kText, 256, 0, 0), prompt(PromptKind::kTokens, 0, 64, 0),
                           prompt(PromptKind::kChat, 1024, 0, 256)}) {
    EXPECT_TRUE(check(fits).ok()) << check(fits);
  }
  EXPECT_TRUE(check([](auto* s) {
                s->request_id_bytes = 128;
                s->stop_strings = 16;
                s->stop_token_ids = 256;
                s->logit_bias = 1024;
                s->tools = 1024;
                s->tool_calls = 16384;
              }).ok());
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
  ExpectError(Check([](RequestFields* f) { f->sampling.max_reasoning_tokens = 5; }, model),
              absl::StatusCode::kFailedPrecondition, {"sampling.max_reasoning_tokens", "has no tokenizer"});
  EXPECT_TRUE(Check([](RequestFields*) {}, model).ok());
}

TEST(ResolveSampling, FillsInDefaults) {
  ModelLimits model = Model();
  model.defaults.temperature = 0.6f;
  model.defaults.top_p = 0.95f;
  model.defaults.min_p = 0.05f;
  model.defaults.repetition_penalty = 1.1f;
  const auto resolved = ResolveSampling(Tokens({1}), 10, model, 1000, 42);
  ASSERT_TRUE(resolved.ok());
  EXPECT_FLOAT_EQ(resolved->temperature, 0.6f);
  EXPECT_FLOAT_EQ(resolved->top_p, 0.95f);
  EXPECT_EQ(resolved->top_k, 0);
  EXPECT_FLOAT_EQ(resolved->min_p, 0.05f);
  EXPECT_FLOAT_EQ(resolved->repetition_penalty, 1.1f);
  EXPECT_EQ(resolved->presence_penalty, 0);
  EXPECT_EQ(resolved->frequency_penalty, 0);
  EXPECT_EQ(resolved->n, 1);
  EXPECT_EQ(resolved->min_tokens, 0);
  EXPECT_FALSE(resolved->max_reasoning_tokens);
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
  fields.sampling.min_p = 0.2f;
  fields.sampling.repetition_penalty = 1.5f;
  fields.sampling.presence_penalty = -1;
  fields.sampling.frequency_penalty = 2;
  fields.sampling.logit_bias = {{3, -100.0f}};
  fields.sampling.n = 3;
  fields.sampling.min_tokens = 7;
  fields.sampling.max_reasoning_tokens = 0;
  fields.sampling.seed = 0;
  fields.sampling.max_tokens = 54;
  fields.sampling.stop_token_ids = {9, 3, 9};
  fields.logprobs = 0;
  auto resolved = ResolveSampling(fields, 10, Model(), 20, 42);
  ASSERT_TRUE(resolved.ok());
  EXPECT_EQ(resolved->temperature, 0);
  EXPECT_EQ(resolved->top_k, 5);
  EXPECT_EQ(resolved->min_p, 0.2f);
  EXPECT_EQ(resolved->repetition_penalty, 1.5f);
  EXPECT_EQ(resolved->presence_penalty, -1);
  EXPECT_EQ(resolved->frequency_penalty, 2);
  EXPECT_EQ(resolved->logit_bias, fields.sampling.logit_bias);
  EXPECT_EQ(resolved->n, 3);
  EXPECT_EQ(resolved->min_tokens, 7);
  EXPECT_EQ(resolved->max_reasoning_tokens, 0);
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
  fields.sampling.max_tokens.reset();
  fields.sampling.min_tokens = 30;
  EXPECT_EQ(ResolveSampling(fields, 10, Model(), 20, 42)->max_tokens, 30);  // more than the cap
  fields.sampling.min_tokens = 54;
  EXPECT_TRUE(resolve(10).ok());
  ExpectError(resolve(11), absl::StatusCode::kInvalidArgument, {"sampling.min_tokens", "54", "room for 53"});
}

TEST(InFlightLimit, RefusesBeyondTheLimit) {
  InFlightLimit limit(2);
  EXPECT_TRUE(limit.Enter().ok());
  EXPECT_TRUE(limit.Enter().ok());
  ExpectError(limit.Enter(), absl::StatusCode::kResourceExhausted, {"2 requests"});
  EXPECT_EQ(limit.count(), 2);
  limit.Leave();
  EXPECT_FALSE(limit.Enter(2).ok());
  EXPECT_EQ(limit.count(), 1);
  EXPECT_TRUE(limit.Enter().ok());
  limit.Leave(2);
  EXPECT_TRUE(limit.Enter(2).ok());
}

}  // namespace
}  // namespace phalanx::coordinator

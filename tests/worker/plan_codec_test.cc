#include "worker/plan_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

StepPlan OverTheWire(const StepPlan& plan) {
  internal::v1::StepPlan message, parsed;
  ToProto(plan, &message);
  EXPECT_TRUE(parsed.ParseFromString(message.SerializeAsString()));
  return FromProto(parsed);
}

TEST(PlanCodec, ExtremeValuesSurvive) {
  StepPlan plan;
  plan.step = std::numeric_limits<uint64_t>::max();
  plan.released = {0, std::numeric_limits<uint32_t>::max()};
  plan.blocks = {{7, 0, {0, std::numeric_limits<int32_t>::max()}},
                 {8, std::numeric_limits<uint32_t>::max(), {}}};
  plan.rows = {{7,
                std::numeric_limits<int32_t>::max(),
                {-1, -128, std::numeric_limits<int32_t>::min(), 0, 5},
                {0, 4},
                3},
               {8, 0, {}, {}, 0}};
  plan.checksum = 0xfedcba9876543210u;
  EXPECT_EQ(OverTheWire(plan), plan);
  EXPECT_EQ(OverTheWire(StepPlan()), StepPlan());
}

TEST(PlanCodec, RandomPlansSurvive) {
  std::mt19937 random(17);
  const auto below = [&random](int n) { return static_cast<int32_t>(random() % n); };
  for (int round = 0; round < 200; ++round) {
    StepPlan plan;
    plan.step = random();
    plan.checksum = uint64_t{random()} << 32 | random();
    for (int i = below(4); i > 0; --i) plan.released.push_back(random());
    for (int i = below(4); i > 0; --i) {
      PlanBlocks blocks{static_cast<uint32_t>(random()), static_cast<uint32_t>(below(100)), {}};
      for (int j = below(9); j > 0; --j) blocks.blocks.push_back(below(100000));
      plan.blocks.push_back(blocks);
    }
    for (int i = below(5); i > 0; --i) {
      PlanRow row;
      row.sequence = random();
      row.first_position = below(1 << 20);
      row.rope_mode = below(2);
      for (int j = below(40); j > 0; --j) row.tokens.push_back(below(200000) - 1000);
      for (int j = below(4); j > 0; --j) row.logit_offsets.push_back(below(40));
      plan.rows.push_back(row);
    }
    ASSERT_EQ(OverTheWire(plan), plan) << "round " << round;
  }
}

TEST(PlanCodec, TargetIsOverwritten) {
  internal::v1::StepPlan message;
  message.set_step(3);
  message.add_released(9);
  message.add_rows()->add_tokens(1);
  ToProto(StepPlan(), &message);
  EXPECT_EQ(FromProto(message), StepPlan());
}

TEST(PlanCodec, SequenceOutput) {
  SequenceOutput output;
  output.source = 5;
  output.request = 11;
  output.attempt = 2;
  output.offset = 40;
  output.tokens = {3, 4};
  output.logprobs = {{3, -0.5f, {{3, -0.5f}, {9, -1.5f}}}, {4, -2.0f, {}}};
  output.prompt_first_position = 1;
  output.prompt_logprobs = {{8, -0.25f, {{1, -0.125f}}}};
  output.finish = Finish::kStop;
  output.stop_id = 0;
  internal::v1::SequenceOutput message;
  message.add_token_ids(99);
  ToProto(output, &message);
  EXPECT_EQ(message.request(), 11u);
  EXPECT_EQ(message.attempt(), 2u);
  EXPECT_EQ(message.offset(), 40);
  EXPECT_THAT(message.token_ids(), ElementsAre(3, 4));
  ASSERT_EQ(message.logprobs_size(), 2);
  EXPECT_EQ(message.logprobs(0).token().id(), 3);
  EXPECT_EQ(message.logprobs(0).token().logprob(), -0.5f);
  ASSERT_EQ(message.logprobs(0).top_size(), 2);
  EXPECT_EQ(message.logprobs(0).top(1).id(), 9);
  EXPECT_EQ(message.logprobs(0).top(1).logprob(), -1.5f);
  EXPECT_EQ(message.logprobs(1).top_size(), 0);
  EXPECT_EQ(message.prompt_first_position(), 1);
  ASSERT_EQ(message.prompt_logprobs_size(), 1);
  EXPECT_EQ(message.prompt_logprobs(0).token().id(), 8);
  EXPECT_EQ(message.finish(), v1::FINISH_REASON_STOP);
  EXPECT_TRUE(message.has_stop_token_id());  // id 0 is not absence
  EXPECT_EQ(message.stop_token_id(), 0);

  ToProto(SequenceOutput(), &message);
  EXPECT_FALSE(message.has_stop_token_id());
  EXPECT_EQ(message.finish(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(message.token_ids_size(), 0);
  EXPECT_EQ(message.error_code(), 0);
  output.finish = Finish::kLength;
  ToProto(output, &message);
  EXPECT_EQ(message.finish(), v1::FINISH_REASON_LENGTH);
  SequenceOutput failed;
  failed.error = absl::InternalError("NaN");
  ToProto(failed, &message);
  EXPECT_EQ(message.error_code(), static_cast<int>(absl::StatusCode::kInternal));
  EXPECT_EQ(message.error_detail(), "NaN");
}

internal::v1::Submit ValidSubmit() {
  internal::v1::Submit submit;
  submit.set_request(1);
  submit.set_attempt(3);
  for (int id : {5, 6, 7}) submit.add_prompt_ids(id);
  submit.add_generated_ids(8);
  submit.set_temperature(0.75f);
  submit.set_top_k(40);
  submit.set_top_p(0.9f);
  submit.set_seed(1ull << 63);
  submit.set_choice(2);
  submit.set_max_tokens(16);
  submit.add_stop_token_ids(2);
  submit.set_logprobs(-1);
  submit.set_prompt_logprobs(20);
  submit.set_rope_mode(1);
  submit.set_min_p(0.25f);
  submit.set_repetition_penalty(1.5f);
  submit.set_presence_penalty(-2);
  submit.set_frequency_penalty(2);
  for (const auto& [id, value] : {std::pair{3, -100.0f}, std::pair{9, 0.5f}}) {
    internal::v1::LogitBias* bias = submit.add_logit_bias();
    bias->set_id(id);
    bias->set_bias(value);
  }
  submit.set_min_tokens(4);
  submit.mutable_thinking()->set_max_tokens(50);
  submit.mutable_thinking()->set_opened("think");
  for (const char* family : {"think", "thought"}) {
    internal::v1::MarkIds* close = submit.mutable_thinking()->add_close();
    close->set_family(family);
    for (int id : {20, 21}) close->add_ids(id);
  }
  return submit;
}

TEST(PlanCodec, Submit) {
  const absl::StatusOr<SequenceRequest> request = FromProto(ValidSubmit(), 77);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->source, 77u);
  EXPECT_EQ(request->request, 1u);
  EXPECT_EQ(request->attempt, 3u);
  EXPECT_THAT(request->prompt, ElementsAre(5, 6, 7));
  EXPECT_THAT(request->generated, ElementsAre(8));
  EXPECT_EQ(request->sampling.temperature, 0.75f);
  EXPECT_EQ(request->sampling.top_k, 40);
  EXPECT_EQ(request->sampling.top_p, 0.9f);
  EXPECT_EQ(request->sampling.seed, 1ull << 63);
  EXPECT_EQ(request->sampling.choice, 2u);
  EXPECT_EQ(request->max_tokens, 16);
  EXPECT_THAT(request->stop_ids, ElementsAre(2));
  EXPECT_EQ(request->logprobs, -1);
  EXPECT_EQ(request->prompt_logprobs, 20);
  EXPECT_EQ(request->rope_mode, 1u);
  EXPECT_EQ(request->sampling.min_p, 0.25f);
  EXPECT_EQ(request->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request->sampling.presence_penalty, -2);
  EXPECT_EQ(request->sampling.frequency_penalty, 2);
  ASSERT_NE(request->sampling.bias, nullptr);
  ASSERT_EQ(request->sampling.bias->size(), 2u);
  EXPECT_EQ(request->sampling.bias->at(0).id, 3);
  EXPECT_EQ(request->sampling.bias->at(0).bias, -100);
  EXPECT_EQ(request->sampling.bias->at(1).id, 9);
  EXPECT_EQ(request->sampling.bias->at(1).bias, 0.5f);
  EXPECT_EQ(request->min_tokens, 4);
  ASSERT_TRUE(request->thinking.has_value());
  EXPECT_EQ(request->thinking->max_tokens, 50);
  EXPECT_EQ(request->thinking->opened, "think");
  ASSERT_EQ(request->thinking->close.size(), 2u);
  EXPECT_EQ(request->thinking->close[1].family, "thought");
  EXPECT_THAT(request->thinking->close[1].ids, ElementsAre(20, 21));
}

TEST(PlanCodec, WhatASubmitLeavesOutIsNone) {
  internal::v1::Submit submit = ValidSubmit();
  submit.clear_min_p();
  submit.clear_logit_bias();
  submit.clear_min_tokens();
  submit.clear_thinking();
  const absl::StatusOr<SequenceRequest> request = FromProto(submit, 77);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.min_p, 0);
  EXPECT_EQ(request->sampling.bias, nullptr);
  EXPECT_EQ(request->min_tokens, 0);
  EXPECT_FALSE(request->thinking.has_value());
}

TEST(PlanCodec, SubmitErrorsNameTheField) {
  const auto error = [](auto change) {
    internal::v1::Submit submit = ValidSubmit();
    change(&submit);
    const absl::Status status = FromProto(submit, 1).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(error([](auto* s) { s->set_temperature(-1); }), HasSubstr("temperature is -1"));
  EXPECT_THAT(error([](auto* s) { s->set_temperature(std::numeric_limits<float>::quiet_NaN()); }),
              HasSubstr("temperature"));
  EXPECT_THAT(error([](auto* s) { s->set_temperature(std::numeric_limits<float>::infinity()); }),
              HasSubstr("temperature"));
  EXPECT_THAT(error([](auto* s) { s->set_top_p(0); }), HasSubstr("top_p is 0"));
  EXPECT_THAT(error([](auto* s) { s->set_top_p(1.5f); }), HasSubstr("top_p is 1.5"));
  EXPECT_THAT(error([](auto* s) { s->set_top_k(-3); }), HasSubstr("top_k is -3"));
  EXPECT_THAT(error([](auto* s) { s->set_logprobs(21); }), HasSubstr("logprobs is 21"));
  EXPECT_THAT(error([](auto* s) { s->set_prompt_logprobs(-2); }), HasSubstr("prompt_logprobs is -2"));
  EXPECT_THAT(error([](auto* s) { s->clear_repetition_penalty(); }), HasSubstr("repetition_penalty is 0"));
}

}  // namespace
}  // namespace phalanx

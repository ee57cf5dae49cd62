// Calls with several choices, reasoning, and all fields of sampling, answered by a scripted worker.
#include "tests/coordinator/server_fixture.h"

namespace phalanx::coordinator {
namespace {

using internal::v1::Submit;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

FakeWorker::Options Answers(FakeLeader::OnSubmit on_submit) {
  FakeWorker::Options options;
  options.on_submit = std::move(on_submit);
  return options;
}
void Accept(FakeLeader* leader, const Submit& submit) {
  leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
}
v1::GenerateRequest WithChoices(v1::GenerateRequest request, int n) {
  request.mutable_sampling()->set_n(n);
  return request;
}

TEST_F(ServerTest, EachChoiceIsARequestOfItsOwn) {
  StartReady(Answers([](FakeLeader* leader, const Submit& submit) {
    Accept(leader, submit);
    if (submit.choice() == 0) return;  // ends last
    leader->SayAll(submit, Bytes(std::string(submit.choice(), 'a')));
    if (submit.choice() == 2) leader->SayAll(leader->submits().at(0), {'z', kEnd});
  }));
  v1::GenerateRequest request = WithChoices(Tokens({1, 2}), 3);
  request.mutable_sampling()->set_seed(9);
  request.set_prompt_logprobs(0);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.started().resume().sampling().n(), 3);
  ASSERT_THAT(answer.choices, SizeIs(3));
  EXPECT_EQ(answer.choices.at(0).text, "z");
  EXPECT_EQ(answer.choices.at(1).text, "a");
  EXPECT_EQ(answer.choices.at(2).text, "aa");
  EXPECT_EQ(answer.choices.at(0).finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.choices.at(2).finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.choices.at(0).finished.usage().completion_tokens(), 2);
  EXPECT_EQ(answer.choices.at(1).finished.usage().completion_tokens(), 1);
  EXPECT_EQ(answer.finished().index(), 0u);
  int started = 0;
  for (const v1::GenerateResponse& response : answer.responses) started += response.has_started();
  EXPECT_EQ(started, 1);
  const std::vector<Submit> submits = workers_[0]->leader()->submits();
  ASSERT_THAT(submits, SizeIs(3));
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(submits[i].choice(), i);
    EXPECT_EQ(submits[i].seed(), 9u);
    EXPECT_THAT(submits[i].prompt_ids(), ElementsAre(1, 2));
    EXPECT_EQ(submits[i].prompt_logprobs(), i == 0 ? 0 : -1);
  }
  EXPECT_NE(submits[0].request(), submits[1].request());
  EXPECT_THAT(workers_[0]->leader()->aborted(), SizeIs(0));
}

TEST_F(ServerTest, ARefusedChoiceEndsTheCallAndTheOthers) {
  StartReady(Answers([](FakeLeader* leader, const Submit& submit) {
    if (submit.choice() < 2) return Accept(leader, submit);
    leader->Answer(submit, internal::v1::SUBMIT_STATE_REJECTED, grpc::RESOURCE_EXHAUSTED,
                   "the queue is full");
  }));
  const Answer answer = Generate(WithChoices(Tokens({1}), 3));
  EXPECT_EQ(answer.status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("the queue is full"));
  EXPECT_FALSE(answer.retry_after.empty());
  EXPECT_TRUE(Eventually([&] { return workers_[0]->leader()->aborted().size() == 2; }));
}

TEST_F(ServerTest, CancellingAbortsEveryChoiceThatRuns) {
  StartReady(Answers([](FakeLeader* leader, const Submit& submit) {
    Accept(leader, submit);
    if (submit.choice() == 1) leader->SayAll(submit, {kEnd});  // is over
  }));
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, WithChoices(Tokens({1}), 4));
  v1::GenerateResponse response;
  while (!response.has_finished()) ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(server_->coordinator().in_flight().count(), 4);
  context.TryCancel();
  EXPECT_EQ(Collect(&context, reader.get()).status.error_code(), grpc::CANCELLED);
  const auto leader = workers_[0]->leader();
  // Those that were not submitted yet never will be.
  EXPECT_TRUE(Eventually([&] { return leader->aborted().size() == 3; }));
  EXPECT_TRUE(Eventually([&] { return server_->coordinator().in_flight().count() == 0; }));
}

TEST_F(ServerTest, LossOfTheGroupEndsACallOnce) {
  StartReady(Answers(Accept));
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, WithChoices(Tokens({1}), 3));
  ASSERT_TRUE(Eventually([&] { return workers_[0]->leader()->submits().size() == 3; }));
  workers_.clear();
  EXPECT_EQ(Collect(&context, reader.get()).status.error_code(), grpc::UNAVAILABLE);
}

TEST_F(ServerTest, ChoicesCountAsRequestsInFlight) {
  Config config;
  config.max_in_flight = 4;
  StartReady({}, config);
  EXPECT_TRUE(Generate(WithChoices(Tokens({1}), 4)).status.ok());
  ASSERT_TRUE(Eventually([&] { return server_->coordinator().in_flight().count() == 0; }));
  const Answer never = Generate(WithChoices(Tokens({1}), 5));
  EXPECT_EQ(never.status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(never.status.error_message(),
            "sampling.n is 5; this coordinator takes 4 choices at once (--max-in-flight)");
  EXPECT_TRUE(never.retry_after.empty());
  ASSERT_TRUE(Eventually([&] { return server_->coordinator().in_flight().count() == 0; }));
  EXPECT_TRUE(Generate(Tokens({1})).status.ok());
}

TEST_F(ServerTest, PassesEveryFieldOfSamplingOn) {
  StartReady();
  v1::GenerateRequest request = Tokens({1, 2, 3});
  v1::SamplingParams* s = request.mutable_sampling();
  s->set_min_p(0.25f);
  s->set_repetition_penalty(1.5f);
  s->set_presence_penalty(0.5f);
  s->set_frequency_penalty(-0.5f);
  (*s->mutable_logit_bias())[200] = -100;
  (*s->mutable_logit_bias())[7] = 5;
  s->set_min_tokens(2);
  s->set_max_tokens(3);
  s->set_max_reasoning_tokens(50);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const v1::SamplingParams& effective = answer.started().resume().sampling();
  EXPECT_EQ(effective.min_p(), 0.25f);
  EXPECT_EQ(effective.repetition_penalty(), 1.5f);
  EXPECT_EQ(effective.presence_penalty(), 0.5f);
  EXPECT_EQ(effective.frequency_penalty(), -0.5f);
  EXPECT_EQ(effective.logit_bias().at(7), 5);
  EXPECT_EQ(effective.min_tokens(), 2);
  EXPECT_TRUE(effective.has_n());
  EXPECT_EQ(effective.max_reasoning_tokens(), 50);
  const Submit submit = workers_[0]->leader()->submits().at(0);
  EXPECT_EQ(submit.min_p(), 0.25f);
  EXPECT_EQ(submit.repetition_penalty(), 1.5f);
  EXPECT_EQ(submit.presence_penalty(), 0.5f);
  EXPECT_EQ(submit.frequency_penalty(), -0.5f);
  ASSERT_EQ(submit.logit_bias_size(), 2);
  EXPECT_EQ(submit.logit_bias(0).id(), 7);
  EXPECT_EQ(submit.logit_bias(1).id(), 200);
  EXPECT_EQ(submit.logit_bias(1).bias(), -100);
  EXPECT_EQ(submit.min_tokens(), 2);
  EXPECT_EQ(submit.thinking().max_tokens(), 50);
  EXPECT_EQ(submit.thinking().opened(), "");
  ASSERT_EQ(submit.thinking().close_size(), 2);
  EXPECT_EQ(submit.thinking().close(0).family(), "think");
  EXPECT_THAT(submit.thinking().close(0).ids(), ElementsAre(kThinkEnd));
  EXPECT_EQ(submit.thinking().close(1).family(), "thought");
  EXPECT_GT(submit.thinking().close(1).ids_size(), 1);
  s->clear_max_reasoning_tokens();
  ASSERT_TRUE(Generate(request).status.ok());
  EXPECT_FALSE(workers_[0]->leader()->submits().at(1).has_thinking());
}

TEST_F(ServerTest, SplitsTheReasoningOfAChat) {
  StartReady(Answers([](FakeLeader* leader, const Submit& submit) {
    Accept(leader, submit);
    leader->SayAll(submit, {kThink, kHello, kThinkEnd, 'o', 'k', kEnd});
  }));
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi <think>");
  Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.reasoning, "hello");
  EXPECT_EQ(answer.text, "ok");
  EXPECT_EQ(answer.finished().usage().reasoning_tokens(), 1);
  request.set_split_reasoning(false);
  answer = Generate(request);
  EXPECT_EQ(answer.reasoning, "");
  EXPECT_EQ(answer.text, "hellook");  // control tokens are no text
  EXPECT_EQ(answer.finished().usage().reasoning_tokens(), 0);
}

TEST_F(ServerTest, KnowsWhetherThePromptLeftAReasoningOpen) {
  StartReady(Answers([](FakeLeader* leader, const Submit& submit) {
    Accept(leader, submit);
    leader->SayAll(submit, {'r', kThinkEnd, 'a'});
  }));
  const auto expect = [this](v1::GenerateRequest request, bool open) {
    request.set_split_reasoning(true);
    request.mutable_sampling()->set_max_reasoning_tokens(7);
    const Answer answer = Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.reasoning, open ? "r" : "");
    EXPECT_EQ(answer.text, open ? "a" : "ra");
    EXPECT_EQ(workers_[0]->leader()->submits().back().thinking().opened(), open ? "think" : "");
  };
  v1::GenerateRequest request;
  request.set_text("Q <think> well");
  expect(request, true);
  request.set_text("Q <think> well </think> so");
  expect(request, false);
  std::vector<int32_t> ids = {kThink};
  ids.insert(ids.end(), 200, 'x');
  expect(Tokens(ids), true);
  ids.push_back(kThinkEnd);
  expect(Tokens(ids), false);
}

TEST_F(ServerTest, ATemplateMayOpenTheReasoning) {
  ASSERT_NO_FATAL_FAILURE(StartServer());
  TestModel model;
  model.template_text = "{% for m in messages %}{{ m.content }}{% endfor %}<|start|>assistant\n<think>\n";
  ASSERT_TRUE(Load(model).ok());
  AddWorker(Answers([](FakeLeader* leader, const Submit& submit) {
    Accept(leader, submit);
    leader->SayAll(submit, {'r', kThinkEnd, 'a'});
  }));
  ASSERT_TRUE(WaitReady("tiny/0"));
  v1::GenerateRequest request;
  request.mutable_chat()->add_messages()->set_role("user");
  request.mutable_chat()->mutable_messages(0)->set_content(std::string(300, 'x'));
  request.mutable_sampling()->set_max_reasoning_tokens(0);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.reasoning, "r");
  EXPECT_EQ(answer.text, "a");
  EXPECT_EQ(workers_[0]->leader()->submits().at(0).thinking().opened(), "think");
  EXPECT_EQ(workers_[0]->leader()->submits().at(0).thinking().max_tokens(), 0);
}

}  // namespace
}  // namespace phalanx::coordinator

// Requests through a coordinator in this process, answered by a scripted worker.
#include <thread>

#include "tests/coordinator/server_fixture.h"

namespace phalanx::coordinator {
namespace {

using internal::v1::Submit;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// A worker that accepts requests and leaves the rest to the test.
FakeWorker::Options Silent() {
  FakeWorker::Options options;
  options.on_submit = [](FakeLeader* leader, const Submit& submit) {
    leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
  };
  return options;
}
// A worker that says `ids` whatever it is asked.
FakeWorker::Options Says(std::vector<int32_t> ids) {
  FakeWorker::Options options;
  options.on_submit = [ids](FakeLeader* leader, const Submit& submit) {
    leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
    leader->SayAll(submit, ids);
  };
  return options;
}

TEST_F(ServerTest, StreamsTokens) {
  StartReady();
  v1::GenerateRequest request = Tokens(Bytes("abc"));
  request.set_request_id("r1");
  request.mutable_sampling()->set_seed(7);
  request.mutable_sampling()->set_temperature(0.5f);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.started().request_id(), "r1");
  EXPECT_EQ(answer.started().model(), "tiny");
  EXPECT_EQ(answer.started().prompt_tokens(), 3);
  EXPECT_EQ(answer.started().resume().seed(), 7u);
  EXPECT_EQ(answer.started().resume().fingerprint(), "fake");
  EXPECT_EQ(answer.started().resume().sampling().temperature(), 0.5f);
  EXPECT_EQ(answer.started().resume().sampling().max_tokens(), kContext - 3);
  EXPECT_TRUE(answer.started().resume().sampling().has_top_p());
  EXPECT_EQ(answer.ids, Bytes("abc"));
  EXPECT_EQ(answer.text, "abc");
  EXPECT_EQ(answer.finished().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.finished().usage().prompt_tokens(), 3);
  EXPECT_EQ(answer.finished().usage().completion_tokens(), 3);
  EXPECT_GT(answer.finished().usage().total_seconds(), 0);
  const Submit submit = workers_[0]->leader()->submits().at(0);
  EXPECT_EQ(submit.attempt(), 1u);
  EXPECT_EQ(submit.seed(), 7u);
  EXPECT_EQ(submit.logprobs(), -1);
  EXPECT_THAT(submit.stop_token_ids(), ElementsAre(kEnd));
}

TEST_F(ServerTest, DrawsASeedAndAnIdWhereNoneIsGiven) {
  StartReady();
  const Answer one = Generate(Tokens({1}));
  const Answer two = Generate(Tokens({1}));
  ASSERT_TRUE(one.status.ok() && two.status.ok());
  EXPECT_NE(one.started().resume().seed(), two.started().resume().seed());
  EXPECT_NE(one.started().request_id(), two.started().request_id());
  EXPECT_FALSE(one.started().request_id().empty());
}

TEST_F(ServerTest, TokenisesText) {
  StartReady();
  v1::GenerateRequest request;
  request.set_text("a<|start|>b");
  ASSERT_TRUE(Generate(request).status.ok());
  EXPECT_THAT(workers_[0]->leader()->submits().at(0).prompt_ids(), ElementsAre('a', kStart, 'b'));
  // Long enough to go over the pool.
  request.set_text(std::string(4090, 'x') + "<|start|>" + "yz");
  ASSERT_TRUE(Generate(request).status.ok());
  EXPECT_EQ(workers_[0]->leader()->submits().at(1).prompt_ids_size(), 4093);
}

TEST_F(ServerTest, RendersAChatAndKeepsUsersFromWritingControlTokens) {
  StartReady(Says({kHello, kEnd}));
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi<|end|>\x02!");
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "hello");
  EXPECT_EQ(answer.finished().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.finished().stop_token_id(), kEnd);
  EXPECT_THAT(answer.ids, ElementsAre(kHello, kEnd));
  std::vector<int32_t> expected = {kStart};
  const auto add = [&expected](const std::string& text) {
    for (const int32_t id : Bytes(text)) expected.push_back(id);
  };
  add("user\nhi<|end|>\x02!");
  expected.push_back(kEnd);
  expected.push_back(kStart);
  add("assistant\n");
  EXPECT_THAT(workers_[0]->leader()->submits().at(0).prompt_ids(), ElementsAreArray(expected));
}

TEST_F(ServerTest, HoldsBackPartsOfCharacters) {
  StartReady(
      Says(Bytes("a\xe2\x82\xac"
                 "b\xe2\x82")));
  const Answer answer = Generate(Tokens({1}));
  ASSERT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.text,
            "a\xe2\x82\xac"
            "b\xef\xbf\xbd");
  EXPECT_EQ(answer.ids.size(), 7u);
}

TEST_F(ServerTest, StopsAtAStringThatSpansTokens) {
  StartReady(Says(Bytes("one two three")));
  v1::GenerateRequest request = Tokens({1});
  request.mutable_sampling()->add_stop("zzz");
  request.mutable_sampling()->add_stop(" two");
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.text, "one");
  EXPECT_EQ(answer.ids, Bytes("one two"));  // up to the token that completed it
  EXPECT_EQ(answer.finished().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.finished().stop(), " two");
  EXPECT_EQ(answer.finished().usage().completion_tokens(), 7);
  EXPECT_TRUE(Eventually([&] { return workers_[0]->leader()->aborted().size() == 1; }));
}

TEST_F(ServerTest, PassesLogprobsOn) {
  StartReady();
  v1::GenerateRequest request = Tokens(Bytes("ab"));
  request.set_logprobs(0);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  for (const v1::GenerateResponse& response : answer.responses) {
    ASSERT_EQ(response.chunk().logprobs_size(), response.chunk().token_ids_size());
    for (int i = 0; i < response.chunk().logprobs_size(); ++i) {
      EXPECT_EQ(response.chunk().logprobs(i).token().id(), response.chunk().token_ids(i));
    }
  }
}

TEST_F(ServerTest, ACancelledCallAbortsItsRequest) {
  StartReady(Silent());
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, Tokens({1}));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(response.has_started());
  context.TryCancel();
  EXPECT_EQ(Collect(&context, reader.get()).status.error_code(), grpc::CANCELLED);
  const auto leader = workers_[0]->leader();
  EXPECT_TRUE(Eventually([&] { return leader->aborted().size() == 1; }));
  EXPECT_EQ(leader->aborted().at(0), leader->submits().at(0).request());
  EXPECT_TRUE(Eventually([&] { return server_->coordinator().in_flight().count() == 0; }));
}

TEST_F(ServerTest, ADeadlineAbortsItsRequest) {
  StartReady(Silent());
  grpc::ClientContext context;
  SetDeadline(&context, std::chrono::milliseconds(300));
  const auto reader = inference_->Generate(&context, Tokens({1}));
  EXPECT_EQ(Collect(&context, reader.get()).status.error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return workers_[0]->leader()->aborted().size() == 1; }));
}

TEST_F(ServerTest, NamesBadFields) {
  StartReady();
  const auto expect = [this](const v1::GenerateRequest& request, grpc::StatusCode code,
                             const std::string& part) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), code) << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), HasSubstr(part));
    EXPECT_TRUE(answer.responses.empty());
  };
  v1::GenerateRequest request = Tokens({1});
  request.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
  expect(request, grpc::INVALID_ARGUMENT, "sampling.temperature");
  expect(Tokens({kVocab}), grpc::INVALID_ARGUMENT, "tokens.ids[0]");
  expect(Tokens({}), grpc::INVALID_ARGUMENT, "tokens.ids");
  expect({}, grpc::INVALID_ARGUMENT, "no prompt");
  expect(Tokens(std::vector<int32_t>(kContext + 1, 1)), grpc::INVALID_ARGUMENT, "context of 4096");
  request = Tokens({1});
  request.mutable_sampling()->set_max_tokens(kContext);
  expect(request, grpc::INVALID_ARGUMENT, "sampling.max_tokens");
  request = Tokens({1});
  request.set_model("huge");
  expect(request, grpc::NOT_FOUND, "'huge'");
  request.Clear();
  request.set_text(std::string(1 << 20, ' '));
  expect(request, grpc::INVALID_ARGUMENT, "context of 4096");
  EXPECT_TRUE(workers_[0]->leader()->submits().empty());
}

TEST_F(ServerTest, SaysWhatAModelLacks) {
  StartServer();
  TestModel model;
  model.chat_template = false;
  ASSERT_TRUE(Load(model).ok());
  v1::GenerateRequest request;
  request.mutable_chat()->add_messages()->set_role("user");
  Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("chat template"));
  ASSERT_TRUE(Unload("tiny").ok());
  model.chat_template = true;
  model.template_text = "{% import 'x' as y %}";
  ASSERT_TRUE(Load(model).ok());
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("cannot be used"));
  ASSERT_TRUE(Unload("tiny").ok());
  model.tokenizer = false;
  ASSERT_TRUE(Load(model).ok());
  request.set_text("hi");
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("tokenizer"));
}

TEST_F(ServerTest, PassesOnARefusalOfTheGroup) {
  FakeWorker::Options options;
  options.on_submit = [](FakeLeader* leader, const Submit& submit) {
    leader->Answer(submit, internal::v1::SUBMIT_STATE_REJECTED, grpc::RESOURCE_EXHAUSTED,
                   "the queue is full");
  };
  StartReady(options);
  const Answer answer = Generate(Tokens({1}));
  EXPECT_EQ(answer.status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("the queue is full"));
  EXPECT_FALSE(answer.retry_after.empty());
  EXPECT_TRUE(answer.responses.empty());
}

TEST_F(ServerTest, EndsARequestWhoseOutputHasAGap) {
  FakeWorker::Options options;
  options.on_submit = [](FakeLeader* leader, const Submit& submit) {
    leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
    leader->Say(submit, 0, {1});
    leader->Say(submit, 2, {3});
  };
  StartReady(options);
  const Answer answer = Generate(Tokens({1}));
  EXPECT_EQ(answer.status.error_code(), grpc::DATA_LOSS);
  EXPECT_THAT(answer.ids, ElementsAre(1));
  EXPECT_TRUE(Eventually([&] { return workers_[0]->leader()->aborted().size() == 1; }));
}

TEST_F(ServerTest, BoundsTheRequestsInFlight) {
  Config config;
  config.max_in_flight = 2;
  StartReady(Silent(), config);
  grpc::ClientContext contexts[2];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (grpc::ClientContext& context : contexts) {
    SetDeadline(&context);
    readers.push_back(inference_->Generate(&context, Tokens({1})));
  }
  ASSERT_TRUE(Eventually([&] { return server_->coordinator().in_flight().count() == 2; }));
  const Answer answer = Generate(Tokens({1}));
  EXPECT_EQ(answer.status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_FALSE(answer.retry_after.empty());
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (const auto& reader : readers) reader->Finish().ok();
  ASSERT_TRUE(Eventually([&] { return server_->coordinator().in_flight().count() == 0; }));
}

TEST_F(ServerTest, CutsOffAClientThatDoesNotRead) {
  Config config;
  config.max_unsent = 16;
  FakeWorker::Options options;
  options.on_submit = [](FakeLeader* leader, const Submit& submit) {
    leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
    // Each message is larger than a stream's window.
    for (int32_t i = 0; i < 30; ++i) leader->Say(submit, i * 100, std::vector<int32_t>(100, kHello));
  };
  StartReady(options, config);
  v1::GenerateRequest request = Tokens({1});
  request.set_logprobs(0);
  grpc::ClientContext context;
  SetDeadline(&context);
  // Tiny windows: the transport takes little on behalf of the client.
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto slow = v1::Inference::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(server_->port()), grpc::InsecureChannelCredentials(), args));
  const auto reader = slow->Generate(&context, request);
  const auto leader = workers_[0]->leader();
  ASSERT_TRUE(Eventually([&] { return leader->aborted().size() == 1; }));
  const Answer answer = Collect(&context, reader.get());
  EXPECT_EQ(answer.status.error_code(), grpc::RESOURCE_EXHAUSTED) << answer.status.error_message();
  EXPECT_THAT(answer.status.error_message(), HasSubstr("reads too slowly"));
}

TEST_F(ServerTest, ManyStreamsAtOnce) {
  StartReady();
  constexpr int kThreads = 4;
  constexpr int kEach = 50;
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const std::string text = "stream " + std::to_string(t) + "/" + std::to_string(i);
        const Answer answer = Generate(Tokens(Bytes(text)));
        good += answer.status.ok() && answer.text == text;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, kThreads * kEach);
}

}  // namespace
}  // namespace phalanx::coordinator

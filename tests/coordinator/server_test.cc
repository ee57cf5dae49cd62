// The cluster around the requests: workers that come and go, models, health, the way down.
#include "coordinator/server.h"

#include <atomic>
#include <chrono>
#include <limits>
#include <thread>

#include "base/grpc_util.h"
#include "grpcpp/generic/generic_stub.h"
#include "tests/coordinator/server_fixture.h"

namespace phalanx::coordinator {
namespace {

using internal::v1::Submit;
using ::testing::HasSubstr;

FakeWorker::Options Named(const std::string& id, const std::string& host = "h0") {
  FakeWorker::Options options;
  options.id = id;
  options.host = host;
  return options;
}
FakeWorker::Options Silent(const std::string& id) {
  FakeWorker::Options options = Named(id);
  options.on_submit = [](FakeLeader* leader, const Submit& submit) {
    leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
    leader->Say(submit, 0, {'a'});
  };
  return options;
}

TEST_F(ServerTest, SaysWhatIsMissing) {
  StartServer();
  EXPECT_THAT(Generate(Tokens({1})).status.error_message(), HasSubstr("no model is loaded"));
  ASSERT_TRUE(Load(TestModel(), /*tensor_parallel=*/2).ok());
  AddWorker(Named("a"));
  ASSERT_TRUE(Eventually([&] { return Status().workers_size() == 1; }));
  const Answer answer = Generate(Tokens({1}));
  EXPECT_EQ(answer.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("group tiny/0 waits for 1 of 2 workers"));
  EXPECT_FALSE(answer.retry_after.empty());
}

TEST_F(ServerTest, WorkersBeginWhileTheModelIsOpenedAndClientsWait) {
  StartServer();
  Coordinator& coordinator = server_->coordinator();
  coordinator.BeginOpening();
  ModelSpec spec;
  spec.path = paths_.emplace_back(TestModel().Write());
  spec.name = "tiny";
  auto opening = ModelOpening::Begin(spec);
  ASSERT_TRUE(opening.ok()) << opening.status();
  coordinator.loop()->Post([&] { EXPECT_TRUE(coordinator.Announce(opening->spec()).ok()); });
  FakeWorker& worker = AddWorker(Named("a"));
  EXPECT_TRUE(Eventually([&] { return worker.assigns().size() == 1 && worker.leader() != nullptr; }));
  EXPECT_FALSE(coordinator.ready());
  Answer answer;
  std::atomic<bool> answered = false;
  std::thread client([&] {
    answer = Generate(Tokens({1}));
    answered = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(answered);
  const auto model = std::move(*opening).Finish();
  EXPECT_TRUE(model.ok()) << model.status();
  coordinator.loop()->Post([&] {
    EXPECT_TRUE(coordinator.Load(*model).ok());
    coordinator.EndOpening();
  });
  client.join();
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_TRUE(coordinator.ready());
  EXPECT_EQ(worker.assigns().size(), 1u);
}

TEST_F(ServerTest, FormsAGroupOfTwo) {
  StartServer();
  ASSERT_TRUE(Load(TestModel(), /*tensor_parallel=*/2).ok());
  FakeWorker& a = AddWorker(Named("a"));
  FakeWorker& b = AddWorker(Named("b"));
  ASSERT_TRUE(WaitReady("tiny/0"));
  ASSERT_EQ(a.assigns().size(), 1u);
  ASSERT_EQ(b.assigns().size(), 1u);
  const internal::v1::Assign assign = b.assigns()[0];
  EXPECT_EQ(assign.rank(), 1);
  EXPECT_EQ(assign.num_ranks(), 2);
  EXPECT_EQ(assign.workers_on_host(), 2);
  EXPECT_EQ(assign.collective(), "shm");
  EXPECT_EQ(assign.collective_id(), a.assigns()[0].collective_id());
  EXPECT_EQ(assign.epoch(), a.assigns()[0].epoch());
  EXPECT_EQ(assign.leader_address(), "127.0.0.1:1");
  EXPECT_EQ(assign.model().tensor_parallel(), 2);
  EXPECT_EQ(assign.model().shards(), 8);
  EXPECT_EQ(assign.model().context_length(), kContext);
  EXPECT_EQ(assign.model().path(), paths_[0]);
  EXPECT_TRUE(Generate(Tokens({1})).status.ok());
  const v1::GetStatusResponse status = Status();
  EXPECT_THAT(status.groups(0).workers(), ::testing::ElementsAre("a", "b"));
  EXPECT_EQ(status.groups(0).fingerprint(), "fake");
  EXPECT_EQ(status.groups(0).kv_blocks_total(), 100);
  EXPECT_EQ(status.models(0).architecture(), "llama");
  EXPECT_EQ(status.models(0).parameters(), 32 * kVocab);
  EXPECT_EQ(status.workers(0).state(), v1::WORKER_STATE_READY);
}

TEST_F(ServerTest, TheLossOfAWorkerEndsItsRequestsAndTheGroupFormsAgain) {
  StartServer();
  ASSERT_TRUE(Load(TestModel(), /*tensor_parallel=*/2).ok());
  AddWorker(Silent("a"));
  AddWorker(Named("b"));
  AddWorker(Named("c"));
  ASSERT_TRUE(WaitReady("tiny/0"));
  const uint64_t epoch = Status().groups(0).epoch();
  const auto leader = workers_[0]->leader();
  ASSERT_NE(leader, nullptr);
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, Tokens({1}));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const auto killed = std::chrono::steady_clock::now();
  workers_[1].reset();  // rank 1 dies
  const Answer answer = Collect(&context, reader.get());
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - killed;
  std::printf("loss of a rank told to the client after %.1f ms\n", took.count());
  EXPECT_EQ(answer.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("tiny/0"));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("worker b (rank 1) was lost"));
  EXPECT_FALSE(answer.retry_after.empty());
  EXPECT_TRUE(Eventually([&] { return workers_[0]->releases().size() == 1; }));
  ASSERT_TRUE(Eventually([&] {
    const v1::GetStatusResponse status = Status();
    return status.groups(0).state() == v1::GROUP_STATE_READY && status.groups(0).epoch() > epoch;
  }));
  EXPECT_TRUE(leader->ended());
  const v1::GetStatusResponse status = Status();
  ASSERT_EQ(status.workers_size(), 3);
  EXPECT_EQ(status.workers(1).id(), "b");
  EXPECT_EQ(status.workers(1).state(), v1::WORKER_STATE_LOST);
  EXPECT_THAT(status.workers(1).detail(), HasSubstr("stream ended"));
}

TEST_F(ServerTest, ASilentWorkerIsLost) {
  Config config;
  config.heartbeat_timeout_s = 1;
  StartServer(config);
  FakeWorker::Options options = Named("mute");
  options.beats = false;
  FakeWorker& worker = AddWorker(options);
  EXPECT_TRUE(Eventually([&] { return worker.ended(); }));
  EXPECT_THAT(worker.status().error_message(), HasSubstr("no heartbeat"));
  const v1::GetStatusResponse status = Status();
  ASSERT_EQ(status.workers_size(), 1);
  EXPECT_EQ(status.workers(0).state(), v1::WORKER_STATE_LOST);
}

TEST_F(ServerTest, AWorkerThatFailsToLoadIsNamed) {
  StartServer();
  ASSERT_TRUE(Load(TestModel()).ok());
  FakeWorker::Options options = Named("w");
  options.becomes_ready = false;
  FakeWorker& worker = AddWorker(options);
  ASSERT_TRUE(Eventually([&] { return worker.assigns().size() == 1; }));
  worker.Report(worker.assigns()[0], internal::v1::ASSIGNMENT_STATE_FAILED, "no memory for the weights");
  ASSERT_TRUE(Eventually([&] { return Status().groups(0).state() == v1::GROUP_STATE_FAILED; }));
  EXPECT_THAT(Generate(Tokens({1})).status.error_message(), HasSubstr("no memory for the weights"));
  EXPECT_TRUE(Eventually([&] { return worker.assigns().size() == 2; }));  // after the back-off
}

TEST_F(ServerTest, RefusesWorkersThatDoNotBelong) {
  StartServer();
  FakeWorker::Options options = Named("old");
  options.version = "0.0.1";
  FakeWorker& old = AddWorker(options);
  ASSERT_TRUE(Eventually([&] { return old.ended(); }));
  EXPECT_EQ(old.status().error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(old.status().error_message(), HasSubstr("0.0.1"));
  FakeWorker& nameless = AddWorker(Named(""));
  ASSERT_TRUE(Eventually([&] { return nameless.ended(); }));
  EXPECT_EQ(nameless.status().error_code(), grpc::INVALID_ARGUMENT);
  FakeWorker& first = AddWorker(Named("twin", "h0"));
  ASSERT_TRUE(Eventually([&] { return first.welcomed(); }));
  FakeWorker& second = AddWorker(Named("twin", "h1"));
  ASSERT_TRUE(Eventually([&] { return second.ended(); }));
  EXPECT_EQ(second.status().error_code(), grpc::ALREADY_EXISTS);
  EXPECT_FALSE(first.ended());
  // A leader of an epoch that is not.
  FakeLeader stranger(channel_, "tiny/0", 1, [](FakeLeader*, const Submit&) {});
  ASSERT_TRUE(Eventually([&] { return stranger.ended(); }));
  EXPECT_EQ(stranger.status().error_code(), grpc::NOT_FOUND);
}

TEST_F(ServerTest, ServesTwoModels) {
  StartServer();
  TestModel big;
  big.name = "big";
  ASSERT_TRUE(Load(TestModel()).ok());
  ASSERT_TRUE(Load(big).ok());
  EXPECT_EQ(Load(big).error_code(), grpc::ALREADY_EXISTS);
  AddWorker(Named("a"));
  AddWorker(Named("b"));
  ASSERT_TRUE(WaitReady("tiny/0"));
  ASSERT_TRUE(WaitReady("big/0"));
  v1::GenerateRequest request = Tokens({1});
  EXPECT_EQ(Generate(request).status.error_code(), grpc::INVALID_ARGUMENT);  // which one?
  for (const char* name : {"tiny", "big"}) {
    request.set_model(name);
    const Answer answer = Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.started().model(), name);
  }
}

TEST_F(ServerTest, UnloadingEndsRequestsAndFreesWorkers) {
  StartServer();
  ASSERT_TRUE(Load(TestModel()).ok());
  FakeWorker& worker = AddWorker(Silent("a"));
  ASSERT_TRUE(WaitReady("tiny/0"));
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, Tokens({1}));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  ASSERT_TRUE(Unload("tiny").ok());
  const Answer answer = Collect(&context, reader.get());
  EXPECT_EQ(answer.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("unloaded"));
  EXPECT_EQ(Unload("tiny").error_code(), grpc::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] {
    const v1::GetStatusResponse status = Status();
    return status.models_size() == 0 && status.groups_size() == 0 && status.workers_size() == 1 &&
           status.workers(0).state() == v1::WORKER_STATE_IDLE;
  }));
  ASSERT_TRUE(Load(TestModel()).ok());
  ASSERT_TRUE(WaitReady("tiny/0"));
  EXPECT_EQ(worker.assigns().size(), 2u);
  EXPECT_GT(worker.assigns()[1].epoch(), worker.assigns()[0].epoch());
}

TEST_F(ServerTest, RefusesModelsThatCannotBe) {
  StartServer();
  const auto load = [this](const std::string& path, int tensor_parallel, int context_length) {
    v1::LoadModelRequest request;
    request.mutable_spec()->set_path(path);
    request.mutable_spec()->set_tensor_parallel(tensor_parallel);
    request.mutable_spec()->set_context_length(context_length);
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::LoadModelResponse response;
    return cluster_->LoadModel(&context, request, &response);
  };
  paths_.push_back(TestModel().Write());
  EXPECT_EQ(load("", 1, 0).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(load("/no/such.gguf", 1, 0).error_code(), grpc::NOT_FOUND);
  EXPECT_EQ(load(PHALANX_SOURCE_DIR "/CMakeLists.txt", 1, 0).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(load(paths_[0], -1, 0).error_message(), HasSubstr("tensor_parallel"));
  EXPECT_EQ(load(paths_[0], 1000, 0).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(load(paths_[0], 1, kContext + 1).error_message(), HasSubstr("context_length"));
  EXPECT_EQ(Status().models_size(), 0);
}

TEST_F(ServerTest, AHostilePeerDoesNoHarm) {
  StartReady();
  // The first message is no hello.
  const auto group = internal::v1::GroupControl::NewStub(channel_);
  {
    grpc::ClientContext context;
    SetDeadline(&context);
    const auto stream = group->Serve(&context);
    internal::v1::ServeRequest message;
    message.mutable_load()->set_running(5);
    stream->Write(message);
    EXPECT_EQ(stream->Finish().error_code(), grpc::INVALID_ARGUMENT);
  }
  const auto control = internal::v1::WorkerControl::NewStub(channel_);
  {
    grpc::ClientContext context;
    SetDeadline(&context);
    const auto stream = control->Join(&context);
    stream->Write({});
    EXPECT_EQ(stream->Finish().error_code(), grpc::INVALID_ARGUMENT);
  }
  // A worker says hello twice: it is lost, its id is free again.
  {
    FakeWorker worker(server_->port(), Named("twice"));
    ASSERT_TRUE(Eventually([&] { return worker.welcomed(); }));
    internal::v1::JoinRequest message;
    message.mutable_hello()->set_worker_id("twice");
    worker.Send(message);
    ASSERT_TRUE(Eventually([&] { return worker.ended(); }));
    EXPECT_EQ(worker.status().error_code(), grpc::INVALID_ARGUMENT);
  }
  // Output for requests that are not, of attempts that were not.
  internal::v1::Submit unknown;
  unknown.set_request(12345);
  unknown.set_attempt(7);
  workers_[0]->leader()->Answer(unknown, internal::v1::SUBMIT_STATE_ACCEPTED);
  workers_[0]->leader()->Say(unknown, 0, {1});
  EXPECT_TRUE(Generate(Tokens({1})).status.ok());
}

bool Healthy(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  // The health protocol by hand: its messages are one string and one enum.
  grpc::ByteBuffer request;
  const std::string bytes =
      service.empty() ? "" : std::string("\x0a") + static_cast<char>(service.size()) + service;
  grpc::Slice slice(bytes);
  request = grpc::ByteBuffer(&slice, 1);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTestTimeout);
  grpc::CompletionQueue queue;
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> stub(channel);
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag;
  bool ok;
  EXPECT_TRUE(queue.Next(&tag, &ok));
  EXPECT_TRUE(status.ok()) << service << ": " << status.error_message();
  grpc::Slice out;
  EXPECT_TRUE(response.DumpToSingleSlice(&out).ok());
  return out.size() == 2 && out.begin()[1] == 1;  // SERVING
}

TEST_F(ServerTest, TellsItsHealth) {
  StartServer();
  for (const char* service : {"", "liveness", "readiness", "phalanx.v1.Inference", "phalanx.v1.Cluster"}) {
    EXPECT_TRUE(Healthy(channel_, service)) << service;
  }
  ASSERT_TRUE(Load(TestModel()).ok());  // no group is ready
  server_->UpdateHealth();
  EXPECT_TRUE(Healthy(channel_, ""));
  EXPECT_TRUE(Healthy(channel_, "liveness"));
  EXPECT_FALSE(Healthy(channel_, "readiness"));
  EXPECT_FALSE(Healthy(channel_, "phalanx.v1.Inference"));
  AddWorker();
  ASSERT_TRUE(WaitReady("tiny/0"));
  server_->UpdateHealth();
  EXPECT_TRUE(Healthy(channel_, "readiness"));
}

TEST_F(ServerTest, DrainsWhatRunsAndRefusesWhatComes) {
  StartReady(Silent("a"));
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, Tokens({1}));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const auto leader = workers_[0]->leader();
  std::thread drain([this] { EXPECT_EQ(server_->Drain(kTestTimeout), 0); });
  ASSERT_TRUE(Eventually([&] { return server_->coordinator().draining(); }));
  const Answer refused = Generate(Tokens({1}));
  EXPECT_EQ(refused.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("shutting down"));
  EXPECT_TRUE(Healthy(channel_, "liveness"));
  EXPECT_FALSE(Healthy(channel_, "readiness"));
  EXPECT_FALSE(Healthy(channel_, ""));
  leader->Say(leader->submits().at(0), 1, {'b'}, v1::FINISH_REASON_LENGTH);
  const Answer answer = Collect(&context, reader.get());
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  drain.join();
}

TEST_F(ServerTest, CutsOffWhatOutlivesTheGrace) {
  StartReady(Silent("a"));
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = inference_->Generate(&context, Tokens({1}));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(server_->Drain(std::chrono::milliseconds(50)), 1);
  const Answer answer = Collect(&context, reader.get());
  EXPECT_EQ(answer.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("shutting down"));
  EXPECT_TRUE(Eventually([&] { return workers_[0]->ended(); }));
}

TEST_F(ServerTest, FindsItsPortTaken) {
  StartServer();
  Config config;
  config.listen = "127.0.0.1:" + std::to_string(server_->port());
  const auto second = Server::Start(config);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(config.listen));
}

}  // namespace
}  // namespace phalanx::coordinator

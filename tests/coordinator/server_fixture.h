// A coordinator in this process, a client to it, and fake workers.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/logging.h"
#include "coordinator/server.h"
#include "phalanx/v1/cluster.grpc.pb.h"
#include "phalanx/v1/inference.grpc.pb.h"
#include "tests/coordinator/fake_worker.h"
#include "tests/coordinator/test_model.h"

namespace phalanx::coordinator {

// All that a Generate call gave.
struct Answer {
  grpc::Status status;
  std::vector<v1::GenerateResponse> responses;
  std::string text;  // of all choices
  std::string reasoning;
  std::vector<int32_t> ids;
  std::string retry_after;
  struct Choice {
    std::string text;
    std::vector<int32_t> ids;
    v1::Finished finished;
  };
  std::map<uint32_t, Choice> choices;

  const v1::Started& started() const { return responses.at(0).started(); }
  const v1::Finished& finished() const { return responses.at(responses.size() - 1).finished(); }
};

class ServerTest : public ::testing::Test {
 protected:
  void StartServer(Config config = {}) {
    spdlog::set_level(spdlog::level::err);
    config.listen = "127.0.0.1:0";
    config.heartbeat_interval_s = 0.2;
    if (config.heartbeat_timeout_s == Config().heartbeat_timeout_s) config.heartbeat_timeout_s = 20;
    auto server = Server::Start(config);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                         grpc::InsecureChannelCredentials(), args);
    inference_ = v1::Inference::NewStub(channel_);
    cluster_ = v1::Cluster::NewStub(channel_);
  }
  void TearDown() override {
    workers_.clear();
    if (server_ != nullptr) {
      EXPECT_TRUE(Eventually([this] { return server_->coordinator().in_flight().count() == 0; }));
    }
    for (const std::string& path : paths_) std::filesystem::remove(path);
  }

  grpc::Status Load(const TestModel& model, int tensor_parallel = 1, int groups = 1) {
    paths_.push_back(model.Write());
    v1::LoadModelRequest request;
    request.mutable_spec()->set_name(model.name);
    request.mutable_spec()->set_path(paths_.back());
    request.mutable_spec()->set_tensor_parallel(tensor_parallel);
    request.mutable_spec()->set_groups(groups);
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::LoadModelResponse response;
    return cluster_->LoadModel(&context, request, &response);
  }
  grpc::Status Unload(const std::string& name) {
    v1::UnloadModelRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::UnloadModelResponse response;
    return cluster_->UnloadModel(&context, request, &response);
  }
  v1::GetStatusResponse Status() {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::GetStatusResponse response;
    EXPECT_TRUE(cluster_->GetStatus(&context, {}, &response).ok());
    return response;
  }
  FakeWorker& AddWorker(FakeWorker::Options options = {}) {
    workers_.push_back(std::make_unique<FakeWorker>(server_->port(), std::move(options)));
    return *workers_.back();
  }
  bool WaitReady(const std::string& group) {
    return Eventually([&] {
      const v1::GetStatusResponse status = Status();
      for (const v1::GroupStatus& found : status.groups()) {
        if (found.id() == group) return found.state() == v1::GROUP_STATE_READY;
      }
      return false;
    });
  }
  // A server with one model and one worker that is ready.
  void StartReady(FakeWorker::Options options = {}, Config config = {}) {
    ASSERT_NO_FATAL_FAILURE(StartServer(config));
    const grpc::Status loaded = Load(TestModel());
    ASSERT_TRUE(loaded.ok()) << loaded.error_message();
    AddWorker(std::move(options));
    ASSERT_TRUE(WaitReady("tiny/0"));
    ASSERT_TRUE(Eventually([this] { return workers_[0]->leader() != nullptr; }));
  }

  static void SetDeadline(grpc::ClientContext* context, std::chrono::milliseconds timeout = kTestTimeout) {
    context->set_deadline(std::chrono::system_clock::now() + timeout);
  }
  static v1::GenerateRequest Tokens(const std::vector<int32_t>& ids) {
    v1::GenerateRequest request;
    request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
    return request;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    SetDeadline(&context);
    return Collect(&context, inference_->Generate(&context, request).get());
  }
  static Answer Collect(grpc::ClientContext* context, grpc::ClientReader<v1::GenerateResponse>* reader) {
    Answer answer;
    for (v1::GenerateResponse response; reader->Read(&response);) {
      answer.text += response.chunk().text();
      if (response.has_chunk()) {
        Answer::Choice& choice = answer.choices[response.chunk().index()];
        EXPECT_EQ(response.chunk().offset(), static_cast<int>(choice.ids.size()));
        choice.ids.insert(choice.ids.end(), response.chunk().token_ids().begin(),
                          response.chunk().token_ids().end());
        choice.text += response.chunk().text();
        answer.reasoning += response.chunk().reasoning();
      } else if (response.has_finished()) {
        Answer::Choice& choice = answer.choices[response.finished().index()];
        EXPECT_FALSE(choice.finished.has_usage()) << "finished twice";
        choice.finished = response.finished();
      }
      answer.ids.insert(answer.ids.end(), response.chunk().token_ids().begin(),
                        response.chunk().token_ids().end());
      answer.responses.push_back(response);
    }
    answer.status = reader->Finish();
    const auto retry = context->GetServerTrailingMetadata().find("retry-after-ms");
    if (retry != context->GetServerTrailingMetadata().end()) {
      answer.retry_after = std::string(retry->second.data(), retry->second.size());
    }
    return answer;
  }

  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Cluster::Stub> cluster_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::vector<std::string> paths_;
};

}  // namespace phalanx::coordinator

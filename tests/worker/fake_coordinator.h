// A coordinator as workers see it: takes their streams, sends what the test says, and records what they say.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "base/mutex.h"
#include "gtest/gtest.h"
#include "phalanx/internal/v1/group_control.grpc.pb.h"
#include "phalanx/internal/v1/worker_control.grpc.pb.h"

namespace phalanx {

class FakeCoordinator : public internal::v1::WorkerControl::Service,
                        public internal::v1::GroupControl::Service {
 public:
  using JoinStream = grpc::ServerReaderWriter<internal::v1::JoinResponse, internal::v1::JoinRequest>;
  using ServeStream = grpc::ServerReaderWriter<internal::v1::ServeResponse, internal::v1::ServeRequest>;

  // Port 0 takes a free one.
  explicit FakeCoordinator(int port = 0) {
    grpc::ServerBuilder builder;
    ConfigureInternalServer(&builder);
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<internal::v1::WorkerControl::Service*>(this));
    builder.RegisterService(static_cast<internal::v1::GroupControl::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // ---- What the test does ----

  void Assign(const std::string& worker, const internal::v1::Assign& assign) {
    internal::v1::JoinResponse message;
    *message.mutable_assign() = assign;
    ToWorker(worker, message);
  }
  void Release(const std::string& worker, const std::string& group, uint64_t epoch,
               const std::string& reason) {
    internal::v1::JoinResponse message;
    message.mutable_release()->set_group_id(group);
    message.mutable_release()->set_epoch(epoch);
    message.mutable_release()->set_reason(reason);
    ToWorker(worker, message);
  }
  void Submit(const std::string& group, const internal::v1::Submit& submit) {
    internal::v1::ServeResponse message;
    *message.mutable_submit() = submit;
    ToGroup(group, message);
  }
  void Abort(const std::string& group, uint64_t request) {
    internal::v1::ServeResponse message;
    message.mutable_abort()->set_request(request);
    ToGroup(group, message);
  }

  // ---- What workers did: each waits until it is so, and fails the test after 30 seconds ----

  void WaitJoined(const std::string& worker) {
    WaitFor("worker " + worker + " to join", [&] { return workers_.count(worker) > 0; });
  }
  void WaitGone(const std::string& worker) {
    WaitFor("worker " + worker + " to leave", [&] { return workers_.count(worker) == 0; });
  }
  // The detail of the first report of `state` for this epoch by this worker.
  std::string WaitState(const std::string& worker, uint64_t epoch, internal::v1::AssignmentState state) {
    std::string detail;
    WaitFor(
        absl::StrCat(worker, " to report ", internal::v1::AssignmentState_Name(state), " for epoch ", epoch),
        [&] {
          for (const auto& [from, status] : statuses_) {
            if (from == worker && status.epoch() == epoch && status.state() == state) {
              detail = status.detail();
              return true;
            }
          }
          return false;
        });
    return detail;
  }
  int CountState(const std::string& worker, uint64_t epoch, internal::v1::AssignmentState state) {
    MutexLock lock(mu_);
    int count = 0;
    for (const auto& [from, status] : statuses_) {
      count += from == worker && status.epoch() == epoch && status.state() == state;
    }
    return count;
  }
  internal::v1::GroupHello WaitServing(const std::string& group, uint64_t epoch) {
    internal::v1::GroupHello hello;
    WaitFor(absl::StrCat("group ", group, " epoch ", epoch, " to serve"), [&] {
      const auto it = groups_.find(group);
      if (it == groups_.end() || it->second.hello.epoch() != epoch) return false;
      hello = it->second.hello;
      return true;
    });
    return hello;
  }
  void WaitNotServing(const std::string& group) {
    WaitFor("group " + group + " to stop serving", [&] { return groups_.count(group) == 0; });
  }
  internal::v1::SubmitResult WaitSubmitResult(uint64_t request) {
    internal::v1::SubmitResult result;
    WaitFor(absl::StrCat("the answer to request ", request), [&] {
      const auto it = results_.find(request);
      if (it == results_.end()) return false;
      result = it->second;
      return true;
    });
    return result;
  }
  // All tokens of a request, once it is finished.
  std::vector<int32_t> WaitTokens(uint64_t request) {
    std::vector<int32_t> tokens;
    WaitFor(absl::StrCat("request ", request, " to finish"), [&] {
      if (finished_.count(request) == 0) return false;
      tokens = tokens_[request];
      return true;
    });
    return tokens;
  }
  void WaitSomeTokens(uint64_t request, size_t count) {
    WaitFor(absl::StrCat("request ", request, " to say ", count, " tokens"),
            [&] { return tokens_[request].size() >= count; });
  }
  internal::v1::LoadReport WaitLoad(const std::function<bool(const internal::v1::LoadReport&)>& is) {
    internal::v1::LoadReport load;
    WaitFor("a load report", [&] {
      load = load_;
      return loads_ > 0 && is(load_);
    });
    return load;
  }
  bool IsFinished(uint64_t request) {
    MutexLock lock(mu_);
    return finished_.count(request) > 0;
  }
  internal::v1::Hello HelloOf(const std::string& worker) {
    MutexLock lock(mu_);
    return workers_.at(worker).hello;
  }
  int heartbeats() {
    MutexLock lock(mu_);
    return heartbeats_;
  }

  // ---- The services ----

  grpc::Status Join(grpc::ServerContext*, JoinStream* stream) override {
    internal::v1::JoinRequest message;
    if (!stream->Read(&message) || !message.has_hello())
      return {grpc::StatusCode::INVALID_ARGUMENT, "no hello"};
    const std::string id = message.hello().worker_id();
    {
      internal::v1::JoinResponse welcome;
      welcome.mutable_welcome()->set_heartbeat_interval_ms(50);
      welcome.mutable_welcome()->set_heartbeat_timeout_ms(5000);
      stream->Write(welcome);
      MutexLock lock(mu_);
      workers_[id] = {message.hello(), stream};
      changed_.NotifyAll();
    }
    while (stream->Read(&message)) {
      MutexLock lock(mu_);
      if (message.has_assignment()) statuses_.emplace_back(id, message.assignment());
      if (message.has_heartbeat()) ++heartbeats_;
      changed_.NotifyAll();
    }
    MutexLock lock(mu_);
    workers_.erase(id);
    changed_.NotifyAll();
    return grpc::Status::OK;
  }

  grpc::Status Serve(grpc::ServerContext*, ServeStream* stream) override {
    internal::v1::ServeRequest message;
    if (!stream->Read(&message) || !message.has_hello())
      return {grpc::StatusCode::INVALID_ARGUMENT, "no hello"};
    const std::string id = message.hello().group_id();
    {
      MutexLock lock(mu_);
      groups_[id] = {message.hello(), stream};
      changed_.NotifyAll();
    }
    while (stream->Read(&message)) {
      MutexLock lock(mu_);
      if (message.has_submit_result()) results_[message.submit_result().request()] = message.submit_result();
      if (message.has_load()) {
        load_ = message.load();
        ++loads_;
      }
      for (const internal::v1::SequenceOutput& out : message.output().sequences()) {
        std::vector<int32_t>& tokens = tokens_[out.request()];
        EXPECT_EQ(out.offset(), static_cast<int32_t>(tokens.size())) << "a gap or a repetition";
        tokens.insert(tokens.end(), out.token_ids().begin(), out.token_ids().end());
        if (out.finish() != v1::FINISH_REASON_UNSPECIFIED) finished_[out.request()] = out.finish();
      }
      changed_.NotifyAll();
    }
    MutexLock lock(mu_);
    groups_.erase(id);
    changed_.NotifyAll();
    return grpc::Status::OK;
  }

 private:
  struct Worker {
    internal::v1::Hello hello;
    JoinStream* stream;
  };
  struct Group {
    internal::v1::GroupHello hello;
    ServeStream* stream;
  };

  void WaitFor(const std::string& what, const std::function<bool()>& is) {
    const auto deadline = CondVar::Clock::now() + std::chrono::seconds(30);
    MutexLock lock(mu_);
    while (!is()) {
      if (!changed_.WaitUntil(mu_, deadline)) {
        std::string said;
        for (const auto& [worker, status] : statuses_)
          absl::StrAppend(&said, "\n", worker, ": ", status.ShortDebugString());
        FAIL() << "waited 30 s for " << what << "; workers said:" << said;
      }
    }
  }
  // The stream's handler cannot return meanwhile: it takes the lock first.
  void ToWorker(const std::string& worker, const internal::v1::JoinResponse& message) {
    MutexLock lock(mu_);
    ASSERT_EQ(workers_.count(worker), 1u) << worker;
    workers_[worker].stream->Write(message);
  }
  void ToGroup(const std::string& group, const internal::v1::ServeResponse& message) {
    MutexLock lock(mu_);
    ASSERT_EQ(groups_.count(group), 1u) << group;
    groups_[group].stream->Write(message);
  }

  int port_ = 0;
  Mutex mu_;
  CondVar changed_;
  std::map<std::string, Worker> workers_;
  std::map<std::string, Group> groups_;
  std::vector<std::pair<std::string, internal::v1::AssignmentStatus>> statuses_;
  std::map<uint64_t, internal::v1::SubmitResult> results_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::map<uint64_t, v1::FinishReason> finished_;
  internal::v1::LoadReport load_;
  int loads_ = 0;
  int heartbeats_ = 0;
  std::unique_ptr<grpc::Server> server_;  // last: handlers use all of the above
};

}  // namespace phalanx

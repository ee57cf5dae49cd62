// A worker without a model: joins, takes assignments, and as a leader gives the answers that a test scripts.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/grpc_util.h"
#include "base/version.h"
#include "phalanx/internal/v1/group_control.grpc.pb.h"
#include "phalanx/internal/v1/worker_control.grpc.pb.h"

namespace phalanx::coordinator {

inline constexpr std::chrono::seconds kTestTimeout{20};

// True once `condition` holds; false after kTestTimeout.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kTestTimeout;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

// The leader's stream of one epoch.
class FakeLeader {
 public:
  using OnSubmit = std::function<void(FakeLeader*, const internal::v1::Submit&)>;

  FakeLeader(const std::shared_ptr<grpc::Channel>& channel, const std::string& group, uint64_t epoch,
             OnSubmit on_submit)
      : stub_(internal::v1::GroupControl::NewStub(channel)), on_submit_(std::move(on_submit)) {
    stream_ = stub_->Serve(&context_);
    internal::v1::ServeRequest hello;
    hello.mutable_hello()->set_group_id(group);
    hello.mutable_hello()->set_epoch(epoch);
    hello.mutable_hello()->set_fingerprint("fake");
    hello.mutable_hello()->set_kv_blocks(100);
    hello.mutable_hello()->set_kv_block_size(32);
    Send(hello);
    reader_ = std::thread([this] { Read(); });
  }
  ~FakeLeader() {
    context_.TryCancel();
    reader_.join();
  }

  bool Send(const internal::v1::ServeRequest& message) {
    std::lock_guard<std::mutex> lock(write_mu_);
    return stream_->Write(message);
  }
  void Answer(const internal::v1::Submit& submit, internal::v1::SubmitState state, int code = 0,
              const std::string& detail = "") {
    internal::v1::ServeRequest message;
    internal::v1::SubmitResult* result = message.mutable_submit_result();
    result->set_request(submit.request());
    result->set_attempt(submit.attempt());
    result->set_state(state);
    result->set_code(code);
    result->set_detail(detail);
    Send(message);
  }
  void Say(const internal::v1::Submit& submit, int32_t offset, const std::vector<int32_t>& ids,
           v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED) {
    internal::v1::ServeRequest message;
    internal::v1::SequenceOutput* out = message.mutable_output()->add_sequences();
    out->set_request(submit.request());
    out->set_attempt(submit.attempt());
    out->set_offset(offset);
    for (const int32_t id : ids) {
      out->add_token_ids(id);
      if (submit.logprobs() >= 0) out->add_logprobs()->mutable_token()->set_id(id);
    }
    out->set_finish(finish);
    if (finish == v1::FINISH_REASON_STOP) out->set_stop_token_id(ids.back());
    Send(message);
  }
  // One message a token; ends at a stop token, max_tokens or the end of `ids`.
  void SayAll(const internal::v1::Submit& submit, const std::vector<int32_t>& ids) {
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto n = static_cast<int32_t>(i) + 1;
      const bool stop = std::find(submit.stop_token_ids().begin(), submit.stop_token_ids().end(), ids[i]) !=
                        submit.stop_token_ids().end();
      const bool last = n == submit.max_tokens() || i + 1 == ids.size();
      Say(submit, n - 1, {ids[i]},
          stop   ? v1::FINISH_REASON_STOP
          : last ? v1::FINISH_REASON_LENGTH
                 : v1::FINISH_REASON_UNSPECIFIED);
      if (stop || last) return;
    }
  }

  std::vector<uint64_t> aborted() {
    std::lock_guard<std::mutex> lock(mu_);
    return aborted_;
  }
  std::vector<internal::v1::Submit> submits() {
    std::lock_guard<std::mutex> lock(mu_);
    return submits_;
  }
  bool ended() const { return ended_; }
  grpc::Status status() {
    std::lock_guard<std::mutex> lock(mu_);
    return status_;
  }

 private:
  void Read() {
    for (internal::v1::ServeResponse message; stream_->Read(&message);) {
      if (message.has_submit()) {
        {
          std::lock_guard<std::mutex> lock(mu_);
          submits_.push_back(message.submit());
        }
        on_submit_(this, message.submit());
      } else if (message.has_abort()) {
        std::lock_guard<std::mutex> lock(mu_);
        aborted_.push_back(message.abort().request());
      }
    }
    const grpc::Status status = stream_->Finish();
    std::lock_guard<std::mutex> lock(mu_);
    status_ = status;
    ended_ = true;
  }

  std::unique_ptr<internal::v1::GroupControl::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<internal::v1::ServeRequest, internal::v1::ServeResponse>> stream_;
  OnSubmit on_submit_;
  std::mutex write_mu_;
  std::mutex mu_;
  std::vector<uint64_t> aborted_;
  std::vector<internal::v1::Submit> submits_;
  grpc::Status status_;
  std::atomic<bool> ended_{false};
  std::thread reader_;
};

class FakeWorker {
 public:
  struct Options {
    std::string id = "w0";
    std::string host = "h0";
    std::string version = kVersion;
    int pid = 1;
    bool beats = true;          // sends heartbeats
    bool becomes_ready = true;  // answers an assignment
    FakeLeader::OnSubmit on_submit = [](FakeLeader* leader, const internal::v1::Submit& submit) {
      leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
      leader->SayAll(submit, {submit.prompt_ids().begin(), submit.prompt_ids().end()});
    };
  };

  FakeWorker(int port, Options options)
      : options_(std::move(options)),
        channel_(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                           grpc::InsecureChannelCredentials(), Arguments())),
        stub_(internal::v1::WorkerControl::NewStub(channel_)) {
    stream_ = stub_->Join(&context_);
    internal::v1::JoinRequest hello;
    hello.mutable_hello()->set_worker_id(options_.id);
    hello.mutable_hello()->set_host(options_.host);
    hello.mutable_hello()->set_pid(options_.pid);
    hello.mutable_hello()->set_version(options_.version);
    hello.mutable_hello()->set_device("fake");
    hello.mutable_hello()->set_group_address("127.0.0.1:1");
    Send(hello);
    reader_ = std::thread([this] { Read(); });
    beater_ = std::thread([this] { Beat(); });
  }
  // As a SIGKILL: both streams break.
  ~FakeWorker() {
    stop_ = true;
    context_.TryCancel();
    reader_.join();
    beater_.join();
  }

  bool Send(const internal::v1::JoinRequest& message) {
    std::lock_guard<std::mutex> lock(write_mu_);
    return stream_->Write(message);
  }
  void Report(const internal::v1::Assign& assign, internal::v1::AssignmentState state,
              const std::string& detail = "") {
    internal::v1::JoinRequest message;
    internal::v1::AssignmentStatus* status = message.mutable_assignment();
    status->set_group_id(assign.group_id());
    status->set_epoch(assign.epoch());
    status->set_state(state);
    status->set_detail(detail);
    Send(message);
  }

  bool welcomed() const { return welcomed_; }
  bool ended() const { return ended_; }
  grpc::Status status() {
    std::lock_guard<std::mutex> lock(mu_);
    return status_;
  }
  std::vector<internal::v1::Assign> assigns() {
    std::lock_guard<std::mutex> lock(mu_);
    return assigns_;
  }
  std::vector<internal::v1::Release> releases() {
    std::lock_guard<std::mutex> lock(mu_);
    return releases_;
  }
  // The current epoch's; null when not leading.
  std::shared_ptr<FakeLeader> leader() {
    std::lock_guard<std::mutex> lock(mu_);
    return leader_;
  }

 private:
  static grpc::ChannelArguments Arguments() {
    grpc::ChannelArguments args = InternalChannelArguments();
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    return args;
  }
  void Read() {
    for (internal::v1::JoinResponse message; stream_->Read(&message);) {
      if (message.has_welcome()) {
        interval_ms_ = message.welcome().heartbeat_interval_ms();
        welcomed_ = true;
      } else if (message.has_assign()) {
        Take(message.assign());
      } else if (message.has_release()) {
        internal::v1::Assign over;
        over.set_group_id(message.release().group_id());
        over.set_epoch(message.release().epoch());
        SetLeader(nullptr);
        {
          std::lock_guard<std::mutex> lock(mu_);
          releases_.push_back(message.release());
        }
        Report(over, internal::v1::ASSIGNMENT_STATE_RELEASED);
      }
    }
    SetLeader(nullptr);
    const grpc::Status status = stream_->Finish();
    std::lock_guard<std::mutex> lock(mu_);
    status_ = status;
    ended_ = true;
  }
  void Take(const internal::v1::Assign& assign) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      assigns_.push_back(assign);
    }
    if (!options_.becomes_ready) return;
    Report(assign, internal::v1::ASSIGNMENT_STATE_LOADING);
    Report(assign, internal::v1::ASSIGNMENT_STATE_READY);
    if (assign.rank() == 0) {
      SetLeader(
          std::make_shared<FakeLeader>(channel_, assign.group_id(), assign.epoch(), options_.on_submit));
    }
  }
  void SetLeader(std::shared_ptr<FakeLeader> leader) {
    // The last owner of the old one, here or a test, ends its stream; not under the lock.
    std::shared_ptr<FakeLeader> old;  // outlives `lock`
    std::lock_guard<std::mutex> lock(mu_);
    old = std::exchange(leader_, std::move(leader));
  }
  void Beat() {
    auto next = std::chrono::steady_clock::now();
    while (!stop_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (!welcomed_ || !options_.beats || std::chrono::steady_clock::now() < next) continue;
      internal::v1::JoinRequest message;
      message.mutable_heartbeat()->set_last_step_age_seconds(-1);
      if (!Send(message)) return;
      next = std::chrono::steady_clock::now() + std::chrono::milliseconds(interval_ms_);
    }
  }

  const Options options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<internal::v1::WorkerControl::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<internal::v1::JoinRequest, internal::v1::JoinResponse>> stream_;
  std::mutex write_mu_;
  std::mutex mu_;
  std::vector<internal::v1::Assign> assigns_;
  std::vector<internal::v1::Release> releases_;
  std::shared_ptr<FakeLeader> leader_;
  grpc::Status status_;
  std::atomic<int> interval_ms_{1000};
  std::atomic<bool> welcomed_{false};
  std::atomic<bool> ended_{false};
  std::atomic<bool> stop_{false};
  std::thread reader_;
  std::thread beater_;
};

}  // namespace phalanx::coordinator

#include "worker/peer_client.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "worker/plan_codec.h"

namespace phalanx {
namespace {

constexpr std::chrono::milliseconds kRetry{50};

bool MayComeLater(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kNotFound;
}

}  // namespace

PlanStream::PlanStream(PlanStreamOptions options, std::function<void(const absl::Status&)> on_lost)
    : options_(std::move(options)), on_lost_(std::move(on_lost)), thread_([this] { Run(); }) {}

PlanStream::~PlanStream() { Stop(); }

void PlanStream::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    if (end_.ok()) end_ = absl::CancelledError("the plan stream was stopped");
    if (stream_ != nullptr) stream_->Cancel(end_);
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<std::optional<StepPlan>> PlanStream::Next(std::chrono::steady_clock::time_point deadline) {
  MutexLock lock(mu_);
  while (plans_.empty()) {
    if (!end_.ok()) return end_;
    if (!changed_.WaitUntil(mu_, deadline)) return std::nullopt;
  }
  StepPlan plan = std::move(plans_.front());
  plans_.pop_front();
  return plan;
}

void PlanStream::End(absl::Status cause) {
  {
    MutexLock lock(mu_);
    if (!end_.ok()) return;
    end_ = cause;
    changed_.NotifyAll();
  }
  on_lost_(cause);
}

void PlanStream::Run() {
  const auto deadline = CondVar::Clock::now() + std::chrono::milliseconds(options_.connect_timeout_ms);
  const std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(
      options_.leader_address, grpc::InsecureChannelCredentials(), InternalChannelArguments());
  const auto stub = internal::v1::GroupPeer::NewStub(channel);
  internal::v1::FollowRequest hello;
  hello.set_group_id(options_.group_id);
  hello.set_epoch(options_.epoch);
  hello.set_rank(options_.rank);
  while (true) {
    auto stream = std::make_shared<Stream>(/*max_queued=*/4);
    {
      MutexLock lock(mu_);
      if (stopping_) return;
      stream_ = stream;
    }
    stream->Write(hello);
    bool accepted = false;
    const absl::Status status =
        stream->Run([&](grpc::ClientContext* context) { return stub->Follow(context); },
                    [&](internal::v1::FollowResponse&& message) {
                      accepted = true;
                      if (!message.has_plan()) return;
                      MutexLock lock(mu_);
                      plans_.push_back(FromProto(message.plan()));
                      changed_.NotifyAll();
                    });
    if (accepted || !MayComeLater(status) || CondVar::Clock::now() >= deadline) {
      End(absl::Status(status.code(), absl::StrCat("plan stream from the leader (", options_.leader_address,
                                                   "): ", status.message())));
      return;
    }
    MutexLock lock(mu_);
    if (!stopping_) changed_.WaitFor(mu_, kRetry);
  }
}

}  // namespace phalanx

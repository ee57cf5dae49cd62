#include "worker/peer_client.h"

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "worker/peer_meeting.h"
#include "worker/plan_codec.h"

namespace phalanx {
namespace {

constexpr std::chrono::milliseconds kRetry{50};
// For an answer that takes half a second when ranks are missing.
constexpr std::chrono::seconds kMeetCall{2};

bool MayComeLater(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kNotFound;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> MeetAtLeader(const PlanStreamOptions& options,
                                                      const std::string& topic, const std::string& blob,
                                                      const std::function<bool()>& cancelled) {
  const auto deadline = CondVar::Clock::now() + std::chrono::milliseconds(options.connect_timeout_ms);
  const auto stub = internal::v1::GroupPeer::NewStub(grpc::CreateCustomChannel(
      options.leader_address, grpc::InsecureChannelCredentials(), InternalChannelArguments()));
  internal::v1::MeetRequest request;
  request.set_group_id(options.group_id);
  request.set_epoch(options.epoch);
  request.set_rank(options.rank);
  request.set_topic(topic);
  request.set_blob(blob);
  while (true) {
    if (cancelled && cancelled()) return absl::CancelledError("the group was cancelled");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kMeetCall);
    internal::v1::MeetResponse response;
    const absl::Status status = FromGrpc(stub->Meet(&context, request, &response));
    if (status.ok() && response.missing().empty()) {
      if (response.blobs_size() <= options.rank) {
        return absl::InternalError(absl::StrCat("the meeting \"", topic, "\" at the leader (",
                                                options.leader_address, ") gave rank ", options.rank,
                                                " only ", response.blobs_size(), " ranks' bytes"));
      }
      return std::vector<std::string>(response.blobs().begin(), response.blobs().end());
    }
    if (!status.ok() && !MayComeLater(status) && status.code() != absl::StatusCode::kDeadlineExceeded) {
      return absl::Status(status.code(), absl::StrCat("meeting \"", topic, "\" at the leader (",
                                                      options.leader_address, "): ", status.message()));
    }
    if (CondVar::Clock::now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the ranks did not meet (\"", topic, "\") at the leader (", options.leader_address, ") within ",
          options.connect_timeout_ms, " ms: ",
          status.ok() ? absl::StrCat(RankNames({response.missing().begin(), response.missing().end()}),
                                     " did not come")
                      : std::string(status.message())));
    }
    if (!status.ok()) std::this_thread::sleep_for(kRetry);
  }
}

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

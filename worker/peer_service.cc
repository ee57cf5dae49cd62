#include "worker/peer_service.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/grpc_util.h"
#include "base/logging.h"

namespace phalanx {
namespace {

using internal::v1::FollowRequest;
using internal::v1::FollowResponse;

// Ranks go in step, so a live follower has a plan or two before it.
constexpr size_t kMaxQueuedPlans = 64;
// How soon a stream without traffic notices that its follower is gone.
constexpr std::chrono::milliseconds kPoll{20};
// How long a rank that came to the meeting waits for the others before it asks again.
constexpr std::chrono::milliseconds kMeetWait{500};

}  // namespace

FollowerSet::FollowerSet(std::string group_id, uint64_t epoch, int num_ranks, OnLost on_lost)
    : group_id_(std::move(group_id)),
      epoch_(epoch),
      on_lost_(std::move(on_lost)),
      meeting_(group_id_, num_ranks),
      followers_(num_ranks) {}

absl::Status FollowerSet::WaitForAll(CondVar::Clock::time_point deadline) {
  MutexLock lock(mu_);
  while (true) {
    std::vector<int> missing;
    for (size_t rank = 1; rank < followers_.size(); ++rank) {
      if (!followers_[rank].attached) missing.push_back(static_cast<int>(rank));
    }
    if (closed_) return absl::AbortedError(close_reason_);
    if (missing.empty()) return absl::OkStatus();
    if (!changed_.WaitUntil(mu_, deadline)) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", absl::StrJoin(missing, ", "),
                                                      " did not open its plan stream to the leader in time"));
    }
  }
}

absl::Status FollowerSet::Send(const internal::v1::StepPlan& plan) {
  auto message = std::make_shared<FollowResponse>();
  *message->mutable_plan() = plan;
  MutexLock lock(mu_);
  if (closed_) return absl::AbortedError(close_reason_);
  for (size_t rank = 1; rank < followers_.size(); ++rank) {
    if (followers_[rank].queue.size() >= kMaxQueuedPlans) {
      return absl::ResourceExhaustedError(
          absl::StrCat("rank ", rank, " takes no plans: ", kMaxQueuedPlans, " wait for it"));
    }
    followers_[rank].queue.push_back(message);
  }
  changed_.NotifyAll();
  return absl::OkStatus();
}

void FollowerSet::Close(const std::string& reason) {
  meeting_.Close(reason);
  MutexLock lock(mu_);
  if (closed_) return;
  closed_ = true;
  close_reason_ = reason;
  changed_.NotifyAll();
}

grpc::Status FollowerSet::Serve(int rank, grpc::ServerContext* context,
                                grpc::ServerReaderWriter<FollowResponse, FollowRequest>* stream) {
  {
    MutexLock lock(mu_);
    if (rank < 1 || rank >= static_cast<int>(followers_.size())) {
      return ToGrpc(absl::OutOfRangeError(absl::StrCat("rank ", rank, " is no follower of group ", group_id_,
                                                       ", which has ", followers_.size(), " ranks")));
    }
    if (closed_) return ToGrpc(absl::AbortedError(close_reason_));
    if (followers_[rank].attached) {
      return ToGrpc(absl::AlreadyExistsError(
          absl::StrCat("rank ", rank, " of group ", group_id_, " has its plan stream already")));
    }
    followers_[rank].attached = true;
    changed_.NotifyAll();
  }
  bool alive = stream->Write(FollowResponse());  // without a plan: accepted
  while (alive) {
    Plan plan;
    {
      MutexLock lock(mu_);
      std::deque<Plan>& queue = followers_[rank].queue;
      if (!closed_ && queue.empty()) changed_.WaitFor(mu_, kPoll);
      if (closed_) return ToGrpc(absl::AbortedError(close_reason_));
      if (!queue.empty()) {
        plan = std::move(queue.front());
        queue.pop_front();
      }
    }
    alive = plan != nullptr ? stream->Write(*plan) : !context->IsCancelled();
  }
  on_lost_(rank, absl::UnavailableError(
                     absl::StrCat("rank ", rank, " (", context->peer(), ") left its plan stream")));
  return grpc::Status::CANCELLED;
}

void PeerService::SetGroup(std::shared_ptr<FollowerSet> group) {
  MutexLock lock(mu_);
  group_ = std::move(group);
}

void PeerService::ClearGroup(const FollowerSet* group) {
  MutexLock lock(mu_);
  if (group_.get() == group) group_.reset();
}

absl::StatusOr<std::shared_ptr<FollowerSet>> PeerService::Find(const std::string& group_id, uint64_t epoch) {
  MutexLock lock(mu_);
  if (group_ == nullptr || group_->group_id() != group_id || group_->epoch() < epoch) {
    return absl::NotFoundError(
        absl::StrCat("this worker does not lead group ", group_id, " epoch ", epoch, " (yet)"));
  }
  if (group_->epoch() > epoch) {
    return absl::FailedPreconditionError(
        absl::StrCat("group ", group_id, " is in epoch ", group_->epoch(), "; epoch ", epoch, " is over"));
  }
  return group_;
}

grpc::Status PeerService::Meet(grpc::ServerContext*, const internal::v1::MeetRequest* request,
                               internal::v1::MeetResponse* response) {
  const auto group = Find(request->group_id(), request->epoch());
  if (!group.ok()) return ToGrpc(group.status());
  if (request->rank() < 1) {
    return ToGrpc(absl::OutOfRangeError(absl::StrCat("rank ", request->rank(), " is no follower")));
  }
  auto met = (*group)->meeting().Meet(request->topic(), request->rank(), request->blob(),
                                      CondVar::Clock::now() + kMeetWait);
  if (!met.ok()) return ToGrpc(met.status());
  response->mutable_missing()->Add(met->missing.begin(), met->missing.end());
  for (std::string& blob : met->blobs) response->add_blobs(std::move(blob));
  return grpc::Status::OK;
}

grpc::Status PeerService::Follow(grpc::ServerContext* context,
                                 grpc::ServerReaderWriter<FollowResponse, FollowRequest>* stream) {
  FollowRequest hello;
  if (!stream->Read(&hello)) return ToGrpc(absl::InvalidArgumentError("the stream ended before its hello"));
  const auto group = Find(hello.group_id(), hello.epoch());
  if (!group.ok()) return ToGrpc(group.status());
  spdlog::debug("group {} epoch {}: rank {} opened its plan stream", hello.group_id(), hello.epoch(),
                hello.rank());
  return (*group)->Serve(hello.rank(), context, stream);
}

}  // namespace phalanx

// The leader's side of its followers' plan streams (GroupPeer.Follow).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "phalanx/internal/v1/group_control.grpc.pb.h"
#include "worker/peer_meeting.h"

namespace phalanx {

// The followers of one group's epoch: ranks 1 to num_ranks - 1. A follower that left is lost for good.
// Thread safety: any thread. `on_lost` is called at most once for each rank, without locks, by the stream's
// thread.
class FollowerSet {
 public:
  using OnLost = std::function<void(int rank, const absl::Status& cause)>;

  FollowerSet(std::string group_id, uint64_t epoch, int num_ranks, OnLost on_lost);

  const std::string& group_id() const { return group_id_; }
  uint64_t epoch() const { return epoch_; }

  // Until every follower is attached. DeadlineExceeded naming the ranks that are missing, or Close's reason.
  absl::Status WaitForAll(CondVar::Clock::time_point deadline);
  // Sends a plan to all followers; never waits. Error: Close's reason, or ResourceExhausted naming a rank
  // that takes no plans any more.
  absl::Status Send(const internal::v1::StepPlan& plan);
  // Of all ranks; Close closes it.
  PeerMeeting& meeting() { return meeting_; }
  // Ends all streams with Aborted(reason). Idempotent.
  void Close(const std::string& reason);

  // One follower's stream, on its own thread; returns when the follower left or the set was closed.
  grpc::Status Serve(
      int rank, grpc::ServerContext* context,
      grpc::ServerReaderWriter<internal::v1::FollowResponse, internal::v1::FollowRequest>* stream);

 private:
  using Plan = std::shared_ptr<const internal::v1::FollowResponse>;
  struct Follower {
    bool attached = false;
    std::deque<Plan> queue;
  };

  const std::string group_id_;
  const uint64_t epoch_;
  const OnLost on_lost_;
  PeerMeeting meeting_;
  Mutex mu_;
  CondVar changed_;
  std::vector<Follower> followers_ ABSL_GUARDED_BY(mu_);  // by rank; [0] is unused
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::string close_reason_ ABSL_GUARDED_BY(mu_);
};

// Implements GroupPeer for the group that this worker leads at the moment, if any.
class PeerService final : public internal::v1::GroupPeer::Service {
 public:
  void SetGroup(std::shared_ptr<FollowerSet> group);
  // Forgets `group` if it is the current one.
  void ClearGroup(const FollowerSet* group);

  // NotFound while this worker does not lead that group (a follower that was assigned earlier tries again);
  // FailedPrecondition for another epoch; AlreadyExists for a rank that is attached; OutOfRange for an
  // impossible one.
  grpc::Status Follow(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<internal::v1::FollowResponse, internal::v1::FollowRequest>* stream) override;
  // The same errors (a rank may meet before its stream is attached), and PeerMeeting's.
  grpc::Status Meet(grpc::ServerContext* context, const internal::v1::MeetRequest* request,
                    internal::v1::MeetResponse* response) override;

 private:
  absl::StatusOr<std::shared_ptr<FollowerSet>> Find(const std::string& group_id, uint64_t epoch);

  Mutex mu_;
  std::shared_ptr<FollowerSet> group_ ABSL_GUARDED_BY(mu_);
};

}  // namespace phalanx

// One assignment's life on this worker: load the rank's weights, meet the other ranks, then lead or follow
// until stopped or failed. Any failure (a rank or its stream gone, a collective's error, a plan that does not
// fit) ends the epoch here, once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "phalanx/internal/v1/worker_control.pb.h"
#include "worker/config.h"
#include "worker/debug_faults.h"
#include "worker/peer_service.h"
#include "worker/vitals.h"

namespace phalanx {

// What outlives all assignments.
struct GroupEnvironment {
  const WorkerConfig* config = nullptr;
  PeerService* peers = nullptr;  // on this worker's listener
  WorkerVitals* vitals = nullptr;
  DebugFaults* faults = nullptr;  // null: none
};

// Thread safety: any thread.
class GroupMember {
 public:
  // LOADING, then READY, then FAILED at most once (never after Stop). Called from the member's threads,
  // without locks; must not destroy or join the member.
  using OnState = std::function<void(internal::v1::AssignmentState state, const std::string& detail)>;

  // InvalidArgument naming the field of an assignment that cannot be.
  static absl::Status Check(const internal::v1::Assign& assign);

  // `assign` passed Check. Starts the member's thread and returns.
  GroupMember(const GroupEnvironment& environment, const internal::v1::Assign& assign, OnState on_state);
  // Joins the thread: Stop and WaitFinished come first, unless waiting without bound is meant.
  ~GroupMember();

  const internal::v1::Assign& assign() const;

  // Ends the epoch on this rank; never waits.
  void Stop(const std::string& reason);
  // Loading cannot be interrupted: Stop takes effect when it is done.
  bool IsLoading() const;
  // Until all threads of the member are through with their work; false when `deadline` passed.
  bool WaitFinished(CondVar::Clock::time_point deadline);

 private:
  struct Core;
  std::shared_ptr<Core> core_;
  std::thread thread_;
};

}  // namespace phalanx

// The worker as coordinators see it: registered with each of them, and a rank of at most one group at a time.
// Events of all links and of the group go through one queue to one thread, so that assignments and losses are
// handled in order.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "phalanx/internal/v1/worker_control.pb.h"
#include "worker/config.h"
#include "worker/coordinator_link.h"
#include "worker/debug_faults.h"
#include "worker/group_member.h"
#include "worker/vitals.h"

namespace phalanx {

// Thread safety: constructor, Stop and destructor by one thread.
class Agent {
 public:
  // `hello` is complete. `config` and `peers` outlive the agent.
  Agent(const WorkerConfig* config, PeerService* peers, const internal::v1::Hello& hello);
  ~Agent();

  const WorkerVitals& vitals() const { return vitals_; }
  // Leaves the coordinators and ends the group. False when the group did not end within
  // config.exit_timeout_ms: its threads still run, and the only safe way on is to end the process without
  // destructors.
  bool Stop();

 private:
  using Event = std::function<void()>;

  void Post(Event event);
  void Run();
  // The rest runs on the agent's thread.
  void OnAssign(size_t link, const internal::v1::Assign& assign);
  void OnRelease(size_t link, const internal::v1::Release& release);
  void OnLinkLost(size_t link);
  void OnState(uint64_t generation, internal::v1::AssignmentState state, const std::string& detail);
  void Report(size_t link, const std::string& group_id, uint64_t epoch, internal::v1::AssignmentState state,
              const std::string& detail);
  // Ends the group, if there is one. A group whose threads do not end in time ends the process: nothing it
  // held could be given to another.
  void EndGroup(const std::string& reason);

  const WorkerConfig* const config_;
  PeerService* const peers_;
  WorkerVitals vitals_;
  DebugFaults faults_;
  std::vector<std::unique_ptr<CoordinatorLink>> links_;

  // Of the agent's thread.
  std::unique_ptr<GroupMember> member_;
  size_t owner_ = 0;         // link that assigned the group
  uint64_t generation_ = 0;  // of member_; events of an earlier one are stale

  Mutex mu_;
  CondVar changed_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace phalanx

// The leader's transport: plans to the followers, requests from and tokens to the coordinators.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "phalanx/internal/v1/group_control.pb.h"
#include "worker/leader.h"
#include "worker/peer_service.h"
#include "worker/serve_link.h"

namespace phalanx {

// Used in this order: constructed, given to a Leader, StartLinks, StopLinks, the Leader destroyed, this
// destroyed.
class GroupServer final : public PlanSink, public OutputSink {
 public:
  explicit GroupServer(std::shared_ptr<FollowerSet> followers) : followers_(std::move(followers)) {}

  // Opens the stream to each coordinator; from now on the leader gets requests. Called once.
  void StartLinks(Leader* leader, const std::vector<std::string>& coordinators,
                  const internal::v1::GroupHello& hello, std::chrono::milliseconds load_interval);
  // Ends the streams and waits for their threads; the leader gets nothing more.
  void StopLinks();

  absl::Status SendPlan(const StepPlan& plan) override;
  void OnSubmitResult(const SubmitResult& result) override;
  void OnStep(uint64_t step, std::vector<SequenceOutput> outputs) override;

 private:
  // To the coordinator whose stream has this number; dropped when that stream is over.
  void Send(uint64_t source, internal::v1::ServeRequest message);

  const std::shared_ptr<FollowerSet> followers_;
  std::atomic<uint64_t> next_source_{1};
  // Written by StartLinks before any request can come, and so before any Send.
  std::vector<std::unique_ptr<ServeLink>> links_;
};

}  // namespace phalanx

// A follower's plan stream from its leader (GroupPeer.Follow).
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "phalanx/internal/v1/group_control.grpc.pb.h"
#include "worker/client_stream.h"
#include "worker/follower.h"
#include "worker/step_plan.h"

namespace phalanx {

struct PlanStreamOptions {
  std::string leader_address;
  std::string group_id;
  uint64_t epoch = 0;
  int rank = 0;
  // The leader may be assigned later than its follower: until it accepts, opening is tried again for this
  // long.
  int connect_timeout_ms = 30000;
};

// Brings `blob` to the meeting `topic` at the leader (PeerMeeting) and waits for what the other ranks bring,
// at most connect_timeout_ms (DeadlineExceeded naming those that are missing, or the leader's last answer)
// and until `cancelled`, which may be null. Every rank's blob, by rank.
absl::StatusOr<std::vector<std::string>> MeetAtLeader(const PlanStreamOptions& options,
                                                      const std::string& topic, const std::string& blob,
                                                      const std::function<bool()>& cancelled);

// Thread safety: any thread. `on_lost` is called at most once, without locks, by the stream's thread; not
// after Stop.
class PlanStream final : public PlanSource {
 public:
  PlanStream(PlanStreamOptions options, std::function<void(const absl::Status& cause)> on_lost);
  ~PlanStream() override;  // Stop

  // See PlanSource; the error is why the stream ended.
  absl::StatusOr<std::optional<StepPlan>> Next(std::chrono::steady_clock::time_point deadline) override;
  // Ends the stream and joins its thread.
  void Stop();

 private:
  using Stream = ClientStream<internal::v1::FollowRequest, internal::v1::FollowResponse>;

  void Run();
  void End(absl::Status cause);

  const PlanStreamOptions options_;
  const std::function<void(const absl::Status&)> on_lost_;
  Mutex mu_;
  CondVar changed_;
  std::deque<StepPlan> plans_ ABSL_GUARDED_BY(mu_);
  absl::Status end_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace phalanx

// The coordinator's one event loop and all that belongs to it: cluster state, router, open streams, running
// requests. Executes what the pure cores decide.
//
// Threads: methods run on the loop unless marked "any thread".
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "absl/random/random.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "coordinator/admission.h"
#include "coordinator/cluster_state.h"
#include "coordinator/config.h"
#include "coordinator/event_loop.h"
#include "coordinator/metrics.h"
#include "coordinator/model_registry.h"
#include "coordinator/router.h"
#include "phalanx/internal/v1/group_control.pb.h"
#include "phalanx/internal/v1/worker_control.pb.h"
#include "phalanx/v1/cluster.pb.h"
#include "phalanx/v1/inference.pb.h"

namespace phalanx::coordinator {

class GenerateCall;
class GroupStream;
class WorkerStream;

class Coordinator {
 public:
  explicit Coordinator(const Config& config);
  // No call may be open any more.
  ~Coordinator();

  // --- any thread
  // ----------------------------------------------------------------------------------------------
  EventLoop* loop() { return &loop_; }
  WorkPool* pool() { return &pool_; }
  // For work that no stream waits for: a long text to tokenise does not hold up requests.
  WorkPool* bulk_pool() { return &bulk_pool_; }
  ModelRegistry& registry() { return registry_; }
  InFlightLimit& in_flight() { return in_flight_; }
  const Config& config() const { return config_; }
  CoordinatorMetrics& metrics() { return metrics_; }  // its registry from any thread
  // Requests are refused from now on.
  void BeginDrain() { draining_.store(true); }
  bool draining() const { return draining_.load(); }
  // Not draining or opening a model, and a group is ready if any model is loaded.
  bool ready() const {
    return !draining() && !opening_.load() && (num_models_.load() == 0 || num_ready_groups_.load() > 0);
  }
  // From here until Load or EndOpening clients' calls wait for the model that the process starts with:
  // workers are served meanwhile.
  void BeginOpening() { opening_.store(true); }
  void EndOpening();
  // Waits until no model is being opened. Unavailable when that takes too long, and at once when several
  // calls wait already: they hold threads that workers' streams need too.
  absl::Status AwaitModels();
  // Seconds since the coordinator began.
  double Now() const;

  // --- models
  // --------------------------------------------------------------------------------------------------
  // Workers begin with a model that will be loaded: its spec is complete. AlreadyExists.
  absl::Status Announce(const ModelSpec& spec);
  // AlreadyExists, unless it is the model that was announced.
  absl::Status Load(std::shared_ptr<const LoadedModel> model);
  absl::Status Unload(const std::string& name);
  void FillStatus(v1::GetStatusResponse* out) const;
  void FillModel(const LoadedModel& model, v1::Model* out) const;

  // --- workers
  // -------------------------------------------------------------------------------------------------
  void Opened(WorkerStream* stream) { worker_streams_.insert(stream); }
  void Gone(WorkerStream* stream) { worker_streams_.erase(stream); }
  // Sends `welcome`, then what follows from the new worker. On an error the session does not exist.
  absl::Status Join(WorkerStream* stream, const internal::v1::Hello& hello, Session* session);
  void Heartbeat(Session session, const internal::v1::Heartbeat& heartbeat);
  void RankChanged(Session session, const internal::v1::AssignmentStatus& status);
  void Left(Session session, const std::string& reason);

  // --- leaders
  // -------------------------------------------------------------------------------------------------
  void Opened(GroupStream* stream) { group_streams_.insert(stream); }
  void Gone(GroupStream* stream) { group_streams_.erase(stream); }
  absl::Status Serve(GroupStream* stream, const internal::v1::GroupHello& hello);
  void LeaderLeft(const std::string& group, uint64_t epoch, const std::string& reason);
  void Load(const std::string& group, uint64_t epoch, const internal::v1::LoadReport& report);
  void Submitted(const internal::v1::SubmitResult& result);
  void Output(const internal::v1::StepOutput& output);

  // --- requests
  // ------------------------------------------------------------------------------------------------
  void Opened(GenerateCall* call) { calls_.insert(call); }
  void Gone(GenerateCall* call);
  // Routes a tokenised request and submits it.
  void Dispatch(GenerateCall* call);
  // Forgets the requests of a call, or of one choice; tells their group to stop unless the group ended them.
  void Release(GenerateCall* call, bool abort);
  void Release(GenerateCall* call, uint32_t choice, bool abort);
  // After which a refused client may try again with some hope.
  int64_t RetryDelayMs();

  // Ends every stream and request: the process is about to end.
  void CloseAll(const std::string& reason);

 private:
  int64_t NowMs() const;
  void Execute(const Actions& actions);
  void Do(const AssignAction& action);
  void Do(const ReleaseAction& action);
  void Do(const DropWorkerAction& action);
  void Do(const GroupReadyAction& action);
  void Do(const GroupLostAction& action);
  struct Submitter {
    GenerateCall* call;  // null: none
    uint32_t choice;
  };
  Submitter FindCall(uint64_t request, uint32_t attempt);
  void Submit(GenerateCall* call, uint32_t choice);
  absl::Status Route(GenerateCall* call);
  void Tick();
  // What is refused and how it is going, about once a second.
  void Observe(double seconds);

  const Config config_;
  const EventLoop::Clock::time_point began_ = EventLoop::Clock::now();
  ModelRegistry registry_;
  InFlightLimit in_flight_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> opening_{false};
  Mutex opening_mu_;
  CondVar opened_;
  int waiting_ ABSL_GUARDED_BY(opening_mu_) = 0;
  std::string announced_;  // a model's name, until it is loaded
  std::atomic<int> num_models_{0};
  std::atomic<int> num_ready_groups_{0};

  CoordinatorMetrics metrics_;
  double retry_seconds_ = 1;
  uint64_t refused_before_ = 0, served_before_ = 0;  // as of the last Observe
  ClusterState cluster_;
  Router router_;
  absl::BitGen random_;
  Session next_session_ = 1;
  uint64_t next_request_ = 1;
  int64_t last_tick_ms_ = 0;
  int64_t last_sweep_ms_ = 0;
  struct Joined {
    WorkerStream* stream;
    std::string id;
  };
  std::unordered_map<Session, Joined> sessions_;
  std::unordered_set<WorkerStream*> worker_streams_;          // open
  std::map<std::string, GroupStream*, std::less<>> leaders_;  // serving, by group
  std::unordered_set<GroupStream*> group_streams_;            // open
  std::unordered_map<uint64_t, Submitter> requests_;          // submitted and not over
  std::unordered_set<GenerateCall*> calls_;                   // open

  WorkPool pool_;
  WorkPool bulk_pool_;
  EventLoop loop_;  // last: its thread uses all the others
};

}  // namespace phalanx::coordinator

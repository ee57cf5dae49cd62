// Which workers there are, which models are served, and which workers form which group. Pure: events and
// ticks in, actions out; no gRPC, threads or clock. Times are milliseconds of one monotonic clock and never
// fall.
//
// Invariants (CheckInvariants): a worker belongs to at most one epoch of one group; a group that is loading
// or ready has all its ranks; an epoch number is never used twice.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "base/kv_type.h"

namespace phalanx::coordinator {

enum class Compute { kFast, kFp32 };
// What the ranks of a group exchange over. auto: shm; tcp where a group spans hosts, because no host has
// enough workers for it. shm: groups never span hosts. tcp: always, also on one host.
enum class CollectiveChoice { kAuto, kShm, kTcp };
enum class Rope { kLong, kAuto };  // see coordinator/rope_mode.h

struct ModelSpec {
  std::string name;
  std::string path;
  int32_t tensor_parallel = 1;
  int32_t shards = 0;
  int32_t groups = 1;
  Compute compute = Compute::kFast;
  int32_t context_length = 0;
  std::string tokenizer;  // a folder; "": the model's own
  Rope rope = Rope::kLong;
  KvType kv_type = KvType::kAuto;  // auto: what the workers' flag says
};

struct WorkerInfo {
  std::string id;
  std::string host;
  int32_t pid = 0;
  std::string device;
  std::string group_address;
  int64_t memory_total_bytes = 0;
  int32_t workers_on_host = 0;  // processes that it saw on its host when it joined; 0: unknown
};

enum class RankState { kLoading, kReady, kFailed, kReleased };

struct LeaderHello {
  std::string fingerprint;
  int64_t kv_blocks = 0;
  int32_t kv_block_size = 0;
  int32_t context_length = 0;
  std::string kv_cache_dtype = "";  // as in GroupHello
};

struct GroupLoad {
  int64_t kv_blocks_used = 0;
  int32_t running = 0;
  int32_t queued = 0;
  uint64_t generated_tokens = 0;
  double tokens_per_second = 0;
  int64_t kv_blocks_cached = 0;
  uint64_t prefix_query_tokens = 0;
  uint64_t prefix_hit_tokens = 0;
  uint64_t preemptions = 0;
  uint64_t drafted_tokens = 0;
  uint64_t accepted_tokens = 0;
};

// A worker's stream, numbered by its owner; never used twice.
using Session = uint64_t;

// Tell the worker to take a rank.
struct AssignAction {
  Session session;
  std::string group;
  uint64_t epoch;
  int32_t rank;
  int32_t num_ranks;
  ModelSpec model;
  std::string collective;  // "shm" or "tcp"
  std::string collective_id;
  std::string leader_address;
  int32_t workers_on_host;
};
// Tell the worker that its epoch is over.
struct ReleaseAction {
  Session session;
  std::string group;
  uint64_t epoch;
  std::string reason;
};
// End the worker's stream.
struct DropWorkerAction {
  Session session;
  std::string reason;
};
// The group takes requests from now on.
struct GroupReadyAction {
  std::string group;
  uint64_t epoch;
  std::string model;
};
// The epoch is over: its requests fail, its leader's stream ends.
struct GroupLostAction {
  std::string group;
  uint64_t epoch;
  std::string reason;
};
using Action = std::variant<AssignAction, ReleaseAction, DropWorkerAction, GroupReadyAction, GroupLostAction>;
using Actions = std::vector<Action>;

class ClusterState {
 public:
  struct Options {
    int64_t heartbeat_timeout_ms = 10'000;
    int64_t load_timeout_ms = 600'000;    // assignment to ready
    int64_t release_timeout_ms = 60'000;  // release to released
    int64_t lost_keep_ms = 60'000;        // a lost worker stays listed
    // Workers that start together are seen together, so that workers_on_host is right: idle workers of a host
    // are used once all that the newest saw there have joined, or none has joined for this long.
    int64_t settle_ms = 300;
    // A failed group is formed again after this; doubled at each failure in a row.
    int64_t backoff_ms = 1'000;
    int64_t backoff_limit_ms = 30'000;
    // A ready group with requests whose leader has made no step for this long is failed.
    int64_t stall_timeout_ms = 120'000;
    CollectiveChoice collective = CollectiveChoice::kAuto;
    uint64_t first_epoch = 1;
    std::string nonce = "0";  // makes collective ids unique among coordinators
  };
  explicit ClusterState(Options options) : options_(std::move(options)), next_epoch_(options_.first_epoch) {}

  // This process stood still for so long, or was too busy to look: silence in that time is nobody's fault.
  void StoodStill(int64_t now, int64_t ms);

  // --- events; each appends to `actions`
  // ----------------------------------------------------------------------- AlreadyExists when another live
  // worker has the id; the same process that dials again replaces its old stream.
  absl::Status WorkerJoined(int64_t now, Session session, WorkerInfo info, Actions* actions);
  // `step_age_seconds` is -1 before the first step.
  void WorkerHeartbeat(int64_t now, Session session, double step_age_seconds, int64_t memory_bytes,
                       Actions* actions);
  void WorkerRank(int64_t now, Session session, const std::string& group, uint64_t epoch, RankState state,
                  std::string detail, Actions* actions);
  void WorkerLost(int64_t now, Session session, std::string reason, Actions* actions);

  // NotFound for an unknown group, FailedPrecondition for another epoch than the current one, AlreadyExists
  // for a second leader.
  absl::Status LeaderServing(int64_t now, const std::string& group, uint64_t epoch, LeaderHello hello,
                             Actions* actions);
  void LeaderLoad(const std::string& group, uint64_t epoch, const GroupLoad& load);
  void LeaderGone(int64_t now, const std::string& group, uint64_t epoch, std::string reason,
                  Actions* actions);

  // AlreadyExists. The spec is complete (no zeros).
  absl::Status LoadModel(int64_t now, ModelSpec spec, Actions* actions);
  // NotFound.
  absl::Status UnloadModel(int64_t now, const std::string& name, Actions* actions);

  // To be called a few times a second.
  void Tick(int64_t now, Actions* actions);

  // --- views
  // ---------------------------------------------------------------------------------------------------
  enum class WorkerPhase { kIdle, kLoading, kReady, kReleasing, kLost };
  struct Worker {
    Session session = 0;
    WorkerInfo info;
    WorkerPhase phase = WorkerPhase::kIdle;
    std::string group;  // while loading, ready or releasing
    uint64_t epoch = 0;
    int32_t rank = 0;
    int64_t joined_ms = 0;
    int64_t heard_ms = 0;
    int64_t phase_since_ms = 0;
    double step_age_seconds = -1;  // as of heard_ms
    int64_t memory_bytes = 0;
    std::string detail;
  };
  enum class GroupPhase { kWaiting, kLoading, kReady, kFailed };
  struct Group {
    std::string id;
    std::string model;
    int32_t index = 0;
    GroupPhase phase = GroupPhase::kWaiting;
    uint64_t epoch = 0;                 // the current one, or the last
    std::vector<Session> ranks;         // while loading or ready
    std::optional<LeaderHello> leader;  // while the leader serves
    GroupLoad load;
    std::string detail;  // why it failed last
    int64_t phase_since_ms = 0;
    int64_t busy_since_ms = -1;  // reported load has been above zero since; -1: it is zero
    int64_t retry_at_ms = 0;
    int failures = 0;  // in a row
  };
  // By worker id, lost ones after the live one of the same id.
  std::vector<const Worker*> workers() const;
  std::vector<const Group*> groups() const;
  std::vector<const ModelSpec*> models() const;
  const Group* FindGroup(std::string_view id) const;
  // State and what is missing, for people: "waits for 1 of 2 workers". Empty when ready.
  std::string Describe(const Group& group) const;
  // Why no group of the model takes requests: every group with its Describe().
  std::string WhyNotReady(std::string_view model) const;

  absl::Status CheckInvariants() const;

 private:
  struct Model {
    ModelSpec spec;
    uint64_t number = 0;  // in order of loading
  };

  Worker* FindLive(std::string_view id);
  Group* Find(std::string_view id, uint64_t epoch);
  void SetPhase(int64_t now, Worker* worker, WorkerPhase phase, std::string detail);
  void Lose(int64_t now, Worker* worker, std::string reason, Actions* actions);
  std::string Roster(const Group& group) const;
  void Fail(int64_t now, Group* group, std::string reason, Actions* actions);
  void EndEpoch(int64_t now, Group* group, const std::string& reason, Actions* actions);
  void MaybeReady(int64_t now, Group* group, Actions* actions);
  void FormGroups(int64_t now, Actions* actions);
  struct Host {
    std::vector<Worker*> idle;
    int32_t live = 0;
    int32_t coming = 0;  // idle, or about to be
    const Worker* newest = nullptr;
  };
  // From other hosts: not one that listens on a loopback address.
  static bool IsReachable(const Worker& worker);
  // `needed` idle workers on one host, or on several where the options allow it and no host has or will soon
  // have as many; rank by rank, or none.
  std::vector<Worker*> Choose(int64_t now, size_t needed, std::map<std::string, Host>* hosts) const;
  bool Form(int64_t now, Group* group, const ModelSpec& spec, uint64_t model_number, Actions* actions);
  void CheckWorkers(int64_t now, Actions* actions);
  void CheckGroups(int64_t now, Actions* actions);

  const Options options_;
  uint64_t next_epoch_;
  uint64_t next_model_ = 0;
  std::map<Session, Worker> workers_;
  std::map<std::string, Model, std::less<>> models_;
  std::map<std::string, Group, std::less<>> groups_;
};

}  // namespace phalanx::coordinator

#include "worker/group_member.h"

#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "worker/follower.h"
#include "worker/group_server.h"
#include "worker/leader.h"
#include "worker/peer_client.h"
#include "worker/plan_codec.h"
#include "worker/rank_loader.h"
#include "worker/timed_runner.h"

namespace phalanx {
namespace {

using internal::v1::AssignmentState;

RankSpec SpecOf(const internal::v1::Assign& assign) {
  RankSpec spec;
  spec.path = assign.model().path();
  spec.tokenizer = assign.model().tokenizer();
  spec.rank = assign.rank();
  spec.num_ranks = assign.num_ranks();
  spec.num_shards = assign.model().shards();
  spec.compute = assign.model().compute() == v1::COMPUTE_FP32 ? Compute::kFp32 : Compute::kFast;
  spec.kv_type = static_cast<KvType>(assign.model().kv_cache_dtype());
  spec.context_length = assign.model().context_length();
  spec.collective = assign.collective();
  spec.collective_id = assign.collective_id();
  spec.workers_on_host = assign.workers_on_host();
  return spec;
}

}  // namespace

struct GroupMember::Core : std::enable_shared_from_this<GroupMember::Core> {
  Core(const GroupEnvironment& environment, internal::v1::Assign assignment, OnState on_state_)
      : env(environment), assign(std::move(assignment)), on_state(std::move(on_state_)) {}

  void Run();
  absl::Status Lead();
  absl::Status RunLeader(LoadedRank* rank, const std::shared_ptr<FollowerSet>& followers);
  absl::Status Follow();
  absl::Status RunFollower(PlanStream* plans);
  absl::StatusOr<std::unique_ptr<LoadedRank>> Load();
  // See MeetFunction.
  absl::StatusOr<std::vector<std::string>> Meet(const std::string& topic, const std::string& blob);
  PlanStreamOptions StreamOptions() const;

  // The first cause ends the epoch; later ones are its consequences. Never waits.
  void End(const absl::Status& why, bool stopped);
  // Until the epoch ends; its cause.
  absl::Status WaitEnd();
  // Until the owner has answered a failure with Stop, for a second at most: coordinators should hear the
  // cause before they see the leader's stream end, or the leader a follower's.
  void WaitReported();

  const GroupEnvironment env;
  const internal::v1::Assign assign;
  const OnState on_state;

  Mutex mu;
  CondVar changed;
  absl::Status cause ABSL_GUARDED_BY(mu);  // not OK: the epoch is over
  bool loading ABSL_GUARDED_BY(mu) = true;
  bool stop_called ABSL_GUARDED_BY(mu) = false;
  bool finished ABSL_GUARDED_BY(mu) = false;
  // What End stops, while it exists.
  Collective* collective ABSL_GUARDED_BY(mu) = nullptr;
  Leader* leader ABSL_GUARDED_BY(mu) = nullptr;
  Follower* follower ABSL_GUARDED_BY(mu) = nullptr;
  std::shared_ptr<FollowerSet> followers ABSL_GUARDED_BY(mu);
};

void GroupMember::Core::End(const absl::Status& why, bool stopped) {
  MutexLock lock(mu);
  stop_called = stop_called || stopped;
  changed.NotifyAll();
  if (!cause.ok()) return;
  cause = why;
  const std::string reason(why.message());
  if (collective != nullptr) collective->Abort(reason);
  if (followers != nullptr) followers->Close(reason);
  if (leader != nullptr) leader->Stop(/*drain=*/false);
  if (follower != nullptr) follower->Stop();
  if (!stopped) on_state(internal::v1::ASSIGNMENT_STATE_FAILED, reason);
}

absl::Status GroupMember::Core::WaitEnd() {
  MutexLock lock(mu);
  while (cause.ok()) changed.WaitFor(mu, std::chrono::seconds(1));
  return cause;
}

void GroupMember::Core::WaitReported() {
  const auto deadline = CondVar::Clock::now() + std::chrono::seconds(1);
  MutexLock lock(mu);
  while (!stop_called && changed.WaitUntil(mu, deadline)) {
  }
}

absl::StatusOr<std::vector<std::string>> GroupMember::Core::Meet(const std::string& topic,
                                                                 const std::string& blob) {
  const auto is_over = [this] {
    MutexLock lock(mu);
    return !cause.ok();
  };
  if (assign.rank() > 0) return MeetAtLeader(StreamOptions(), topic, blob, is_over);
  std::shared_ptr<FollowerSet> set;
  {
    MutexLock lock(mu);
    set = followers;
  }
  return set->meeting().MeetAll(topic, 0, blob, env.config->connect_timeout_ms, is_over);
}

PlanStreamOptions GroupMember::Core::StreamOptions() const {
  PlanStreamOptions options;
  options.leader_address = assign.leader_address();
  options.group_id = assign.group_id();
  options.epoch = assign.epoch();
  options.rank = assign.rank();
  options.connect_timeout_ms = env.config->connect_timeout_ms;
  return options;
}

absl::StatusOr<std::unique_ptr<LoadedRank>> GroupMember::Core::Load() {
  const auto cancelled = [core = shared_from_this()] {
    MutexLock lock(core->mu);
    return !core->cause.ok();
  };
  RankSpec spec = SpecOf(assign);
  spec.meet = [core = shared_from_this()](const std::string& topic, const std::string& blob) {
    return core->Meet(topic, blob);
  };
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<LoadedRank> rank,
                       LoadRank(spec, *env.config, cancelled, [this](Collective* made) {
                         MutexLock lock(mu);
                         collective = made;
                         if (made != nullptr && !cause.ok()) made->Abort(std::string(cause.message()));
                       }));
  env.vitals->set_memory_bytes(rank->runner->memory_bytes());
  MutexLock lock(mu);
  loading = false;
  return rank;
}

absl::Status GroupMember::Core::RunLeader(LoadedRank* rank,
                                          const std::shared_ptr<FollowerSet>& follower_set) {
  FaultyRunner faulty(rank->runner.get(), env.faults);
  TimedRunner runner(&faulty, env.vitals);
  GroupServer server(follower_set);
  LeaderOptions options;
  options.scheduler.num_blocks = rank->runner->num_kv_blocks();
  options.scheduler.context_length = rank->options.context_length;
  options.scheduler.vocab_size = rank->config.vocab_size;
  options.scheduler.num_rope_modes = static_cast<int>(rank->config.rope.size());
  options.scheduler.block_size = rank->options.block_size;
  options.scheduler.max_tokens_per_step = rank->options.max_tokens_per_step;
  options.scheduler.max_sequences = env.config->max_sequences;
  options.scheduler.max_logits_per_step = rank->options.max_logits_per_step;
  options.scheduler.max_queued = env.config->max_queued;
  options.scheduler.max_guesses = env.config->speculate == "off" ? 0 : env.config->max_guesses;
  options.scheduler.token_bytes = rank->token_bytes;
  PHX_RETURN_IF_ERROR(options.scheduler.Validate());
  internal::v1::GroupHello hello;
  hello.set_group_id(assign.group_id());
  hello.set_epoch(assign.epoch());
  hello.set_fingerprint(rank->fingerprint);
  hello.set_kv_blocks(options.scheduler.num_blocks);
  hello.set_kv_block_size(options.scheduler.block_size);
  hello.set_context_length(static_cast<int32_t>(options.scheduler.context_length));
  hello.set_kv_cache_dtype(KvTypeName(rank->ops->info().kv_type));

  Leader loop(options, &runner, &server, &server, [core = shared_from_this()](const absl::Status& status) {
    core->End(status.ok() ? absl::InternalError("the leader's loop ended by itself") : status,
              /*stopped=*/false);
  });
  {
    MutexLock lock(mu);
    if (!cause.ok()) return cause;
    leader = &loop;
    on_state(internal::v1::ASSIGNMENT_STATE_READY, "");
  }
  server.StartLinks(&loop, env.config->coordinators, hello,
                    std::chrono::milliseconds(env.config->load_report_ms));
  const absl::Status end = WaitEnd();
  WaitReported();
  server.StopLinks();
  MutexLock lock(mu);
  leader = nullptr;
  return end;
}

absl::Status GroupMember::Core::Lead() {
  auto set = std::make_shared<FollowerSet>(
      assign.group_id(), assign.epoch(), assign.num_ranks(),
      [core = shared_from_this()](int, const absl::Status& why) { core->End(why, /*stopped=*/false); });
  {
    MutexLock lock(mu);
    if (!cause.ok()) return cause;
    followers = set;
  }
  env.peers->SetGroup(set);
  const auto lead = [&]() -> absl::Status {
    PHX_ASSIGN_OR_RETURN(std::unique_ptr<LoadedRank> rank, Load());
    absl::Status status =
        set->WaitForAll(CondVar::Clock::now() + std::chrono::milliseconds(env.config->connect_timeout_ms));
    if (status.ok()) status = RunLeader(rank.get(), set);
    MutexLock lock(mu);
    collective = nullptr;
    return status;
  };
  const absl::Status status = lead();
  End(status, /*stopped=*/false);  // before the streams end, whose end would look like the cause
  env.peers->ClearGroup(set.get());
  MutexLock lock(mu);
  followers = nullptr;  // it holds this object
  return status;
}

absl::Status GroupMember::Core::Follow() {
  // Opened before the weights are loaded: each side notices at once when the other fails meanwhile.
  PlanStream plans(StreamOptions(), [this](const absl::Status& why) { End(why, /*stopped=*/false); });
  const absl::Status status = RunFollower(&plans);
  End(status, /*stopped=*/false);  // before the stream ends, whose end would look like the cause
  return status;
}

absl::Status GroupMember::Core::RunFollower(PlanStream* plans) {
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<LoadedRank> rank, Load());
  FaultyRunner faulty(rank->runner.get(), env.faults);
  TimedRunner runner(&faulty, env.vitals);
  Follower loop(FollowerOptions(), &runner, plans, [core = shared_from_this()](const absl::Status& status) {
    core->End(status.ok() ? absl::InternalError("the follower's loop ended by itself") : status,
              /*stopped=*/false);
  });
  absl::Status status;
  {
    MutexLock lock(mu);
    status = cause;
    if (status.ok()) {
      follower = &loop;
      on_state(internal::v1::ASSIGNMENT_STATE_READY, "");
    }
  }
  if (status.ok()) {
    status = WaitEnd();
    WaitReported();
  }
  loop.Stop();
  plans->Stop();  // wakes the loop
  MutexLock lock(mu);
  follower = nullptr;
  collective = nullptr;
  return status;
}

void GroupMember::Core::Run() {
  {
    MutexLock lock(mu);
    if (cause.ok()) on_state(internal::v1::ASSIGNMENT_STATE_LOADING, "");
  }
  const absl::Status status = assign.rank() == 0 ? Lead() : Follow();
  spdlog::debug("group {} epoch {} rank {}: {}", assign.group_id(), assign.epoch(), assign.rank(),
                status.ToString());
  MutexLock lock(mu);
  finished = true;
  changed.NotifyAll();
}

absl::Status GroupMember::Check(const internal::v1::Assign& assign) {
  const auto error = [](const char* field, const auto& value, const char* right) {
    return absl::InvalidArgumentError(
        absl::StrCat("assignment: ", field, " is '", value, "', must be ", right));
  };
  if (assign.group_id().empty()) return error("group_id", "", "a name");
  if (assign.num_ranks() < 1 || assign.num_ranks() > kMaxShards)
    return error("num_ranks", assign.num_ranks(), "1 to 64");
  if (assign.rank() < 0 || assign.rank() >= assign.num_ranks()) {
    return error("rank", assign.rank(), "0 to num_ranks - 1");
  }
  if (assign.model().path().empty()) return error("model.path", "", "a file");
  if (assign.model().shards() < assign.num_ranks() || assign.model().shards() > kMaxShards) {
    return error("model.shards", assign.model().shards(), "num_ranks to 64");
  }
  if (assign.collective_id().empty()) return error("collective_id", "", "a name");
  if (assign.rank() > 0 && assign.leader_address().empty())
    return error("leader_address", "", "the leader's HOST:PORT");
  if (assign.workers_on_host() < 1) return error("workers_on_host", assign.workers_on_host(), "at least 1");
  return absl::OkStatus();
}

GroupMember::GroupMember(const GroupEnvironment& environment, const internal::v1::Assign& assign,
                         OnState on_state)
    : core_(std::make_shared<Core>(environment, assign, std::move(on_state))),
      thread_([core = core_] { core->Run(); }) {}

GroupMember::~GroupMember() {
  Stop("the group's owner is gone");
  thread_.join();
}

const internal::v1::Assign& GroupMember::assign() const { return core_->assign; }

void GroupMember::Stop(const std::string& reason) {
  core_->End(absl::CancelledError(reason), /*stopped=*/true);
}

bool GroupMember::IsLoading() const {
  MutexLock lock(core_->mu);
  return core_->loading;
}

bool GroupMember::WaitFinished(CondVar::Clock::time_point deadline) {
  MutexLock lock(core_->mu);
  while (!core_->finished) {
    if (!core_->changed.WaitUntil(core_->mu, deadline)) return core_->finished;
  }
  return true;
}

}  // namespace phalanx

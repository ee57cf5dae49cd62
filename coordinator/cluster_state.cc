#include "coordinator/cluster_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace phalanx::coordinator {
namespace {

std::string Seconds(int64_t ms) {
  return ms % 1000 == 0 ? absl::StrCat(ms / 1000, " s")
                        : absl::StrFormat("%.1f s", static_cast<double>(ms) / 1e3);
}

}  // namespace

// --- workers
// -----------------------------------------------------------------------------------------------------

absl::Status ClusterState::WorkerJoined(int64_t now, Session session, WorkerInfo info, Actions* actions) {
  if (Worker* old = FindLive(info.id); old != nullptr) {
    if (old->info.host != info.host || old->info.pid != info.pid) {
      return absl::AlreadyExistsError(absl::StrCat("worker id '", info.id, "' belongs to the live process ",
                                                   old->info.pid, " on ", old->info.host,
                                                   "; ids must be unique (--id)"));
    }
    actions->push_back(DropWorkerAction{old->session, "the worker has dialled again"});
    Lose(now, old, "the worker has dialled again", actions);
  }
  std::erase_if(workers_, [&info](const auto& entry) {
    return entry.second.phase == WorkerPhase::kLost && entry.second.info.id == info.id;
  });
  Worker& worker = workers_[session];
  worker.session = session;
  worker.info = std::move(info);
  worker.joined_ms = worker.heard_ms = worker.phase_since_ms = now;
  FormGroups(now, actions);
  return absl::OkStatus();
}

void ClusterState::WorkerHeartbeat(int64_t now, Session session, double step_age_seconds,
                                   int64_t memory_bytes, Actions* actions) {
  const auto it = workers_.find(session);
  if (it == workers_.end() || it->second.phase == WorkerPhase::kLost) return;
  it->second.heard_ms = now;
  it->second.step_age_seconds = step_age_seconds;
  it->second.memory_bytes = memory_bytes;
  FormGroups(now, actions);
}

void ClusterState::WorkerRank(int64_t now, Session session, const std::string& group_id, uint64_t epoch,
                              RankState state, std::string detail, Actions* actions) {
  const auto it = workers_.find(session);
  if (it == workers_.end()) return;
  Worker& worker = it->second;
  const bool assigned = worker.phase == WorkerPhase::kLoading || worker.phase == WorkerPhase::kReady ||
                        worker.phase == WorkerPhase::kReleasing;
  if (!assigned || worker.group != group_id || worker.epoch != epoch) return;  // of an epoch that is over
  worker.heard_ms = now;
  const bool over = state == RankState::kFailed || state == RankState::kReleased;
  if (worker.phase == WorkerPhase::kReleasing) {
    if (over) SetPhase(now, &worker, WorkerPhase::kIdle, "");
    FormGroups(now, actions);
    return;
  }
  Group* group = Find(group_id, epoch);
  if (over) {
    std::string reason = absl::StrCat("worker ", worker.info.id, " (rank ", worker.rank, ") ",
                                      state == RankState::kFailed ? "failed" : "left",
                                      detail.empty() ? "" : absl::StrCat(": ", detail));
    // The detail knows its peers by rank only, and one of them may be the cause.
    if (group != nullptr && group->ranks.size() > 1) absl::StrAppend(&reason, "; ", Roster(*group));
    SetPhase(now, &worker, WorkerPhase::kIdle, detail);
    if (group != nullptr) Fail(now, group, reason, actions);
  } else if (state == RankState::kReady && worker.phase == WorkerPhase::kLoading) {
    SetPhase(now, &worker, WorkerPhase::kReady, std::move(detail));
    if (group != nullptr) MaybeReady(now, group, actions);
  } else {
    worker.detail = std::move(detail);
  }
  FormGroups(now, actions);
}

void ClusterState::WorkerLost(int64_t now, Session session, std::string reason, Actions* actions) {
  const auto it = workers_.find(session);
  if (it == workers_.end() || it->second.phase == WorkerPhase::kLost) return;
  Lose(now, &it->second, std::move(reason), actions);
  FormGroups(now, actions);
}

void ClusterState::Lose(int64_t now, Worker* worker, std::string reason, Actions* actions) {
  Group* group = worker->phase == WorkerPhase::kLoading || worker->phase == WorkerPhase::kReady
                     ? Find(worker->group, worker->epoch)
                     : nullptr;
  const std::string what =
      absl::StrCat("worker ", worker->info.id, " (rank ", worker->rank, ") was lost: ", reason);
  // Where another rank noticed first, the loss is still the better explanation.
  if (const auto it = groups_.find(worker->group);
      worker->phase == WorkerPhase::kReleasing && it != groups_.end() && it->second.epoch == worker->epoch) {
    absl::StrAppend(&it->second.detail, "; ", what);
  }
  SetPhase(now, worker, WorkerPhase::kLost, std::move(reason));
  if (group != nullptr) Fail(now, group, what, actions);
}

void ClusterState::SetPhase(int64_t now, Worker* worker, WorkerPhase phase, std::string detail) {
  worker->phase = phase;
  worker->phase_since_ms = now;
  worker->detail = std::move(detail);
  if (phase == WorkerPhase::kIdle || phase == WorkerPhase::kLost) {
    worker->group.clear();
    worker->epoch = 0;
    worker->rank = 0;
  }
}

ClusterState::Worker* ClusterState::FindLive(std::string_view id) {
  for (auto& [session, worker] : workers_) {
    if (worker.phase != WorkerPhase::kLost && worker.info.id == id) return &worker;
  }
  return nullptr;
}

// --- leaders
// -----------------------------------------------------------------------------------------------------

absl::Status ClusterState::LeaderServing(int64_t now, const std::string& group_id, uint64_t epoch,
                                         LeaderHello hello, Actions* actions) {
  const auto it = groups_.find(group_id);
  if (it == groups_.end()) return absl::NotFoundError(absl::StrCat("there is no group ", group_id));
  Group& group = it->second;
  if (Find(group_id, epoch) == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch, " of group ", group_id, " is over; the last one is ", group.epoch));
  }
  if (group.leader) {
    return absl::AlreadyExistsError(
        absl::StrCat("group ", group_id, " already has a leader's stream in epoch ", epoch));
  }
  group.leader = std::move(hello);
  MaybeReady(now, &group, actions);
  return absl::OkStatus();
}

void ClusterState::LeaderLoad(const std::string& group_id, uint64_t epoch, const GroupLoad& load) {
  if (Group* group = Find(group_id, epoch); group != nullptr) group->load = load;
}

void ClusterState::LeaderGone(int64_t now, const std::string& group_id, uint64_t epoch, std::string reason,
                              Actions* actions) {
  Group* group = Find(group_id, epoch);
  if (group == nullptr || !group->leader) return;
  reason = absl::StrCat("leader ", workers_.at(group->ranks[0]).info.id, " (rank 0) is gone: ", reason);
  if (group->ranks.size() > 1) absl::StrAppend(&reason, "; ", Roster(*group));
  Fail(now, group, std::move(reason), actions);
  FormGroups(now, actions);
}

// --- models
// ------------------------------------------------------------------------------------------------------

absl::Status ClusterState::LoadModel(int64_t now, ModelSpec spec, Actions* actions) {
  if (models_.contains(spec.name)) {
    return absl::AlreadyExistsError(
        absl::StrCat("a model named '", spec.name, "' is loaded; unload it first or choose another name"));
  }
  for (int32_t i = 0; i < spec.groups; ++i) {
    Group group;
    group.id = absl::StrCat(spec.name, "/", i);
    group.model = spec.name;
    group.index = i;
    group.phase_since_ms = now;
    groups_[group.id] = std::move(group);
  }
  const std::string name = spec.name;
  models_[name] = Model{std::move(spec), next_model_++};
  FormGroups(now, actions);
  return absl::OkStatus();
}

absl::Status ClusterState::UnloadModel(int64_t now, const std::string& name, Actions* actions) {
  const auto it = models_.find(name);
  if (it == models_.end()) return absl::NotFoundError(absl::StrCat("no model named '", name, "' is loaded"));
  for (auto group = groups_.begin(); group != groups_.end();) {
    if (group->second.model != name) {
      ++group;
      continue;
    }
    EndEpoch(now, &group->second, absl::StrCat("model '", name, "' was unloaded"), actions);
    group = groups_.erase(group);
  }
  models_.erase(it);
  FormGroups(now, actions);
  return absl::OkStatus();
}

// --- groups
// ------------------------------------------------------------------------------------------------------

ClusterState::Group* ClusterState::Find(std::string_view id, uint64_t epoch) {
  const auto it = groups_.find(id);
  if (it == groups_.end() || it->second.epoch != epoch) return nullptr;
  const GroupPhase phase = it->second.phase;
  return phase == GroupPhase::kLoading || phase == GroupPhase::kReady ? &it->second : nullptr;
}

void ClusterState::EndEpoch(int64_t now, Group* group, const std::string& reason, Actions* actions) {
  if (group->phase != GroupPhase::kLoading && group->phase != GroupPhase::kReady) return;
  actions->push_back(GroupLostAction{group->id, group->epoch, reason});
  for (const Session session : group->ranks) {
    Worker& worker = workers_.at(session);
    const bool holds = (worker.phase == WorkerPhase::kLoading || worker.phase == WorkerPhase::kReady) &&
                       worker.group == group->id && worker.epoch == group->epoch;
    if (!holds) continue;  // lost, or it ended the epoch itself
    SetPhase(now, &worker, WorkerPhase::kReleasing, absl::StrCat("releases ", group->id));
    actions->push_back(ReleaseAction{session, group->id, group->epoch, reason});
  }
  group->ranks.clear();
  group->leader.reset();
  group->load = GroupLoad();
  group->busy_since_ms = -1;
}

void ClusterState::Fail(int64_t now, Group* group, std::string reason, Actions* actions) {
  EndEpoch(now, group, reason, actions);
  group->phase = GroupPhase::kFailed;
  group->phase_since_ms = now;
  group->detail = std::move(reason);
  const int64_t backoff =
      std::min(options_.backoff_limit_ms, options_.backoff_ms << std::min(group->failures, 16));
  ++group->failures;
  group->retry_at_ms = now + backoff;
}

void ClusterState::MaybeReady(int64_t now, Group* group, Actions* actions) {
  if (group->phase != GroupPhase::kLoading || !group->leader) return;
  for (const Session session : group->ranks) {
    if (workers_.at(session).phase != WorkerPhase::kReady) return;
  }
  group->phase = GroupPhase::kReady;
  group->phase_since_ms = now;
  group->detail.clear();
  group->failures = 0;
  actions->push_back(GroupReadyAction{group->id, group->epoch, group->model});
}

void ClusterState::FormGroups(int64_t now, Actions* actions) {
  std::vector<std::pair<std::pair<uint64_t, int32_t>, Group*>> wanting;
  for (auto& [id, group] : groups_) {
    const bool wants = group.phase == GroupPhase::kWaiting ||
                       (group.phase == GroupPhase::kFailed && now >= group.retry_at_ms);
    if (wants) wanting.push_back({{models_.at(group.model).number, group.index}, &group});
  }
  std::sort(wanting.begin(), wanting.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [order, group] : wanting) {
    const Model& model = models_.at(group->model);
    Form(now, group, model.spec, model.number, actions);
  }
}

bool ClusterState::IsReachable(const Worker& worker) {
  const std::string& address = worker.info.group_address;
  return !address.starts_with("127.") && !address.starts_with("localhost:") && !address.starts_with("[::1]:");
}

std::vector<ClusterState::Worker*> ClusterState::Choose(int64_t now, size_t needed,
                                                        std::map<std::string, Host>* hosts) const {
  const auto settled = [&](const Host& host) {
    const int32_t seen = host.newest->info.workers_on_host;
    return (seen > 0 && host.live >= seen) || now - host.newest->joined_ms >= options_.settle_ms;
  };
  // The host that is left with the fewest idle workers keeps the others whole for wider groups.
  Host* chosen = nullptr;
  std::vector<Host*> spanned;
  size_t reachable = 0;
  bool wait = options_.collective == CollectiveChoice::kShm;
  for (auto& [name, host] : *hosts) {
    std::sort(host.idle.begin(), host.idle.end(),
              [](const Worker* a, const Worker* b) { return a->info.id < b->info.id; });
    wait = wait || host.coming >= static_cast<int32_t>(needed) || (!host.idle.empty() && !settled(host));
    if (host.idle.size() >= needed && settled(host) &&
        (chosen == nullptr || host.idle.size() < chosen->idle.size())) {
      chosen = &host;
    }
  }
  if (chosen != nullptr) return {chosen->idle.begin(), chosen->idle.begin() + static_cast<int64_t>(needed)};
  if (wait) return {};
  for (auto& [name, host] : *hosts) {
    std::erase_if(host.idle, [](const Worker* w) { return !IsReachable(*w); });
    reachable += host.idle.size();
    spanned.push_back(&host);
  }
  if (reachable < needed) return {};
  // As few hosts as it takes.
  std::stable_sort(spanned.begin(), spanned.end(),
                   [](const Host* a, const Host* b) { return a->idle.size() > b->idle.size(); });
  std::vector<Worker*> ranks;
  for (const Host* host : spanned) {
    for (Worker* worker : host->idle) {
      if (ranks.size() < needed) ranks.push_back(worker);
    }
  }
  return ranks;
}

bool ClusterState::Form(int64_t now, Group* group, const ModelSpec& spec, uint64_t model_number,
                        Actions* actions) {
  std::map<std::string, Host> hosts;
  for (auto& [session, worker] : workers_) {
    if (worker.phase == WorkerPhase::kLost) continue;
    Host& host = hosts[worker.info.host];
    ++host.live;
    if (host.newest == nullptr || worker.session > host.newest->session) host.newest = &worker;
    if (worker.phase == WorkerPhase::kIdle) host.idle.push_back(&worker);
    host.coming += worker.phase == WorkerPhase::kIdle || worker.phase == WorkerPhase::kReleasing;
  }
  const auto needed = static_cast<size_t>(spec.tensor_parallel);
  const std::vector<Worker*> ranks = Choose(now, needed, &hosts);
  if (ranks.empty()) return false;
  const bool spans = std::any_of(ranks.begin(), ranks.end(), [&](const Worker* worker) {
    return worker->info.host != ranks[0]->info.host;
  });
  const bool tcp = needed > 1 && (spans || options_.collective == CollectiveChoice::kTcp);

  group->epoch = next_epoch_++;
  group->phase = GroupPhase::kLoading;
  group->phase_since_ms = now;
  group->ranks.clear();
  const std::string collective_id =
      absl::StrFormat("phx-%s-%d-%d-%x", options_.nonce, model_number, group->index, group->epoch);
  for (size_t rank = 0; rank < needed; ++rank) {
    Worker* worker = ranks[rank];
    SetPhase(now, worker, WorkerPhase::kLoading, "");
    worker->group = group->id;
    worker->epoch = group->epoch;
    worker->rank = static_cast<int32_t>(rank);
    group->ranks.push_back(worker->session);
    actions->push_back(AssignAction{
        .session = worker->session,
        .group = group->id,
        .epoch = group->epoch,
        .rank = static_cast<int32_t>(rank),
        .num_ranks = spec.tensor_parallel,
        .model = spec,
        .collective = tcp ? "tcp" : "shm",
        .collective_id = collective_id,
        .leader_address = ranks[0]->info.group_address,
        .workers_on_host = hosts.at(worker->info.host).live,
    });
  }
  return true;
}

// --- time
// --------------------------------------------------------------------------------------------------------

void ClusterState::Tick(int64_t now, Actions* actions) {
  CheckWorkers(now, actions);
  CheckGroups(now, actions);
  FormGroups(now, actions);
}

void ClusterState::StoodStill(int64_t now, int64_t ms) {
  for (auto& [session, worker] : workers_) worker.heard_ms = std::min(now, worker.heard_ms + ms);
}

void ClusterState::CheckWorkers(int64_t now, Actions* actions) {
  for (auto it = workers_.begin(); it != workers_.end();) {
    Worker& worker = it->second;
    if (worker.phase == WorkerPhase::kLost) {
      it = now - worker.phase_since_ms >= options_.lost_keep_ms ? workers_.erase(it) : std::next(it);
      continue;
    }
    std::string reason;
    if (now - worker.heard_ms >= options_.heartbeat_timeout_ms) {
      reason = absl::StrCat("no heartbeat for ", Seconds(now - worker.heard_ms));
    } else if (worker.phase == WorkerPhase::kReleasing &&
               now - worker.phase_since_ms >= options_.release_timeout_ms) {
      reason =
          absl::StrCat("it did not release ", worker.group, " within ", Seconds(options_.release_timeout_ms));
    }
    if (!reason.empty()) {
      actions->push_back(DropWorkerAction{worker.session, reason});
      Lose(now, &worker, reason, actions);
    }
    ++it;
  }
}

void ClusterState::CheckGroups(int64_t now, Actions* actions) {
  for (auto& [id, group] : groups_) {
    if (group.phase == GroupPhase::kLoading && now - group.phase_since_ms >= options_.load_timeout_ms) {
      std::vector<std::string> slow;
      for (const Session session : group.ranks) {
        const Worker& worker = workers_.at(session);
        if (worker.phase != WorkerPhase::kReady) slow.push_back(worker.info.id);
      }
      Fail(now, &group,
           slow.empty() ? absl::StrCat("the leader ", workers_.at(group.ranks[0]).info.id,
                                       " did not open its stream within ", Seconds(options_.load_timeout_ms))
                        : absl::StrCat("not ready within ", Seconds(options_.load_timeout_ms), ": ",
                                       absl::StrJoin(slow, ", ")),
           actions);
      continue;
    }
    if (group.phase != GroupPhase::kReady) continue;
    if (group.load.running + group.load.queued == 0) {
      group.busy_since_ms = -1;
      continue;
    }
    if (group.busy_since_ms < 0) group.busy_since_ms = now;
    // An idle leader's last step is old: only time since it has work counts.
    const Worker& leader = workers_.at(group.ranks[0]);
    const int64_t last_step = leader.step_age_seconds < 0
                                  ? group.busy_since_ms
                                  : leader.heard_ms - static_cast<int64_t>(leader.step_age_seconds * 1e3);
    const int64_t stalled = now - std::max(last_step, group.busy_since_ms);
    if (stalled >= options_.stall_timeout_ms) {
      Fail(now, &group,
           absl::StrCat("the leader ", leader.info.id, " made no step for ", Seconds(stalled), " with ",
                        group.load.running, " running and ", group.load.queued, " queued requests"),
           actions);
    }
  }
}

}  // namespace phalanx::coordinator

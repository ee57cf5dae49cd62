// What ClusterState shows of itself, and its invariants.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/cluster_state.h"

namespace phalanx::coordinator {

// -------------------------------------------------------------------------------------------------------

std::vector<const ClusterState::Worker*> ClusterState::workers() const {
  std::vector<const Worker*> out;
  for (const auto& [session, worker] : workers_) out.push_back(&worker);
  std::stable_sort(out.begin(), out.end(), [](const Worker* a, const Worker* b) {
    if (a->info.id != b->info.id) return a->info.id < b->info.id;
    return (a->phase == WorkerPhase::kLost) < (b->phase == WorkerPhase::kLost);
  });
  return out;
}

std::vector<const ClusterState::Group*> ClusterState::groups() const {
  std::vector<const Group*> out;
  for (const auto& [id, group] : groups_) out.push_back(&group);
  std::sort(out.begin(), out.end(), [](const Group* a, const Group* b) {
    return a->model != b->model ? a->model < b->model : a->index < b->index;
  });
  return out;
}

std::vector<const ModelSpec*> ClusterState::models() const {
  std::vector<const ModelSpec*> out;
  for (const auto& [name, model] : models_) out.push_back(&model.spec);
  return out;
}

const ClusterState::Group* ClusterState::FindGroup(std::string_view id) const {
  const auto it = groups_.find(id);
  return it == groups_.end() ? nullptr : &it->second;
}

std::string ClusterState::Roster(const Group& group) const {
  return absl::StrCat("its ranks were ",
                      absl::StrJoin(group.ranks, ", ", [this](std::string* out, Session session) {
                        const auto it = workers_.find(session);
                        absl::StrAppend(out, it == workers_.end() ? "?" : it->second.info.id);
                      }));
}

std::string ClusterState::Describe(const Group& group) const {
  const int32_t ranks = models_.at(group.model).spec.tensor_parallel;
  if (group.phase == GroupPhase::kReady) return "";
  if (group.phase == GroupPhase::kLoading) {
    int ready = 0;
    for (const Session session : group.ranks) ready += workers_.at(session).phase == WorkerPhase::kReady;
    return ready < ranks
               ? absl::StrCat("loads: ", ready, " of ", ranks, ranks == 1 ? " worker" : " workers", " ready")
               : "loads: the leader's stream is missing";
  }
  std::map<std::string, int32_t> idle;
  int32_t all = 0;
  int32_t reachable = 0;
  int32_t most = 0;
  for (const auto& [session, worker] : workers_) {
    if (worker.phase != WorkerPhase::kIdle) continue;
    ++all;
    reachable += IsReachable(worker);
    most = std::max(most, ++idle[worker.info.host]);
  }
  std::string missing;
  if (most >= ranks) {
    missing = "is about to be formed";
  } else if (all >= ranks) {
    missing = absl::StrCat("waits for ", ranks - most, " of ", ranks, " workers on one host (idle: ",
                           absl::StrJoin(idle, ", ", [](std::string* out, const auto& entry) {
                             absl::StrAppend(out, entry.second, " on ", entry.first);
                           }));
    if (options_.collective != CollectiveChoice::kShm && reachable < ranks) {
      absl::StrAppend(&missing, "; ", all - reachable,
                      all - reachable == 1 ? " of them listens on a loopback address"
                                           : " of them listen on loopback addresses",
                      ", which other hosts do not reach");
    }
    missing += ")";
  } else {
    missing = absl::StrCat("waits for ", ranks - most, " of ", ranks, ranks == 1 ? " worker" : " workers");
  }
  if (group.phase == GroupPhase::kFailed) return absl::StrCat(missing, " after a failure: ", group.detail);
  return missing;
}

std::string ClusterState::WhyNotReady(std::string_view model) const {
  std::vector<std::string> parts;
  for (const Group* group : groups()) {
    if (group->model != model || group->phase == GroupPhase::kReady) continue;
    parts.push_back(absl::StrCat("group ", group->id, " ", Describe(*group)));
  }
  return absl::StrJoin(parts, "; ");
}

absl::Status ClusterState::CheckInvariants() const {
  std::set<Session> used;
  for (const auto& [id, group] : groups_) {
    const bool active = group.phase == GroupPhase::kLoading || group.phase == GroupPhase::kReady;
    if (!active) {
      if (!group.ranks.empty() || group.leader)
        return absl::InternalError(absl::StrCat(id, " is over but holds ranks"));
      continue;
    }
    if (static_cast<int32_t>(group.ranks.size()) != models_.at(group.model).spec.tensor_parallel) {
      return absl::InternalError(absl::StrCat(id, " has ", group.ranks.size(), " ranks"));
    }
    for (size_t rank = 0; rank < group.ranks.size(); ++rank) {
      const auto it = workers_.find(group.ranks[rank]);
      if (it == workers_.end()) return absl::InternalError(absl::StrCat(id, " names an unknown worker"));
      const Worker& worker = it->second;
      const bool phase = worker.phase == WorkerPhase::kLoading || worker.phase == WorkerPhase::kReady;
      if (!phase || worker.group != id || worker.epoch != group.epoch ||
          worker.rank != static_cast<int32_t>(rank)) {
        return absl::InternalError(absl::StrCat(id, " and worker ", worker.info.id, " disagree"));
      }
      if (!used.insert(worker.session).second) {
        return absl::InternalError(absl::StrCat("worker ", worker.info.id, " has two ranks"));
      }
    }
    if (group.epoch >= next_epoch_)
      return absl::InternalError(absl::StrCat(id, " has an epoch of the future"));
  }
  for (const auto& [session, worker] : workers_) {
    const bool rank = worker.phase == WorkerPhase::kLoading || worker.phase == WorkerPhase::kReady;
    if (rank && !used.contains(session)) {
      return absl::InternalError(absl::StrCat("worker ", worker.info.id, " has a rank of no group"));
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx::coordinator

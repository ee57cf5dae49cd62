#include "coordinator/cluster_state.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/coordinator/transcript.h"

namespace phalanx::coordinator {
namespace {

std::string Show(const AssignAction& a) {
  return absl::StrCat("assign session ", a.session, ": ", a.group, " epoch ", a.epoch, " rank ", a.rank,
                      " of ", a.num_ranks, ", ", a.collective == "shm" ? "" : a.collective + " ",
                      a.collective_id, ", leader ", a.leader_address, ", ", a.workers_on_host, " on host\n");
}
std::string Show(const ReleaseAction& a) {
  return absl::StrCat("release session ", a.session, ": ", a.group, " epoch ", a.epoch, ": ", a.reason, "\n");
}
std::string Show(const DropWorkerAction& a) {
  return absl::StrCat("drop session ", a.session, ": ", a.reason, "\n");
}
std::string Show(const GroupReadyAction& a) {
  return absl::StrCat("ready ", a.group, " epoch ", a.epoch, " of model ", a.model, "\n");
}
std::string Show(const GroupLostAction& a) {
  return absl::StrCat("lost ", a.group, " epoch ", a.epoch, ": ", a.reason, "\n");
}

ModelSpec Spec(const std::string& name, int32_t tensor_parallel, int32_t groups) {
  ModelSpec spec;
  spec.name = name;
  spec.tensor_parallel = tensor_parallel;
  spec.groups = groups;
  return spec;
}

// Commands: at MS; join ID host= [pid=] [sees=]; beat ID [step=]; rank ID GROUP STATE [epoch=] [detail=];
// leave ID reason=; serve GROUP [epoch=]; load-report GROUP running= queued=; leader-gone GROUP reason=; load
// NAME tp= groups=; unload NAME; stood-still MS; tick; state. Workers are named by id; sessions are numbered
// in order of joining.
class ClusterDriver {
 public:
  ClusterDriver()
      : state_({.heartbeat_timeout_ms = 10'000,
                .load_timeout_ms = 60'000,
                .release_timeout_ms = 20'000,
                .lost_keep_ms = 60'000,
                .settle_ms = 300,
                .backoff_ms = 1'000,
                .backoff_limit_ms = 8'000,
                .stall_timeout_ms = 30'000,
                .first_epoch = 1,
                .nonce = "n"}) {}

  std::string Execute(const Command& c) {
    Actions actions;
    const std::string& verb = c.words.at(0);
    std::string out;
    const auto note = [&out](const absl::Status& status) {
      if (!status.ok()) out += status.ToString() + "\n";
    };
    if (verb == "at") {
      now_ = std::stoll(c.words.at(1));
    } else if (verb == "join") {
      WorkerInfo info;
      info.id = c.words.at(1);
      info.host = c.Arg("host");
      info.pid = static_cast<int32_t>(c.Number("pid", 1));
      info.workers_on_host = static_cast<int32_t>(c.Number("sees", 0));
      info.group_address = c.Arg("address", info.host + ":1");
      const Session session = next_session_++;
      const absl::Status status = state_.WorkerJoined(now_, session, info, &actions);
      if (status.ok()) sessions_[info.id] = session;
      note(status);
    } else if (verb == "beat") {
      state_.WorkerHeartbeat(now_, sessions_.at(c.words.at(1)), static_cast<double>(c.Number("step", -1)), 0,
                             &actions);
    } else if (verb == "rank") {
      const std::string& group = c.words.at(2);
      const std::map<std::string, RankState> states = {{"loading", RankState::kLoading},
                                                       {"ready", RankState::kReady},
                                                       {"failed", RankState::kFailed},
                                                       {"released", RankState::kReleased}};
      state_.WorkerRank(now_, sessions_.at(c.words.at(1)), group, Epoch(c, group), states.at(c.words.at(3)),
                        c.Arg("detail"), &actions);
    } else if (verb == "leave") {
      state_.WorkerLost(now_, sessions_.at(c.words.at(1)), c.Arg("reason", "gone"), &actions);
    } else if (verb == "serve") {
      const std::string& group = c.words.at(1);
      note(state_.LeaderServing(
          now_, group, Epoch(c, group),
          {.fingerprint = "f", .kv_blocks = 8, .kv_block_size = 32, .context_length = 128}, &actions));
    } else if (verb == "load-report") {
      GroupLoad load;
      load.running = static_cast<int32_t>(c.Number("running"));
      load.queued = static_cast<int32_t>(c.Number("queued"));
      state_.LeaderLoad(c.words.at(1), Epoch(c, c.words.at(1)), load);
    } else if (verb == "leader-gone") {
      state_.LeaderGone(now_, c.words.at(1), Epoch(c, c.words.at(1)), c.Arg("reason", "gone"), &actions);
    } else if (verb == "load") {
      note(state_.LoadModel(now_,
                            Spec(c.words.at(1), static_cast<int32_t>(c.Number("tp", 1)),
                                 static_cast<int32_t>(c.Number("groups", 1))),
                            &actions));
    } else if (verb == "unload") {
      note(state_.UnloadModel(now_, c.words.at(1), &actions));
    } else if (verb == "stood-still") {
      state_.StoodStill(now_, std::stoll(c.words.at(1)));
    } else if (verb == "tick") {
      state_.Tick(now_, &actions);
    } else if (verb == "state") {
      return ShowState();
    } else {
      ADD_FAILURE() << "unknown command " << verb;
    }
    for (const Action& action : actions) {
      out += std::visit([](const auto& a) { return Show(a); }, action);
    }
    note(state_.CheckInvariants());
    return out;
  }

 private:
  uint64_t Epoch(const Command& c, const std::string& group) {
    if (c.args.contains("epoch")) return static_cast<uint64_t>(c.Number("epoch"));
    const ClusterState::Group* found = state_.FindGroup(group);
    return found == nullptr ? 0 : found->epoch;
  }
  std::string ShowState() {
    static const char* const kWorker[] = {"idle", "loading", "ready", "releasing", "lost"};
    static const char* const kGroup[] = {"waiting", "loading", "ready", "failed"};
    std::string out;
    for (const auto* worker : state_.workers()) {
      absl::StrAppend(&out, worker->info.id, " on ", worker->info.host, ": ",
                      kWorker[static_cast<int>(worker->phase)]);
      if (!worker->group.empty()) absl::StrAppend(&out, " ", worker->group, " rank ", worker->rank);
      if (!worker->detail.empty()) absl::StrAppend(&out, " (", worker->detail, ")");
      out += "\n";
    }
    for (const auto* group : state_.groups()) {
      const std::string detail = state_.Describe(*group);
      absl::StrAppend(&out, group->id, ": ", kGroup[static_cast<int>(group->phase)], " epoch ", group->epoch,
                      detail.empty() ? "" : absl::StrCat(", ", detail), "\n");
    }
    return out;
  }

  ClusterState state_;
  int64_t now_ = 0;
  Session next_session_ = 1;
  std::map<std::string, Session> sessions_;
};

TEST(ClusterState, Transcripts) { RunTranscripts<ClusterDriver>("cluster_state"); }

// Whatever happens in whatever order: the invariants hold, epochs rise, every loss is told once and only of
// groups that were assigned, and once faults stop every group becomes ready.
TEST(ClusterState, RandomFaults) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937_64 random(seed);
    const auto below = [&random](int64_t n) {
      return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
    };
    ClusterState state({.settle_ms = 100, .backoff_ms = 100, .backoff_limit_ms = 1000});
    struct Rank {
      std::string group;
      uint64_t epoch;
      bool over;  // told to release
      int32_t number;
      bool ready;
    };
    std::map<Session, std::optional<Rank>> workers;
    std::map<std::string, uint64_t> active;  // assigned and not lost
    std::set<uint64_t> epochs;
    Session next = 1;
    int64_t now = 0;
    const auto apply = [&](const Actions& actions) {
      for (const Action& action : actions) {
        if (const auto* a = std::get_if<AssignAction>(&action)) {
          ASSERT_TRUE(workers.contains(a->session));
          ASSERT_FALSE(workers[a->session].has_value());
          workers[a->session] = Rank{a->group, a->epoch, false, a->rank, false};
          if (a->rank == 0) {
            ASSERT_TRUE(epochs.insert(a->epoch).second);
            ASSERT_FALSE(active.contains(a->group));
          }
          active[a->group] = a->epoch;
        } else if (const auto* r = std::get_if<ReleaseAction>(&action)) {
          ASSERT_TRUE(workers.contains(r->session) && workers[r->session].has_value());
          workers[r->session]->over = true;
        } else if (const auto* d = std::get_if<DropWorkerAction>(&action)) {
          workers.erase(d->session);
        } else if (const auto* l = std::get_if<GroupLostAction>(&action)) {
          ASSERT_EQ(active[l->group], l->epoch);
          active.erase(l->group);
        }
      }
      ASSERT_TRUE(state.CheckInvariants().ok()) << state.CheckInvariants();
    };
    const auto join = [&] {
      WorkerInfo info;
      info.id = absl::StrCat("w", next);
      info.host = absl::StrCat("h", below(2));
      Actions actions;
      ASSERT_TRUE(state.WorkerJoined(now, next, info, &actions).ok());
      workers[next++] = std::nullopt;
      apply(actions);
    };
    // What well-behaved workers do: load, serve, release.
    const auto settle = [&] {
      std::vector<Session> sessions;
      for (const auto& [session, rank] : workers) sessions.push_back(session);
      for (const Session session : sessions) {
        Actions actions;
        state.WorkerHeartbeat(now, session, -1, 0, &actions);
        apply(actions);
        if (!workers.contains(session) || !workers[session]) continue;
        Rank& rank = *workers[session];
        const Rank copy = rank;
        actions.clear();
        if (copy.over) {
          workers[session].reset();
          state.WorkerRank(now, session, copy.group, copy.epoch, RankState::kReleased, "", &actions);
        } else if (!copy.ready) {
          rank.ready = true;
          state.WorkerRank(now, session, copy.group, copy.epoch, RankState::kReady, "", &actions);
          if (copy.number == 0) state.LeaderServing(now, copy.group, copy.epoch, {}, &actions).IgnoreError();
        }
        apply(actions);
      }
    };
    Actions actions;
    ASSERT_TRUE(state.LoadModel(now, Spec("a", 2, 1), &actions).ok());
    ASSERT_TRUE(state.LoadModel(now, Spec("b", 1, 2), &actions).ok());
    for (int step = 0; step < 200; ++step) {
      now += below(200);
      const int64_t what = below(10);
      if (what < 2 && workers.size() < 8) join();
      if (what == 2 && !workers.empty()) {
        const auto victim = std::next(workers.begin(), below(static_cast<int64_t>(workers.size())));
        const Session session = victim->first;
        workers.erase(victim);
        actions.clear();
        state.WorkerLost(now, session, "killed", &actions);
        apply(actions);
      }
      if (what == 3 && !active.empty()) {
        const auto [group, epoch] = *std::next(active.begin(), below(static_cast<int64_t>(active.size())));
        actions.clear();
        state.LeaderGone(now, group, epoch, "cut", &actions);
        apply(actions);
      }
      if (what == 4) {
        for (auto& [session, rank] : workers) {
          if (!rank) continue;
          const Rank copy = *rank;
          rank.reset();
          actions.clear();
          state.WorkerRank(now, session, copy.group, copy.epoch, RankState::kFailed, "no", &actions);
          apply(actions);
          break;
        }
      }
      if (what > 6) settle();
      actions.clear();
      state.Tick(now, &actions);
      apply(actions);
      if (HasFatalFailure()) return;
    }
    while (workers.size() < 10) join();  // enough on both hosts, or nearly: two hosts, four ranks
    for (int i = 0; i < 100; ++i) {
      now += 100;
      settle();
      actions.clear();
      state.Tick(now, &actions);
      apply(actions);
      if (HasFatalFailure()) return;
    }
    for (const auto* group : state.groups()) {
      EXPECT_EQ(group->phase, ClusterState::GroupPhase::kReady)
          << group->id << ": " << state.Describe(*group);
    }
  }
}

}  // namespace
}  // namespace phalanx::coordinator

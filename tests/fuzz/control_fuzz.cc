// The messages of workers and leaders to a coordinator, in any order, against the state of the cluster: it
// stays sound. An input is a series of events, each a byte for its kind, one for its sender, and a message
// behind its length.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "coordinator/convert.h"
#include "tests/fuzz/inputs.h"
#include "tests/fuzz/messages.h"

namespace {

using namespace phalanx;
using namespace phalanx::coordinator;

constexpr size_t kMaxEvents = 256;

struct Cluster {
  ClusterState state{{}};
  int64_t now = 0;
  Session next_session = 1;
  std::array<Session, 8> sessions = {};
  Actions actions;

  // A message that leaves group and epoch out is about the sender's own.
  template <typename Message>
  void Fill(Session session, Message* message) const {
    if (!message->group_id().empty() || message->epoch() != 0) return;
    for (const ClusterState::Worker* worker : state.workers()) {
      if (worker->session != session) continue;
      message->set_group_id(worker->group);
      message->set_epoch(worker->epoch);
    }
  }
  void Event(Input* input);
};

RankState StateOf(internal::v1::AssignmentState state) {
  if (state == internal::v1::ASSIGNMENT_STATE_READY) return RankState::kReady;
  if (state == internal::v1::ASSIGNMENT_STATE_FAILED) return RankState::kFailed;
  if (state == internal::v1::ASSIGNMENT_STATE_RELEASED) return RankState::kReleased;
  return RankState::kLoading;
}

void Cluster::Event(Input* input) {
  const uint8_t kind = input->Byte();
  Session& session = sessions[input->Byte() % sessions.size()];
  const std::string_view bytes = input->Piece();
  switch (kind % 9) {
    case 0:
      With<internal::v1::Hello>(bytes, [&](const auto& m) {
        const Session id = next_session++;
        if (state.WorkerJoined(now, id, ToWorkerInfo(m), &actions).ok()) session = id;
      });
      break;
    case 1:
      With<internal::v1::Heartbeat>(bytes, [&](const auto& m) {
        state.WorkerHeartbeat(now, session, m.last_step_age_seconds(), m.memory_bytes(), &actions);
      });
      break;
    case 2:
      With<internal::v1::AssignmentStatus>(bytes, [&](auto& m) {
        Fill(session, &m);
        state.WorkerRank(now, session, m.group_id(), m.epoch(), StateOf(m.state()), m.detail(), &actions);
      });
      break;
    case 3:
      state.WorkerLost(now, session, std::string(bytes), &actions);
      break;
    case 4:
      With<internal::v1::GroupHello>(bytes, [&](auto& m) {
        Fill(session, &m);
        LeaderHello hello;
        hello.fingerprint = m.fingerprint();
        hello.kv_blocks = m.kv_blocks();
        hello.kv_block_size = m.kv_block_size();
        hello.context_length = m.context_length();
        hello.kv_cache_dtype = m.kv_cache_dtype();
        (void)state.LeaderServing(now, m.group_id(), m.epoch(), hello, &actions);
      });
      break;
    case 5:
      With<internal::v1::LoadReport>(bytes, [&](const auto& m) {
        internal::v1::GroupHello of;
        Fill(session, &of);
        GroupLoad load;
        load.kv_blocks_used = m.kv_blocks_used();
        load.running = m.running();
        load.queued = m.queued();
        load.generated_tokens = m.generated_tokens();
        load.tokens_per_second = m.tokens_per_second();
        state.LeaderLoad(of.group_id(), of.epoch(), load);
      });
      break;
    case 6:
      With<internal::v1::GroupHello>(bytes, [&](auto& m) {
        Fill(session, &m);
        state.LeaderGone(now, m.group_id(), m.epoch(), "left", &actions);
      });
      break;
    case 7:
      With<v1::ModelSpec>(bytes, [&](const auto& m) {
        ModelSpec spec = ToSpec(m);
        if (spec.groups < 1 || spec.groups > 8 || spec.tensor_parallel < 1)
          return;  // OpenModel refuses these
        (void)state.LoadModel(now, spec, &actions);
      });
      break;
    case 8:
      (void)state.UnloadModel(now, std::string(bytes), &actions);
      break;
  }
  now += int64_t{1} << (kind / 9 % 20);
  if (kind >= 128) state.Tick(now, &actions);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Cluster cluster;
  Input input(data, size);
  for (size_t n = 0; n < kMaxEvents && !input.empty(); ++n) {
    cluster.Event(&input);
    if (const absl::Status sound = cluster.state.CheckInvariants(); !sound.ok()) {
      std::fprintf(stderr, "ERROR: %s\n", sound.ToString().c_str());
      std::abort();
    }
    cluster.actions.clear();
  }
  for (const ClusterState::Group* group : cluster.state.groups()) (void)cluster.state.Describe(*group);
  for (const ModelSpec* model : cluster.state.models()) (void)cluster.state.WhyNotReady(model->name);
  return 0;
}

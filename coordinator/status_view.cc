// The cluster and its models as people see them.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/version.h"
#include "coordinator/convert.h"
#include "coordinator/coordinator.h"
#include "coordinator/model_service.h"

namespace phalanx::coordinator {
namespace {

v1::WorkerState ToState(ClusterState::WorkerPhase phase) {
  switch (phase) {
    case ClusterState::WorkerPhase::kIdle:
      return v1::WORKER_STATE_IDLE;
    case ClusterState::WorkerPhase::kLoading:
    case ClusterState::WorkerPhase::kReleasing:
      return v1::WORKER_STATE_LOADING;
    case ClusterState::WorkerPhase::kReady:
      return v1::WORKER_STATE_READY;
    case ClusterState::WorkerPhase::kLost:
      return v1::WORKER_STATE_LOST;
  }
  return v1::WORKER_STATE_UNSPECIFIED;
}

v1::GroupState ToState(ClusterState::GroupPhase phase) {
  switch (phase) {
    case ClusterState::GroupPhase::kWaiting:
      return v1::GROUP_STATE_WAITING;
    case ClusterState::GroupPhase::kLoading:
      return v1::GROUP_STATE_LOADING;
    case ClusterState::GroupPhase::kReady:
      return v1::GROUP_STATE_READY;
    case ClusterState::GroupPhase::kFailed:
      return v1::GROUP_STATE_FAILED;
  }
  return v1::GROUP_STATE_UNSPECIFIED;
}

}  // namespace

void Coordinator::FillStatus(v1::GetStatusResponse* out) const {
  const int64_t now = NowMs();
  out->set_version(kVersion);
  out->set_uptime_seconds(Now());
  for (const auto& model : registry_.All()) {
    v1::ModelStatus* status = out->add_models();
    *status->mutable_spec() = FromSpec(model->spec);
    status->set_architecture(model->config.architecture);
    status->set_parameters(model->num_parameters);
    for (const ClusterState::Group* group : cluster_.groups()) {
      if (group->model == model->spec.name) status->add_groups(group->id);
    }
  }
  std::unordered_map<Session, std::string> names;
  for (const ClusterState::Worker* worker : cluster_.workers()) {
    names[worker->session] = worker->info.id;
    v1::WorkerStatus* status = out->add_workers();
    status->set_id(worker->info.id);
    status->set_host(worker->info.host);
    status->set_pid(worker->info.pid);
    status->set_device(worker->info.device);
    status->set_state(ToState(worker->phase));
    status->set_group(worker->group);
    status->set_rank(worker->rank);
    const double age = static_cast<double>(now - worker->heard_ms) / 1e3;
    status->set_heartbeat_age_seconds(age);
    status->set_last_step_age_seconds(worker->step_age_seconds < 0 ? -1 : worker->step_age_seconds + age);
    status->set_memory_bytes(worker->memory_bytes);
    status->set_detail(worker->detail);
  }
  for (const ClusterState::Group* group : cluster_.groups()) {
    v1::GroupStatus* status = out->add_groups();
    status->set_id(group->id);
    status->set_model(group->model);
    status->set_epoch(group->epoch);
    status->set_state(ToState(group->phase));
    for (const Session session : group->ranks) status->add_workers(names[session]);
    if (group->leader) {
      status->set_fingerprint(group->leader->fingerprint);
      status->set_kv_blocks_total(group->leader->kv_blocks);
      status->set_kv_block_size(group->leader->kv_block_size);
      status->set_kv_cache_dtype(group->leader->kv_cache_dtype);
    }
    status->set_kv_blocks_used(group->load.kv_blocks_used);
    status->set_running(group->load.running);
    status->set_queued(group->load.queued);
    status->set_tokens_per_second(group->load.tokens_per_second);
    status->set_generated_tokens(group->load.generated_tokens);
    status->set_kv_blocks_cached(group->load.kv_blocks_cached);
    status->set_prefix_query_tokens(group->load.prefix_query_tokens);
    status->set_prefix_hit_tokens(group->load.prefix_hit_tokens);
    status->set_preemptions(group->load.preemptions);
    status->set_drafted_tokens(group->load.drafted_tokens);
    status->set_accepted_tokens(group->load.accepted_tokens);
    status->set_detail(cluster_.Describe(*group));
  }
}

void Coordinator::FillModel(const LoadedModel& model, v1::Model* out) const {
  DescribeModel(model, config_.max_tokens_default, out);
  out->set_ready(router_.Serves(model.spec.name));
  if (out->ready()) return;
  const std::string why = cluster_.WhyNotReady(model.spec.name);
  out->set_detail(out->detail().empty() ? why : absl::StrCat(why, "; ", out->detail()));
}

}  // namespace phalanx::coordinator

#include "coordinator/coordinator.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "base/version.h"
#include "coordinator/control_streams.h"
#include "coordinator/convert.h"
#include "coordinator/generate_call.h"
#include "coordinator/rope_mode.h"

namespace phalanx::coordinator {
namespace {

constexpr std::chrono::milliseconds kTick{100};
constexpr int64_t kLateMs = 500;  // of a tick: the loop was held up, and workers' heartbeats with it
constexpr int64_t kSweepMs = 1000;
constexpr std::chrono::seconds kHelloTimeout{10};
// A call that has waited so long for a model to be opened is told that there is none.
constexpr std::chrono::seconds kOpenTimeout{60};
constexpr int kMaxWaiting = 8;  // calls that wait for a model to be opened
constexpr int kPoolThreads = 2;
constexpr int kBulkThreads = 1;
constexpr size_t kMaxIdBytes = 256;
// Of what clients are told to wait.
constexpr double kLeastRetrySeconds = 1;
constexpr double kMostRetrySeconds = 30;

ClusterState::Options ClusterOptions(const Config& config) {
  ClusterState::Options options;
  options.heartbeat_timeout_ms = static_cast<int64_t>(config.heartbeat_timeout_s * 1e3);
  options.load_timeout_ms = static_cast<int64_t>(config.load_timeout_s * 1e3);
  options.stall_timeout_ms = static_cast<int64_t>(config.stall_timeout_s * 1e3);
  options.collective = config.collective_choice;
  // The term: epochs of an earlier coordinator are smaller.
  const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
  options.first_epoch = static_cast<uint64_t>(since_1970 / std::chrono::seconds(1)) << 20 | 1;
  absl::BitGen random;
  options.nonce = absl::StrFormat("%06x", absl::Uniform<uint32_t>(random, 0, 1u << 24));
  return options;
}

}  // namespace

Coordinator::Coordinator(const Config& config)
    : config_(config),
      in_flight_(config.max_in_flight),
      cluster_(ClusterOptions(config)),
      pool_(kPoolThreads),
      bulk_pool_(kBulkThreads),
      loop_(kTick, [this] { Tick(); }) {}

Coordinator::~Coordinator() {
  pool_.Stop();
  bulk_pool_.Stop();
  loop_.Stop();
}

double Coordinator::Now() const {
  return std::chrono::duration<double>(EventLoop::Clock::now() - began_).count();
}

int64_t Coordinator::NowMs() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(EventLoop::Clock::now() - began_).count();
}

// --- models

void Coordinator::EndOpening() {
  MutexLock lock(opening_mu_);
  opening_.store(false);
  opened_.NotifyAll();
}

absl::Status Coordinator::AwaitModels() {
  if (!opening_.load()) return absl::OkStatus();
  const auto deadline = CondVar::Clock::now() + kOpenTimeout;
  MutexLock lock(opening_mu_);
  if (waiting_ < kMaxWaiting) {
    ++waiting_;
    while (opening_.load() && opened_.WaitUntil(opening_mu_, deadline)) {
    }
    --waiting_;
  }
  if (!opening_.load()) return absl::OkStatus();
  return absl::UnavailableError("the model that the coordinator starts with is being opened; try again");
}

absl::Status Coordinator::Announce(const ModelSpec& spec) {
  Actions actions;
  PHX_RETURN_IF_ERROR(cluster_.LoadModel(NowMs(), spec, &actions));
  announced_ = spec.name;
  Execute(actions);
  return absl::OkStatus();
}

absl::Status Coordinator::Load(std::shared_ptr<const LoadedModel> model) {
  PHX_RETURN_IF_ERROR(registry_.Add(model));
  const ModelSpec& spec = model->spec;
  spdlog::info("model '{}' loaded from {}: tp {}, {} groups, context {}", spec.name, spec.path,
               spec.tensor_parallel, spec.groups, spec.context_length);
  Actions actions;
  if (spec.name == announced_) {
    announced_.clear();
  } else {
    PHX_RETURN_IF_ERROR(cluster_.LoadModel(NowMs(), spec, &actions));
  }
  num_models_.fetch_add(1);
  Execute(actions);
  return absl::OkStatus();
}

absl::Status Coordinator::Unload(const std::string& name) {
  PHX_RETURN_IF_ERROR(registry_.Remove(name));
  Actions actions;
  PHX_RETURN_IF_ERROR(cluster_.UnloadModel(NowMs(), name, &actions));
  num_models_.fetch_sub(1);
  Execute(actions);
  spdlog::info("model '{}' unloaded", name);
  return absl::OkStatus();
}

// --- workers

absl::Status Coordinator::Join(WorkerStream* stream, const internal::v1::Hello& hello, Session* session) {
  if (draining()) return absl::UnavailableError("the coordinator is shutting down");
  if (hello.version() != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("worker ", hello.worker_id(), " has version '",
                                                      hello.version(), "'; this coordinator is ", kVersion));
  }
  if (hello.worker_id().empty() || hello.host().empty() || hello.worker_id().size() > kMaxIdBytes ||
      hello.host().size() > kMaxIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("hello.worker_id has ", hello.worker_id().size(),
                                                   " bytes and hello.host ", hello.host().size(),
                                                   "; both must have 1 to ", kMaxIdBytes));
  }
  const Session id = next_session_++;
  Actions actions;
  PHX_RETURN_IF_ERROR(cluster_.WorkerJoined(NowMs(), id, ToWorkerInfo(hello), &actions));
  *session = id;
  sessions_[id] = {stream, hello.worker_id()};
  spdlog::info("worker {} joined: {}, pid {} on {}", hello.worker_id(), hello.device(), hello.pid(),
               hello.host());
  internal::v1::JoinResponse welcome;
  welcome.mutable_welcome()->set_heartbeat_interval_ms(
      static_cast<int32_t>(config_.heartbeat_interval_s * 1e3));
  welcome.mutable_welcome()->set_heartbeat_timeout_ms(
      static_cast<int32_t>(config_.heartbeat_timeout_s * 1e3));
  stream->Send(std::move(welcome));
  Execute(actions);
  return absl::OkStatus();
}

void Coordinator::Heartbeat(Session session, const internal::v1::Heartbeat& heartbeat) {
  Actions actions;
  cluster_.WorkerHeartbeat(NowMs(), session, heartbeat.last_step_age_seconds(), heartbeat.memory_bytes(),
                           &actions);
  Execute(actions);
}

void Coordinator::RankChanged(Session session, const internal::v1::AssignmentStatus& status) {
  RankState state;
  switch (status.state()) {
    case internal::v1::ASSIGNMENT_STATE_READY:
      state = RankState::kReady;
      break;
    case internal::v1::ASSIGNMENT_STATE_FAILED:
      state = RankState::kFailed;
      break;
    case internal::v1::ASSIGNMENT_STATE_RELEASED:
      state = RankState::kReleased;
      break;
    default:
      state = RankState::kLoading;
  }
  Actions actions;
  cluster_.WorkerRank(NowMs(), session, status.group_id(), status.epoch(), state, status.detail(), &actions);
  Execute(actions);
}

void Coordinator::Left(Session session, const std::string& reason) {
  const auto joined = sessions_.find(session);
  if (joined == sessions_.end()) return;
  spdlog::warn("worker {} was lost: {}", joined->second.id, reason);
  sessions_.erase(joined);
  Actions actions;
  cluster_.WorkerLost(NowMs(), session, reason, &actions);
  Execute(actions);
}

// --- leaders

absl::Status Coordinator::Serve(GroupStream* stream, const internal::v1::GroupHello& hello) {
  Actions actions;
  LeaderHello leader;
  leader.fingerprint = hello.fingerprint();
  leader.kv_blocks = hello.kv_blocks();
  leader.kv_block_size = hello.kv_block_size();
  leader.context_length = hello.context_length();
  leader.kv_cache_dtype = hello.kv_cache_dtype();
  PHX_RETURN_IF_ERROR(cluster_.LeaderServing(NowMs(), hello.group_id(), hello.epoch(), leader, &actions));
  leaders_[hello.group_id()] = stream;
  Execute(actions);
  return absl::OkStatus();
}

void Coordinator::LeaderLeft(const std::string& group, uint64_t epoch, const std::string& reason) {
  Actions actions;
  cluster_.LeaderGone(NowMs(), group, epoch, reason, &actions);
  Execute(actions);
}

void Coordinator::Load(const std::string& group, uint64_t epoch, const internal::v1::LoadReport& report) {
  GroupLoad load;
  load.kv_blocks_used = report.kv_blocks_used();
  load.running = report.running();
  load.queued = report.queued();
  load.generated_tokens = report.generated_tokens();
  load.tokens_per_second = report.tokens_per_second();
  load.kv_blocks_cached = report.kv_blocks_cached();
  load.prefix_query_tokens = report.prefix_query_tokens();
  load.prefix_hit_tokens = report.prefix_hit_tokens();
  load.preemptions = report.preemptions();
  load.drafted_tokens = report.drafted_tokens();
  load.accepted_tokens = report.accepted_tokens();
  cluster_.LeaderLoad(group, epoch, load);
  const ClusterState::Group* current = cluster_.FindGroup(group);
  if (current != nullptr && current->epoch == epoch) {
    router_.SetReportedLoad(group, int64_t{load.running} + load.queued);
    metrics_.GroupReported(*current);
  }
}

Coordinator::Submitter Coordinator::FindCall(uint64_t request, uint32_t attempt) {
  const auto it = requests_.find(request);
  if (it == requests_.end()) return {};
  const Submitter found = it->second;
  const bool current = found.call->choices[found.choice].generation->log().attempt() == attempt;
  return current ? found : Submitter{};
}

void Coordinator::Submitted(const internal::v1::SubmitResult& result) {
  const Submitter found = FindCall(result.request(), result.attempt());
  if (found.call != nullptr) found.call->OnSubmitResult(found.choice, result);
}

void Coordinator::Output(const internal::v1::StepOutput& output) {
  for (const internal::v1::SequenceOutput& sequence : output.sequences()) {
    const Submitter found = FindCall(sequence.request(), sequence.attempt());
    if (found.call != nullptr) found.call->OnOutput(found.choice, sequence);
  }
}

// --- requests

void Coordinator::Dispatch(GenerateCall* call) {
  call->dispatched_ = true;
  if (call->fields.request_id.empty()) {
    call->fields.request_id = absl::StrFormat("%016x", absl::Uniform<uint64_t>(random_));
  }
  if (const absl::Status status = Route(call); !status.ok()) call->Fail(status);
}

absl::Status Coordinator::Route(GenerateCall* call) {
  if (call->cancelled()) return call->CancelReason();
  PHX_RETURN_IF_ERROR(call->prepared);
  if (draining()) return absl::UnavailableError("the coordinator is shutting down");
  const std::string& model = call->model->spec.name;
  if (const auto now = registry_.Find(model); !now.ok() || *now != call->model) {
    return absl::UnavailableError(absl::StrCat("model '", model, "' was unloaded"));
  }
  // Errors of the request come before those of the cluster.
  auto sampling =
      ResolveSampling(call->fields, static_cast<int64_t>(call->prompt.size()), call->model->limits,
                      config_.max_tokens_default, absl::Uniform<uint64_t>(random_));
  PHX_RETURN_IF_ERROR(sampling.status());
  const auto group_id = router_.Pick(model, call->prompt);
  if (!group_id) {
    return absl::UnavailableError(
        absl::StrCat("no group of model '", model, "' is ready: ", cluster_.WhyNotReady(model)));
  }
  const ClusterState::Group& group = *cluster_.FindGroup(*group_id);
  if (group.leader->context_length > 0 && group.leader->context_length < call->model->limits.context_length) {
    ModelLimits limits = call->model->limits;
    limits.context_length = group.leader->context_length;
    sampling = ResolveSampling(call->fields, static_cast<int64_t>(call->prompt.size()), limits,
                               config_.max_tokens_default, sampling->seed);
    if (!sampling.ok()) {
      router_.Done(*group_id);
      return sampling.status();
    }
  }
  call->group = *group_id;
  const auto num_choices = static_cast<uint32_t>(sampling->n);
  const uint32_t rope_mode = RopeModeOf(call->model->config, call->model->spec,
                                        static_cast<int64_t>(call->prompt.size()), sampling->max_tokens);
  Generation::Text text{TokensOf(call->model), call->fields.splits_reasoning(), call->opened};
  for (uint32_t i = 0; i < num_choices; ++i) {
    Sampling of_choice = *sampling;
    of_choice.choice = i;
    // The prompt is the same for all.
    if (i > 0) of_choice.prompt_logprobs = -1;
    TokenLog log(std::move(of_choice), rope_mode);
    log.BeginAttempt(group.leader->fingerprint);
    GenerateCall::Choice& choice = call->choices.emplace_back();
    choice.generation =
        std::make_unique<Generation>(std::move(log), static_cast<int64_t>(call->prompt.size()), text, Now());
    choice.meter = std::make_unique<ChoiceMeter>();
    choice.meter->Submitted(metrics_.OfModel(model), call->received_);
    choice.request = next_request_++;
    requests_[choice.request] = {call, i};
    if (i > 0) router_.Add(*group_id);
  }
  spdlog::debug(
      "request \"{}\": number {} to {}, {} prompt tokens, {} choices, max_tokens {}, seed {}, RoPE mode {}",
      absl::CEscape(call->fields.request_id), call->choices[0].request, *group_id, call->prompt.size(),
      num_choices, sampling->max_tokens, sampling->seed, rope_mode);
  Submit(call, 0);
  // One task each: many long prompts do not hold up the loop.
  for (uint32_t i = 1; i < num_choices; ++i) {
    loop_.Post([this, request = call->choices[i].request] {
      const auto it = requests_.find(request);
      if (it != requests_.end()) Submit(it->second.call, it->second.choice);
    });
  }
  return absl::OkStatus();
}

void Coordinator::Submit(GenerateCall* call, uint32_t choice) {
  const GenerateCall::Choice& submitted = call->choices[choice];
  internal::v1::ServeResponse submit;
  *submit.mutable_submit() = MakeSubmit(submitted.request, call->fields.request_id, call->prompt,
                                        submitted.generation->log(), call->opened, call->model->close_marks);
  leaders_.at(call->group)->Send(std::move(submit));
}

void Coordinator::Release(GenerateCall* call, bool abort) {
  for (uint32_t i = 0; i < call->choices.size(); ++i) Release(call, i, abort);
}

void Coordinator::Release(GenerateCall* call, uint32_t choice, bool abort) {
  uint64_t& request = call->choices[choice].request;
  if (request == 0) return;
  requests_.erase(request);
  router_.Done(call->group);
  if (const auto leader = leaders_.find(call->group); abort && leader != leaders_.end()) {
    internal::v1::ServeResponse message;
    message.mutable_abort()->set_request(request);
    leader->second->Send(std::move(message));
  }
  request = 0;
}

void Coordinator::Gone(GenerateCall* call) {
  Release(call, /*abort=*/true);
  calls_.erase(call);
  in_flight_.Leave(call->admitted());
}

void Coordinator::CloseAll(const std::string& reason) {
  const absl::Status status = absl::UnavailableError(reason);
  for (GenerateCall* call : calls_) {
    if (!call->dispatched_) continue;  // Dispatch will refuse it
    Release(call, /*abort=*/true);
    call->Fail(status);
  }
  const grpc::Status closed(grpc::UNAVAILABLE, reason);
  for (GroupStream* stream : group_streams_) stream->Close(closed);
  for (WorkerStream* stream : worker_streams_) stream->Close(closed);
}

// --- actions

void Coordinator::Execute(const Actions& actions) {
  for (const Action& action : actions) {
    std::visit([this](const auto& a) { Do(a); }, action);
  }
}

void Coordinator::Do(const AssignAction& action) {
  const auto joined = sessions_.find(action.session);
  if (joined == sessions_.end()) return;
  if (action.rank == 0) {
    spdlog::info("group {} epoch {}: forming with {} ranks", action.group, action.epoch, action.num_ranks);
  }
  internal::v1::JoinResponse message;
  internal::v1::Assign* assign = message.mutable_assign();
  assign->set_group_id(action.group);
  assign->set_epoch(action.epoch);
  assign->set_rank(action.rank);
  assign->set_num_ranks(action.num_ranks);
  *assign->mutable_model() = FromSpec(action.model);
  assign->set_collective(action.collective);
  assign->set_collective_id(action.collective_id);
  assign->set_leader_address(action.leader_address);
  assign->set_workers_on_host(action.workers_on_host);
  joined->second.stream->Send(std::move(message));
}

void Coordinator::Do(const ReleaseAction& action) {
  const auto joined = sessions_.find(action.session);
  if (joined == sessions_.end()) return;
  internal::v1::JoinResponse message;
  message.mutable_release()->set_group_id(action.group);
  message.mutable_release()->set_epoch(action.epoch);
  message.mutable_release()->set_reason(action.reason);
  joined->second.stream->Send(std::move(message));
}

void Coordinator::Do(const DropWorkerAction& action) {
  const auto joined = sessions_.find(action.session);
  if (joined == sessions_.end()) return;
  spdlog::warn("worker {} dropped: {}", joined->second.id, action.reason);
  joined->second.stream->Close(grpc::Status(grpc::ABORTED, action.reason));
  sessions_.erase(joined);
}

void Coordinator::Do(const GroupReadyAction& action) {
  spdlog::info("group {} epoch {}: ready", action.group, action.epoch);
  router_.AddGroup(action.model, action.group);
  num_ready_groups_.fetch_add(1);
}

void Coordinator::Do(const GroupLostAction& action) {
  spdlog::warn("group {} epoch {}: over: {}", action.group, action.epoch, action.reason);
  if (router_.RemoveGroup(action.group)) num_ready_groups_.fetch_sub(1);
  std::unordered_set<GenerateCall*> lost;
  for (const auto& [request, submitter] : requests_) {
    if (submitter.call->group == action.group) lost.insert(submitter.call);
  }
  const absl::Status status =
      absl::UnavailableError(absl::StrCat("group ", action.group, " was lost: ", action.reason));
  for (GenerateCall* call : lost) {
    Release(call, /*abort=*/false);
    call->Fail(status);
  }
  if (const auto leader = leaders_.find(action.group); leader != leaders_.end()) {
    leader->second->Close(
        grpc::Status(grpc::ABORTED, absl::StrCat("epoch ", action.epoch, " is over: ", action.reason)));
    leaders_.erase(leader);
  }
}

int64_t Coordinator::RetryDelayMs() {
  // Spread, so that those refused together do not come back together.
  return static_cast<int64_t>(1e3 * retry_seconds_ * absl::Uniform<double>(random_, 0.8, 1.2));
}

void Coordinator::Observe(double seconds) {
  const uint64_t refused = metrics_.num_refused() - refused_before_;
  const uint64_t served = metrics_.num_served() - served_before_;
  refused_before_ += refused;
  served_before_ += served;
  // As long as serving so many takes.
  const double wait = served == 0 ? (refused == 0 ? 0 : 2 * retry_seconds_)
                                  : static_cast<double>(refused) * seconds / static_cast<double>(served);
  retry_seconds_ = std::clamp((retry_seconds_ + wait) / 2, kLeastRetrySeconds, kMostRetrySeconds);
  if (refused > 0) {
    spdlog::info(
        "{} requests refused in the last {:.1f} s, {} others ended; {} choices in flight, retry after {:.1f} "
        "s",
        refused, seconds, served, in_flight_.count(), retry_seconds_);
  }
  metrics_.SetCluster(cluster_, num_models_.load(), in_flight_.count());
}

void Coordinator::Tick() {
  const int64_t now_ms = NowMs();
  const int64_t late_ms = now_ms - std::exchange(last_tick_ms_, now_ms) - kTick.count();
  if (late_ms > kLateMs) cluster_.StoodStill(now_ms, late_ms);
  Actions actions;
  cluster_.Tick(now_ms, &actions);
  Execute(actions);
  if (now_ms - last_sweep_ms_ < kSweepMs) return;
  const double seconds = static_cast<double>(now_ms - last_sweep_ms_) / 1e3;
  last_sweep_ms_ = now_ms;
  Observe(seconds);
  const EventLoop::Clock::time_point now = EventLoop::Clock::now();
  for (GenerateCall* call : calls_) call->CutIfStuck(now);
  const auto sweep = [now](auto& streams) {
    for (auto* stream : streams) {
      if (!stream->joined() && now - stream->opened() >= kHelloTimeout) {
        stream->Close(grpc::Status(grpc::DEADLINE_EXCEEDED, "no hello came"));
      }
      stream->CutIfStuck(now);
    }
  };
  sweep(worker_streams_);
  sweep(group_streams_);
}

}  // namespace phalanx::coordinator

#include "coordinator/metrics.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/version.h"

namespace phalanx::coordinator {
namespace {

using metrics::Labels;

// Seconds. As vLLM has them, so that its dashboards fit; finer at the lower end, where small models are.
constexpr double kFirstTokenBounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                        1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
constexpr double kTokenBounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                                   0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
constexpr double kRequestBounds[] = {0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5, 5,    10,
                                     15,   20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
// Tokens.
constexpr double kLengthBounds[] = {1,    2,    5,    10,    20,    50,    100,    200,    500,
                                    1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 1000000};

const char* NameOf(ClusterState::WorkerPhase phase) {
  switch (phase) {
    case ClusterState::WorkerPhase::kIdle:
      return "idle";
    case ClusterState::WorkerPhase::kLoading:
      return "loading";
    case ClusterState::WorkerPhase::kReady:
      return "ready";
    case ClusterState::WorkerPhase::kReleasing:
      return "releasing";
    case ClusterState::WorkerPhase::kLost:
      return "lost";
  }
  return "unknown";
}

const char* NameOf(ClusterState::GroupPhase phase) {
  switch (phase) {
    case ClusterState::GroupPhase::kWaiting:
      return "waiting";
    case ClusterState::GroupPhase::kLoading:
      return "loading";
    case ClusterState::GroupPhase::kReady:
      return "ready";
    case ClusterState::GroupPhase::kFailed:
      return "failed";
  }
  return "unknown";
}

}  // namespace

// --- one choice
// ------------------------------------------------------------------------------------------------------

void ChoiceMeter::Submitted(ModelMetrics* model, double received) {
  model_ = model;
  received_ = received;
  model->waiting_gauge->Set(static_cast<double>(++model->waiting));
}

void ChoiceMeter::Scheduled() {
  if (scheduled_ || model_ == nullptr) return;
  scheduled_ = true;
  model_->waiting_gauge->Set(static_cast<double>(--model_->waiting));
  model_->running_gauge->Set(static_cast<double>(++model_->running));
}

void ChoiceMeter::Said(size_t tokens, double now) {
  if (model_ == nullptr || tokens == 0) return;
  model_->generation_tokens->Add(tokens);
  if (first_ < 0) {
    first_ = now - received_;
    model_->time_to_first_token->Observe(first_);
    if (tokens > 1) model_->inter_token->Observe(0, tokens - 1);
  } else {
    model_->inter_token->Observe((now - last_) / static_cast<double>(tokens), tokens);
  }
  last_ = now;
}

void ChoiceMeter::Finished(FinishReason reason, const Generation::Usage& usage, double now) {
  if (model_ == nullptr) return;
  const bool any = usage.completion_tokens > 0 && first_ >= 0;
  const double first = any ? usage.time_to_first_token_seconds : usage.total_seconds;
  model_->prompt_tokens->Add(static_cast<uint64_t>(usage.prompt_tokens));
  model_->reasoning_tokens->Add(static_cast<uint64_t>(usage.reasoning_tokens));
  model_->prompt_length->Observe(static_cast<double>(usage.prompt_tokens));
  model_->generation_length->Observe(static_cast<double>(usage.completion_tokens));
  model_->e2e->Observe(now - received_);
  model_->queue_time->Observe(usage.queue_seconds);
  model_->prefill_time->Observe(std::max(0.0, first - usage.queue_seconds));
  model_->decode_time->Observe(std::max(0.0, usage.total_seconds - first));
  model_->inference_time->Observe(std::max(0.0, usage.total_seconds - usage.queue_seconds));
  if (any && usage.completion_tokens > 1) {
    model_->time_per_output_token->Observe((last_ - received_ - first_) /
                                           static_cast<double>(usage.completion_tokens - 1));
  }
  End(reason == FinishReason::kLength ? model_->cut : model_->stopped);
}

void ChoiceMeter::End(metrics::Counter* how) {
  if (model_ == nullptr) return;
  if (scheduled_) {
    model_->running_gauge->Set(static_cast<double>(--model_->running));
  } else {
    model_->waiting_gauge->Set(static_cast<double>(--model_->waiting));
  }
  if (how != nullptr) how->Add();
  model_ = nullptr;
}

// --- all
// ------------------------------------------------------------------------------------------------------------

CoordinatorMetrics::CoordinatorMetrics() {
  registry_.AddGauge("phalanx_build_info", "1; the version is a label.", {{"version", kVersion}})->Set(1);
  loaded_models_ = registry_.AddGauge("phalanx_models", "Models that are loaded.");
  in_flight_ = registry_.AddGauge("phalanx_in_flight_choices",
                                  "Choices that --max-in-flight counts; what comes beyond it is refused.");
  const auto alias = [this](const char* vllm, const char* own) {
    registry_.Alias(absl::StrCat("vllm:", vllm), absl::StrCat("phalanx_", own));
  };
  for (const char* same : {"num_requests_running",
                           "num_requests_waiting",
                           "prompt_tokens_total",
                           "generation_tokens_total",
                           "request_success_total",
                           "time_to_first_token_seconds",
                           "inter_token_latency_seconds",
                           "request_time_per_output_token_seconds",
                           "e2e_request_latency_seconds",
                           "request_queue_time_seconds",
                           "request_prefill_time_seconds",
                           "request_decode_time_seconds",
                           "request_inference_time_seconds",
                           "request_prompt_tokens",
                           "request_generation_tokens",
                           "request_max_num_generation_tokens",
                           "prefix_cache_queries_total",
                           "prefix_cache_hits_total",
                           "num_preemptions_total",
                           "kv_cache_usage_perc",
                           "cache_config_info"}) {
    alias(same, same);
  }
  // As older dashboards have them.
  alias("time_per_output_token_seconds", "inter_token_latency_seconds");
  alias("gpu_cache_usage_perc", "kv_cache_usage_perc");
  alias("spec_decode_num_draft_tokens_total", "spec_decode_num_draft_tokens_total");
  alias("spec_decode_num_accepted_tokens_total", "spec_decode_num_accepted_tokens_total");
}

ModelMetrics* CoordinatorMetrics::OfModel(const std::string& name) {
  if (const auto found = models_.find(name); found != models_.end()) return &found->second;
  ModelMetrics& m = models_[name];
  m.name = name;
  const Labels labels = {{"model_name", name}};
  const auto counter = [&](const char* own, const char* help) {
    return registry_.AddCounter(absl::StrCat("phalanx_", own), help, labels);
  };
  const auto histogram = [&](const char* own, const char* help, absl::Span<const double> bounds) {
    return registry_.AddHistogram(absl::StrCat("phalanx_", own), help, bounds, labels);
  };
  m.running_gauge = registry_.AddGauge("phalanx_num_requests_running",
                                       "Choices that groups work on, sent by this coordinator.", labels);
  m.waiting_gauge = registry_.AddGauge("phalanx_num_requests_waiting",
                                       "Choices that wait in groups, sent by this coordinator.", labels);
  m.prompt_tokens = counter("prompt_tokens_total", "Prompt tokens of choices that finished.");
  m.generation_tokens = counter("generation_tokens_total", "Tokens generated.");
  m.reasoning_tokens = counter("reasoning_tokens_total", "Tokens of reasoning of choices that finished.");
  const auto ended = [&](const char* reason) {
    return registry_.AddCounter("phalanx_request_success_total",
                                "Choices that ended, by how: stop, length, abort (the client), error.",
                                {{"model_name", name}, {"finished_reason", reason}});
  };
  m.stopped = ended("stop");
  m.cut = ended("length");
  m.aborted = ended("abort");
  m.failed = ended("error");
  m.time_to_first_token = histogram("time_to_first_token_seconds",
                                    "From the arrival of a request to its first token.", kFirstTokenBounds);
  m.inter_token =
      histogram("inter_token_latency_seconds", "Between consecutive tokens of a choice.", kTokenBounds);
  m.time_per_output_token = histogram("request_time_per_output_token_seconds",
                                      "Mean time between the tokens of a choice.", kTokenBounds);
  m.e2e = histogram("e2e_request_latency_seconds", "From the arrival of a request to the end of a choice.",
                    kRequestBounds);
  m.queue_time =
      histogram("request_queue_time_seconds", "From submission to the group's admission.", kRequestBounds);
  m.prefill_time = histogram("request_prefill_time_seconds", "From the group's admission to the first token.",
                             kRequestBounds);
  m.decode_time =
      histogram("request_decode_time_seconds", "From the first token to the end.", kRequestBounds);
  m.inference_time =
      histogram("request_inference_time_seconds", "From the group's admission to the end.", kRequestBounds);
  m.prompt_length = histogram("request_prompt_tokens", "Prompt tokens of a choice.", kLengthBounds);
  m.generation_length =
      histogram("request_generation_tokens", "Generated tokens of a choice.", kLengthBounds);
  m.longest_choice = histogram("request_max_num_generation_tokens",
                               "Generated tokens of a request's longest choice.", kLengthBounds);
  m.prefix_queries = counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.");
  m.prefix_hits = counter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.");
  m.preemptions = counter("num_preemptions_total", "Times that a running choice was put back to wait.");
  m.drafted = counter("spec_decode_num_draft_tokens_total", "Tokens proposed by speculation.");
  m.accepted = counter("spec_decode_num_accepted_tokens_total", "Tokens of speculation that were right.");
  return &m;
}

void CoordinatorMetrics::CallEnded(const std::string& model, absl::StatusCode code) {
  registry_
      .AddCounter("phalanx_requests_total", "Generate calls that ended, by their gRPC status.",
                  {{"model_name", model}, {"code", absl::StatusCodeToString(code)}})
      ->Add();
  if (code == absl::StatusCode::kResourceExhausted) {
    ++refused_;
  } else {
    ++served_;
  }
}

void CoordinatorMetrics::GroupReported(const ClusterState::Group& group) {
  Reported& last = reported_[group.id];
  if (last.epoch != group.epoch) last = {group.epoch, {}};  // a new leader counts from 0
  ModelMetrics* model = OfModel(group.model);
  const auto add = [&](metrics::Counter* counter, auto GroupLoad::*count) {
    const auto now = group.load.*count, before = last.load.*count;
    if (now > before) counter->Add(static_cast<uint64_t>(now - before));
  };
  add(model->prefix_queries, &GroupLoad::prefix_query_tokens);
  add(model->prefix_hits, &GroupLoad::prefix_hit_tokens);
  add(model->preemptions, &GroupLoad::preemptions);
  add(model->drafted, &GroupLoad::drafted_tokens);
  add(model->accepted, &GroupLoad::accepted_tokens);
  last.load = group.load;
}

void CoordinatorMetrics::SetCluster(const ClusterState& cluster, int64_t models, int64_t in_flight) {
  using Values = std::vector<std::pair<Labels, double>>;
  loaded_models_->Set(static_cast<double>(models));
  in_flight_->Set(static_cast<double>(in_flight));

  std::map<std::string, double> workers;
  for (const char* state : {"idle", "loading", "ready", "releasing", "lost"}) workers[state] = 0;
  Values memory;
  for (const ClusterState::Worker* worker : cluster.workers()) {
    ++workers[NameOf(worker->phase)];
    if (worker->phase == ClusterState::WorkerPhase::kLost) continue;
    memory.push_back({{{"worker", worker->info.id}}, static_cast<double>(worker->memory_bytes)});
  }
  Values by_state;
  for (const auto& [state, count] : workers) by_state.push_back({{{"state", state}}, count});
  registry_.SetGauges("phalanx_workers", "Workers, by state.", std::move(by_state));
  registry_.SetGauges("phalanx_worker_memory_bytes", "Held by a worker's weights and KV blocks.",
                      std::move(memory));

  struct Blocks {
    int64_t used = 0, total = 0, size = 0;
  };
  std::map<std::string, Blocks> blocks;  // by model
  std::map<std::pair<std::string, std::string>, double> states;
  Values running, queued, used, cached, total, rate;
  for (const ClusterState::Group* group : cluster.groups()) {
    OfModel(group->model);  // its metrics are there before its first request
    ++states[{group->model, NameOf(group->phase)}];
    if (!group->leader) continue;
    const Labels labels = {{"model_name", group->model}, {"group", group->id}};
    const auto set = [&labels](Values* values, double value) { values->push_back({labels, value}); };
    set(&running, group->load.running);
    set(&queued, group->load.queued);
    set(&used, static_cast<double>(group->load.kv_blocks_used));
    set(&cached, static_cast<double>(group->load.kv_blocks_cached));
    set(&total, static_cast<double>(group->leader->kv_blocks));
    set(&rate, group->load.tokens_per_second);
    Blocks& of_model = blocks[group->model];
    of_model.used += group->load.kv_blocks_used;
    of_model.total += group->leader->kv_blocks;
    of_model.size = group->leader->kv_block_size;
  }
  Values groups, usage, config;
  for (const auto& [key, count] : states) {
    groups.push_back({{{"model_name", key.first}, {"state", key.second}}, count});
  }
  for (const auto& [model, of_model] : blocks) {
    const double share =
        of_model.total == 0 ? 0 : static_cast<double>(of_model.used) / static_cast<double>(of_model.total);
    usage.push_back({{{"model_name", model}}, share});
    config.push_back({{{"model_name", model},
                       {"block_size", absl::StrCat(of_model.size)},
                       {"num_gpu_blocks", absl::StrCat(of_model.total)}},
                      1});
  }
  registry_.SetGauges("phalanx_groups", "Groups, by model and state.", std::move(groups));
  registry_.SetGauges("phalanx_group_running", "Choices that a group works on, of all coordinators.",
                      std::move(running));
  registry_.SetGauges("phalanx_group_queued", "Choices that wait in a group, of all coordinators.",
                      std::move(queued));
  registry_.SetGauges("phalanx_group_kv_blocks_used", "KV blocks in use.", std::move(used));
  registry_.SetGauges("phalanx_group_kv_blocks_cached", "Free KV blocks that hold a prefix.",
                      std::move(cached));
  registry_.SetGauges("phalanx_group_kv_blocks", "KV blocks that a group has.", std::move(total));
  registry_.SetGauges("phalanx_group_tokens_per_second", "Tokens generated by a group, of the last seconds.",
                      std::move(rate));
  registry_.SetGauges("phalanx_kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", std::move(usage));
  registry_.SetGauges("phalanx_cache_config_info", "1; the KV blocks of a model's groups are labels.",
                      std::move(config));
  for (auto it = reported_.begin(); it != reported_.end();) {
    it = cluster.FindGroup(it->first) == nullptr ? reported_.erase(it) : std::next(it);
  }
}

}  // namespace phalanx::coordinator

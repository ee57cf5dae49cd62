// What the coordinator tells Prometheus: its own names (phalanx_...) and, as aliases of these, those of vLLM
// that dashboards, autoscalers and routers know.
//
// Threads: everything runs on the coordinator's loop, except registry(), which any thread may read.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "base/metrics.h"
#include "coordinator/cluster_state.h"
#include "coordinator/generation.h"

namespace phalanx::coordinator {

// The metrics of one model name. They outlive the model: a counter never falls.
struct ModelMetrics {
  std::string name;
  int64_t running = 0, waiting = 0;  // behind the gauges
  metrics::Gauge *running_gauge, *waiting_gauge;
  metrics::Counter *prompt_tokens, *generation_tokens, *reasoning_tokens;
  metrics::Counter *stopped, *cut, *aborted, *failed;  // choices, by how they ended
  metrics::Histogram *time_to_first_token, *inter_token, *time_per_output_token, *e2e;
  metrics::Histogram *queue_time, *prefill_time, *decode_time, *inference_time;
  metrics::Histogram *prompt_length, *generation_length, *longest_choice;
  metrics::Counter *prefix_queries, *prefix_hits, *preemptions, *drafted, *accepted;
};

// Follows one choice from its submission to its end, whichever that is. Times are the coordinator's.
class ChoiceMeter {
 public:
  ChoiceMeter() = default;
  ~ChoiceMeter() { End(nullptr); }
  ChoiceMeter(const ChoiceMeter&) = delete;
  ChoiceMeter& operator=(const ChoiceMeter&) = delete;

  // It waits for its group. `received`: when its call came in.
  void Submitted(ModelMetrics* model, double received);
  // The group works on it. Idempotent.
  void Scheduled();
  // New tokens were said.
  void Said(size_t tokens, double now);
  void Finished(FinishReason reason, const Generation::Usage& usage, double now);
  // It ended otherwise. Without effect once it has ended.
  void Aborted() { End(model_ == nullptr ? nullptr : model_->aborted); }
  void Failed() { End(model_ == nullptr ? nullptr : model_->failed); }

  double first_token() const { return first_; }  // since `received`; -1: none yet

 private:
  void End(metrics::Counter* how);

  ModelMetrics* model_ = nullptr;  // null: not submitted, or over
  bool scheduled_ = false;
  double received_ = 0;
  double first_ = -1;
  double last_ = 0;  // when the last token was said
};

class CoordinatorMetrics {
 public:
  CoordinatorMetrics();

  metrics::Registry& registry() { return registry_; }
  // Made when it is asked for first. Valid as long as this.
  ModelMetrics* OfModel(const std::string& name);
  // A Generate call ended; `model` is empty where the request named none that there is.
  void CallEnded(const std::string& model, absl::StatusCode code);
  // How many calls ended with RESOURCE_EXHAUSTED, and otherwise, so far.
  uint64_t num_refused() const { return refused_; }
  uint64_t num_served() const { return served_; }

  // `group` got a new load report: what it counted since the last one is added to the model's counters.
  void GroupReported(const ClusterState::Group& group);
  // About once a second: what is known of workers and groups.
  void SetCluster(const ClusterState& cluster, int64_t models, int64_t in_flight);

 private:
  metrics::Registry registry_;
  std::map<std::string, ModelMetrics> models_;
  struct Reported {
    uint64_t epoch = 0;
    GroupLoad load;  // the last report
  };
  std::map<std::string, Reported> reported_;  // by group
  metrics::Gauge *loaded_models_, *in_flight_;
  uint64_t refused_ = 0, served_ = 0;
};

}  // namespace phalanx::coordinator

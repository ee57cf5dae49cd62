// ModelRunner: one rank's half of a step. It applies a StepPlan to its block tables, runs the model on its
// shard and leaves logits where the leader samples them. It knows nothing of requests.
//
// Per step, on every rank, in this order:  Launch(plan) -> logits;  leader: Sample;  ShareSampled (Broadcast
// of ids). Where Ops are queued nothing but Sample and FinishSample waits for a step, and Launch for the last
// but one. Thread safety: one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/model_config.h"
#include "base/shard_plan.h"
#include "kernels/ops.h"
#include "worker/checkpoint.h"
#include "worker/collective/collective.h"
#include "worker/scheduler.h"
#include "worker/step_plan.h"
#include "worker/step_runner.h"

namespace phalanx {

struct ModelRunnerOptions {
  int max_tokens_per_step = 512;
  int max_logits_per_step = 128;
  int64_t context_length = 0;  // 0: the model's
  int block_size = 32;         // divides kAttentionChunk
  // Blocks this rank could hold; the group takes the minimum over its ranks.
  int64_t kv_bytes = 0;       // memory for the KV cache on this rank
  int64_t max_kv_blocks = 0;  // never more than this (sequences x context is enough)
  // Where Ops replay: a step of few rows for each sequence is filled up to one of these numbers of rows, with
  // rows that store nothing, and is recorded once for each. Rising, at most kMaxReplayRows; those beyond the
  // two limits above are left out.
  std::vector<int> replay_rows = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256};
  // Called where the weights are packed, before this rank meets the others, with the bytes that they take;
  // returns what kv_bytes is to be. May be null.
  std::function<int64_t(int64_t weight_bytes)> on_packed = nullptr;
  // How long a rank's device may take for what waits for peers that live.
  int64_t peers_timeout_ms = 3600000;
};

// Everything that this group's tokens depend on, beside the request (invariant 3 of the design): weights
// hash, types, backend, instruction set, versions, number of shards; not the number of ranks. One line
// without spaces at its ends; equal strings mean equal bits.
std::string Fingerprint(const Checkpoint& checkpoint, const OpsInfo& info, int num_shards);

// What CollectiveOptions must allow for a runner with these options.
struct CollectiveNeeds {
  int64_t max_elements = 0;
  int64_t max_gather_bytes = 0;
};
CollectiveNeeds CollectiveNeedsOf(const ModelConfig& config, const ShardPlan& plan,
                                  const ModelRunnerOptions& options);

class ModelRunner : public StepRunner {
 public:
  // Loads this rank's slices of the weights, meets the other ranks (AllGather of what each is and can hold)
  // and makes the KV cache. The objects outlive the runner. Errors name the tensor, key or limit:
  // FailedPrecondition where two ranks differ in fingerprint or options, naming both; a rank that fails tells
  // the others, who fail naming it.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const Checkpoint& checkpoint,
                                                             const ModelConfig& config, const ShardPlan& plan,
                                                             int rank, Ops* ops, Collective* collective,
                                                             const ModelRunnerOptions& options);
  ~ModelRunner() override;

  // As StepRunner states; logits are gathered on every rank.
  absl::Status Launch(const StepPlan& plan) override;
  absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>& samples) override;
  absl::Status StartSample(const std::vector<SampleRow>& samples) override;
  absl::StatusOr<StepResult> FinishSample() override;
  bool runs_ahead() const override;
  absl::Status ShareSampled() override;

  // Logits of the last Launch as [num_logits, vocab_size] fp32, for tests and log-probability tools.
  absl::StatusOr<std::vector<float>> ReadLogits();

  int64_t num_kv_blocks() const;
  int64_t memory_bytes() const;  // weights, KV cache and buffers of this rank
  int64_t weight_bytes() const;  // packed weights of this rank
  // Numbers of rows that are replayed; empty where Ops do not replay.
  std::vector<int> replay_rows() const;

 private:
  struct Impl;
  explicit ModelRunner(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx

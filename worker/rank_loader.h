// Loads one rank's half of a group, without gRPC: the model's file, the kernels, the collective with the
// other ranks, the weights and the KV cache, made in the order in which they need each other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/gguf.h"
#include "base/model_config.h"
#include "base/shard_plan.h"
#include "kernels/ops.h"
#include "worker/collective/collective.h"
#include "worker/config.h"
#include "worker/model_runner.h"

namespace phalanx {

struct RankSpec {
  std::string path;  // of the GGUF file
  int rank = 0;
  int num_ranks = 1;
  int num_shards = kDefaultShards;
  Compute compute = Compute::kFast;
  int64_t context_length = 0;  // 0: the model's own
  std::string collective;      // kind
  std::string collective_id;
  int workers_on_host = 1;
};

// Members are freed in reverse order: the runner first.
struct LoadedRank {
  std::unique_ptr<GgufFile> file;
  ModelConfig config;
  ShardPlan plan;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Collective> collective;
  std::unique_ptr<ModelRunner> runner;
  ModelRunnerOptions options;
  std::string fingerprint;
};

// Errors name the file, the flag or the rank at fault. `cancelled` ends the wait for the other ranks.
// `on_collective` gets the collective as soon as it exists, to abort what follows; it lives until the
// LoadedRank, or this call when it fails, ends: the holder must forget it before, which
// `on_collective(nullptr)` tells.
absl::StatusOr<std::unique_ptr<LoadedRank>> LoadRank(const RankSpec& spec, const WorkerConfig& config,
                                                     const std::function<bool()>& cancelled,
                                                     const std::function<void(Collective*)>& on_collective);

}  // namespace phalanx

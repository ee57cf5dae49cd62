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
#include "base/token_bytes.h"
#include "kernels/ops.h"
#include "worker/checkpoint.h"
#include "worker/collective/collective.h"
#include "worker/config.h"
#include "worker/model_runner.h"
#include "worker/shared_weights.h"

namespace phalanx {

struct RankSpec {
  std::string path;       // of the GGUF file or the Hugging Face directory
  std::string tokenizer;  // a folder with tokenizer.json in place of the file's own; "": none
  int rank = 0;
  int num_ranks = 1;
  int num_shards = kDefaultShards;
  Compute compute = Compute::kFast;
  KvType kv_type = KvType::kAuto;  // auto: what WorkerConfig says
  int64_t context_length = 0;      // 0: the model's own
  std::string collective;          // kind
  std::string collective_id;
  MeetFunction meet;  // null: no collective that needs it
  int workers_on_host = 1;
};

// Members are freed in reverse order: the runner first.
struct LoadedRank {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
  ShardPlan plan;
  std::unique_ptr<SharedWeights> shared_weights;  // null: this process has its own
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Collective> collective;
  std::unique_ptr<ModelRunner> runner;
  ModelRunnerOptions options;
  std::string fingerprint;
  // On rank 0: what the model's tokens stand for, [config.vocab_size]. Null where the file has no tokenizer
  // that is supported, and on other ranks.
  std::shared_ptr<const TokenBytes> token_bytes;
};

// The bytes of a model's tokens, from the folder `tokenizer` where it is given, else from `gguf`, else from
// the model's own folder `path`: [vocab_size], ids without a token being control tokens without bytes.
// InvalidArgument naming both numbers for a tokenizer with more tokens than the model; any error of a folder
// that is given. Null, and a warning, where the file's own tokenizer cannot be read.
absl::StatusOr<std::shared_ptr<const TokenBytes>> LoadTokenBytes(const std::string& path,
                                                                 const GgufFile* gguf,
                                                                 const std::string& tokenizer,
                                                                 int64_t vocab_size);

// What a rank's packed weights will about take. A matrix that stays quantised in some products, but not in
// one with a matrix of another type, counts as if it stayed so.
int64_t EstimateWeightBytes(const Checkpoint& checkpoint, const OpsInfo& info, int num_ranks);

// The rung for CreateOps that --device and --rung ask for; --device is not auto.
std::string KernelRung(const WorkerConfig& config);
DeviceMode DeviceModeOf(const WorkerConfig& config);
DeviceGraphs GraphsOf(const WorkerConfig& config);

// Errors name the file, the flag or the rank at fault. `cancelled` ends the wait for the other ranks.
// `on_collective` gets the collective as soon as it exists, to abort what follows; it lives until the
// LoadedRank, or this call when it fails, ends: the holder must forget it before, which
// `on_collective(nullptr)` tells.
absl::StatusOr<std::unique_ptr<LoadedRank>> LoadRank(const RankSpec& spec, const WorkerConfig& config,
                                                     const std::function<bool()>& cancelled,
                                                     const std::function<void(Collective*)>& on_collective);

}  // namespace phalanx

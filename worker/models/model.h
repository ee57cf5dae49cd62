// Model: one rank's forward pass, assembled from the shared tensor-parallel blocks of blocks.h. A new
// architecture is one file here and one line in the table of base/architectures.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/model_config.h"
#include "base/shard_plan.h"
#include "kernels/ops.h"
#include "worker/checkpoint.h"
#include "worker/collective/collective.h"

namespace phalanx {

// What a model is built from; everything outlives it.
struct ModelContext {
  const Checkpoint* checkpoint = nullptr;
  const ModelConfig* config = nullptr;  // mostly the checkpoint's
  const ShardPlan* plan = nullptr;
  int rank = 0;
  Ops* ops = nullptr;
  Collective* collective = nullptr;
  int64_t max_tokens = 0;      // rows of a step
  int64_t max_logits = 0;      // logits rows of a step
  int64_t context_length = 0;  // positions the RoPE tables cover
};

// A step's rows in device form. T rows.
struct ForwardBatch {
  int64_t num_tokens = 0;                 // T
  const int32_t* token_ids = nullptr;     // [T], see EmbedParams
  const int32_t* from_sampled = nullptr;  // [T]
  const int32_t* sampled = nullptr;
  const int32_t* positions = nullptr;  // [T]
  const int32_t* rope_mode = nullptr;  // [T]
  const int64_t* slots = nullptr;      // [T]
  std::vector<AttentionSequence> sequences;
  const int32_t* logit_rows = nullptr;  // [R] rows of the batch
  int64_t num_logits = 0;               // R
  // Numbers and pointers, but for the sequences, are a function of num_tokens and num_logits: see
  // Ops::Replay.
  bool replays = false;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual KvCacheShape kv_shape(int block_size) const = 0;
  virtual int64_t weight_bytes() const = 0;     // packed weights of this rank
  virtual int64_t workspace_bytes() const = 0;  // activations of a step
  // logits: fp32 [R, plan.max_vocab_share], this rank's rows of the output head; columns beyond those are
  // left alone.
  virtual absl::Status Forward(const ForwardBatch& batch, KvCache* cache, float* logits) = 0;
};

// Unimplemented naming the architecture and those supported. Errors of loading name the tensor.
absl::StatusOr<std::unique_ptr<Model>> CreateModel(const ModelContext& context);

}  // namespace phalanx

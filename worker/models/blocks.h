// The tensor-parallel blocks that models are assembled from. Each owns its rank's slice of the weights,
// packed by Ops, and enqueues one part of a forward pass. A block whose shards hold nothing on this rank
// still takes part in every exchange, with sums of +0. Forward allocates nothing.
//
// Letters as in kernels/ops.h: T rows of a step, H/G query/KV heads of this rank, F FFN columns of this rank,
// R rows that need logits. Everything in a ModelContext outlives the blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/models/model.h"

namespace phalanx {

// Device memory for a step of up to max_tokens rows, shared by all layers, and the step's attention operands.
class Workspace {
 public:
  static absl::StatusOr<std::unique_ptr<Workspace>> Create(const ModelContext& context);

  // Names the step's rows. `batch` may go away afterwards, its arrays may not.
  void Begin(const ForwardBatch& batch);

  int64_t num_tokens() const { return num_tokens_; }
  // [T, hidden]: what the layers add up.
  Matrix residual() const { return View(residual_, hidden_size_); }
  // [T, hidden]: input of a block.
  Matrix normed() const { return View(normed_, hidden_size_); }
  // Columns [begin, begin + cols) of a matrix of activations.
  Matrix Columns(const Matrix& of, int64_t begin, int64_t cols) const {
    return {static_cast<char*>(of.data) + begin * element_bytes_, of.rows, cols, of.stride};
  }
  // Where a block writes its rank's sums for Reduce: `products` matrices [T, hidden] fp32.
  absl::StatusOr<float*> Sums(Collective* collective, int products);
  // The last block's output, summed over all ranks: `products` matrices [T, hidden] fp32 that lie side by
  // side in the ranks' sums. The next norm adds their sum to the residual.
  absl::Status Reduce(Collective* collective, int products);
  int64_t bytes() const;

 private:
  friend class TpAttention;
  friend class TpMlp;
  friend class TpMla;
  friend class TpMoe;
  friend class TpNorm;
  Workspace() = default;

  Matrix View(const std::unique_ptr<Buffer>& buffer, int64_t cols) const {
    return {.data = buffer->data(), .rows = num_tokens_, .cols = cols, .stride = cols};
  }

  float* reduced() const { return static_cast<float*>(reduced_->data()); }
  float* second_reduced() const { return reduced() + num_tokens_ * hidden_size_; }

  int64_t hidden_size_ = 0;
  int64_t element_bytes_ = 0;
  int64_t num_tokens_ = 0;
  int num_reduced_ = 0;  // products that wait in reduced_
  bool alone_ = false;   // this rank's sums are one tree's: nothing is to be exchanged
  std::unique_ptr<Buffer> residual_, normed_, reduced_;
  // Inside a block: wide is q | k | v or gate | up, narrow the attention's output or the gated product. With
  // MLA wide is the queries in the latent space, narrow the queries before that; with experts both have a row
  // per token and choice.
  std::unique_ptr<Buffer> wide_, narrow_;
  // MLA: what goes into the latents, and the attention's output in the latent space. Else null.
  std::unique_ptr<Buffer> latent_, attended_;
  // Experts: fp32 scores [T, experts], ids and weights of the chosen ones. Else null.
  std::unique_ptr<Buffer> scores_, expert_ids_, expert_weights_;
  std::vector<int> latent_head_of_;  // MLA: kv_head_of
  AttentionParams attention_;        // its sequences are the step's
  RopeStoreKvParams rope_;
};

// What waits in the workspace = x W^T summed over all shards of all ranks.
absl::Status ReducedMatmul(Ops* ops, Collective* collective, Matrix x, const PackedWeight& weight,
                           Workspace* workspace);

class TpEmbedding {
 public:
  // Every rank embeds every token: the table stays in the file's mapping.
  TpEmbedding(const ModelContext& context, const WeightSource& table) : ops_(context.ops), table_(table) {}
  absl::Status Forward(const ForwardBatch& batch, Matrix x) const;

 private:
  Ops* ops_;
  WeightSource table_;
};

class TpNorm {
 public:
  // weight: [hidden].
  static absl::StatusOr<TpNorm> Create(const ModelContext& context, const std::vector<float>& weight,
                                       float eps);
  // The residual += the last block's output; y = rmsnorm(residual[rows]), all rows where rows is null.
  absl::Status Forward(const Workspace& workspace, const int32_t* rows, Matrix y) const;
  // x = rmsnorm(x).
  absl::Status InPlace(Matrix x) const;
  int64_t weight_bytes() const { return weight_->bytes(); }

 private:
  Ops* ops_ = nullptr;
  float eps_ = 0;
  std::unique_ptr<Buffer> weight_;
};

// Grouped-query attention with RoPE over the paged cache: one product for q | k | v, one for the output.
class TpAttention {
 public:
  struct Tensors {
    WeightSource q, k, v;  // [heads * key_dim | kv_heads * key_dim | kv_heads * value_dim, hidden]
    WeightSource output;   // [hidden, heads * value_dim]
    // All of the model's; may be empty.
    std::vector<float> q_bias, k_bias, v_bias;
  };
  static absl::StatusOr<TpAttention> Create(const ModelContext& context, int layer, const Tensors& tensors);
  // Leaves attention(workspace->normed()), over all ranks, in the workspace. `tables` holds one RoPE table
  // per mode.
  absl::Status Forward(const std::vector<const RopeTable*>& tables, KvCache* cache,
                       Workspace* workspace) const;
  int64_t weight_bytes() const;

 private:
  Ops* ops_ = nullptr;
  Collective* collective_ = nullptr;
  const ModelConfig* config_ = nullptr;
  const Rank* rank_ = nullptr;
  int layer_ = 0;
  std::unique_ptr<PackedWeight> qkv_;  // null where the rank holds no heads
  std::unique_ptr<Buffer> bias_;       // may be null
  std::unique_ptr<PackedWeight> output_;
};

// down(silu(gate(x)) * up(x)).
class TpMlp {
 public:
  struct Tensors {
    WeightSource gate, up;  // [ffn, hidden]
    WeightSource down;      // [hidden, ffn]
  };
  // `columns`: how the plan cuts this MLP.
  static absl::StatusOr<TpMlp> Create(const ModelContext& context, const Tensors& tensors,
                                      Range Shard::*columns);
  // Leaves mlp(workspace->normed()), over all ranks, in the workspace.
  absl::Status Forward(Workspace* workspace) const;
  // This rank's sums alone, see ShardedMatmulParams.
  absl::Status ForwardSums(Workspace* workspace, float* sums, int64_t tree_stride) const;
  int64_t weight_bytes() const;

 private:
  Ops* ops_ = nullptr;
  Collective* collective_ = nullptr;
  std::unique_ptr<PackedWeight> gate_up_;  // null where the rank holds no columns
  std::unique_ptr<PackedWeight> down_;
};

// The last norm and this rank's rows of the output head.
class TpHead {
 public:
  // norm: [hidden]; weight: [vocab, hidden].
  static absl::StatusOr<TpHead> Create(const ModelContext& context, const std::vector<float>& norm,
                                       const WeightSource& weight);
  // Adds the last block's output to the residual. logits: see Model::Forward.
  absl::Status Forward(const ForwardBatch& batch, Workspace* workspace, float* logits) const;
  int64_t weight_bytes() const;

 private:
  Ops* ops_ = nullptr;
  int64_t share_cols_ = 0;
  TpNorm norm_;
  std::unique_ptr<PackedWeight> weight_;  // null where the rank holds no rows
};

}  // namespace phalanx

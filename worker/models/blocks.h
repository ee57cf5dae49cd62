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
  // Before a block: finds the place of its rank's sums, `products` matrices [T, hidden] fp32 that lie side by
  // side.
  absl::Status PlaceSums(int products);
  float* sums() const { return sums_; }
  // After it: its output summed over all ranks, as many matrices, by the next norm where the collective
  // enqueues. The next norm adds their sum to the residual.
  absl::Status Reduce(int products);
  // Whether Reduce does its work itself, at once, and Ops have no part in it.
  bool reduces_on_host() const { return !alone_ && !collective_->enqueues(); }
  // In place of the next norm on a rank that needs none: its part in the sums.
  absl::Status SkipNorm();
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
  int num_reduced_ = 0;                     // products that wait in reduced_
  mutable Collective* unsummed_ = nullptr;  // whose TreeAllReduce of these is for the next norm to make
  bool alone_ = false;                      // this rank's sums are one tree's: nothing is to be exchanged
  Collective* collective_ = nullptr;
  float* sums_ = nullptr;
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

// The workspace's sums = x W^T of this rank's shards.
absl::Status ShardedMatmul(Ops* ops, Matrix x, const PackedWeight& weight, Workspace* workspace);

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
  // `read_by`: see RmsNormParams.
  absl::Status Forward(const Workspace& workspace, const int32_t* rows, Matrix y,
                       const PackedWeight* read_by) const;
  // x = rmsnorm(x).
  absl::Status InPlace(Matrix x, const PackedWeight* read_by) const;
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
  static constexpr int products() { return 1; }  // of a block: see Workspace::PlaceSums
  // Of a product of workspace->normed(); may be null.
  const PackedWeight* reader() const { return qkv_.get(); }
  // Leaves this rank's sums of attention(workspace->normed()) in the workspace. `tables` holds one RoPE table
  // per mode.
  absl::Status Forward(const std::vector<const RopeTable*>& tables, KvCache* cache,
                       Workspace* workspace) const;
  int64_t weight_bytes() const;

 private:
  Ops* ops_ = nullptr;
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
  static constexpr int products() { return 1; }
  const PackedWeight* reader() const { return gate_up_.get(); }
  // Leaves this rank's sums of mlp(workspace->normed()) in the workspace.
  absl::Status Forward(Workspace* workspace) const { return ForwardSums(workspace, workspace->sums(), 0); }
  // This rank's sums alone, see ShardedMatmulParams.
  absl::Status ForwardSums(Workspace* workspace, float* sums, int64_t tree_stride) const;
  int64_t weight_bytes() const;

 private:
  Ops* ops_ = nullptr;
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

#include "worker/models/blocks.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status_macros.h"
#include "worker/models/packing.h"

namespace phalanx {

absl::Status ShardedMatmul(Ops* ops, Matrix x, const PackedWeight& weight, Workspace* workspace) {
  return ops->ShardedMatmul({.x = x, .weight = &weight, .sums = workspace->sums()});
}

absl::StatusOr<std::unique_ptr<Workspace>> Workspace::Create(const ModelContext& context) {
  const ModelConfig& config = *context.config;
  const Rank& rank = RankOf(context);
  const int64_t heads = rank.heads.size();
  const int64_t kv_heads = rank.kv_heads.size();
  int64_t wide = 2 * rank.ffn.size();
  int64_t narrow = std::max(heads * config.value_dim, rank.ffn.size());
  int64_t latent = 0, attended = 0, sums = 1;
  if (!config.mla) {
    wide = std::max(wide, heads * config.key_dim + kv_heads * (config.key_dim + config.value_dim));
  } else if (heads > 0) {
    const MlaConfig& mla = *config.mla;
    const int64_t row = int64_t{mla.kv_lora_rank} + mla.rope_dim;
    const int64_t queries = heads * config.key_dim;
    latent = row + (mla.q_lora_rank > 0 ? mla.q_lora_rank : queries);
    wide = std::max(wide, heads * row);
    narrow = std::max(narrow, queries);
    attended = heads * mla.kv_lora_rank;
  }
  const MoeConfig moe = config.moe.value_or(MoeConfig());
  if (config.moe) {
    const int64_t columns =
        rank.experts.size() > 0 ? int64_t{moe.experts_per_token} * moe.expert_ffn_size : 0;
    wide = std::max({wide, 2 * columns, 2 * rank.shared_ffn.size()});
    narrow = std::max({narrow, columns, rank.shared_ffn.size()});
    if (moe.num_shared_experts > 0) sums = 2;
  }
  const int64_t element = BlockBytes(context.ops->activation_dtype());

  auto workspace = std::unique_ptr<Workspace>(new Workspace());
  workspace->hidden_size_ = config.hidden_size;
  workspace->element_bytes_ = element;
  workspace->collective_ = context.collective;
  workspace->alone_ = context.plan->ranks.size() == 1 && SubtreesOf(0, context.plan->num_shards).size() == 1;
  const auto allocate = [&](int64_t cols, int64_t element_bytes,
                            std::unique_ptr<Buffer>* buffer) -> absl::Status {
    PHX_ASSIGN_OR_RETURN(
        *buffer, context.ops->Allocate(std::max<int64_t>(context.max_tokens * cols, 1) * element_bytes));
    return absl::OkStatus();
  };
  PHX_RETURN_IF_ERROR(allocate(config.hidden_size, element, &workspace->residual_));
  PHX_RETURN_IF_ERROR(allocate(config.hidden_size, element, &workspace->normed_));
  PHX_RETURN_IF_ERROR(allocate(sums * config.hidden_size, sizeof(float), &workspace->reduced_));
  PHX_RETURN_IF_ERROR(allocate(wide, element, &workspace->wide_));
  PHX_RETURN_IF_ERROR(allocate(narrow, element, &workspace->narrow_));
  if (config.mla) {
    PHX_RETURN_IF_ERROR(allocate(latent, element, &workspace->latent_));
    PHX_RETURN_IF_ERROR(allocate(attended, element, &workspace->attended_));
  }
  if (config.moe) {
    PHX_RETURN_IF_ERROR(allocate(moe.num_experts, sizeof(float), &workspace->scores_));
    PHX_RETURN_IF_ERROR(allocate(moe.experts_per_token, sizeof(int32_t), &workspace->expert_ids_));
    PHX_RETURN_IF_ERROR(allocate(moe.experts_per_token, sizeof(float), &workspace->expert_weights_));
  }
  workspace->attention_.num_heads = static_cast<int>(heads);
  // All heads share the one latent.
  if (config.mla) workspace->latent_head_of_.assign(heads, 0);
  workspace->attention_.kv_head_of = config.mla ? workspace->latent_head_of_.data() : rank.kv_head_of.data();
  workspace->attention_.scale =
      static_cast<float>(config.softmax_factor / std::sqrt(static_cast<double>(config.key_dim)));
  workspace->attention_.sequences.reserve(context.max_tokens);
  workspace->rope_.num_heads = static_cast<int>(heads);
  workspace->rope_.tables.reserve(config.rope.size());
  return workspace;
}

void Workspace::Begin(const ForwardBatch& batch) {
  num_tokens_ = batch.num_tokens;
  num_reduced_ = 0;
  unsummed_ = nullptr;
  attention_.sequences = batch.sequences;
  rope_.positions = batch.positions;
  rope_.rope_mode = batch.rope_mode;
  rope_.slots = batch.slots;
}

int64_t Workspace::bytes() const {
  int64_t bytes = 0;
  for (const auto* buffer : {&residual_, &normed_, &reduced_, &wide_, &narrow_, &latent_, &attended_,
                             &scores_, &expert_ids_, &expert_weights_}) {
    if (*buffer != nullptr) bytes += (*buffer)->bytes();
  }
  return bytes;
}

absl::Status Workspace::PlaceSums(int products) {
  sums_ = reduced();
  if (alone_) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(sums_, collective_->SumsBuffer(products * num_tokens_ * hidden_size_));
  return absl::OkStatus();
}

absl::Status Workspace::Reduce(int products) {
  num_reduced_ = products;
  if (alone_) return absl::OkStatus();
  if (collective_->enqueues()) {
    unsummed_ = collective_;
    return absl::OkStatus();
  }
  return collective_->TreeAllReduce(products * num_tokens_ * hidden_size_, reduced());
}

absl::Status Workspace::SkipNorm() {
  if (unsummed_ == nullptr) return absl::OkStatus();
  return std::exchange(unsummed_, nullptr)
      ->TreeAllReduce(num_reduced_ * num_tokens_ * hidden_size_, reduced());
}

absl::Status TpEmbedding::Forward(const ForwardBatch& batch, Matrix x) const {
  return ops_->Embed({.table = table_,
                      .token_ids = batch.token_ids,
                      .from_sampled = batch.from_sampled,
                      .sampled = batch.sampled,
                      .x = x});
}

absl::StatusOr<TpNorm> TpNorm::Create(const ModelContext& context, const std::vector<float>& weight,
                                      float eps) {
  TpNorm norm;
  norm.ops_ = context.ops;
  norm.eps_ = eps;
  PHX_ASSIGN_OR_RETURN(norm.weight_, UploadVector(context.ops, weight));
  return norm;
}

absl::Status TpNorm::Forward(const Workspace& workspace, const int32_t* rows, Matrix y,
                             const PackedWeight* read_by) const {
  const RmsNormParams norm = {.residual = workspace.residual(),
                              .add = workspace.num_reduced_ > 0 ? workspace.reduced() : nullptr,
                              .add2 = workspace.num_reduced_ > 1 ? workspace.second_reduced() : nullptr,
                              .weight = static_cast<const float*>(weight_->data()),
                              .eps = eps_,
                              .rows = rows,
                              .y = y,
                              .read_by = read_by};
  if (workspace.unsummed_ == nullptr) return ops_->RmsNorm(norm);
  Collective* const collective = std::exchange(workspace.unsummed_, nullptr);
  return collective->TreeAllReduceRmsNorm(
      workspace.num_reduced_ * workspace.num_tokens_ * workspace.hidden_size_, workspace.reduced(), ops_,
      norm);
}

absl::Status TpNorm::InPlace(Matrix x, const PackedWeight* read_by) const {
  return ops_->RmsNorm({.residual = x,
                        .add = nullptr,
                        .add2 = nullptr,
                        .weight = static_cast<const float*>(weight_->data()),
                        .eps = eps_,
                        .rows = nullptr,
                        .y = x,
                        .read_by = read_by});
}

absl::StatusOr<TpAttention> TpAttention::Create(const ModelContext& context, int layer,
                                                const Tensors& tensors) {
  TpAttention block;
  block.ops_ = context.ops;
  block.config_ = context.config;
  block.rank_ = &RankOf(context);
  block.layer_ = layer;
  const auto rows = [](Range heads, int64_t dim) { return Range{heads.begin * dim, heads.end * dim}; };
  const Range q = rows(block.rank_->heads, context.config->key_dim);
  const Range k = rows(block.rank_->kv_heads, context.config->key_dim);
  const Range v = rows(block.rank_->kv_heads, context.config->value_dim);
  PHX_ASSIGN_OR_RETURN(block.qkv_, PackRows(context.ops, {{tensors.q, q}, {tensors.k, k}, {tensors.v, v}}));
  if (block.qkv_ != nullptr &&
      !(tensors.q_bias.empty() && tensors.k_bias.empty() && tensors.v_bias.empty())) {
    std::vector<float> bias;
    const std::pair<const std::vector<float>*, Range> parts[] = {
        {&tensors.q_bias, q}, {&tensors.k_bias, k}, {&tensors.v_bias, v}};
    for (const auto& [values, range] : parts) {
      const size_t old_size = bias.size();
      bias.resize(old_size + range.size());
      if (!values->empty()) {
        std::copy(values->begin() + range.begin, values->begin() + range.end, bias.begin() + old_size);
      }
    }
    PHX_ASSIGN_OR_RETURN(block.bias_, UploadVector(context.ops, bias));
  }
  PHX_ASSIGN_OR_RETURN(block.output_,
                       PackColumns(context, tensors.output, &Shard::heads, context.config->value_dim));
  return block;
}

absl::Status TpAttention::Forward(const std::vector<const RopeTable*>& tables, KvCache* cache,
                                  Workspace* workspace) const {
  const int64_t num_heads = rank_->heads.size();
  const Matrix out = workspace->View(workspace->narrow_, num_heads * config_->value_dim);
  if (qkv_ != nullptr) {
    const Matrix qkv = workspace->View(workspace->wide_, qkv_->n());
    const int64_t q_cols = num_heads * config_->key_dim;
    const int64_t k_cols = rank_->kv_heads.size() * config_->key_dim;
    const int64_t v_cols = rank_->kv_heads.size() * config_->value_dim;
    const float* bias = bias_ == nullptr ? nullptr : static_cast<const float*>(bias_->data());
    PHX_RETURN_IF_ERROR(ops_->Matmul(
        {.x = workspace->normed(), .weight = qkv_.get(), .bias = bias, .y = qkv, .y_fp32 = false}));

    RopeStoreKvParams& rope = workspace->rope_;
    rope.q = workspace->Columns(qkv, 0, q_cols);
    rope.k = workspace->Columns(qkv, q_cols, k_cols);
    rope.v = workspace->Columns(qkv, q_cols + k_cols, v_cols);
    rope.tables = tables;
    rope.cache = cache;
    rope.layer = layer_;
    PHX_RETURN_IF_ERROR(ops_->RopeStoreKv(rope));

    AttentionParams& attention = workspace->attention_;
    attention.q = rope.q;
    attention.cache = cache;
    attention.layer = layer_;
    attention.out = out;
    PHX_RETURN_IF_ERROR(ops_->Attention(attention));
  }
  return ShardedMatmul(ops_, out, *output_, workspace);
}

int64_t TpAttention::weight_bytes() const {
  return (qkv_ == nullptr ? 0 : qkv_->bytes()) + (bias_ == nullptr ? 0 : bias_->bytes()) + output_->bytes();
}

absl::StatusOr<TpMlp> TpMlp::Create(const ModelContext& context, const Tensors& tensors,
                                    Range Shard::*columns) {
  TpMlp block;
  block.ops_ = context.ops;
  const Range& shards = RankOf(context).shards;
  const Range rows = {(context.plan->shards[shards.begin].*columns).begin,
                      (context.plan->shards[shards.end - 1].*columns).end};
  PHX_ASSIGN_OR_RETURN(block.gate_up_, PackRows(context.ops, {{tensors.gate, rows}, {tensors.up, rows}}));
  PHX_ASSIGN_OR_RETURN(block.down_, PackColumns(context, tensors.down, columns, 1));
  return block;
}

absl::Status TpMlp::ForwardSums(Workspace* workspace, float* sums, int64_t tree_stride) const {
  const Matrix y = workspace->View(workspace->narrow_, down_->k());
  if (gate_up_ != nullptr) {
    const Matrix gate_up = workspace->View(workspace->wide_, gate_up_->n());
    return ops_->GatedShardedMatmul({.x = workspace->normed(),
                                     .gate_up = gate_up_.get(),
                                     .down = down_.get(),
                                     .gated_from = gate_up,
                                     .gated = y,
                                     .sums = sums,
                                     .tree_stride = tree_stride});
  }
  return ops_->ShardedMatmul({.x = y, .weight = down_.get(), .sums = sums, .tree_stride = tree_stride});
}

int64_t TpMlp::weight_bytes() const { return (gate_up_ == nullptr ? 0 : gate_up_->bytes()) + down_->bytes(); }

absl::StatusOr<TpHead> TpHead::Create(const ModelContext& context, const std::vector<float>& norm,
                                      const WeightSource& weight) {
  TpHead head;
  head.ops_ = context.ops;
  head.share_cols_ = context.plan->max_vocab_share;
  PHX_ASSIGN_OR_RETURN(head.norm_, TpNorm::Create(context, norm, context.config->rms_eps));
  PHX_ASSIGN_OR_RETURN(head.weight_, PackRows(context.ops, {{weight, RankOf(context).vocab}}));
  return head;
}

absl::Status TpHead::Forward(const ForwardBatch& batch, Workspace* workspace, float* logits) const {
  if (batch.num_logits == 0) return absl::OkStatus();
  if (weight_ == nullptr) return workspace->SkipNorm();
  Matrix x = workspace->normed();
  x.rows = batch.num_logits;
  PHX_RETURN_IF_ERROR(norm_.Forward(*workspace, batch.logit_rows, x, weight_.get()));
  const Matrix y = {.data = logits, .rows = batch.num_logits, .cols = weight_->n(), .stride = share_cols_};
  return ops_->Matmul({.x = x, .weight = weight_.get(), .bias = nullptr, .y = y, .y_fp32 = true});
}

int64_t TpHead::weight_bytes() const {
  return norm_.weight_bytes() + (weight_ == nullptr ? 0 : weight_->bytes());
}

}  // namespace phalanx

#include "worker/models/moe.h"

#include <utility>

#include "base/status_macros.h"
#include "worker/models/packing.h"

namespace phalanx {

absl::StatusOr<TpMoe> TpMoe::Create(const ModelContext& context, const Tensors& tensors) {
  TpMoe block;
  block.ops_ = context.ops;
  block.config_ = &*context.config->moe;
  block.rank_ = &RankOf(context);
  const int num_experts = block.config_->num_experts;
  PHX_ASSIGN_OR_RETURN(block.gate_, PackRows(context.ops, {{tensors.gate, {0, num_experts}}}));
  PHX_ASSIGN_OR_RETURN(block.bias_, UploadVector(context.ops, tensors.bias));
  block.weight_bytes_ = block.gate_->bytes() + block.bias_->bytes();
  block.gate_up_views_.resize(num_experts);
  block.down_views_.resize(num_experts);
  for (int64_t e = block.rank_->experts.begin; e < block.rank_->experts.end; ++e) {
    const TpMlp::Tensors& expert = tensors.experts[e];
    PHX_ASSIGN_OR_RETURN(
        block.gate_up_.emplace_back(),
        PackRows(context.ops, {{expert.gate, {0, expert.gate.rows}}, {expert.up, {0, expert.up.rows}}}));
    PHX_ASSIGN_OR_RETURN(block.down_.emplace_back(),
                         PackRows(context.ops, {{expert.down, {0, expert.down.rows}}}));
    block.gate_up_views_[e] = block.gate_up_.back().get();
    block.down_views_[e] = block.down_.back().get();
    block.weight_bytes_ += block.gate_up_.back()->bytes() + block.down_.back()->bytes();
  }
  const Range& shards = block.rank_->shards;
  for (int64_t s = shards.begin; s < shards.end; ++s) {
    block.expert_cuts_.push_back(context.plan->shards[s].experts.begin);
  }
  block.expert_cuts_.push_back(block.rank_->experts.end);
  if (tensors.shared) {
    PHX_ASSIGN_OR_RETURN(block.shared_, TpMlp::Create(context, *tensors.shared, &Shard::shared_ffn));
    block.weight_bytes_ += block.shared_->weight_bytes();
  }
  return block;
}

absl::Status TpMoe::Route(Workspace* workspace) const {
  Matrix scores = workspace->View(workspace->scores_, config_->num_experts);
  PHX_RETURN_IF_ERROR(ops_->Matmul(
      {.x = workspace->normed(), .weight = gate_.get(), .bias = nullptr, .y = scores, .y_fp32 = true}));
  return ops_->Route({.scores = static_cast<const float*>(scores.data),
                      .num_tokens = workspace->num_tokens(),
                      .num_experts = config_->num_experts,
                      .bias = static_cast<const float*>(bias_->data()),
                      .sigmoid = true,
                      .num_groups = config_->num_groups,
                      .top_groups = config_->topk_groups,
                      .top_k = config_->experts_per_token,
                      .normalize = config_->normalize,
                      .scale = static_cast<float>(config_->scaling_factor),
                      .ids = static_cast<int32_t*>(workspace->expert_ids_->data()),
                      .weights = static_cast<float*>(workspace->expert_weights_->data())});
}

absl::Status TpMoe::Forward(Workspace* workspace) const {
  PHX_RETURN_IF_ERROR(Route(workspace));
  const int64_t num_tokens = workspace->num_tokens();
  const int64_t hidden = workspace->hidden_size_;
  const int64_t tree_stride = products() * num_tokens * hidden;
  float* const sums = workspace->sums();

  GroupedMatmulParams grouped;
  grouped.ids = static_cast<const int32_t*>(workspace->expert_ids_->data());
  grouped.top_k = config_->experts_per_token;
  grouped.num_tokens = num_tokens;
  const int64_t choices = num_tokens * grouped.top_k;
  const int64_t columns = gate_up_.empty() ? 0 : config_->expert_ffn_size;
  const Matrix gated = {workspace->narrow_->data(), choices, columns, columns};
  if (!gate_up_.empty()) {
    grouped.x = workspace->normed();
    grouped.experts = gate_up_views_;
    grouped.y = {workspace->wide_->data(), choices, 2 * columns, 2 * columns};
    PHX_RETURN_IF_ERROR(ops_->GroupedMatmul(grouped));
    PHX_RETURN_IF_ERROR(ops_->SwiGlu({.gate_up = grouped.y, .y = gated}));
  }
  grouped.x = gated;
  grouped.x_per_choice = true;
  grouped.experts = down_views_;
  grouped.weights = static_cast<const float*>(workspace->expert_weights_->data());
  grouped.y = {sums, num_tokens, hidden, hidden};
  grouped.expert_cuts = expert_cuts_;
  grouped.first_shard = static_cast<int>(rank_->shards.begin);
  grouped.tree_stride = tree_stride;
  PHX_RETURN_IF_ERROR(ops_->GroupedMatmul(grouped));
  if (!shared_) return absl::OkStatus();
  return shared_->ForwardSums(workspace, sums + num_tokens * hidden, tree_stride);
}

}  // namespace phalanx

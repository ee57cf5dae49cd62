#include "worker/models/mla.h"

#include <utility>

#include "base/status_macros.h"
#include "kernels/dequantize.h"
#include "worker/models/packing.h"
#include "worker/weights.h"

namespace phalanx {
namespace {

// Of the latents' norms, whatever the model's other norms have.
// source: https://github.com/deepseek-ai/DeepSeek-V3/blob/main/inference/model.py (RMSNorm)
constexpr float kLatentEps = 1e-6f;

Range RowsOfHeads(Range heads, int64_t dim) { return {heads.begin * dim, heads.end * dim}; }

// A head's part [N, C] of kv_b, transposed: rows are latent channels.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackTransposed(Ops* ops, const WeightSource& source,
                                                             Range rows) {
  const int64_t n = rows.size(), c = source.cols;
  std::vector<float> row(c), transposed(n * c);
  for (int64_t r = 0; r < n; ++r) {
    DequantizeRow(source, rows.begin + r, 0, c, row.data());
    for (int64_t i = 0; i < c; ++i) transposed[i * n + r] = row[i];
  }
  PackWeightParams params;
  params.pieces.push_back(
      {.source = {.data = transposed.data(), .dtype = DType::kF32, .rows = c, .cols = n}, .rows = {0, c}});
  params.cols = {0, n};
  return ops->PackWeight(params);
}

}  // namespace

absl::StatusOr<TpMla> TpMla::Create(const ModelContext& context, int layer, const Tensors& tensors) {
  TpMla block;
  block.ops_ = context.ops;
  block.config_ = context.config;
  block.rank_ = &RankOf(context);
  block.layer_ = layer;
  if (block.rank_->heads.size() > 0) PHX_RETURN_IF_ERROR(block.PackHeads(context, tensors));
  PHX_ASSIGN_OR_RETURN(block.output_,
                       PackColumns(context, tensors.output, &Shard::heads, context.config->value_dim));
  return block;
}

absl::Status TpMla::PackHeads(const ModelContext& context, const Tensors& tensors) {
  const MlaConfig& mla = *config_->mla;
  const Range heads = rank_->heads;
  const Range q_rows = RowsOfHeads(heads, config_->key_dim);
  const WeightPiece kv_a = {tensors.kv_a, {0, tensors.kv_a.rows}};
  if (mla.q_lora_rank > 0) {
    PHX_ASSIGN_OR_RETURN(into_latents_, PackRows(ops_, {{tensors.q_a, {0, tensors.q_a.rows}}, kv_a}));
    PHX_ASSIGN_OR_RETURN(q_norm_, TpNorm::Create(context, tensors.q_a_norm, kLatentEps));
    PHX_ASSIGN_OR_RETURN(q_, PackRows(ops_, {{tensors.q, q_rows}}));
  } else {
    PHX_ASSIGN_OR_RETURN(into_latents_, PackRows(ops_, {{tensors.q, q_rows}, kv_a}));
  }
  PHX_ASSIGN_OR_RETURN(kv_norm_, TpNorm::Create(context, tensors.kv_a_norm, kLatentEps));
  for (int64_t h = heads.begin; h < heads.end; ++h) {
    const int64_t first = h * (int64_t{mla.nope_dim} + config_->value_dim);
    const Range v_rows = {first + mla.nope_dim, first + mla.nope_dim + config_->value_dim};
    std::unique_ptr<PackedWeight>& k_b = k_b_.emplace_back();
    std::unique_ptr<PackedWeight>& v_b = v_b_.emplace_back();
    if (tensors.k_b.empty()) {
      PHX_ASSIGN_OR_RETURN(k_b, PackTransposed(ops_, tensors.kv_b, {first, first + mla.nope_dim}));
      PHX_ASSIGN_OR_RETURN(v_b, PackRows(ops_, {{tensors.kv_b, v_rows}}));
    } else {
      PHX_ASSIGN_OR_RETURN(k_b, PackRows(ops_, {{tensors.k_b[h], {0, mla.kv_lora_rank}}}));
      PHX_ASSIGN_OR_RETURN(v_b, PackRows(ops_, {{tensors.v_b[h], {0, config_->value_dim}}}));
    }
    k_b_views_.push_back(k_b.get());
    v_b_views_.push_back(v_b.get());
  }
  if (tensors.k_b.empty()) {
    ReleasePages(tensors.kv_b, RowsOfHeads(heads, int64_t{mla.nope_dim} + config_->value_dim));
  }
  return absl::OkStatus();
}

absl::Status TpMla::Forward(const std::vector<const RopeTable*>& tables, KvCache* cache,
                            Workspace* workspace) const {
  if (into_latents_ != nullptr) PHX_RETURN_IF_ERROR(ForwardHeads(tables, cache, workspace));
  return ShardedMatmul(ops_, workspace->View(workspace->narrow_, output_->k()), *output_, workspace);
}

absl::Status TpMla::ForwardHeads(const std::vector<const RopeTable*>& tables, KvCache* cache,
                                 Workspace* workspace) const {
  const MlaConfig& mla = *config_->mla;
  const int64_t num_heads = rank_->heads.size();
  const int64_t cache_row = int64_t{mla.kv_lora_rank} + mla.rope_dim;
  const Matrix latents = workspace->View(workspace->latent_, into_latents_->n());
  const int64_t q_cols = latents.cols - cache_row;
  PHX_RETURN_IF_ERROR(ops_->Matmul({.x = workspace->normed(),
                                    .weight = into_latents_.get(),
                                    .bias = nullptr,
                                    .y = latents,
                                    .y_fp32 = false}));
  Matrix q = workspace->Columns(latents, 0, q_cols);
  if (q_ != nullptr) {
    PHX_RETURN_IF_ERROR(q_norm_.InPlace(q, q_.get()));
    const Matrix q_latent = q;
    q = workspace->View(workspace->narrow_, q_->n());
    PHX_RETURN_IF_ERROR(
        ops_->Matmul({.x = q_latent, .weight = q_.get(), .bias = nullptr, .y = q, .y_fp32 = false}));
  }
  PHX_RETURN_IF_ERROR(kv_norm_.InPlace(workspace->Columns(latents, q_cols, mla.kv_lora_rank), nullptr));

  RopeStoreKvParams& rope = workspace->rope_;
  rope.q = workspace->View(workspace->wide_, num_heads * cache_row);
  PHX_RETURN_IF_ERROR(ops_->HeadMatmul({.x = q, .weights = k_b_views_, .y = rope.q}));
  rope.k = workspace->Columns(latents, q_cols, cache_row);
  rope.v = workspace->Columns(latents, q_cols, 0);
  rope.tables = tables;
  rope.rope_offset = mla.kv_lora_rank;
  rope.cache = cache;
  rope.layer = layer_;
  PHX_RETURN_IF_ERROR(ops_->RopeStoreKv(rope));

  AttentionParams& attention = workspace->attention_;
  attention.q = rope.q;
  attention.cache = cache;
  attention.layer = layer_;
  attention.latent_value_dim = mla.kv_lora_rank;
  attention.out = workspace->View(workspace->attended_, num_heads * mla.kv_lora_rank);
  PHX_RETURN_IF_ERROR(ops_->Attention(attention));
  return ops_->HeadMatmul({.x = attention.out,
                           .weights = v_b_views_,
                           .y = workspace->View(workspace->narrow_, num_heads * config_->value_dim)});
}

int64_t TpMla::weight_bytes() const {
  int64_t bytes = output_->bytes();
  if (into_latents_ == nullptr) return bytes;
  bytes += into_latents_->bytes() + kv_norm_.weight_bytes();
  if (q_ != nullptr) bytes += q_->bytes() + q_norm_.weight_bytes();
  for (const auto& weight : k_b_) bytes += weight->bytes();
  for (const auto& weight : v_b_) bytes += weight->bytes();
  return bytes;
}

}  // namespace phalanx

#include "worker/models/packing.h"

#include "base/status_macros.h"
#include "worker/weights.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<Buffer>> UploadVector(Ops* ops, const std::vector<float>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer, ops->Allocate(bytes));
  PHX_RETURN_IF_ERROR(ops->Copy(buffer->data(), values.data(), bytes, CopyKind::kToDevice));
  return buffer;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackRows(Ops* ops, const std::vector<WeightPiece>& pieces) {
  PackWeightParams params;
  for (const WeightPiece& piece : pieces) {
    if (piece.rows.size() > 0) params.pieces.push_back(piece);
  }
  if (params.pieces.empty()) return nullptr;
  params.cols = {0, pieces[0].source.cols};
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<PackedWeight> weight, ops->PackWeight(params));
  for (const WeightPiece& piece : params.pieces) ReleasePages(piece.source, piece.rows);
  return weight;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackColumns(const ModelContext& context,
                                                          const WeightSource& source, Range Shard::*range,
                                                          int64_t unit) {
  const Range& shards = RankOf(context).shards;
  PackWeightParams params;
  params.pieces.push_back({.source = source, .rows = {0, source.rows}});
  params.first_shard = static_cast<int>(shards.begin);
  for (int64_t s = shards.begin; s < shards.end; ++s) {
    params.shard_cuts.push_back((context.plan->shards[s].*range).begin * unit);
  }
  params.shard_cuts.push_back((context.plan->shards[shards.end - 1].*range).end * unit);
  params.cols = {params.shard_cuts.front(), params.shard_cuts.back()};
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<PackedWeight> weight, context.ops->PackWeight(params));
  // Columns lie across all pages; other ranks of this process's file mapping have their own.
  ReleasePages(source, {0, source.rows});
  return weight;
}

}  // namespace phalanx

// How a rank's slices of a model's matrices are packed, for the blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/models/model.h"

namespace phalanx {

inline const Rank& RankOf(const ModelContext& context) { return context.plan->ranks[context.rank]; }

// A vector of fp32 in device memory.
absl::StatusOr<std::unique_ptr<Buffer>> UploadVector(Ops* ops, const std::vector<float>& values);

// Packs rows of several matrices of equal width into one product. Null where there are no rows.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackRows(Ops* ops, const std::vector<WeightPiece>& pieces);

// Packs the rank's columns of a product whose K is sharded; shard s has columns [range(s).begin,
// range(s).end) times `unit`.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackColumns(const ModelContext& context,
                                                          const WeightSource& source, Range Shard::*range,
                                                          int64_t unit);

}  // namespace phalanx

// Checks of params, shared by every backend. Each failure is InvalidArgument naming the call, the field, its
// value and what would be right. Nothing here touches device memory; CheckHost... read arrays that lie in
// device memory on a backend that shares the host's.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace phalanx {

absl::Status Validate(const PackWeightParams& params);
absl::Status Validate(const RopeConfig& config, int64_t num_positions);
absl::Status Validate(const KvCacheShape& shape, int64_t num_blocks);
absl::Status Validate(const EmbedParams& params);
absl::Status Validate(const RmsNormParams& params);
absl::Status Validate(const MatmulParams& params);
absl::Status Validate(const ShardedMatmulParams& params);
absl::Status Validate(const SwiGluParams& params);
absl::Status Validate(const RopeStoreKvParams& params);
absl::Status Validate(const AttentionParams& params);
absl::Status Validate(const RouteParams& params);
absl::Status Validate(const GroupedMatmulParams& params);
absl::Status Validate(const SampleParams& params);

// Contents of token_ids, from_sampled; of rows; of positions, rope_mode and slots; of block tables; of ids.
absl::Status CheckHostContents(const EmbedParams& params);
absl::Status CheckHostContents(const RmsNormParams& params);
absl::Status CheckHostContents(const RopeStoreKvParams& params);
absl::Status CheckHostContents(const AttentionParams& params);
absl::Status CheckHostContents(const GroupedMatmulParams& params);

}  // namespace phalanx

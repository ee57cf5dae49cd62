// Checks of the contents of arrays that lie in device memory, for backends that share the host's. Each
// failure is InvalidArgument naming the call, the field, its value and what would be right.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace phalanx {

// Contents of token_ids, from_sampled; of rows; of positions, rope_mode and slots; of block tables; of ids.
absl::Status CheckHostContents(const EmbedParams& params);
absl::Status CheckHostContents(const RmsNormParams& params);
absl::Status CheckHostContents(const RopeStoreKvParams& params);
absl::Status CheckHostContents(const AttentionParams& params);
absl::Status CheckHostContents(const GroupedMatmulParams& params);

}  // namespace phalanx

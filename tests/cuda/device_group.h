// Groups of ranks on the emulated device, in this process.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/exchange.h"
#include "kernels/ops.h"
#include "worker/collective/collective.h"

namespace phalanx {

// One of each path's; NCCL is the fake. `ops` by rank, one thread each makes its own; they outlive the group.
absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateDeviceGroup(const std::vector<Ops*>& ops,
                                                                           const CollectiveOptions& options,
                                                                           ExchangePath path,
                                                                           int64_t one_shot_bytes = 0);

}  // namespace phalanx

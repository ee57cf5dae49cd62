// A collective of ranks whose memory is a device's ("nccl"): its calls go to the Ops' Exchange, which
// enqueues them; a collective between the hosts ("shm" or "tcp") carries the rest: how the ranks meet, what
// they tell each other while they load, errors, and who is gone. A thread of its own looks at both, so that a
// rank that is gone, or an error that only the device knows, ends the others' waits.
//
// A call returns when it is enqueued. What goes wrong on the device afterwards is said by Completed and by
// the calls that follow.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/exchange.h"
#include "worker/collective/collective.h"

namespace phalanx {

// What the collective between the hosts must allow.
CollectiveOptions HostHalf(CollectiveOptions options);

// `host` was made of HostHalf(options), by ranks that all call this now; `ops` outlives the collective.
// Errors are those of the path, alike on all ranks where they can be told; peers that cannot be told see this
// rank leave.
absl::StatusOr<std::unique_ptr<Collective>> CreateDeviceCollective(Ops* ops, std::unique_ptr<Collective> host,
                                                                   const CollectiveOptions& options,
                                                                   ExchangePath path = ExchangePath::kAuto,
                                                                   int64_t one_shot_bytes = 0);

}  // namespace phalanx

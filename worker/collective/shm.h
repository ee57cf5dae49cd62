// Ranks that are processes of one host, over POSIX shared memory named after CollectiveOptions::id. The name
// is removed as soon as all ranks came, so that nothing is left in /dev/shm however they end.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/collective/collective.h"

namespace phalanx {

// Rank 0 creates the memory, the others attach. InvalidArgument for options that are wrong or not those of
// rank 0; AlreadyExists for an id or rank that is taken; ResourceExhausted when /dev/shm is too small;
// DeadlineExceeded naming the ranks that did not come.
absl::StatusOr<std::unique_ptr<Collective>> CreateShmCollective(const CollectiveOptions& options);

}  // namespace phalanx

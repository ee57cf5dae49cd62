// Who a process is and whether it lives, from /proc.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace phalanx {

struct ProcessId {
  int64_t pid = 0;
  uint64_t start_time = 0;     // clock ticks since boot
  uint64_t pid_namespace = 0;  // inode: pids of other namespaces mean nothing here
};

// FailedPrecondition where /proc does not tell.
absl::StatusOr<ProcessId> ThisProcess();

// False when the process ended (also as a zombie) or its pid is another process's by now; true when in doubt.
bool IsProcessAlive(int64_t pid, uint64_t start_time);

}  // namespace phalanx

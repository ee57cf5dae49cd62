// The number of files, and so of connections, that a process may have open.
#pragma once

#include <sys/resource.h>

namespace phalanx {

// Raises this process's own limit to the most that the system lets it have. Where that fails, the limit
// stays.
inline void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace phalanx

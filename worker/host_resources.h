// What this process may use of its host: CPUs and memory, limits of its cgroup included (versions 1 and 2).
#pragma once

#include <cstdint>
#include <string>

namespace phalanx {

struct HostResources {
  int cpus = 1;  // CPUs of the affinity mask, no more than the cgroup's quota rounded up; at least 1
  int64_t memory_total = 0;  // bytes: of the host, or the cgroup's limit when smaller
  int64_t memory_available =
      0;  // bytes that can be had without swapping, or what the cgroup's limit leaves when smaller
};

// `root` replaces "/" in tests. What cannot be read counts as no limit.
HostResources ReadHostResources(const std::string& root = "/");

// Processes of this program on the host, as far as /proc shows them; at least 1: this one.
int CountWorkersOnHost();

// Memory for the KV cache of one of `workers_on_host` workers: `fraction` of its fair share of
// `memory_available`, less its weights; at most `limit` when that is not 0. 0 when nothing is left.
int64_t KvCacheBytes(int64_t memory_available, int workers_on_host, double fraction, int64_t weight_bytes,
                     int64_t limit);

}  // namespace phalanx

// What this process may use of its host: CPUs and memory, limits of its cgroup included (versions 1 and 2).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

struct HostResources {
  int cpus = 1;  // CPUs of the affinity mask, no more than the cgroup's quota rounded up; at least 1
  int64_t memory_total = 0;  // bytes: of the host, or the cgroup's limit when smaller
  int64_t memory_available =
      0;  // bytes that can be had without swapping, or what the cgroup's limit leaves when smaller
};

// `root` replaces "/" in tests. What cannot be read counts as no limit.
HostResources ReadHostResources(const std::string& root = "/");

// The CPUs that a process may run on (0: this one), rising; empty where the system does not tell.
std::vector<int> AffinityOf(int pid);
// Whether a pool of `num_threads` is to be pinned, by --pin-threads ("auto", "on", "off") and the process's
// CPUs: where it is, its CPUs, else none, and why not in `why`. `auto` pins where this process was given CPUs
// of its own: fewer than the machine's, as many as threads, none of another worker's (`others`, their CPUs).
// FailedPrecondition for "on" with fewer CPUs than threads that are no other worker's.
absl::StatusOr<std::vector<int>> CpusToPin(const std::string& mode, int num_threads,
                                           const std::vector<int>& own, int machine_cpus,
                                           const std::vector<std::vector<int>>& others, std::string* why);
// The same for this process.
absl::StatusOr<std::vector<int>> CpusToPin(const std::string& mode, int num_threads, std::string* why);

// Processes of this program on the host, as far as /proc shows them; at least 1: this one.
int CountWorkersOnHost();

// Memory for the KV cache of one of `workers_on_host` workers: `fraction` of its fair share of
// `memory_available`, less its weights; at most `limit` when that is not 0. 0 when nothing is left.
int64_t KvCacheBytes(int64_t memory_available, int workers_on_host, double fraction, int64_t weight_bytes,
                     int64_t limit);

}  // namespace phalanx

// Runs a test's body on every rank of a group: on threads, or in forked processes over shared memory or
// connections.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/collective/collective.h"

namespace phalanx {

enum class Transport { kThread, kShm, kTcp, kVirtual, kPeer, kNccl };
std::string ToString(Transport transport);

// What a test program runs the suites on: transports between hosts, or those of a device and who makes their
// groups, all ranks in this process. Defined by host_transports.cc and by tests/cuda/device_transports.cc.
std::vector<Transport> TestedTransports();
absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateTestedGroup(Transport transport,
                                                                           const CollectiveOptions& options);
inline bool IsOfDevice(Transport transport) { return transport >= Transport::kVirtual; }

// Options of a group with a fresh id.
CollectiveOptions GroupOptions(int size, int num_shards);

// "" when all was well, else what was not.
using Body = std::function<std::string(Collective&)>;

// What each rank's body returned, "connect: <status>" when the rank could not connect, or "killed by signal
// <n>".
using Results = std::map<int, std::string>;

Results RunGroup(Transport transport, const CollectiveOptions& options, const Body& body);
// Over shared memory or connections, the processes of `ranks` only (a rank may be there twice); when all but
// `stopped_rank` have ended, that one is killed.
Results RunProcesses(Transport transport, const CollectiveOptions& options, const std::vector<int>& ranks,
                     const Body& body, int stopped_rank = -1);

// Fails the test with every result that is not "".
void ExpectAllWell(const Results& results);

// The names in /dev/shm that belong to the group.
std::vector<std::string> LeftInDevShm(const CollectiveOptions& options);

}  // namespace phalanx

// Runs a test's body on every rank of a group: on threads, or in forked processes over shared memory.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "worker/collective/collective.h"

namespace phalanx {

enum class Transport { kThread, kShm };
std::string ToString(Transport transport);

// Options of a group with a fresh id.
CollectiveOptions GroupOptions(int size, int num_shards);

// "" when all was well, else what was not.
using Body = std::function<std::string(Collective&)>;

// What each rank's body returned, "connect: <status>" when the rank could not connect, or "killed by signal
// <n>".
using Results = std::map<int, std::string>;

Results RunGroup(Transport transport, const CollectiveOptions& options, const Body& body);
// Over shared memory, the processes of `ranks` only (a rank may be there twice); when all but `stopped_rank`
// have ended, that one is killed.
Results RunProcesses(const CollectiveOptions& options, const std::vector<int>& ranks, const Body& body,
                     int stopped_rank = -1);

// Fails the test with every result that is not "".
void ExpectAllWell(const Results& results);

// The names in /dev/shm that belong to the group.
std::vector<std::string> LeftInDevShm(const CollectiveOptions& options);

}  // namespace phalanx

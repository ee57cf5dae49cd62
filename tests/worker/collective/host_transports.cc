#include "tests/worker/collective/group.h"

namespace phalanx {

std::vector<Transport> TestedTransports() { return {Transport::kThread, Transport::kShm, Transport::kTcp}; }

absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateTestedGroup(Transport,
                                                                           const CollectiveOptions& options) {
  return CreateThreadCollectives(options);
}

}  // namespace phalanx

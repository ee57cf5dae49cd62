#include "tests/cuda/device_group.h"

#include <thread>
#include <utility>

#include "base/status_macros.h"
#include "tests/cuda/fake_nccl.h"
#include "worker/collective/device_collective.h"

namespace phalanx {

absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateDeviceGroup(const std::vector<Ops*>& ops,
                                                                           const CollectiveOptions& options,
                                                                           ExchangePath path,
                                                                           int64_t one_shot_bytes) {
  if (path == ExchangePath::kNccl) cuda::SetNcclForTesting(cuda::FakeNccl());
  PHX_ASSIGN_OR_RETURN(auto hosts, CreateThreadCollectives(HostHalf(options)));
  std::vector<absl::Status> statuses(ops.size());
  std::vector<std::unique_ptr<Collective>> group(ops.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < ops.size(); ++r) {
    threads.emplace_back([&, r] {
      auto made = CreateDeviceCollective(ops[r], std::move(hosts[r]), options, path, one_shot_bytes);
      statuses[r] = made.status();
      if (made.ok()) group[r] = *std::move(made);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) PHX_RETURN_IF_ERROR(status);
  return group;
}

}  // namespace phalanx

#include "worker/collective/collective.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/ops.h"
#include "worker/collective/region_collective.h"
#include "worker/collective/shm.h"
#include "worker/collective/tcp_collective.h"

namespace phalanx {

absl::Status Collective::TreeAllReduceRmsNorm(int64_t count, float* out, Ops* ops,
                                              const RmsNormParams& norm) {
  PHX_RETURN_IF_ERROR(TreeAllReduce(count, out));
  return ops->RmsNorm(norm);
}

absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateThreadCollectives(
    const CollectiveOptions& options) {
  PHX_RETURN_IF_ERROR(ValidateCollectiveOptions(options));
  const RegionLayout layout(options);
  PHX_ASSIGN_OR_RETURN(const Region region, MakePrivateRegion(layout));
  std::vector<std::unique_ptr<Collective>> ranks;
  for (int r = 0; r < options.size; ++r) {
    CollectiveOptions of_rank = options;
    of_rank.rank = r;
    ranks.push_back(std::make_unique<RegionCollective>(of_rank, layout, region));
  }
  return ranks;
}

absl::StatusOr<std::unique_ptr<Collective>> CreateCollective(const std::string& kind,
                                                             const CollectiveOptions& options) {
  if (kind != "shm" && kind != "tcp") {
    return absl::InvalidArgumentError(
        absl::StrCat("collective \"", kind, "\" is not known; this version has \"shm\" and \"tcp\""));
  }
  PHX_RETURN_IF_ERROR(ValidateCollectiveOptions(options));
  if (options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(absl::StrCat("collective option rank is ", options.rank, "; with size ",
                                                   options.size, " it must be 0 to ", options.size - 1));
  }
  if (options.size == 1) {
    PHX_ASSIGN_OR_RETURN(auto ranks, CreateThreadCollectives(options));
    return std::move(ranks[0]);
  }
  return kind == "tcp" ? CreateTcpCollective(options) : CreateShmCollective(options);
}

}  // namespace phalanx

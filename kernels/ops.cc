// The backend factory: the only place that knows which backends there are.
#include "kernels/ops.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/reference/reference_ops.h"

namespace phalanx {

std::vector<std::string> AvailableRungs() { return {"reference"}; }

absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const OpsOptions& options) {
  constexpr int kMaxThreads = 1024;
  if (options.num_threads < 1 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads, ", must be in [1, ", kMaxThreads, "]"));
  }
  if (options.rung == "auto" || options.rung == "reference") return std::make_unique<ReferenceOps>(options);
  return absl::InvalidArgumentError(absl::StrCat(
      "rung is \"", options.rung, "\", must be \"auto\" or one of: ", absl::StrJoin(AvailableRungs(), ", ")));
}

}  // namespace phalanx

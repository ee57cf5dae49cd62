// The backend factory: the only place that knows which backends there are.
#include "kernels/ops.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/reference/reference_ops.h"

namespace phalanx {

std::vector<std::string> AvailableRungs() {
  std::vector<std::string> rungs = {"reference"};
  if (MissingForAvx2().empty()) rungs.push_back("avx2");
  if (MissingForAvx512().empty()) rungs.push_back("avx512");
  if (MissingForAmx().empty()) rungs.push_back("amx");
  return rungs;
}

absl::Status Ops::GatedMatmul(const GatedMatmulParams& p) {
  MatmulParams product;
  product.x = p.x;
  product.weight = p.weight;
  product.y = p.gate_up;
  PHX_RETURN_IF_ERROR(Matmul(product));
  return SwiGlu({.gate_up = p.gate_up, .y = p.y});
}

absl::Status Ops::GatedShardedMatmul(const GatedShardedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(GatedMatmul({.x = p.x, .weight = p.gate_up, .gate_up = p.gated_from, .y = p.gated}));
  return ShardedMatmul({.x = p.gated, .weight = p.down, .sums = p.sums, .tree_stride = p.tree_stride});
}

absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const OpsOptions& options) {
  constexpr int kMaxThreads = 1024;
  if (options.num_threads < 1 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads, ", must be in [1, ", kMaxThreads, "]"));
  }
  OpsOptions chosen = options;
  if (chosen.rung == "auto") chosen.rung = AvailableRungs().back();
  if (chosen.rung == "reference") return std::make_unique<ReferenceOps>(chosen);
  if (chosen.rung == "avx2" || chosen.rung == "avx512" || chosen.rung == "amx") return CpuOps::Create(chosen);
  return absl::InvalidArgumentError(absl::StrCat(
      "rung is \"", chosen.rung, "\", must be auto, reference, avx2, avx512 or amx; this host runs ",
      absl::StrJoin(AvailableRungs(), ", ")));
}

}  // namespace phalanx

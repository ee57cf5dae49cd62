// Exchange between devices of this backend: CreateExchange picks the path.
#pragma once

#include <memory>
#include <vector>

#include "base/shard_plan.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/runtime.h"
#include "kernels/exchange.h"

namespace phalanx::cuda {

// TreeAllReduce is one-shot up to this many bytes of the peers' rows, which each rank then reads; above, a
// rank adds its slice of them, and the slices are gathered, by a second kernel. With one subtree on each of
// two ranks that saves nothing.
inline constexpr int64_t kOneShotBytes = int64_t{1} << 20;

class FastProducts;

// All ranks call it at the same time; errors are the same on all as far as one can tell the others. `fast`,
// of mode fast, else null, outlives the calls of the exchange; where the path is NCCL's, a rank's sums are
// then rounded to 16 bits and added by NCCL.
absl::StatusOr<std::unique_ptr<Exchange>> CreateExchange(std::shared_ptr<Runtime> runtime, bool half,
                                                         FastProducts* fast, const ExchangeOptions& options);

// ---- For the paths ------------------------------------------------------------------------------

// Whose subtrees are which, and how they are added.
struct ExchangeLayout {
  // Internal if the order of base/shard_plan.h cannot be had with kMaxPendingSums.
  static absl::StatusOr<ExchangeLayout> Create(const ExchangeOptions& options);

  int num_subtrees(int rank) const { return first_subtree[rank + 1] - first_subtree[rank]; }
  int total() const { return first_subtree.back(); }
  // The rank's slice of a two-shot TreeAllReduce.
  Range Slice(int rank, int64_t count) const;
  bool OneShot(int64_t count) const;  // the same on all ranks

  int size = 1;
  int64_t one_shot_bytes = 0;
  std::vector<int> first_subtree;  // [size + 1]
  TreeArgs tree;                   // without rows
};

// Of a norm of all rows, behind a TreeAllReduce of `count`. `fast` as of NormArgs.
absl::Status LaunchNorm(Runtime* runtime, bool half, FastProducts* fast, const RmsNormParams& norm,
                        TreeSumNormArgs* args);

absl::StatusOr<std::unique_ptr<Exchange>> CreateNcclExchange(std::shared_ptr<Runtime> runtime, bool half,
                                                             bool fast, const ExchangeOptions& options,
                                                             const ExchangeLayout& layout, bool shares_device,
                                                             const std::string& why);

}  // namespace phalanx::cuda

// Products of experts: the rows of each expert are gathered and take the one packed product there is.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/cpu_weight.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops.h"

namespace phalanx {

// One thread at a time; works on the pool's.
class CpuGrouped {
 public:
  CpuGrouped(ThreadPool& pool, CpuGemm& gemm)
      : pool_(pool), gemm_(gemm), stacks_(static_cast<size_t>(pool.num_threads())) {}
  // Validated params, experts of the CPU backend.
  absl::Status Run(const GroupedMatmulParams& params);

 private:
  // Sorts the choices whose expert is here by expert, those of an expert by token.
  void Sort(const GroupedMatmulParams& params);
  // The sums over a token's experts, shard by shard and up the trees.
  void Combine(const GroupedMatmulParams& params, int64_t t, const float* products, float* stack) const;

  ThreadPool& pool_;
  CpuGemm& gemm_;
  // Grow-only.
  std::vector<int64_t> begin_;   // [E + 1] an expert's first sorted choice
  std::vector<int64_t> sorted_;  // choices t * top_k + j
  std::vector<int64_t> place_;   // [T * top_k] of a choice in sorted_, -1 where another rank holds it
  Scratch rows_, products_;
  std::vector<Scratch> stacks_;  // of each thread
};

}  // namespace phalanx

// CpuOps: the fast path on processors, for the rungs "avx2", "avx512", "avx512_bf16" and "amx". Rare
// operations are the reference's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_grouped.h"
#include "kernels/cpu/cpu_weight.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/reference/reference_ops.h"

namespace phalanx {

class CpuOps : public ReferenceOps {
 public:
  static bool IsRung(const std::string& rung);
  // FailedPrecondition naming the rung and what this host lacks. options.rung: one of these.
  static absl::StatusOr<std::unique_ptr<Ops>> Create(const OpsOptions& options);

  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& params) override;
  bool UseWeightMemory(WeightMemory* memory) override;
  int64_t KvBlockBytes(const KvCacheShape& shape) const override;
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheShape& shape,
                                                         int64_t num_blocks) override;

  absl::Status RmsNorm(const RmsNormParams& params) override;
  absl::Status Matmul(const MatmulParams& params) override;
  absl::Status ShardedMatmul(const ShardedMatmulParams& params) override;
  absl::Status SwiGlu(const SwiGluParams& params) override;
  absl::Status GatedMatmul(const GatedMatmulParams& params) override;
  absl::Status GatedShardedMatmul(const GatedShardedMatmulParams& params) override;
  absl::Status RopeStoreKv(const RopeStoreKvParams& params) override;
  absl::Status Attention(const AttentionParams& params) override;
  absl::Status Route(const RouteParams& params) override;
  absl::Status GroupedMatmul(const GroupedMatmulParams& params) override;
  absl::Status Sample(const SampleParams& params) override;

 private:
  CpuOps(const OpsOptions& options, const GemmKernels& kernels, const QuantKernels* quant,
         const char* instruction_set);
  // Runs body(row, thread) for rows; on one thread where the work is small.
  template <typename Body>
  void ForRows(int64_t rows, int64_t elements_per_row, Body&& body);

  const GemmKernels& kernels_;
  const KvFormat kv_format_;
  const QuantKernels* const quant_;  // null: every weight is widened
  WeightMemory* weight_memory_ = nullptr;
  ThreadPool pool_;
  CpuGemm gemm_;
  CpuGrouped grouped_;
  CpuAttention attention_;
  std::vector<Sampler> samplers_;           // of each thread
  std::vector<RouteScratch> routes_;        // of each thread
  std::vector<std::vector<float>> logits_;  // of each thread
  std::vector<std::vector<float>> key_;     // of each thread
};

}  // namespace phalanx

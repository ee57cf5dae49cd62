// CudaOps: Ops on a device, in mode `invariant` of the design: every output has one arithmetic, whatever the
// number of rows. Activations, weights and the KV cache are bf16, or fp16 where options ask for it (whose
// range ends at 65504); sums are fp32.
//
// What lies in device memory is not read to be checked: an id, position, slot or block that is out of range
// makes NaN or is dropped on the device, and nothing outside of an array is touched.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {

class CudaOps : public Ops {
 public:
  CudaOps(std::shared_ptr<Runtime> runtime, bool half);

  const OpsInfo& info() const override { return info_; }
  DType activation_dtype() const override { return info_.weight_dtype; }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& params) override;
  absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeConfig& config,
                                                           int64_t num_positions) override;
  int64_t KvBlockBytes(const KvCacheShape& shape) const override;
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheShape& shape,
                                                         int64_t num_blocks) override;
  absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) override;
  absl::Status Synchronize(int64_t timeout_ms) override;

  absl::Status Embed(const EmbedParams& params) override;
  absl::Status RmsNorm(const RmsNormParams& params) override;
  absl::Status Matmul(const MatmulParams& params) override;
  absl::Status ShardedMatmul(const ShardedMatmulParams& params) override;
  absl::Status HeadMatmul(const HeadMatmulParams& params) override;
  absl::Status SwiGlu(const SwiGluParams& params) override;
  absl::Status RopeStoreKv(const RopeStoreKvParams& params) override;
  absl::Status Attention(const AttentionParams& params) override;
  absl::Status Route(const RouteParams& params) override;
  absl::Status GroupedMatmul(const GroupedMatmulParams& params) override;
  absl::Status Sample(const SampleParams& params) override;

 private:
  struct Table {
    WeightSource source;
    std::vector<uint64_t> probes;  // of its bytes, so that other contents at its address are seen
    std::unique_ptr<CudaBuffer> values;
  };

  absl::StatusOr<const CudaWeight*> Own(const char* call, const PackedWeight* weight) const;
  // The product into fp32 or activations; `x` may lie anywhere.
  absl::Status Product(const char* call, const Matrix& x, const CudaWeight& weight, const float* bias,
                       void* y, int64_t y_stride, int64_t tree_stride, bool y_fp32);
  absl::StatusOr<const uint16_t*> TableOf(const WeightSource& source);
  // Items, query heads and the head list, on the device; kept while they stay the same.
  absl::Status PlanAttention(const AttentionParams& params);

  std::shared_ptr<Runtime> runtime_;
  const bool half_;
  OpsInfo info_;
  std::vector<Table> tables_;
  Scratch packed_x_, partials_;

  // Of the last call to Attention.
  std::vector<char> attention_plan_;
  Scratch attention_device_, attention_partials_;
  int64_t num_items_ = 0, num_combined_ = 0, num_partials_ = 0;
  int64_t combined_offset_ = 0, heads_offset_ = 0;  // in the plan
  bool many_ = false;

  Scratch sample_device_, sample_scratch_, route_scratch_, group_scratch_, expert_table_;
  std::vector<char> sample_plan_;
  std::vector<const uint16_t*> experts_;
};

}  // namespace phalanx::cuda

// ReferenceOps: the specification of Ops in plain fp32 loops, and the base of the host backends, which
// override what is worth being fast. Compute::kFast rounds weights to BF16; activations are fp32 always.
#pragma once

#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "kernels/reference/host_objects.h"
#include "kernels/sampling.h"

namespace phalanx {

class ReferenceOps : public Ops {
 public:
  explicit ReferenceOps(const OpsOptions& options);

  const OpsInfo& info() const override { return info_; }
  DType activation_dtype() const override { return DType::kF32; }

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

 protected:
  ReferenceOps(const OpsOptions& options, const SamplingLoops& loops);

  // Row r of validated params; `logits` is scratch.
  static void SampleRowInto(const SampleParams& params, int64_t r, Sampler& sampler,
                            std::vector<float>& logits);

  struct RouteScratch {
    std::vector<float> score, choice, group_score;
    std::vector<bool> kept;
    std::vector<int> order;
  };
  // Token t of validated params.
  static void RouteRow(const RouteParams& params, int64_t t, RouteScratch& scratch);

  OpsInfo info_;

 private:
  Sampler sampler_;
  // Grow-only scratch.
  std::vector<float> logits_, scores_, partial_;
  RouteScratch route_;
};

}  // namespace phalanx

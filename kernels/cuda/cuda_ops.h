// CudaOps: Ops on a device. In mode `invariant` of the design every output has one arithmetic, whatever the
// number of rows; in mode `fast` products of 16-bit and FP8 weights, and prefill attention, take the fastest.
// Activations, weights (but those that stay quantised) and the KV cache (but a quantised one) are bf16, or
// fp16 where options ask for it (whose range ends at 65504); sums are fp32.
//
// What lies in device memory is not read to be checked: an id, position, slot or block that is out of range
// makes NaN or is dropped on the device, and nothing outside of an array is touched.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/gemm_fast_products.h"
#include "kernels/cuda/runtime.h"

namespace phalanx::cuda {

class CudaOps : public Ops {
 public:
  // `fast`: of mode fast; null: mode invariant.
  CudaOps(std::shared_ptr<Runtime> runtime, const OpsOptions& options, std::unique_ptr<FastProducts> fast);

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
  absl::StatusOr<double> Time(const std::function<absl::Status()>& work) override;
  absl::StatusOr<int64_t> Mark() override { return runtime_->Mark(); }
  absl::Status Wait(int64_t mark, int64_t timeout_ms) override { return runtime_->Wait(mark, timeout_ms); }
  absl::Status Replay(const ReplayParams& params, const std::function<absl::Status()>& enqueue) override;
  void StopReplays() override;
  ReplayStats replay_stats() const override { return replay_stats_; }

  absl::StatusOr<std::unique_ptr<Exchange>> CreateExchange(const ExchangeOptions& options) override;

  absl::Status Embed(const EmbedParams& params) override;
  // Mode fast also quantises, for many rows and a reader of FP8, what that reads.
  absl::Status RmsNorm(const RmsNormParams& params) override;
  absl::Status Matmul(const MatmulParams& params) override;
  absl::Status ShardedMatmul(const ShardedMatmulParams& params) override;
  absl::Status HeadMatmul(const HeadMatmulParams& params) override;
  absl::Status SwiGlu(const SwiGluParams& params) override;
  // In one kernel where the halves of the weight are whole tiles.
  absl::Status GatedMatmul(const GatedMatmulParams& params) override;
  // Mode fast quantises, for many rows and a `down` of FP8, what comes out of the gate as it makes it.
  absl::Status GatedShardedMatmul(const GatedShardedMatmulParams& params) override;
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
  // Null for a weight that is not mode fast's.
  const FastWeight* AsFast(const PackedWeight* weight) const;
  const Fp8Weight* AsFp8(const PackedWeight* weight) const;
  // The product into fp32 or activations; `x` may lie anywhere. Gated: y [T, N / 2] as of GatedMatmul, not of
  // mode fast's weights.
  absl::Status Product(const char* call, const Matrix& x, const PackedWeight* packed, const float* bias,
                       void* y, int64_t y_stride, int64_t tree_stride, bool y_fp32, bool gated = false);
  // Launches what `args` say, whatever kind of weight it is.
  absl::Status LaunchProduct(const char* call, const GemmArgs& args);
  absl::StatusOr<const uint16_t*> TableOf(const WeightSource& source);
  // An enqueue inside Replay: the first, whose work runs, or the second, which is recorded.
  struct Recording {
    bool records = false;
    absl::Span<const AttentionSequence> sequences;
    std::vector<AttentionPlan*> plans;  // of the calls to Attention so far
  };
  struct Replayed {
    std::unique_ptr<Graph> graph;
    std::vector<AttentionPlan*> plans;
    bool refused = false;  // it cannot be recorded
  };
  absl::StatusOr<AttentionPlan*> PlanOf(const AttentionLayout& layout);
  absl::Status Enqueue(Recording* recording, const std::function<absl::Status()>& enqueue);
  absl::StatusOr<std::unique_ptr<Graph>> Record(Recording* recording,
                                                const std::function<absl::Status()>& enqueue);
  // A copy of `host` on the device, kept, so that the same contents are copied once.
  absl::StatusOr<char*> TableCopy(const std::vector<char>& host);

  std::shared_ptr<Runtime> runtime_;
  const bool half_;
  std::unique_ptr<FastProducts> fast_;
  OpsInfo info_;
  std::vector<Table> tables_;
  Scratch packed_x_, partials_, widened_;

  std::unique_ptr<AttentionPlan> attention_plan_;
  Scratch sample_device_, sample_scratch_, route_scratch_, group_scratch_;
  std::vector<char> sample_plan_;
  std::unordered_map<std::string, std::unique_ptr<CudaBuffer>> table_copies_;

  const DeviceGraphs graphs_;
  Recording* recording_ = nullptr;
  std::vector<std::unique_ptr<AttentionPlan>> replay_plans_;
  std::map<std::array<int64_t, 3>, Replayed> replayed_;  // after what its graphs use
  ReplayStats replay_stats_;
};

}  // namespace phalanx::cuda

// Wrappers that pass every call on, for tests that change one method.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "kernels/ops.h"
#include "worker/collective/collective.h"

namespace phalanx {

class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)) {}

  const OpsInfo& info() const override { return inner_->info(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override { return inner_->Allocate(bytes); }
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& p) override {
    return inner_->PackWeight(p);
  }
  absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeConfig& config,
                                                           int64_t num_positions) override {
    return inner_->MakeRopeTable(config, num_positions);
  }
  int64_t KvBlockBytes(const KvCacheShape& shape) const override { return inner_->KvBlockBytes(shape); }
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheShape& shape,
                                                         int64_t num_blocks) override {
    return inner_->CreateKvCache(shape, num_blocks);
  }
  absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) override {
    return inner_->Copy(to, from, bytes, kind);
  }
  absl::Status Synchronize(int64_t timeout_ms) override { return inner_->Synchronize(timeout_ms); }
  absl::StatusOr<double> Time(const std::function<absl::Status()>& work) override {
    return inner_->Time(work);
  }
  absl::StatusOr<int64_t> Mark() override { return inner_->Mark(); }
  absl::Status Wait(int64_t mark, int64_t timeout_ms) override { return inner_->Wait(mark, timeout_ms); }
  absl::Status Replay(const ReplayParams& p, const std::function<absl::Status()>& enqueue) override {
    return inner_->Replay(p, enqueue);
  }
  void StopReplays() override { inner_->StopReplays(); }
  ReplayStats replay_stats() const override { return inner_->replay_stats(); }
  absl::StatusOr<std::unique_ptr<Exchange>> CreateExchange(const ExchangeOptions& options) override {
    return inner_->CreateExchange(options);
  }
  absl::Status Embed(const EmbedParams& p) override { return inner_->Embed(p); }
  absl::Status RmsNorm(const RmsNormParams& p) override { return inner_->RmsNorm(p); }
  absl::Status Matmul(const MatmulParams& p) override { return inner_->Matmul(p); }
  absl::Status ShardedMatmul(const ShardedMatmulParams& p) override { return inner_->ShardedMatmul(p); }
  absl::Status HeadMatmul(const HeadMatmulParams& p) override { return inner_->HeadMatmul(p); }
  absl::Status SwiGlu(const SwiGluParams& p) override { return inner_->SwiGlu(p); }
  absl::Status RopeStoreKv(const RopeStoreKvParams& p) override { return inner_->RopeStoreKv(p); }
  absl::Status Attention(const AttentionParams& p) override { return inner_->Attention(p); }
  absl::Status Route(const RouteParams& p) override { return inner_->Route(p); }
  absl::Status GroupedMatmul(const GroupedMatmulParams& p) override { return inner_->GroupedMatmul(p); }
  absl::Status Sample(const SampleParams& p) override { return inner_->Sample(p); }

 protected:
  std::unique_ptr<Ops> inner_;
};

class ForwardingCollective : public Collective {
 public:
  explicit ForwardingCollective(std::unique_ptr<Collective> inner) : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  bool enqueues() const override { return inner_->enqueues(); }
  absl::StatusOr<float*> SumsBuffer(int64_t count) override { return inner_->SumsBuffer(count); }
  absl::Status TreeAllReduce(int64_t count, float* out) override { return inner_->TreeAllReduce(count, out); }
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override {
    return inner_->AllGather(in, bytes, out);
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root) override {
    return inner_->Broadcast(data, bytes, root);
  }
  absl::Status Barrier() override { return inner_->Barrier(); }
  absl::Status AllGatherOnHost(const void* in, int64_t bytes, void* out) override {
    return inner_->AllGatherOnHost(in, bytes, out);
  }
  absl::Status Completed() override { return inner_->Completed(); }
  absl::Status Check() const override { return inner_->Check(); }
  void End(const absl::Status& error) override { inner_->End(error); }
  void Abort(const std::string& reason) override { inner_->Abort(reason); }

 protected:
  std::unique_ptr<Collective> inner_;
};

}  // namespace phalanx

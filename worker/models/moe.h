// Mixture of experts: a router that every rank runs whole, routed experts that are split over the shards by
// their ids, and shared experts, one MLP that is split like any other. source:
// https://arxiv.org/abs/2412.19437 (section 2.1.2)
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/models/blocks.h"

namespace phalanx {

class TpMoe {
 public:
  struct Tensors {
    WeightSource gate;                     // [experts, hidden]
    std::vector<float> bias;               // [experts] for the selection
    std::vector<TpMlp::Tensors> experts;   // [experts]
    std::optional<TpMlp::Tensors> shared;  // of num_shared_experts * expert_ffn_size columns
  };
  static absl::StatusOr<TpMoe> Create(const ModelContext& context, const Tensors& tensors);
  int products() const { return shared_ ? 2 : 1; }
  const PackedWeight* reader() const { return shared_ ? shared_->reader() : nullptr; }
  // Leaves this rank's sums of routed, then of shared experts' outputs of workspace->normed() in the
  // workspace.
  absl::Status Forward(Workspace* workspace) const;
  int64_t weight_bytes() const { return weight_bytes_; }

 private:
  absl::Status Route(Workspace* workspace) const;

  Ops* ops_ = nullptr;
  const MoeConfig* config_ = nullptr;
  const Rank* rank_ = nullptr;
  std::unique_ptr<PackedWeight> gate_;
  std::unique_ptr<Buffer> bias_;
  // Of the rank's experts: gate | up, and down.
  std::vector<std::unique_ptr<PackedWeight>> gate_up_, down_;
  std::vector<const PackedWeight*> gate_up_views_, down_views_;  // [experts], null where another rank has it
  std::vector<int64_t> expert_cuts_;                             // see GroupedMatmulParams
  std::optional<TpMlp> shared_;
  int64_t weight_bytes_ = 0;
};

}  // namespace phalanx

// Multi-head latent attention in its absorbed form: the cache holds one row for all heads, the normalised
// latent and the rotated key; queries go into the latent space before the scores, values come out of it after
// the weighting. source: https://arxiv.org/abs/2405.04434 (section 2.1)
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/models/blocks.h"

namespace phalanx {

class TpMla {
 public:
  // Letters: C channels of the latent, N of a head without position, P that rotate, V of a value.
  struct Tensors {
    WeightSource q_a;               // [q_lora_rank, hidden]; without data where q_lora_rank is 0
    std::vector<float> q_a_norm;    // [q_lora_rank]
    WeightSource q;                 // [heads * (N + P), q_lora_rank, or hidden where that is 0]
    WeightSource kv_a;              // [C + P, hidden]
    std::vector<float> kv_a_norm;   // [C]
    WeightSource kv_b;              // [heads * (N + V), C]; or, of files that hold them apart, of each head
    std::vector<WeightSource> k_b;  // [C, N] and
    std::vector<WeightSource> v_b;  // [V, C]
    WeightSource output;            // [hidden, heads * V]
  };
  static absl::StatusOr<TpMla> Create(const ModelContext& context, int layer, const Tensors& tensors);
  static constexpr int products() { return 1; }
  const PackedWeight* reader() const { return into_latents_.get(); }
  // Leaves this rank's sums of attention(workspace->normed()) in the workspace. `tables` holds one RoPE table
  // per mode. A rank without heads takes no cache.
  absl::Status Forward(const std::vector<const RopeTable*>& tables, KvCache* cache,
                       Workspace* workspace) const;
  int64_t weight_bytes() const;

 private:
  absl::Status PackHeads(const ModelContext& context, const Tensors& tensors);
  absl::Status ForwardHeads(const std::vector<const RopeTable*>& tables, KvCache* cache,
                            Workspace* workspace) const;

  Ops* ops_ = nullptr;
  const ModelConfig* config_ = nullptr;
  const Rank* rank_ = nullptr;
  int layer_ = 0;
  // Null or empty where the rank holds no heads, but for output_.
  std::unique_ptr<PackedWeight> into_latents_;  // q_a | kv_a; or the rank's q | kv_a
  TpNorm q_norm_, kv_norm_;
  std::unique_ptr<PackedWeight> q_;                 // null where q_lora_rank is 0
  std::vector<std::unique_ptr<PackedWeight>> k_b_;  // [C, N] of each head
  std::vector<std::unique_ptr<PackedWeight>> v_b_;  // [V, C]
  std::vector<const PackedWeight*> k_b_views_, v_b_views_;
  std::unique_ptr<PackedWeight> output_;
};

}  // namespace phalanx

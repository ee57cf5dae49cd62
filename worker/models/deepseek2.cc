// DeepSeek-V3 and R1 ("deepseek2" in GGUF files): latent attention, experts in groups beside shared ones.
// source: https://arxiv.org/abs/2412.19437
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/models/decoder.h"

namespace phalanx {
namespace {

TpMla::Tensors FindAttention(const ModelConfig& config, TensorFinder& finder, const std::string& prefix) {
  const MlaConfig& mla = *config.mla;
  const int64_t heads = config.num_heads, hidden = config.hidden_size, latent = mla.kv_lora_rank;
  TpMla::Tensors tensors;
  if (mla.q_lora_rank > 0) {
    tensors.q_a = finder.Matrix(prefix + "q_a_proj", mla.q_lora_rank, hidden);
    tensors.q_a_norm = finder.Vector(prefix + "q_a_layernorm.weight", mla.q_lora_rank);
    tensors.q = finder.Matrix(prefix + "q_b_proj", heads * config.key_dim, mla.q_lora_rank);
  } else {
    tensors.q = finder.Matrix(prefix + "q_proj", heads * config.key_dim, hidden);
  }
  tensors.kv_a = finder.Matrix(prefix + "kv_a_proj_with_mqa", latent + mla.rope_dim, hidden);
  tensors.kv_a_norm = finder.Vector(prefix + "kv_a_layernorm.weight", latent);
  if (finder.Has(prefix + "k_b_proj.0.weight")) {
    for (int64_t h = 0; h < heads; ++h) {
      tensors.k_b.push_back(finder.Matrix(absl::StrCat(prefix, "k_b_proj.", h), latent, mla.nope_dim));
      tensors.v_b.push_back(finder.Matrix(absl::StrCat(prefix, "v_b_proj.", h), config.value_dim, latent));
    }
  } else {
    tensors.kv_b =
        finder.Matrix(prefix + "kv_b_proj", heads * (int64_t{mla.nope_dim} + config.value_dim), latent);
  }
  tensors.output = finder.Matrix(prefix + "o_proj", hidden, heads * config.value_dim);
  return tensors;
}

TpMoe::Tensors FindExperts(const ModelConfig& config, TensorFinder& finder, const std::string& prefix) {
  const MoeConfig& moe = *config.moe;
  TpMoe::Tensors tensors;
  tensors.gate = finder.Matrix(prefix + "gate", moe.num_experts, config.hidden_size);
  tensors.bias = finder.Vector(prefix + "gate.e_score_correction_bias", moe.num_experts);
  for (int e = 0; e < moe.num_experts; ++e) {
    tensors.experts.push_back(
        FindMlp(config, finder, absl::StrCat(prefix, "experts.", e, "."), moe.expert_ffn_size));
  }
  if (moe.num_shared_experts > 0) {
    tensors.shared = FindMlp(config, finder, prefix + "shared_experts.",
                             int64_t{moe.num_shared_experts} * moe.expert_ffn_size);
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateDeepseek2(const ModelContext& context) {
  const ModelConfig& config = *context.config;
  if (!config.mla || !config.moe) {
    return absl::InvalidArgumentError(absl::StrCat(
        context.checkpoint->path(), ": deepseek2 must have latent attention and experts; its config has no ",
        config.mla ? "experts" : "kv_lora_rank"));
  }
  return CreateDecoder(context,
                       [&](TensorFinder& finder, int index, const std::string& prefix, LayerTensors* layer) {
                         layer->attention = FindAttention(config, finder, prefix + "self_attn.");
                         if (index < config.moe->first_dense_layers) {
                           layer->mlp = FindMlp(config, finder, prefix + "mlp.", config.ffn_size);
                         } else {
                           layer->mlp = FindExperts(config, finder, prefix + "mlp.");
                         }
                       });
}

}  // namespace phalanx

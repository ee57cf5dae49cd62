// Tiny models of the classes other than llama (tiny_model.h), with shapes that cut badly.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/worker/made_up_checkpoint.h"

namespace phalanx {

inline std::unique_ptr<MadeUpCheckpoint> StartTinyClass(const ModelConfig& config, uint32_t seed) {
  auto model = std::make_unique<MadeUpCheckpoint>(config, int64_t{4} << 20, seed);
  model->AddMatrix("model.embed_tokens", config.vocab_size, config.hidden_size, 4);
  model->AddVector("model.norm.weight", config.hidden_size, 1);
  if (!config.tied_embeddings) model->AddMatrix("lm_head", config.vocab_size, config.hidden_size, 2);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    model->AddVector(prefix + "input_layernorm.weight", config.hidden_size, 1);
    model->AddVector(prefix + "post_attention_layernorm.weight", config.hidden_size, 1);
  }
  return model;
}

inline void AddTinyMlp(MadeUpCheckpoint* model, const std::string& prefix, int64_t hidden, int64_t ffn) {
  model->AddMatrix(prefix + "gate_proj", ffn, hidden);
  model->AddMatrix(prefix + "up_proj", ffn, hidden);
  model->AddMatrix(prefix + "down_proj", hidden, ffn);
}

// Fused matrices, a quarter of a head that does not rotate, LongRoPE: mode 1 is the long one.
inline std::unique_ptr<Checkpoint> TinyPhi3() {
  ModelConfig config;
  config.architecture = "phi3";
  config.num_layers = 2;
  config.hidden_size = 80;
  config.num_heads = 10;
  config.num_kv_heads = 5;
  config.key_dim = config.value_dim = 16;
  config.ffn_size = 150;
  config.vocab_size = 101;
  config.context_length = 512;
  config.tied_embeddings = true;
  config.rope_scaling = RopeScaling::kLongRope;
  config.original_context_length = 64;
  config.rope = {{10000, 12, false, {1, 1.1f, 1.2f, 1.3f, 1.5f, 2}, 1.2f},
                 {10000, 12, false, {1, 1.5f, 3, 7, 8, 8}, 1.2f}};
  auto model = StartTinyClass(config, 2);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    model->AddMatrix(prefix + "self_attn.qkv_proj", (10 + 5 + 5) * 16, config.hidden_size, 2);
    model->AddMatrix(prefix + "self_attn.o_proj", config.hidden_size, 10 * 16);
    model->AddMatrix(prefix + "mlp.gate_up_proj", 2 * config.ffn_size, config.hidden_size);
    model->AddMatrix(prefix + "mlp.down_proj", config.hidden_size, config.ffn_size);
  }
  return model;
}

// Biases; two KV heads for fourteen.
inline std::unique_ptr<Checkpoint> TinyQwen2() {
  ModelConfig config;
  config.architecture = "qwen2";
  config.num_layers = 2;
  config.hidden_size = 56;
  config.num_heads = 14;
  config.num_kv_heads = 2;
  config.key_dim = config.value_dim = 8;
  config.ffn_size = 200;
  config.vocab_size = 99;
  config.context_length = 512;
  config.rms_eps = 1e-6f;
  config.qkv_bias = true;
  config.rope = {{1000000, 8, false, {}, 1}};
  auto model = StartTinyClass(config, 3);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    for (const auto& [name, heads] : {std::pair("q", 14), std::pair("k", 2), std::pair("v", 2)}) {
      const std::string module = absl::StrCat(prefix, "self_attn.", name, "_proj");
      model->AddMatrix(module, heads * 8, config.hidden_size, 2);
      model->AddVector(module + ".bias", heads * 8, 0, 1);
    }
    model->AddMatrix(prefix + "self_attn.o_proj", config.hidden_size, 14 * 8);
    AddTinyMlp(model.get(), prefix + "mlp.", config.hidden_size, config.ffn_size);
  }
  return model;
}

struct TinyDeepseekOptions {
  int heads = 10;
  MlaConfig mla = {.q_lora_rank = 24, .kv_lora_rank = 32, .nope_dim = 16, .rope_dim = 8};
  MoeConfig moe = {.num_experts = 20,
                   .experts_per_token = 4,
                   .expert_ffn_size = 44,
                   .num_shared_experts = 2,
                   .first_dense_layers = 1,
                   .num_groups = 5,
                   .topk_groups = 2,
                   .normalize = true,
                   .scaling_factor = 2.5};
};

inline std::unique_ptr<Checkpoint> TinyDeepseek(const TinyDeepseekOptions& o) {
  ModelConfig config;
  config.architecture = "deepseek2";
  config.num_layers = 3;
  config.hidden_size = 48;
  config.num_heads = config.num_kv_heads = o.heads;
  config.key_dim = o.mla.nope_dim + o.mla.rope_dim;
  config.value_dim = 12;
  config.ffn_size = 130;
  config.vocab_size = 97;
  config.context_length = 512;
  config.rms_eps = 1e-6f;
  config.softmax_factor = 1.3;
  config.rope = {{10000, o.mla.rope_dim, true, {}, 1}};
  config.mla = o.mla;
  config.moe = o.moe;
  const int64_t hidden = config.hidden_size, latent = o.mla.kv_lora_rank;
  auto model = StartTinyClass(config, 4);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    if (o.mla.q_lora_rank > 0) {
      model->AddMatrix(attention + "q_a_proj", o.mla.q_lora_rank, hidden);
      model->AddVector(attention + "q_a_layernorm.weight", o.mla.q_lora_rank, 1);
      model->AddMatrix(attention + "q_b_proj", o.heads * config.key_dim, o.mla.q_lora_rank, 2);
    } else {
      model->AddMatrix(attention + "q_proj", o.heads * config.key_dim, hidden, 2);
    }
    model->AddMatrix(attention + "kv_a_proj_with_mqa", latent + o.mla.rope_dim, hidden, 2);
    model->AddVector(attention + "kv_a_layernorm.weight", latent, 1);
    model->AddMatrix(attention + "kv_b_proj", o.heads * (o.mla.nope_dim + config.value_dim), latent);
    model->AddMatrix(attention + "o_proj", hidden, o.heads * config.value_dim);
    if (i < o.moe.first_dense_layers) {
      AddTinyMlp(model.get(), mlp, hidden, config.ffn_size);
      continue;
    }
    model->AddMatrix(mlp + "gate", o.moe.num_experts, hidden);
    model->AddVector(mlp + "gate.e_score_correction_bias", o.moe.num_experts, 0);
    for (int e = 0; e < o.moe.num_experts; ++e) {
      AddTinyMlp(model.get(), absl::StrCat(mlp, "experts.", e, "."), hidden, o.moe.expert_ffn_size);
    }
    if (o.moe.num_shared_experts > 0) {
      AddTinyMlp(model.get(), mlp + "shared_experts.", hidden,
                 o.moe.num_shared_experts * o.moe.expert_ffn_size);
    }
  }
  return model;
}

}  // namespace phalanx

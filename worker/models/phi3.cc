// Phi3: Phi-4, Phi-4-reasoning, Phi-4-mini. Queries, keys and values are one matrix, so are gate and up.
// source: https://arxiv.org/abs/2412.08905, https://arxiv.org/abs/2503.01743
#include "worker/models/dense.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<Model>> CreatePhi3(const ModelContext& context) {
  const ModelConfig& config = *context.config;
  return CreateDense(context, [&](TensorFinder& finder, const std::string& prefix, DenseLayerTensors* layer) {
    const int64_t q = int64_t{config.num_heads} * config.key_dim;
    const int64_t k = int64_t{config.num_kv_heads} * config.key_dim;
    const int64_t v = int64_t{config.num_kv_heads} * config.value_dim;
    const WeightSource qkv = finder.Matrix(prefix + "self_attn.qkv_proj", q + k + v, config.hidden_size);
    layer->attention.q = qkv.Rows({0, q});
    layer->attention.k = qkv.Rows({q, q + k});
    layer->attention.v = qkv.Rows({q + k, q + k + v});
    layer->attention.output = finder.Matrix(prefix + "self_attn.o_proj", config.hidden_size,
                                            int64_t{config.num_heads} * config.value_dim);
    const int64_t ffn = config.ffn_size;
    const WeightSource gate_up = finder.Matrix(prefix + "mlp.gate_up_proj", 2 * ffn, config.hidden_size);
    layer->mlp.gate = gate_up.Rows({0, ffn});
    layer->mlp.up = gate_up.Rows({ffn, 2 * ffn});
    layer->mlp.down = finder.Matrix(prefix + "mlp.down_proj", config.hidden_size, ffn);
  });
}

}  // namespace phalanx

// Phi3: Phi-4, Phi-4-reasoning, Phi-4-mini. Queries, keys and values are one matrix, so are gate and up.
// source: https://arxiv.org/abs/2412.08905, https://arxiv.org/abs/2503.01743
#include <utility>

#include "worker/models/decoder.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<Model>> CreatePhi3(const ModelContext& context) {
  const ModelConfig& config = *context.config;
  return CreateDecoder(
      context, [&](TensorFinder& finder, int, const std::string& prefix, LayerTensors* layer) {
        const int64_t q = int64_t{config.num_heads} * config.key_dim;
        const int64_t k = int64_t{config.num_kv_heads} * config.key_dim;
        const int64_t v = int64_t{config.num_kv_heads} * config.value_dim;
        const WeightSource qkv = finder.Matrix(prefix + "self_attn.qkv_proj", q + k + v, config.hidden_size);
        TpAttention::Tensors attention;
        attention.q = qkv.Rows({0, q});
        attention.k = qkv.Rows({q, q + k});
        attention.v = qkv.Rows({q + k, q + k + v});
        attention.output = finder.Matrix(prefix + "self_attn.o_proj", config.hidden_size,
                                         int64_t{config.num_heads} * config.value_dim);
        const int64_t ffn = config.ffn_size;
        const WeightSource gate_up = finder.Matrix(prefix + "mlp.gate_up_proj", 2 * ffn, config.hidden_size);
        layer->attention = std::move(attention);
        layer->mlp = TpMlp::Tensors{.gate = gate_up.Rows({0, ffn}),
                                    .up = gate_up.Rows({ffn, 2 * ffn}),
                                    .down = finder.Matrix(prefix + "mlp.down_proj", config.hidden_size, ffn)};
      });
}

}  // namespace phalanx

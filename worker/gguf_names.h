// The names that GGUF files have for tensors of Hugging Face checkpoints.
// source: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
#pragma once

#include <string_view>

#include "worker/checkpoint.h"

namespace phalanx {

// "model.layers.3.mlp.up_proj.weight" is "blk.3.ffn_up.weight"; a name not known stays as it is. Slices:
// "mlp.experts.E.up_proj" is expert E of ffn_up_exps; "self_attn.k_b_proj.H" [kv_lora_rank, nope_dim] and
// "self_attn.v_b_proj.H" [value_dim, kv_lora_rank], which only GGUF files have, are head H of attn_k_b and
// attn_v_b, the two halves of kv_b_proj (the first of them transposed).
TensorPlace GgufPlaceOf(const ModelConfig& config, std::string_view hf_name);

}  // namespace phalanx

// The names that GGUF files have for tensors of Hugging Face checkpoints.
// source: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
#pragma once

#include <string_view>

#include "worker/checkpoint.h"

namespace phalanx {

// "model.layers.3.mlp.up_proj.weight" is "blk.3.ffn_up.weight"; a name not known stays as it is.
TensorPlace GgufPlaceOf(std::string_view architecture, std::string_view hf_name);

}  // namespace phalanx

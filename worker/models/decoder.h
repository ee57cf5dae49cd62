// The decoder that all models are: pre-norm layers of an attention and an MLP, each in one of two kinds. What
// tells models apart are their config and the names of their tensors.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/models/blocks.h"
#include "worker/models/mla.h"
#include "worker/models/moe.h"
#include "worker/weights.h"

namespace phalanx {

struct LayerTensors {
  std::vector<float> attention_norm;
  std::variant<TpAttention::Tensors, TpMla::Tensors> attention;
  std::vector<float> mlp_norm;
  std::variant<TpMlp::Tensors, TpMoe::Tensors> mlp;
};

// Names the matrices of a layer's attention and MLP; `prefix` is "model.layers.N.".
using FindLayer =
    std::function<void(TensorFinder& finder, int layer, const std::string& prefix, LayerTensors* tensors)>;

// Queries, keys and values in a matrix each, with biases where the files have them; gate and up likewise.
void FindSeparateMatrices(const ModelConfig& config, TensorFinder& finder, const std::string& prefix,
                          LayerTensors* layer);
// The gated MLP `prefix`{gate,up,down}_proj of `columns`.
TpMlp::Tensors FindMlp(const ModelConfig& config, TensorFinder& finder, const std::string& prefix,
                       int64_t columns);

absl::StatusOr<std::unique_ptr<Model>> CreateDecoder(const ModelContext& context,
                                                     const FindLayer& find_layer);

}  // namespace phalanx

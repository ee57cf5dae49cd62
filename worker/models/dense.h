// The decoder that most models are: pre-norm layers of grouped-query attention and a gated MLP. What tells
// such models apart are their config and the names of their tensors.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/models/blocks.h"
#include "worker/weights.h"

namespace phalanx {

struct DenseLayerTensors {
  std::vector<float> attention_norm;
  TpAttention::Tensors attention;
  std::vector<float> mlp_norm;
  TpMlp::Tensors mlp;
};

// Names the matrices of a layer's attention and MLP; `prefix` is "model.layers.N.".
using FindDenseLayer =
    std::function<void(TensorFinder& finder, const std::string& prefix, DenseLayerTensors* layer)>;

// Queries, keys and values in a matrix each, with biases where the files have them; gate and up likewise.
void FindSeparateMatrices(const ModelConfig& config, TensorFinder& finder, const std::string& prefix,
                          DenseLayerTensors* layer);

absl::StatusOr<std::unique_ptr<Model>> CreateDense(const ModelContext& context,
                                                   const FindDenseLayer& find_layer);

}  // namespace phalanx

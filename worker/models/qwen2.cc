// Qwen2: Llama with biases of queries, keys and values; Qwen2.5, the R1 distills into Qwen, Bespoke-Stratos,
// OpenThinker.
// source: https://arxiv.org/abs/2412.15115
#include "worker/models/dense.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<Model>> CreateQwen2(const ModelContext& context) {
  return CreateDense(context, [&](TensorFinder& finder, const std::string& prefix, DenseLayerTensors* layer) {
    FindSeparateMatrices(*context.config, finder, prefix, layer);
  });
}

}  // namespace phalanx

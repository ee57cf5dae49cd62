// Qwen2: Llama with biases of queries, keys and values; Qwen2.5, the R1 distills into Qwen, Bespoke-Stratos,
// OpenThinker.
// source: https://arxiv.org/abs/2412.15115
#include "worker/models/decoder.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<Model>> CreateQwen2(const ModelContext& context) {
  return CreateDecoder(context,
                       [&](TensorFinder& finder, int, const std::string& prefix, LayerTensors* layer) {
                         FindSeparateMatrices(*context.config, finder, prefix, layer);
                       });
}

}  // namespace phalanx

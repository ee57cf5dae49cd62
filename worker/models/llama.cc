// Llama: Llama 2 and 3, the R1 distills into Llama, SmolLM2.
// source: https://arxiv.org/abs/2407.21783
#include "worker/models/decoder.h"

namespace phalanx {

absl::StatusOr<std::unique_ptr<Model>> CreateLlama(const ModelContext& context) {
  return CreateDecoder(context,
                       [&](TensorFinder& finder, int, const std::string& prefix, LayerTensors* layer) {
                         FindSeparateMatrices(*context.config, finder, prefix, layer);
                       });
}

}  // namespace phalanx

#include "coordinator/rope_mode.h"

namespace phalanx::coordinator {

uint32_t RopeModeOf(const ModelConfig& config, const ModelSpec& spec, int64_t prompt_tokens,
                    int64_t max_tokens) {
  if (config.rope.size() < 2) return 0;
  const int64_t tokens = spec.rope == Rope::kAuto ? prompt_tokens + max_tokens : spec.context_length;
  return tokens > config.original_context_length ? 1 : 0;
}

}  // namespace phalanx::coordinator

// Which RoPE table a sequence has. Pure.
//
// Invariant: a sequence keeps its mode. It is chosen once, at admission, before the first token, from numbers
// that are fixed by then; it is in the token log, in what the group is sent and in the resume header, and it
// is part of a KV block's hash. So neither a batch mate, a preemption nor a fresh group changes it, and keys
// of two tables are never mixed in one sequence. All choices of a request have the same.
#pragma once

#include <cstdint>

#include "base/model_config.h"
#include "coordinator/cluster_state.h"

namespace phalanx::coordinator {

// An index into config.rope: 0 where there is one table. Of LongRoPE's two, 1 is for long contexts.
// Rope::kLong: 1 for all sequences where spec.context_length is over the model's original context.
// Rope::kAuto: 0 where the prompt and max_tokens together are at most the original context, as transformers
// would have it for such a sequence alone; else 1.
uint32_t RopeModeOf(const ModelConfig& config, const ModelSpec& spec, int64_t prompt_tokens,
                    int64_t max_tokens);

}  // namespace phalanx::coordinator

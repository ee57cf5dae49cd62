// A request inside the scheduler.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "worker/kv_blocks.h"
#include "worker/scheduler.h"
#include "worker/sequence_sampling.h"
#include "worker/speculation.h"

namespace phalanx {

using SequenceKey = std::pair<uint64_t, uint64_t>;  // source, request

struct Sequence {
  SequenceRequest request;  // `generated` grows as steps are committed
  uint64_t arrival = 0;     // rising with each Submit
  CacheDomain domain;
  int64_t limit = 0;               // generated tokens at the end: max_tokens cut to the context
  int64_t prompt_logits_from = 0;  // the first position whose prompt log-probability is still to be said
  bool admitted = false;           // once at least; a waiting one that was is preempted
  bool began = false;              // and in a plan
  int32_t cached_prompt_tokens = 0;
  GuessRecord guess_record;

  // Of its present run; Restart resets it.
  uint32_t id = 0;                           // in plans; 0 while it waits
  int64_t prefill = 0;                       // positions known when it began to wait: prompt and generated
  std::optional<SequenceSampling> sampling;  // unless it waits
  std::vector<int32_t> blocks;
  bool looked_up = false;        // in the prefix cache
  size_t announced = 0;          // the first of `blocks`, which are in a plan
  int64_t planned = 0;           // positions [0, planned) are in plans, or were found in the cache
  int in_flight = 0;             // sampled tokens planned and not committed
  uint64_t sampled_step = 0;     // the last step that samples for it,
  int32_t sampled_logit = 0;     // and which logits row there
  int64_t num_published = 0;     // the first of `blocks`, or equal ones, are in the cache
  CachePlace published;          // behind these
  std::vector<int32_t> guesses;  // in its uncommitted row, or to be in the next; else not run,
  bool guesses_run = false;

  SequenceKey key() const { return {request.source, request.request}; }
  int64_t num_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t num_generated() const { return static_cast<int64_t>(request.generated.size()); }
  int64_t num_known() const { return num_prompt() + num_generated(); }
  // The last generated token is never an input.
  int64_t num_positions() const { return num_prompt() + std::max<int64_t>(limit - 1, 0); }
  int32_t known_token(int64_t position) const {
    return position < num_prompt() ? request.prompt[position] : request.generated[position - num_prompt()];
  }
  // Whether the logits at `position` say something about the next token of the prompt.
  bool wants_prompt_logits(int64_t position) const {
    return request.prompt_logprobs >= 0 && position >= prompt_logits_from && position + 1 < num_prompt();
  }
  // Whether rows may sample at several positions: nothing in them depends on the tokens just before.
  bool may_guess() const { return !request.sampling.has_penalties() && !request.thinking.has_value(); }
  bool samples(int64_t position) const { return position + 1 >= prefill && limit > 0; }

  void Restart() {
    id = 0;
    prefill = num_known();
    sampling.reset();
    blocks.clear();
    looked_up = false;
    announced = 0;
    planned = 0;
    in_flight = 0;
    num_published = 0;
    published = {};
    guesses.clear();
    guesses_run = false;
  }
};

// Who gives way when blocks run out: the later in this order. The first of all always goes on.
inline bool Precedes(const Sequence& a, const Sequence& b) {
  return std::pair(a.request.priority, a.arrival) < std::pair(b.request.priority, b.arrival);
}

}  // namespace phalanx

// The leader's scheduler: which tokens run in which step. Pure: events in, values out; no clock, threads or
// I/O. Continuous batching under a token budget: decode rows first, then prompt chunks.
//
// Order. `priority` is strict: a lower value is admitted first, goes first in every step, and takes the place
// of running requests with a higher one; while it keeps coming, they wait. Between equal ones who waits is
// admitted as request_queue.h says: sources in turn, so that no flood of one keeps another out. The one whose
// turn it is is never overtaken, so a long request cannot starve.
//
// Memory. A sequence begins after the longest chain of full blocks that the prefix cache (kv_blocks.h) has of
// its tokens, and takes blocks as it grows. It is admitted when blocks for all that it knows are free and one
// for each running sequence to grow. When none is free, the running one of the highest `priority` value,
// among these the one that arrived last, is preempted: its blocks are given back (full ones stay in the
// cache), it waits, and later goes on with exactly the tokens it would have had; nothing is said twice. What
// it had planned and not committed is discarded and comes again. The first in that order is never preempted
// and always goes on, and no request needs more blocks than there are: so every request ends.
//
// Cache. A block is published once its tokens are known and a plan writes it; later plans read it, as ranks
// run plans in order. A sequence whose next block is being written by another one's row waits for it. What
// the cache serves has the bits that running it again would give.
//
// Pipeline: Plan() for step n+1 may be called before Commit() of step n. A row of n+1 whose sequence proves
// finished by step n is discarded at Commit. A decision about position p reads the log up to p-2 only.
//
// Speculation (max_guesses > 0). In a batch of few sequences that all decode, a row carries guesses of its
// next tokens (speculation.h), each sampled as it would be without; one counts while it equals what is
// sampled, so output never changes. KV of wrong guesses is overwritten before anything reads it. The
// positions after such a step are known only when it is committed: Plan() returns nothing until then.
// Sequences with penalties or a thinking budget, whose rows depend on the tokens before them in the row, do
// not guess; others leave it where less than half of their guesses are right.
//
// Invariants (CheckInvariants): a block is free, or held at one index by the sequences that have its tokens,
// and none of them writes to it while there are several; a sequence's rows are at consecutive positions; the
// budget and the batch limit hold in every plan.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/token_bytes.h"
#include "kernels/ops.h"
#include "worker/kv_blocks.h"
#include "worker/step_plan.h"
#include "worker/thinking_budget.h"

namespace phalanx {

// The first four have no default: they come from the model and the group.
struct SchedulerOptions {
  int64_t num_blocks = 0;
  int64_t context_length = 0;  // longest prompt + generation
  int64_t vocab_size = 0;      // token ids are in [0, vocab_size)
  int num_rope_modes = 1;      // rope_mode is in [0, num_rope_modes)
  int block_size = 32;
  int max_tokens_per_step = 512;  // the token budget
  int max_sequences = 64;         // running at once
  int max_logits_per_step = 128;  // logits rows a step may ask for (prompt log-probabilities are cut to it)
  int max_queued = 1024;          // waiting requests; beyond: ResourceExhausted
  int max_guesses = 0;            // of a row; 0: no speculation
  int max_guessing = 4;           // sequences running at once, for guesses to be made
  // Of the model's tokens; where null, a request with a thinking budget is refused.
  std::shared_ptr<const TokenBytes> token_bytes;

  // InvalidArgument naming the option, its value and what would be right. A sequence that runs must always
  // find a token and a logits row: max_sequences is at most max_tokens_per_step and max_logits_per_step.
  absl::Status Validate() const;
};

// A request as the leader gets it; every default is resolved.
struct SequenceRequest {
  uint64_t source = 0;   // which coordinator (the leader's number for its stream); queues are served fairly,
                         // one each in turn
  uint64_t request = 0;  // unique in that coordinator
  uint32_t attempt = 0;
  std::vector<int32_t> prompt;
  std::vector<int32_t> generated;  // tokens said by an earlier attempt; the sequence goes on after them
  SampleRow sampling;              // all but position, target, num_top, counts, banned: these are per row
  int32_t max_tokens = 0;          // in all, `generated` included; 0: only the prompt runs
  std::vector<int32_t> stop_ids;
  int32_t min_tokens = 0;  // no stop id is sampled, nor ends the sequence, before that many generated tokens
  std::optional<ThinkingBudget> thinking;
  int32_t logprobs = -1;  // as SampleRow::num_top, of generated tokens
  // Likewise of prompt tokens, from the second on. Not repeated for a sequence that goes on after
  // `generated`.
  int32_t prompt_logprobs = -1;
  uint32_t rope_mode = 0;
  int32_t priority = 0;    // lower values go first
  std::string cache_salt;  // KV blocks are shared between requests of one salt alone
  std::string request_id;  // the client's name for it, for logs
};

enum class Admission { kAccepted, kQueued };

// What Sample must do for each logits row of a plan, in order.
struct PlannedStep {
  StepPlan plan;
  std::vector<SampleRow> samples;  // [plan.num_logits()]
};

struct TokenLogprobs {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first
};

// Results of a step's logits rows, in order, as read back from Ops::Sample.
struct StepResult {
  std::vector<int32_t> ids;  // [num_logits]
  std::vector<TokenLogprobs>
      logprobs;  // [num_logits]; filled where asked for. May be empty when nobody asked
};

// InvalidArgument naming the row unless `result` is one of `samples` and of a vocabulary: sizes, ids in
// [0, vocab_size) or -1 (see Ops::Sample: its sequence fails), log-probabilities where asked for.
absl::Status CheckResult(const std::vector<SampleRow>& samples, int64_t vocab_size, const StepResult& result);

enum class Finish { kNone, kStop, kLength };

// What a step said about one sequence.
struct SequenceOutput {
  uint64_t source = 0;
  uint64_t request = 0;
  uint32_t attempt = 0;
  int32_t offset = 0;                   // generated tokens before `tokens`
  std::vector<int32_t> tokens;          // includes a stop token that ended the sequence
  std::vector<TokenLogprobs> logprobs;  // one per token when asked for
  int32_t prompt_first_position = 0;  // of the prompt token that prompt_logprobs[0] is about; 1 in the first
  std::vector<TokenLogprobs> prompt_logprobs;
  Finish finish = Finish::kNone;
  std::optional<int32_t> stop_id;
  int32_t cached_prompt_tokens = 0;  // that the prefix cache served when the sequence began; in every output
  absl::Status error;                // not OK: it failed, by itself; there are no tokens and nothing follows
  std::string request_id;            // in its last output: `finish` or `error` says so
};
inline constexpr int64_t kMaxLogitBias = 1024;  // entries of a request
inline constexpr size_t kMaxCacheSaltBytes = 256;

struct SchedulerLoad {
  int64_t blocks_used = 0;    // held by running sequences
  int64_t blocks_cached = 0;  // held by nobody, with KV that a later request may take; free otherwise
  int running = 0;
  int queued = 0;
  // Of the scheduler's life:
  uint64_t prefix_query_tokens = 0;  // tokens of sequences when they began, looked up in the cache
  uint64_t prefix_hit_tokens = 0;    // of these, found
  uint64_t preemptions = 0;
  uint64_t drafted_tokens = 0;   // guessed and verified
  uint64_t accepted_tokens = 0;  // of these, right
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);  // CHECK-fails unless options.Validate()
  ~Scheduler();

  // kAccepted: it runs. kQueued: it waits; see TakeAdmitted. InvalidArgument (prompt empty or
  // over the context, ids, limits or sampling out of range, `generated` that is complete already),
  // FailedPrecondition (a thinking budget without token_bytes, more blocks than exist), ResourceExhausted
  // (queue full), AlreadyExists (a request known with this attempt or a later one). A later attempt ends an
  // earlier one of the same request, even if it is refused itself.
  absl::StatusOr<Admission> Submit(SequenceRequest request);
  // Forgets a request wherever it is; unknown ones are ignored. Its blocks are given back at once: plans run
  // in order.
  void Abort(uint64_t source, uint64_t request);
  // All requests of a coordinator whose stream ended.
  void AbortSource(uint64_t source);

  // The next step, or nothing when there is nothing to run before the next Commit, which there is always
  // where no step is uncommitted and the scheduler is not idle. At most one planned step may be uncommitted
  // when called.
  std::optional<PlannedStep> Plan();
  // Results of the oldest uncommitted step (CheckResult holds): what it said about each sequence, in order of
  // rows.
  std::vector<SequenceOutput> Commit(const StepResult& result);

  // Requests that Submit queued and a later Plan admitted since the last call: (source, request, attempt).
  // One that was preempted is not named again.
  struct Admitted {
    uint64_t source;
    uint64_t request;
    uint32_t attempt;
  };
  std::vector<Admitted> TakeAdmitted();

  const SchedulerOptions& options() const;
  SchedulerLoad load() const;
  bool idle() const;  // nothing running, queued or uncommitted
  absl::Status CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx

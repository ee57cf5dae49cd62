// The state of a scheduler and what changes it. scheduler.cc admits and preempts, scheduler_steps.cc plans
// and commits, scheduler_invariants.cc says what always holds.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "worker/kv_blocks.h"
#include "worker/request_queue.h"
#include "worker/scheduler.h"
#include "worker/sequence.h"

namespace phalanx {

// What a row of an uncommitted step says about its sequence.
struct PendingRow {
  uint32_t sequence = 0;
  int64_t first_position = 0;
  int64_t num_tokens = 0;
  int64_t first_prompt_logit = 0;  // the position of the first logits row,
  int num_prompt_logits = 0;       // of so many, one each: about the prompt's tokens from the next one on
  int num_samples = 0;             // then so many that sample, at the last positions; all but one are guessed
  bool bans = false;               // and may not sample every token
};

struct PendingStep {
  int64_t num_logits = 0;
  std::vector<PendingRow> rows;
};

struct Scheduler::Impl {
  explicit Impl(const SchedulerOptions& o) : options(o), kv(o.num_blocks, o.block_size) {
    if (o.token_bytes != nullptr) thinking_tokens.emplace(o.token_bytes);
  }
  using Sequences = std::map<SequenceKey, std::unique_ptr<Sequence>>;

  const SchedulerOptions options;
  std::optional<ThinkingTokens> thinking_tokens;  // as options.token_bytes
  KvBlocks kv;
  Sequences sequences;  // all that live
  RequestQueue queue;
  std::vector<Sequence*> running;  // Precedes orders them
  std::unordered_map<uint32_t, Sequence*> running_by_id;
  std::deque<PendingStep> pending;  // planned, not committed
  std::vector<Admitted> admitted;
  std::vector<PlanBlocks> released;  // for the next plan, with what was announced
  uint64_t checksum = 0;             // of the tables after the last plan
  uint64_t step = 0;                 // of the last plan
  uint32_t last_id = 0;
  uint64_t last_arrival = 0;
  SchedulerLoad counters;  // those of its life

  // ---- scheduler.cc ----

  int64_t BlocksFor(int64_t positions) const {
    return (positions + options.block_size - 1) / options.block_size;
  }
  // Blocks that it may come to hold at most.
  int64_t BlocksOf(const Sequence& s) const { return BlocksFor(s.num_positions()); }
  // Blocks that it will take for what it knows already, and one to grow.
  int64_t Outlook(const Sequence& s) const;
  bool Fits(const Sequence& s);
  // Preempts what has a lower priority than `s`, the last first, until it fits; nothing where it would not.
  bool MakeRoom(const Sequence& s);
  void Admit(Sequence* s);
  void AdmitQueued();
  // Out of the running ones: its blocks are given back, rows of it in plans not committed are discarded at
  // Commit, as its id is known no more.
  void StopRunning(Sequence* s);
  void Preempt(Sequence* s);
  void Forget(Sequences::iterator it);

  // ---- scheduler_steps.cc ----

  // The cached blocks that `s` may begin with, into `hits`. *unready: the next one is written by the plan
  // being made.
  void LookUp(const Sequence& s, bool* unready);
  // Gives `s` what the cache has. False: better wait for the next plan.
  bool Begin(Sequence* s);
  // Takes blocks for positions up to `end`, from those that come after `s` where none is free. Returns the
  // positions for which there are blocks then, at most `end`.
  int64_t TakeBlocks(Sequence* s, int64_t end);
  // Publishes the full blocks before `end`: their tokens are known and plans up to `written_by` write them.
  void Publish(Sequence* s, int64_t end, uint64_t written_by);
  int64_t ChunkOf(const Sequence& s, int64_t tokens_left, int64_t logits_left, int64_t* logits) const;
  int32_t TokenAt(const Sequence& s, int64_t position, uint64_t this_step) const;
  // Guesses for those that decode. False: better wait until the uncommitted step is committed, and guess
  // then.
  bool Guess(int64_t tokens_left, int64_t logits_left);
  void AddRow(Sequence* s, int64_t count, PlannedStep* out, PendingStep* record);
  void Announce(StepPlan* plan);
  std::optional<PlannedStep> Plan();
  // The tokens of a row's sampling positions: the ids sampled at `logit` and after it.
  void TakeTokens(Sequence* s, const PendingRow& row, size_t logit, const StepResult& result,
                  SequenceOutput* out);
  SequenceOutput OutputOf(Sequence* s, const PendingRow& row, size_t logit, const StepResult& result);
  std::vector<SequenceOutput> Commit(const StepResult& result);

  // ---- scheduler_invariants.cc ----

  absl::Status CheckInvariants() const;
  absl::Status CheckRunning(const Sequence& s) const;

  // Kept for their memory.
  struct Decision {
    Sequence* sequence;
    int64_t count;
  };
  std::vector<Decision> decoding, prefilling;
  std::vector<int32_t> hits, block_tokens;
};

}  // namespace phalanx

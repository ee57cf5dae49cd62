// StepPlan: one step of a group as a value. The leader makes it, every rank applies it to its own tables and
// runs it; followers need no scheduler. It is a delta against the plan before, can be logged and replayed,
// and is made one step ahead: an input token may be the one that the step before is still to sample.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace phalanx {

// Blocks appended to a sequence's block table, which has first_index blocks before (0: a new sequence). A
// block may be in several tables, at the same index of each: its sequences have the same tokens up to its
// end, and what it holds was written by an earlier plan. Nobody writes to it any more.
struct PlanBlocks {
  uint32_t sequence = 0;
  uint32_t first_index = 0;
  std::vector<int32_t> blocks;
  bool operator==(const PlanBlocks&) const = default;
};

// Consecutive tokens of one sequence: a prompt chunk, a decode step, a re-prefill after a prefix hit or a
// loss, or guessed tokens to be verified are all this.
struct PlanRow {
  uint32_t sequence = 0;
  int32_t first_position = 0;
  // >= 0: a literal id. < 0: the id sampled for logits row -1 - t of the step before.
  std::vector<int32_t> tokens;
  // Offsets in `tokens`, rising, whose logits are needed. The step's logits rows are these, row by row.
  std::vector<int32_t> logit_offsets;
  uint32_t rope_mode = 0;  // index into ModelConfig::rope; the same in all rows of a sequence
  bool operator==(const PlanRow&) const = default;
};

struct StepPlan {
  uint64_t step = 0;               // 1, 2, ... without gaps in an epoch
  std::vector<uint32_t> released;  // sequences that are over; applied first
  std::vector<PlanBlocks> blocks;  // applied second
  std::vector<PlanRow> rows;       // run third; may be empty
  uint64_t checksum = 0;           // BlockTables::Checksum() after both deltas
  bool operator==(const StepPlan&) const = default;

  int64_t num_tokens() const;
  int64_t num_logits() const;
};

// What `block` at `index` of a sequence's table adds to BlockTables::Checksum(), modulo 2^64. A fixed
// function: ranks of different builds agree.
uint64_t BlockChecksum(uint32_t sequence, uint32_t index, int32_t block);

// The block tables of all live sequences as every rank keeps them. Pure.
// Invariant: a block is in a table at most once, and at the same index in all tables that have it.
class BlockTables {
 public:
  explicit BlockTables(int64_t num_blocks);

  // Applies the deltas and compares the checksum. Internal naming sequence and field when the plan does not
  // fit the tables (unknown sequence, gap, block out of range or held at another index, row of an unknown
  // sequence, checksum): this rank has diverged, the epoch must end and the tables are of no more use.
  absl::Status Apply(const StepPlan& plan);
  // Null for an unknown sequence.
  const std::vector<int32_t>* Find(uint32_t sequence) const;
  // The sum of BlockChecksum over all entries of all tables; O(1), kept up by Apply.
  uint64_t Checksum() const { return checksum_; }
  // How many tables have the block; a row may write to those of one alone.
  int32_t holders(int32_t block) const { return held_[block].tables; }

 private:
  struct Entry {
    uint32_t sequence;
    std::vector<int32_t> blocks;
  };
  std::vector<Entry>::iterator LowerBound(uint32_t sequence);

  struct Held {
    int32_t tables = 0;
    uint32_t index = 0;  // in each
  };
  std::vector<Held> held_;      // [num_blocks]
  std::vector<Entry> entries_;  // sorted by sequence
  uint64_t checksum_ = 0;
};

}  // namespace phalanx

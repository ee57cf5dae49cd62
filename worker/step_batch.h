// StepBatch: a step plan's rows as arrays on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/models/model.h"
#include "worker/step_plan.h"

namespace phalanx {

struct StepBatchLimits {
  int64_t max_tokens = 0;  // of a step
  int64_t max_logits = 0;
  int64_t context_length = 0;
  int64_t block_size = 0;
  int64_t vocab_size = 0;
  size_t num_rope_modes = 0;
};

class StepBatch {
 public:
  // Ops outlive it.
  absl::Status Init(Ops* ops, const StepBatchLimits& limits);

  // Checks the plan's rows against the tables, which have its deltas, and enqueues the copy of their arrays.
  // `sampled`: ids of the last step's logits rows, last_logits of them. With `padded`, the batch has that
  // many rows and logits rows, of which those beyond the plan's store nothing, and it replays; 0: the plan's.
  // Internal naming the sequence, its value and what would be right.
  absl::Status Build(const StepPlan& step, const BlockTables& tables, int64_t last_logits,
                     const int32_t* sampled, int64_t padded);
  const ForwardBatch& rows() const { return batch_; }
  int64_t bytes() const { return device_->bytes(); }

 private:
  absl::Status CheckRow(const PlanRow& row, const BlockTables& tables, int64_t last_logits) const;
  // Space for n elements in the one copy; *device gets where they will lie.
  template <typename T>
  T* Take(int64_t n, const T** device);

  Ops* ops_ = nullptr;
  StepBatchLimits limits_;
  ForwardBatch batch_;
  std::vector<char> host_;
  std::unique_ptr<Buffer> device_;
  int64_t used_ = 0;
};

// The number of `replay_rows`, which rise, that the plan's rows are filled up to; 0 where it is best enqueued
// as it is.
int64_t RowsToReplay(const StepPlan& step, const std::vector<int>& replay_rows);

}  // namespace phalanx

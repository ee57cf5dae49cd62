// Cuts a call to Attention into the kernels' items. The host says a few words per sequence; the items are
// made on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/cuda_memory.h"

namespace phalanx::cuda {

// What else than its sequences says which items a call has.
struct AttentionLayout {
  int key_dim = 0;
  int value_dim = 0;       // of out
  int64_t max_chunks = 0;  // of a sequence: what the cache holds
  std::vector<AttentionHeads> kv_heads;
  std::vector<int32_t> head_list;

  bool operator==(const AttentionLayout& other) const;
  int partial_pitch() const { return (value_dim + 7) / 8 * 8; }
};
// Of valid params whose cache has `shape`.
AttentionLayout LayoutOf(const AttentionParams& params, int64_t cache_blocks, int value_dim);

class AttentionPlan {
 public:
  // `fixed`: everything on the device keeps its place, and grids depend on the number of rows alone, of which
  // there are at most kMaxReplayRows.
  static absl::StatusOr<std::unique_ptr<AttentionPlan>> Create(const std::shared_ptr<Runtime>& runtime,
                                                               const AttentionLayout& layout, bool fixed);

  const AttentionLayout& layout() const { return layout_; }
  // Enqueues what says which items there are from now on; nothing if that is what it said last. `hopper`:
  // calls of many rows are for LaunchHopperAttention.
  absl::Status Upload(absl::Span<const AttentionSequence> sequences, bool hopper = false);
  // Enqueues the making of the items of what was uploaded; with `fixed` to be called for each call, else
  // Upload does it.
  absl::Status MakeItems();

  // Enqueues the attention of `rows` rows; of args all is set but what is the plan's.
  absl::Status Attend(AttentionArgs args, int64_t rows, bool half);

 private:
  AttentionPlan(std::shared_ptr<Runtime> runtime, AttentionLayout layout, bool fixed)
      : runtime_(runtime),
        layout_(std::move(layout)),
        fixed_(fixed),
        said_device_(runtime),
        items_(runtime),
        combined_(runtime),
        partials_(std::move(runtime)) {}
  absl::Status Reserve(int64_t said_bytes, int64_t items, int64_t combined, int64_t partials);
  // Items of `rows` single rows, uncut.
  int64_t WholeItems(int64_t rows) const;

  std::shared_ptr<Runtime> runtime_;
  const AttentionLayout layout_;
  const bool fixed_;
  int64_t max_partials_ = 0;
  int64_t heads_at_ = 0, list_at_ = 0, sequences_at_ = 0;  // in what is said
  AttentionCounts counts_;
  int64_t num_partials_ = 0;
  std::vector<char> said_, last_said_;
  Scratch said_device_, items_, combined_, partials_;
};

}  // namespace phalanx::cuda

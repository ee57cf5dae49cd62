// Weights that stay quantised (Q8_0, Q4_0, Q4_1), and products with them. The arithmetic and the panels are
// described in quant_kernels.h.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/quant_kernels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops.h"
#include "kernels/reference/host_objects.h"

namespace phalanx {

class QuantPanels {
 public:
  // A run of k that is summed by itself: a shard, or all of K. A block that a cut divides belongs to both.
  struct Segment {
    int64_t x_begin = 0;  // in columns of x
    int64_t depth = 0;
    int phase = 0;  // of the first column in its block
  };

  // The type of all pieces, if it is one that can stay as it is.
  static std::optional<QuantType> TypeOf(const PackWeightParams& params);
  // `memory` may be null.
  static absl::StatusOr<std::unique_ptr<QuantPanels>> Pack(QuantType type, const QuantKernels& kernels,
                                                           const PackWeightParams& params, ThreadPool& pool,
                                                           WeightMemory* memory);

  QuantType type() const { return type_; }
  const QuantKernels& kernels() const { return *kernels_; }
  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<QuantRun>& runs() const { return runs_; }  // the same in panels and packed rows
  int64_t blocks() const { return blocks_; }                   // of a panel
  int num_panels() const { return num_panels_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const char* panel(int p) const { return static_cast<const char*>(memory_->data()) + p * panel_bytes_; }
  int64_t bytes() const { return memory_->bytes(); }

 private:
  // Copies row `row` of `source` to output `place` of the panel.
  void PackRow(const WeightSource& source, int64_t row, int64_t first_column, char* panel, int place) const;

  QuantType type_ = QuantType::kQ8_0;
  const QuantKernels* kernels_ = nullptr;
  std::vector<Segment> segments_;
  std::vector<QuantRun> runs_;
  int64_t blocks_ = 0, panel_bytes_ = 0;
  int num_panels_ = 0;
  std::unique_ptr<HostBuffer> memory_;
};

// One thread at a time; works on the pool's.
class QuantGemm {
 public:
  explicit QuantGemm(ThreadPool& pool) : pool_(pool), sums_(static_cast<size_t>(pool.num_threads())) {}

  // `n` outputs; segments of each tree (1 of a weight whose K is not sharded).
  absl::Status Run(const Matrix& x, const QuantPanels& weight, int64_t n,
                   const std::vector<int>& tree_segments, const ProductOutput& output);

 private:
  // Packs the rows of x in tiles of tile_rows.
  void PackTiles(const Matrix& x, const QuantPanels& weight, int tile_rows, char* packed);

  ThreadPool& pool_;
  Scratch rows_;
  std::vector<Scratch> sums_;  // of each thread
};

}  // namespace phalanx

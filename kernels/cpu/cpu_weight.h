// Weights in the CPU backend's panels, and products with them: of the kernels' 16-bit or fp32 elements, or
// quantised as they lie in the file.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/quant_weight.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops.h"
#include "kernels/reference/host_objects.h"

namespace phalanx {

class CpuWeight : public PackedWeight {
 public:
  // A run of k that is summed by itself: a shard, or all of K.
  struct Segment {
    int64_t x_begin = 0;  // in columns of x
    int64_t depth = 0;
  };

  // Where `quant` is given, pieces of one type that it knows stay quantised. `memory` may be null.
  static absl::StatusOr<std::unique_ptr<CpuWeight>> Pack(const GemmKernels& kernels,
                                                         const QuantKernels* quant,
                                                         const PackWeightParams& params, ThreadPool& pool,
                                                         WeightMemory* memory);

  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  int64_t bytes() const override { return quant_ != nullptr ? quant_->bytes() : memory_->bytes(); }
  const std::vector<Subtree>& subtrees() const override { return subtrees_; }

  // Of the Ops that packed it.
  const GemmKernels& kernels() const { return *kernels_; }
  // Null where the weight is none that stayed quantised; what follows is not of such a one.
  const QuantPanels* quant() const { return quant_.get(); }
  const std::vector<Segment>& segments() const { return segments_; }
  // The same in packed rows and panels; depth is padded where the kernels want it.
  const std::vector<ProductSegment>& packed_segments() const { return packed_segments_; }
  const std::vector<int>& tree_segments() const { return tree_segments_; }  // segments of each tree
  int num_panels() const { return static_cast<int>((n_ + kPanel - 1) / kPanel); }
  int64_t row_depth() const { return row_depth_; }                // packed k of a row
  int64_t panel_stride() const { return panel_depth_ * kPanel; }  // elements
  const char* panel(int p, int64_t k) const {
    return static_cast<const char*>(memory_->data()) +
           (p * panel_stride() + k * kPanel) * kernels_->weight_bytes;
  }

 private:
  void PackPanel(const PackWeightParams& params, int panel, float* scratch);

  const GemmKernels* kernels_ = nullptr;
  int64_t n_ = 0, k_ = 0, row_depth_ = 0, panel_depth_ = 0;
  std::vector<Segment> segments_;
  std::vector<ProductSegment> packed_segments_;
  std::vector<int> tree_segments_;
  std::vector<Subtree> subtrees_;
  std::unique_ptr<HostBuffer> memory_;
  std::unique_ptr<QuantPanels> quant_;
};

// Products of activations with packed weights. One thread at a time; works on the pool's.
class CpuGemm {
 public:
  explicit CpuGemm(ThreadPool& pool)
      : pool_(pool), quant_(pool), sums_(static_cast<size_t>(pool.num_threads())) {}

  // y = x W^T (+ bias): weight has one segment.
  absl::Status Matmul(const Matrix& x, const CpuWeight& weight, const float* bias, const Matrix& y);
  // sums[i] of each subtree, `tree_stride` elements apart.
  absl::Status ShardedMatmul(const Matrix& x, const CpuWeight& weight, float* sums, int64_t tree_stride);
  // Whether GatedMatmul takes so many rows of this weight.
  static bool CanGate(const CpuWeight& weight, int64_t rows);
  // y = silu(g) * u of the halves g | u of x W^T.
  absl::Status GatedMatmul(const Matrix& x, const CpuWeight& weight, const Matrix& y);
  // Whether GatedShardedMatmul takes so many rows of these weights.
  static bool CanGate(const CpuWeight& gate_up, const CpuWeight& down, int64_t rows);
  // ShardedMatmul of `down` with what GatedMatmul of `gate_up` would make.
  absl::Status GatedShardedMatmul(const Matrix& x, const CpuWeight& gate_up, const CpuWeight& down,
                                  float* sums, int64_t tree_stride);

 private:
  // By the kernels' many_rows_tree; rows are packed.
  void RunManyRowsTree(const char* packed_rows, int num_rows, const CpuWeight& weight,
                       const ProductOutput& output);
  absl::Status Run(const Matrix& x, const CpuWeight& weight, const ProductOutput& output);

  ThreadPool& pool_;
  QuantGemm quant_;
  Scratch rows_, gated_rows_;
  std::vector<Scratch> sums_;  // of each thread
};

}  // namespace phalanx

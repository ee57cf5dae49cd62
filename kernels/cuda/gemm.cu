// y = x W^T for every number of rows with one arithmetic per weight.
//
// Arithmetic. K is cut into segments of at most 1024 columns (cuts between shards are cuts of segments; which
// there are depends on nothing but K and the shards). A segment is summed from zero by m16n8k16 in rising
// order of K; a shard's segments are added in order, from the first; shards of a subtree are added in the
// tree's order, a shard without columns being +0. So an element's bits depend on its row of x and its row of
// W only; which kernel below made it does not matter.
//
// Weights are the A operand and lie in its fragment order: a warp takes a 16 x 16 step by one 16-byte load
// per lane, and 16 rows of W by 64 columns are 2 KiB that lie together. Rows of x are the B operand, read by
// ldmatrix from swizzled tiles. Both come through a pipeline of cp.async stages of 64 columns, one barrier
// each.
//
// Split (T <= 64): a block takes 64 rows of W and one segment; segments make enough blocks to fill the chip,
// and every weight byte is read once. Roofline: 2 N K bytes over the memory bandwidth; 5 or more stages of 8
// KiB of weights a block are in flight. Segments' sums go to fp32 partials (2 T N * segments * 4 bytes more:
// 3 % of the weights for T = 8) and a second kernel adds them in the order above.
// Whole (T > 64): a block takes 128 rows of W and 128 (or 64) tokens through all segments, sums in registers;
// subtrees of up to 8 shards keep their pending sums in registers too. Roofline: 2 T N K over the tensor
// cores' rate for mma.sync.
#include "kernels/cuda/gemm.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kMaxLevels = 6;  // of a tree over 64 shards

// The sum of a subtree's partials of one output of one row.
PHX_DEVICE float CombinedSum(const GemmArgs& p, int row, int tree, int n) {
  const int cols = PartialCols(p);
  const float* at = p.partials + static_cast<int64_t>(row) * cols + n;
  const int64_t step = static_cast<int64_t>(p.rows) * cols;
  float stack[kMaxLevels + 1];
  float sum = 0;
  const int first = p.tree_begin[tree];
  for (int shard = first; shard < p.tree_begin[tree + 1]; ++shard) {
    sum = 0;
    const int begin = p.shard_begin[shard];
    for (int s = begin; s < p.shard_begin[shard + 1]; ++s)
      sum = s == begin ? at[s * step] : Add(sum, at[s * step]);
    bool open = true;
    PHX_UNROLL
    for (int level = 0; level <= kMaxLevels; ++level) {
      if (open && ((shard - first) >> level & 1) != 0) {
        sum = Add(stack[level], sum);
      } else if (open) {
        stack[level] = sum;
        open = false;
      }
    }
  }
  return sum;
}

// Adds the segments' partials. A thread takes one output of one row of one subtree.
template <bool kHalf, bool kGated>
PHX_GLOBAL void PHX_BOUNDS(256, 1) GemmCombine(GemmArgs p) {
  WaitForPrevious();
  const int n = BlockX() * 256 + ThreadIndex();
  const int row = BlockY(), tree = BlockZ();
  if (n >= p.n) return;
  float sum = CombinedSum(p, row, tree, n);
  if constexpr (kGated) {
    sum = GatedSums<kHalf>(sum, CombinedSum(p, row, tree, p.n + n));
  } else if (p.bias != nullptr) {
    sum = Add(sum, p.bias[n]);
  }
  StoreSum<kHalf>(p.y, p.y_fp32, tree * p.tree_stride + row * p.y_stride + n, sum);
}

// A thread takes 8 columns.
PHX_GLOBAL void PHX_BOUNDS(128, 1) PackRows(PackRowsArgs p) {
  WaitForPrevious();
  const int row = BlockY();
  const GemmSegment s = p.segments[BlockX()];
  const uint16_t* x = p.x + row * p.x_stride + s.x_begin;
  uint16_t* out = p.out + (static_cast<int64_t>(row) * p.total_blocks + s.first_block) * kGemmBlock;
  for (int c = ThreadIndex() * 8; c < s.blocks * kGemmBlock; c += 128 * 8) {
    Quad q;
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = c + 2 * i < s.x_cols ? x[c + 2 * i] : 0;
      const uint32_t high = c + 2 * i + 1 < s.x_cols ? x[c + 2 * i + 1] : 0;
      q.v[i] = low | high << 16;
    }
    StoreQuad(out + c, q);
  }
}

// The same from columns that a list says.
PHX_GLOBAL void PHX_BOUNDS(128, 1) GatherRows(PackRowsArgs p) {
  WaitForPrevious();
  const int row = BlockY(), c = (BlockX() * 128 + ThreadIndex()) * 8;
  const uint16_t* x = p.x + row * p.x_stride;
  if (c >= p.total_blocks * kGemmBlock) return;
  Quad q;
  PHX_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int32_t low = p.columns[c + 2 * i], high = p.columns[c + 2 * i + 1];
    q.v[i] = (low < 0 ? 0 : uint32_t{x[low]}) | (high < 0 ? 0 : uint32_t{x[high]}) << 16;
  }
  StoreQuad(p.out + static_cast<int64_t>(row) * p.total_blocks * kGemmBlock + c, q);
}

using Split8 = GemmShape<HalfWeight, 1, 1, 4, 1, 6, 0>;
using Split16 = GemmShape<HalfWeight, 1, 2, 4, 1, 6, 0>;
using Split32 = GemmShape<HalfWeight, 1, 4, 4, 1, 5, 0>;
using Split64 = GemmShape<HalfWeight, 1, 8, 4, 1, 5, 0>;
using Whole128 = GemmShape<HalfWeight, 4, 4, 2, 4, 4, 0>;
using Tree64 = GemmShape<HalfWeight, 2, 4, 4, 2, 4, 3>;
using Group16 = GemmShape<HalfWeight, 1, 2, 4, 1, 6, 0>;
using Gated128 = GemmShape<HalfWeight, 4, 4, 2, 4, 4, 0, true>;

constexpr int kSplitRows = 64;  // at most

template <bool kHalf>
int Run(const GemmArgs& p, void* stream) {
  if (p.expert_weights != nullptr) {
    return p.rows <= 32 ? RunWhole<Group16, kHalf>(p, stream) : RunWhole<Whole128, kHalf>(p, stream);
  }
  if (!GemmSplits(p) && p.rows > kSplitRows) {
    if (p.up_tiles > 0) return RunWhole<Gated128, kHalf>(p, stream);
    return p.max_shards_per_tree == 1 ? RunWhole<Whole128, kHalf>(p, stream)
                                      : RunWhole<Tree64, kHalf>(p, stream);
  }
  if (p.num_segments > 0) {
    const int error = p.rows <= 8    ? RunSplit<Split8, kHalf>(p, stream)
                      : p.rows <= 16 ? RunSplit<Split16, kHalf>(p, stream)
                      : p.rows <= 32 ? RunSplit<Split32, kHalf>(p, stream)
                                     : RunSplit<Split64, kHalf>(p, stream);
    if (error != 0 || p.partials == nullptr) return error;
  }
  return LaunchGemmCombine(p, kHalf, stream);
}

}  // namespace

bool GemmSplits(const GemmArgs& p) {
  if (p.expert_weights != nullptr) return false;
  if (p.num_segments == 1 && p.num_trees == 1 && p.max_shards_per_tree == 1 && p.up_tiles == 0) return false;
  return p.rows <= kSplitRows || p.max_shards_per_tree > 1 << Tree64::kLevels;
}

int LaunchGemm(const GemmArgs& p, bool half, void* stream) {
  return half ? Run<true>(p, stream) : Run<false>(p, stream);
}

int LaunchGemmCombine(const GemmArgs& p, bool half, void* stream) {
  const GridDim grid = {static_cast<unsigned>(CeilDiv(p.n, 256)), static_cast<unsigned>(p.rows),
                        static_cast<unsigned>(p.num_trees)};
  void (*const kernel)(GemmArgs) = p.up_tiles > 0
                                       ? (half ? GemmCombine<true, true> : GemmCombine<false, true>)
                                   : half ? GemmCombine<true, false>
                                          : GemmCombine<false, false>;
  return LaunchKernel("GemmCombine", kernel, grid, 256, 0, stream, p);
}

int LaunchPackRows(const PackRowsArgs& p, void* stream) {
  if (p.num_segments == 0) return 0;
  if (p.columns != nullptr) {
    const GridDim grid = {static_cast<unsigned>(CeilDiv(int64_t{p.total_blocks} * kGemmBlock, 128 * 8)),
                          static_cast<unsigned>(p.rows), 1};
    return LaunchKernel("GatherRows", GatherRows, grid, 128, 0, stream, p);
  }
  const GridDim grid = {static_cast<unsigned>(p.num_segments), static_cast<unsigned>(p.rows), 1};
  return LaunchKernel("PackRows", PackRows, grid, 128, 0, stream, p);
}

}  // namespace phalanx::cuda

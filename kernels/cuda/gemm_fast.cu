// y = x W^T for few rows of x, from row-major weights: mode `fast`.
//
// Weights are the A operand of m16n8k16, rows of x the B operand. A block takes 32 rows of W and all of K:
// its 4 warps take the blocks of 64 columns in turn, so that a row is read in runs of 512 bytes, and their
// sums are added in order through shared memory at the end; no second kernel and no sums in device memory.
// Each warp has a pipeline of its own, of 4 stages by cp.async that only its own lanes wait for: the block
// meets once, at the end. Roofline: 2 N K bytes over the memory bandwidth; 12 KiB of weights a warp, 96 KiB a
// multiprocessor (two blocks) are in flight. Rows of x are read again by every block, from the L2 cache: a
// quarter of the weights' bytes for 8 rows, a half for 16.
#include "kernels/cuda/gemm_fast.cuh"

namespace phalanx::cuda {
namespace {

template <int kGroups, int kStages>
using SkinnyShape = RowMajorShape<kGroups, kStages, 1, kFastBlock, 2>;

// A warp's way through its blocks of columns: first, first + kWarps, ...
template <class Shape>
struct SkinnyLoader {
  const FastGemmArgs& p;
  const uint16_t* weight;
  const int32_t* row_map;
  int first_row, first_token, num_rows;
  int block, num_blocks;

  PHX_DEVICE void Load(char* stage) {
    if (block < num_blocks) {
      const int lane = ThreadIndex() % kWarpSize;
      PHX_UNROLL
      for (int i = 0; i < Shape::kRows * 8 / kWarpSize; ++i) {
        const int row = i * 4 + lane / 8, unit = lane % 8;
        const bool inside = first_row + row < p.n;
        CopyAsync(stage + Swizzled(row, unit, kFastBlock * 2),
                  weight + (inside ? (first_row + row) * p.weight_stride + block * kFastBlock + unit * 8 : 0),
                  inside ? 16 : 0);
      }
      PHX_UNROLL
      for (int i = 0; i < Shape::kTokens * 8 / kWarpSize; ++i) {
        const int token = i * 4 + lane / 8, unit = lane % 8;
        LoadX(stage + Shape::kWeightBytes + Swizzled(token, unit, kFastBlock * 2), p, row_map, num_rows,
              first_token + token, block * kFastBlock + unit * 8);
      }
      block += Shape::kWarps;
    }
    CommitCopies();
  }
};

template <class Shape, bool kHalf>
PHX_DEVICE void MultiplySkinny(const char* stage, float (&acc)[Shape::kTiles][Shape::kGroups][4]) {
  const int lane = ThreadIndex() % kWarpSize;
  PHX_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t b[Shape::kGroups][4];
    PHX_UNROLL
    for (int j = 0; j < Shape::kGroups; ++j) {
      LdMatrix(b[j],
               stage + Shape::kWeightBytes + Swizzled(j * 8 + lane % 8, pair * 4 + lane / 8, kFastBlock * 2));
    }
    PHX_UNROLL
    for (int step = 0; step < 2; ++step) {
      PHX_UNROLL
      for (int m = 0; m < Shape::kTiles; ++m) {
        uint32_t a[4];
        LdMatrix(a, stage + Swizzled(m * 16 + lane % 16, (pair * 2 + step) * 2 + lane / 16, kFastBlock * 2));
        PHX_UNROLL
        for (int j = 0; j < Shape::kGroups; ++j) Mma<kHalf>(acc[m][j], a, b[j][step * 2], b[j][step * 2 + 1]);
      }
    }
  }
}

template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) FastGemm(FastGemmArgs p) {
  WaitForPrevious();
  const int warp = ThreadIndex() / kWarpSize, expert = BlockZ();
  const int first_row = BlockX() * Shape::kRows, first_token = BlockY() * Shape::kTokens;
  const int num_rows = NumRows(p, expert);
  if (first_token >= num_rows) return;
  const int32_t* row_map = MapOf(p, p.row_map, expert);
  const uint16_t* weight = p.expert_weights != nullptr ? p.expert_weights[expert] : p.weight;
  const int num_blocks = (p.k + kFastBlock - 1) / kFastBlock;
  SkinnyLoader<Shape> loader = {p, weight, row_map, first_row, first_token, num_rows, warp, num_blocks};
  char* stages = SharedMemory() + warp * Shape::kStages * Shape::kStageBytes;
  PHX_UNROLL
  for (int i = 0; i < Shape::kStages - 1; ++i) loader.Load(stages + i * Shape::kStageBytes);
  float acc[Shape::kTiles][Shape::kGroups][4];
  Clear(acc);
  int slot = 0;
  for (int block = warp; block < num_blocks; block += Shape::kWarps) {
    if (!PHX_FAULT(kGemmNoWait)) WaitCopies<Shape::kStages - 2>();
    // Fills are visible to the warp; and the slot that is filled next has been read by it.
    SyncWarp();
    loader.Load(stages + (slot == 0 ? Shape::kStages - 1 : slot - 1) * Shape::kStageBytes);
    MultiplySkinny<Shape, kHalf>(stages + slot * Shape::kStageBytes, acc);
    slot = slot == Shape::kStages - 1 ? 0 : slot + 1;
  }
  StoreSums<Shape, kHalf>(p, acc, nullptr, first_row, first_token, num_rows);
}

template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(256, 1) BiasRows(BiasRowsArgs p) {
  WaitForPrevious();
  const int n = BlockX() * 256 + ThreadIndex();
  const int64_t row = BlockY();
  if (n >= p.n) return;
  const float sum = Add(p.x[row * p.x_stride + n], p.bias[n]);
  StoreSum<kHalf>(p.y, p.y_fp32, row * p.y_stride + n, sum);
}

using Skinny8 = SkinnyShape<1, 4>;
using Skinny16 = SkinnyShape<2, 4>;
// For what cuBLASLt does not take: experts, rows that are not aligned.
using Skinny64 = SkinnyShape<8, 4>;

template <class Shape, bool kHalf>
int RunFast(const FastGemmArgs& p, void* stream) {
  return LaunchKernel("FastGemm", FastGemm<Shape, kHalf>, RowMajorGrid<Shape>(p), Shape::kThreads,
                      Shape::kSharedBytes, stream, p);
}

template <bool kHalf>
int RunFast(const FastGemmArgs& p, void* stream) {
  return p.rows <= 8    ? RunFast<Skinny8, kHalf>(p, stream)
         : p.rows <= 16 ? RunFast<Skinny16, kHalf>(p, stream)
                        : RunFast<Skinny64, kHalf>(p, stream);
}

}  // namespace

int LaunchFastGemm(const FastGemmArgs& p, bool half, void* stream) {
  if (p.rows == 0 || p.n == 0) return 0;
  return half ? RunFast<true>(p, stream) : RunFast<false>(p, stream);
}

int LaunchBiasRows(const BiasRowsArgs& p, bool half, void* stream) {
  if (p.rows == 0 || p.n == 0) return 0;
  const GridDim grid = {static_cast<unsigned>((p.n + 255) / 256), static_cast<unsigned>(p.rows), 1};
  return LaunchKernel("BiasRows", half ? BiasRows<true> : BiasRows<false>, grid, 256, 0, stream, p);
}

}  // namespace phalanx::cuda

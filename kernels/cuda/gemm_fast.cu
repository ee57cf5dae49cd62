// y = x W^T for few rows of x, from row-major weights: mode `fast`.
//
// Weights are the A operand of m16n8k16, rows of x the B operand. A block takes 32 rows of W and all of K:
// its 4 warps take the blocks of 64 columns in turn, so that a row is read in runs of 512 bytes, and their
// sums are added in order through shared memory at the end; no second kernel and no sums in device memory.
// Each warp has a pipeline of its own, of 4 stages by cp.async that only its own lanes wait for: the block
// meets once, at the end. Roofline: 2 N K bytes over the memory bandwidth; 12 KiB of weights a warp, 96 KiB a
// multiprocessor (two blocks) are in flight. Rows of x are read again by every block, from the L2 cache: a
// quarter of the weights' bytes for 8 rows, a half for 16.
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_fast.h"

namespace phalanx::cuda {
namespace {

template <int kGroups_, int kStages_>
struct SkinnyShape {
  static constexpr int kGroups = kGroups_;  // of 8 tokens
  static constexpr int kStages = kStages_;
  static constexpr int kTokens = kGroups * 8;
  static constexpr int kTiles = 2;  // of 16 rows of W
  static constexpr int kRows = kTiles * 16;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kWeightBytes = kRows * kFastBlock * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kFastBlock * 2;
  static constexpr int kSharedBytes = kStageBytes * kStages * kWarps;
  static constexpr int kPitch = kRows + 4;  // floats of a token's sums in the epilogue
  static_assert(kWarps * kTokens * kPitch * 4 <= kSharedBytes);
};

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
        const int row = first_token + token, column = block * kFastBlock + unit * 8;
        const int left = row < num_rows ? (p.k - column) * 2 : 0;
        const int bytes = left < 0 ? 0 : left > 16 ? 16 : left;
        const int64_t x_row = bytes == 0 ? 0 : row_map != nullptr ? row_map[row] : row;
        CopyAsync(stage + Shape::kWeightBytes + Swizzled(token, unit, kFastBlock * 2),
                  p.x + (bytes == 0 ? 0 : x_row * p.x_stride + column), bytes);
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

// Blocks: (rows of W / 32, tokens, experts).
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) FastGemm(FastGemmArgs p) {
  WaitForPrevious();
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  const int first_row = BlockX() * Shape::kRows, first_token = BlockY() * Shape::kTokens;
  const bool grouped = p.expert_weights != nullptr;
  const int expert = BlockZ();
  const int num_rows = grouped ? p.counts[expert] : p.rows;
  if (first_token >= num_rows) return;
  const int32_t* row_map = grouped ? p.row_map + static_cast<int64_t>(expert) * p.rows : nullptr;
  const int32_t* y_map = grouped ? p.y_map + static_cast<int64_t>(expert) * p.rows : nullptr;
  const int num_blocks = (p.k + kFastBlock - 1) / kFastBlock;
  SkinnyLoader<Shape> loader = {p,           grouped ? p.expert_weights[expert] : p.weight,
                                row_map,     first_row,
                                first_token, num_rows,
                                warp,        num_blocks};
  char* stages = SharedMemory() + warp * Shape::kStages * Shape::kStageBytes;
  PHX_UNROLL
  for (int i = 0; i < Shape::kStages - 1; ++i) loader.Load(stages + i * Shape::kStageBytes);
  float acc[Shape::kTiles][Shape::kGroups][4];
  PHX_UNROLL
  for (int m = 0; m < Shape::kTiles; ++m) {
    PHX_UNROLL
    for (int j = 0; j < Shape::kGroups; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) acc[m][j][i] = 0;
    }
  }
  int slot = 0;
  for (int block = warp; block < num_blocks; block += Shape::kWarps) {
    if (!PHX_FAULT(kGemmNoWait)) WaitCopies<Shape::kStages - 2>();
    // Fills are visible to the warp; and the slot that is filled next has been read by it.
    SyncWarp();
    loader.Load(stages + (slot == 0 ? Shape::kStages - 1 : slot - 1) * Shape::kStageBytes);
    MultiplySkinny<Shape, kHalf>(stages + slot * Shape::kStageBytes, acc);
    slot = slot == Shape::kStages - 1 ? 0 : slot + 1;
  }

  auto* sums = reinterpret_cast<float*>(SharedMemory());
  WaitCopies<0>();
  if (!PHX_FAULT(kGemmNoEpilogueBarrier)) SyncThreads();
  PHX_UNROLL
  for (int m = 0; m < Shape::kTiles; ++m) {
    PHX_UNROLL
    for (int j = 0; j < Shape::kGroups; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int token = j * 8 + lane % 4 * 2 + i % 2, row = m * 16 + lane / 4 + i / 2 * 8;
        sums[(warp * Shape::kTokens + token) * Shape::kPitch + row] = acc[m][j][i];
      }
    }
  }
  SyncThreads();
  for (int at = ThreadIndex(); at < Shape::kTokens * Shape::kRows; at += Shape::kThreads) {
    const int token = at / Shape::kRows, row = at % Shape::kRows;
    const int n = first_row + row, t = first_token + token;
    if (n >= p.n || t >= num_rows) continue;
    float sum = sums[token * Shape::kPitch + row];
    PHX_UNROLL
    for (int w = 1; w < Shape::kWarps; ++w) {
      sum = Add(sum, sums[(w * Shape::kTokens + token) * Shape::kPitch + row]);
    }
    if (p.bias != nullptr) sum = Add(sum, p.bias[n]);
    const int64_t to = (y_map != nullptr ? y_map[t] : t) * p.y_stride + n;
    if (p.y_fp32) {
      static_cast<float*>(p.y)[to] = sum;
    } else {
      static_cast<uint16_t*>(p.y)[to] = FromFloat<kHalf>(sum);
    }
  }
}

template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(256, 1) BiasRows(BiasRowsArgs p) {
  WaitForPrevious();
  const int n = BlockX() * 256 + ThreadIndex();
  const int64_t row = BlockY();
  if (n >= p.n) return;
  const float sum = Add(p.x[row * p.x_stride + n], p.bias[n]);
  if (p.y_fp32) {
    static_cast<float*>(p.y)[row * p.y_stride + n] = sum;
  } else {
    static_cast<uint16_t*>(p.y)[row * p.y_stride + n] = FromFloat<kHalf>(sum);
  }
}

using Skinny8 = SkinnyShape<1, 4>;
using Skinny16 = SkinnyShape<2, 4>;
// For what cuBLASLt does not take: experts, rows that are not aligned.
using Skinny64 = SkinnyShape<8, 4>;

template <class Shape, bool kHalf>
int RunFast(const FastGemmArgs& p, void* stream) {
  const GridDim grid = {static_cast<unsigned>((p.n + Shape::kRows - 1) / Shape::kRows),
                        static_cast<unsigned>((p.rows + Shape::kTokens - 1) / Shape::kTokens),
                        static_cast<unsigned>(p.expert_weights != nullptr ? p.num_experts : 1)};
  return LaunchKernel("FastGemm", FastGemm<Shape, kHalf>, grid, Shape::kThreads, Shape::kSharedBytes, stream,
                      p);
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

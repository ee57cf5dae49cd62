// What the kernels of row-major weights have in common, whatever a weight's elements are: a block's shape,
// its rows of x, and its end, where the sums of its warps are added and stored.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_fast.h"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {

// A block has 4 warps. Teams of them have pipelines of their own and take the blocks of columns in turn; the
// warps of a team have 32 rows of W each.
template <int kGroups_, int kStages_, int kTeamWarps_, int kBlock_, int kElementBytes_>
struct RowMajorShape {
  static constexpr int kGroups = kGroups_;  // of 8 tokens
  static constexpr int kStages = kStages_;
  static constexpr int kTeamWarps = kTeamWarps_;
  static constexpr int kTokens = kGroups * 8;
  static constexpr int kTiles = 2;  // of 16 rows of W, a warp
  static constexpr int kWarpRows = kTiles * 16;
  static constexpr int kRows = kWarpRows * kTeamWarps;
  static constexpr int kWarps = 4;
  static constexpr int kTeams = kWarps / kTeamWarps;
  static constexpr int kTeamThreads = kTeamWarps * kWarpSize;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kWeightBytes = kRows * kBlock_ * kElementBytes_;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kBlock_ * 2;
  static constexpr int kSharedBytes = kStageBytes * kStages * kTeams;
  static constexpr int kPitch = kWarpRows + 4;  // floats of a token's sums in the epilogue
  static_assert(kWarps * kTokens * kPitch * 4 <= kSharedBytes);
};

// Rows of x: those of an expert, or all.
PHX_DEVICE int NumRows(const RowMajorGemmArgs& p, int expert) {
  return p.expert_weights != nullptr ? p.counts[expert] : p.rows;
}
// An expert's part of a map of rows; null: they are as they lie.
PHX_DEVICE const int32_t* MapOf(const RowMajorGemmArgs& p, const int32_t* map, int expert) {
  return p.expert_weights != nullptr ? map + static_cast<int64_t>(expert) * p.rows : nullptr;
}

// Brings 8 columns of a row of x; zeros where there are none.
PHX_DEVICE void LoadX(char* to, const RowMajorGemmArgs& p, const int32_t* map, int num_rows, int row,
                      int column) {
  const int left = row < num_rows ? (p.k - column) * 2 : 0;
  const int bytes = left < 0 ? 0 : left > 16 ? 16 : left;
  const int64_t x_row = bytes == 0 ? 0 : map != nullptr ? map[row] : row;
  CopyAsync(to, p.x + (bytes == 0 ? 0 : x_row * p.x_stride + column), bytes);
}

// Adds the teams' sums in order, through shared memory, and stores them. `scales`: of rows of W, or null.
template <class Shape, bool kHalf>
PHX_DEVICE void StoreSums(const RowMajorGemmArgs& p, const float (&acc)[Shape::kTiles][Shape::kGroups][4],
                          const float* scales, int first_row, int first_token, int num_rows) {
  auto* sums = reinterpret_cast<float*>(SharedMemory());
  const int32_t* map = MapOf(p, p.y_map, BlockZ());
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
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
    const int at_row = row % Shape::kWarpRows, member = row / Shape::kWarpRows;
    float sum = sums[(member * Shape::kTokens + token) * Shape::kPitch + at_row];
    PHX_UNROLL
    for (int w = Shape::kTeamWarps; w < Shape::kWarps; w += Shape::kTeamWarps) {
      sum = Add(sum, sums[((w + member) * Shape::kTokens + token) * Shape::kPitch + at_row]);
    }
    if (scales != nullptr) sum = Mul(sum, scales[n]);
    if (p.bias != nullptr) sum = Add(sum, p.bias[n]);
    StoreSum<kHalf>(p.y, p.y_fp32, (map != nullptr ? map[t] : t) * p.y_stride + n, sum);
  }
}

// Blocks: (rows of W, tokens, experts).
template <class Shape>
GridDim RowMajorGrid(const RowMajorGemmArgs& p) {
  return {static_cast<unsigned>(CeilDiv(p.n, Shape::kRows)),
          static_cast<unsigned>(CeilDiv(p.rows, Shape::kTokens)),
          static_cast<unsigned>(p.expert_weights != nullptr ? p.num_experts : 1)};
}

}  // namespace phalanx::cuda

// The products' kernels, whatever a weight's elements are: see gemm.cu for the arithmetic. A class `Weight`
// (HalfWeight, quant.cuh's QuantWeight) brings a stage's tiles to shared memory and reads A fragments there.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {

template <class Weight_, int kM_, int kN_, int kWarpsN_, int kWarpsT_, int kStages_, int kLevels_,
          bool kGated_ = false>
struct GemmShape {
  using Weight = Weight_;
  static constexpr int kM = kM_;            // row tiles of a warp
  static constexpr int kN = kN_;            // groups of 8 tokens of a warp
  static constexpr int kWarpsN = kWarpsN_;  // warps along rows of W
  static constexpr int kWarpsT = kWarpsT_;  // warps along tokens
  static constexpr int kStages = kStages_;
  static constexpr int kLevels = kLevels_;  // of pending sums; 0: no tree
  static constexpr int kThreads = kWarpsN * kWarpsT * kWarpSize;
  static constexpr int kRowTiles = kM * kWarpsN;
  static constexpr int kTokens = kN * 8 * kWarpsT;
  // Gated: the first half of a warp's tiles are gate's, the others up's of the same columns of y.
  static constexpr bool kGated = kGated_;
  static constexpr int kOutM = kGated ? kM / 2 : kM;
  static constexpr int kOutTiles = kOutM * kWarpsN;
  static constexpr int kOutRows = kOutTiles * kGemmRowTile;
  static constexpr int kWeightBytes = kRowTiles * Weight::kTileBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kGemmBlock * 2;
  static constexpr int kSharedBytes = kStageBytes * kStages;
  static constexpr int kPitch = kOutRows + 4;  // floats of a token's row in the epilogue; no bank conflicts
  static_assert(kTokens * kPitch * 4 <= kSharedBytes && kLevels >= 0 && (!kGated || kM % 2 == 0));
};

// Columns of a segment's partials.
PHX_DEVICE int PartialCols(const GemmArgs& p) { return p.up_tiles > 0 ? 2 * p.n : p.n; }

// The tile that lies at place `index` of a stage, -1 beyond the last.
template <class Shape>
PHX_DEVICE int TileOf(const GemmArgs& p, int first_tile, int index) {
  if constexpr (Shape::kGated) {
    const int m = index % Shape::kM;
    const int tile = first_tile + index / Shape::kM * Shape::kOutM + m % Shape::kOutM;
    if (tile >= p.up_tiles) return -1;
    return m < Shape::kOutM ? tile : tile + p.up_tiles;
  } else {
    return first_tile + index < p.row_tiles ? first_tile + index : -1;
  }
}

// 16-bit elements, as they are multiplied.
struct HalfWeight {
  static constexpr int kTileBytes = kGemmTileBlock * 2;

  template <class Shape>
  static PHX_DEVICE void Load(const GemmArgs& p, const uint16_t* weight, char* stage, int first_tile,
                              int block) {
    const int tid = ThreadIndex();
    PHX_UNROLL
    for (int i = 0; i < (Shape::kRowTiles * 128 + Shape::kThreads - 1) / Shape::kThreads; ++i) {
      const int unit = tid + i * Shape::kThreads;
      if (Shape::kRowTiles * 128 % Shape::kThreads != 0 && unit >= Shape::kRowTiles * 128) break;
      const int tile = TileOf<Shape>(p, first_tile, unit / 128);
      const int64_t at =
          (static_cast<int64_t>(tile < 0 ? 0 : tile) * p.total_blocks + block) * kGemmTileBlock;
      CopyAsync(stage + unit * 16, weight + at + unit % 128 * 8, tile < 0 ? 0 : 16);
    }
  }

  // A warp's fragments of a stage.
  template <int kM, bool kHalf>
  struct Reader {
    const char* at;
    PHX_DEVICE Reader(const GemmArgs&, const char* tiles) : at(tiles + ThreadIndex() % kWarpSize * 16) {}
    PHX_DEVICE void Begin(int) {}
    PHX_DEVICE Quad Get(int step, int m) const { return LoadQuad(at + m * kTileBytes + step * 512); }
  };
};

// Brings blocks of the segments [segment, end) into the stages, one behind the other.
template <class Shape>
struct Loader {
  const GemmArgs& p;
  const uint16_t* weight;
  const int32_t* row_map;
  int first_tile, first_token, num_rows;
  int segment, end;
  int block = 0;

  PHX_DEVICE void Load(char* stage) {
    while (segment < end && block == p.segments[segment].blocks) {
      ++segment;
      block = 0;
    }
    if (segment < end) {
      const GemmSegment& s = p.segments[segment];
      const int tid = ThreadIndex();
      Shape::Weight::template Load<Shape>(p, weight, stage, first_tile, s.first_block + block);
      PHX_UNROLL
      for (int i = 0; i < (Shape::kTokens * 8 + Shape::kThreads - 1) / Shape::kThreads; ++i) {
        const int unit = tid + i * Shape::kThreads;
        if (Shape::kTokens * 8 % Shape::kThreads != 0 && unit >= Shape::kTokens * 8) break;
        const int token = unit / 8, column = block * kGemmBlock + unit % 8 * 8;
        const int row = first_token + token;
        const int left = row < num_rows ? (s.x_cols - column) * 2 : 0;
        const int bytes = left < 0 ? 0 : left > 16 ? 16 : left;
        const int64_t x_row = bytes == 0 ? 0 : row_map != nullptr ? row_map[row] : row;
        CopyAsync(stage + Shape::kWeightBytes + Swizzled(token, unit % 8, kGemmBlock * 2),
                  p.x + (bytes == 0 ? 0 : x_row * p.x_stride + s.x_begin + column), bytes);
      }
      ++block;
    }
    CommitCopies();
  }
};

// acc += the stage's 64 columns.
template <class Shape, bool kHalf>
PHX_DEVICE void MultiplyStage(const GemmArgs& p, const char* stage, float (&acc)[Shape::kM][Shape::kN][4]) {
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  typename Shape::Weight::template Reader<Shape::kM, kHalf> weights(
      p, stage + (warp % Shape::kWarpsN) * Shape::kM * Shape::Weight::kTileBytes);
  const char* tokens = stage + Shape::kWeightBytes;
  const int first_token = warp / Shape::kWarpsN * Shape::kN * 8;
  PHX_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t b[Shape::kN][4];
    PHX_UNROLL
    for (int j = 0; j < Shape::kN; ++j) {
      LdMatrix(b[j], tokens + Swizzled(first_token + j * 8 + lane % 8, pair * 4 + lane / 8, kGemmBlock * 2));
    }
    PHX_UNROLL
    for (int step = 0; step < 2; ++step) {
      weights.Begin(pair * 2 + step);
      PHX_UNROLL
      for (int m = 0; m < Shape::kM; ++m) {
        const Quad a = weights.Get(pair * 2 + step, m);
        PHX_UNROLL
        for (int j = 0; j < Shape::kN; ++j) {
          const bool swapped = PHX_FAULT(kGemmSwappedFragment);
          Mma<kHalf>(acc[m][j], a.v, b[j][step * 2 + swapped], b[j][step * 2 + !swapped]);
        }
      }
    }
  }
}

template <bool kHalf>
PHX_DEVICE void StoreUnit(void* y, bool fp32, int64_t row, int n, int end, const float* values) {
  // 8 outputs from n on; whole ones by 16-byte stores where the row allows.
  const int count = end - n < 8 ? end - n : 8;
  if (fp32) {
    float* to = static_cast<float*>(y) + row + n;
    if (count == 8 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        Quad q;
        PHX_UNROLL
        for (int i = 0; i < 4; ++i) q.v[i] = FloatBits(values[h * 4 + i]);
        StoreQuad(to + h * 4, q);
      }
    } else {
      PHX_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (i < count) to[i] = values[i];
      }
    }
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(y) + row + n;
  if (count == 8 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
    Quad q;
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) q.v[i] = Pack2<kHalf>(values[2 * i], values[2 * i + 1]);
    StoreQuad(to, q);
  } else {
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (i < count) to[i] = FromFloat<kHalf>(values[i]);
    }
  }
}

// Turns the fragments into rows of tokens through shared memory and stores outputs below `end`.
template <class Shape, bool kHalf>
PHX_DEVICE void Store(const float (&acc)[Shape::kOutM][Shape::kN][4], void* y, int64_t y_stride, int end,
                      bool fp32, const float* bias, const int32_t* y_map, int first_tile, int first_token,
                      int num_rows) {
  auto* tile = reinterpret_cast<float*>(SharedMemory());
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  const int row0 = warp % Shape::kWarpsN * Shape::kOutM * 16 + lane / 4;
  const int token0 = warp / Shape::kWarpsN * Shape::kN * 8 + lane % 4 * 2;
  WaitCopies<0>();
  if (!PHX_FAULT(kGemmNoEpilogueBarrier)) SyncThreads();
  PHX_UNROLL
  for (int m = 0; m < Shape::kOutM; ++m) {
    PHX_UNROLL
    for (int j = 0; j < Shape::kN; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) {
        tile[(token0 + j * 8 + i % 2) * Shape::kPitch + row0 + m * 16 + i / 2 * 8] = acc[m][j][i];
      }
    }
  }
  SyncThreads();
  for (int unit = ThreadIndex(); unit < Shape::kTokens * Shape::kOutRows / 8; unit += Shape::kThreads) {
    const int token = unit / (Shape::kOutRows / 8), column = unit % (Shape::kOutRows / 8) * 8;
    const int n = first_tile * kGemmRowTile + column;
    const int row = first_token + token;
    if (row >= num_rows || n >= end) continue;
    float values[8];
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) {
      values[i] = tile[token * Shape::kPitch + column + i];
      if (bias != nullptr && n + i < end) values[i] = Add(values[i], bias[n + i]);
    }
    StoreUnit<kHalf>(y, fp32, static_cast<int64_t>(y_map != nullptr ? y_map[row] : row) * y_stride, n, end,
                     values);
  }
}

// to = a + b.
template <class Shape>
PHX_DEVICE void Sum(float (&to)[Shape::kM][Shape::kN][4], const float (&a)[Shape::kM][Shape::kN][4],
                    const float (&b)[Shape::kM][Shape::kN][4]) {
  PHX_UNROLL
  for (int m = 0; m < Shape::kM; ++m) {
    PHX_UNROLL
    for (int j = 0; j < Shape::kN; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) to[m][j][i] = Add(a[m][j][i], b[m][j][i]);
    }
  }
}

// The pipeline over all blocks that a Loader brings.
template <class Shape, bool kHalf>
struct Pipeline {
  Loader<Shape> loader;
  int slot = 0;

  PHX_DEVICE void Start() {
    PHX_UNROLL
    for (int i = 0; i < Shape::kStages - 1; ++i) loader.Load(SharedMemory() + i * Shape::kStageBytes);
  }
  PHX_DEVICE void Step(float (&acc)[Shape::kM][Shape::kN][4]) {
    if (!PHX_FAULT(kGemmNoWait)) WaitCopies<Shape::kStages - 2>();
    // Fills are visible; and the slot that is filled next has been read by all.
    if (!PHX_FAULT(kGemmNoBarrier)) SyncThreads();
    loader.Load(SharedMemory() + (slot == 0 ? Shape::kStages - 1 : slot - 1) * Shape::kStageBytes);
    MultiplyStage<Shape, kHalf>(loader.p, SharedMemory() + slot * Shape::kStageBytes, acc);
    slot = slot == Shape::kStages - 1 ? 0 : slot + 1;
  }
};

// Blocks: (rows of W / 64, tokens, segments).
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) GemmSplit(GemmArgs p) {
  WaitForPrevious();
  const int first_tile = BlockX() * Shape::kRowTiles, first_token = BlockY() * Shape::kTokens;
  const int segment = BlockZ();
  Pipeline<Shape, kHalf> pipeline = {
      {p, p.weight, nullptr, first_tile, first_token, p.rows, segment, segment + 1}};
  pipeline.Start();
  float acc[Shape::kM][Shape::kN][4];
  Clear(acc);
  const int blocks = p.segments[segment].blocks;
  for (int b = 0; b < blocks; ++b) pipeline.Step(acc);
  if (p.partials != nullptr) {
    const int cols = PartialCols(p);
    Store<Shape, kHalf>(acc, p.partials + static_cast<int64_t>(segment) * p.rows * cols, cols, cols, true,
                        nullptr, nullptr, first_tile, first_token, p.rows);
  } else {
    Store<Shape, kHalf>(acc, p.y, p.y_stride, p.n, p.y_fp32, p.bias, nullptr, first_tile, first_token,
                        p.rows);
  }
}

// Blocks: (rows of W / 128, tokens, subtrees or experts).
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) GemmWhole(GemmArgs p) {
  WaitForPrevious();
  const int first_tile = BlockX() * Shape::kOutTiles, first_token = BlockY() * Shape::kTokens;
  const bool grouped = p.expert_weights != nullptr;
  const int tree = grouped ? 0 : BlockZ(), expert = grouped ? BlockZ() : 0;
  const int num_rows = grouped ? p.counts[expert] : p.rows;
  if (first_token >= num_rows) return;
  const uint16_t* weight = grouped ? p.expert_weights[expert] : p.weight;
  const int32_t* row_map = grouped ? p.row_map + static_cast<int64_t>(expert) * p.rows : nullptr;
  const int32_t* y_map = grouped ? p.y_map + static_cast<int64_t>(expert) * p.rows : nullptr;
  const int first_shard = p.tree_begin[tree], end_shard = p.tree_begin[tree + 1];
  Pipeline<Shape, kHalf> pipeline = {{p, weight, row_map, first_tile, first_token, num_rows,
                                      p.shard_begin[first_shard], p.shard_begin[end_shard]}};
  pipeline.Start();
  float acc[Shape::kM][Shape::kN][4];
  float total[Shape::kM][Shape::kN][4];
  float stack[Shape::kLevels > 0 ? Shape::kLevels : 1][Shape::kM][Shape::kN][4];
  for (int shard = first_shard; shard < end_shard; ++shard) {
    Clear(total);
    const int begin = p.shard_begin[shard];
    for (int s = begin; s < p.shard_begin[shard + 1]; ++s) {
      Clear(acc);
      const int blocks = p.segments[s].blocks;
      for (int b = 0; b < blocks; ++b) pipeline.Step(acc);
      if (s == begin) {
        PHX_UNROLL
        for (int m = 0; m < Shape::kM; ++m) {
          PHX_UNROLL
          for (int j = 0; j < Shape::kN; ++j) {
            PHX_UNROLL
            for (int i = 0; i < 4; ++i) total[m][j][i] = acc[m][j][i];
          }
        }
      } else {
        Sum<Shape>(total, total, acc);
      }
    }
    if constexpr (Shape::kLevels > 0) {
      bool open = true;
      PHX_UNROLL
      for (int level = 0; level < Shape::kLevels; ++level) {
        if (open && ((shard - first_shard) >> level & 1) != 0) {
          Sum<Shape>(total, stack[level], total);
        } else if (open) {
          PHX_UNROLL
          for (int m = 0; m < Shape::kM; ++m) {
            PHX_UNROLL
            for (int j = 0; j < Shape::kN; ++j) {
              PHX_UNROLL
              for (int i = 0; i < 4; ++i) stack[level][m][j][i] = total[m][j][i];
            }
          }
          open = false;
        }
      }
    }
  }
  void* y = p.y_fp32 ? static_cast<void*>(static_cast<float*>(p.y) + tree * p.tree_stride)
                     : static_cast<void*>(static_cast<uint16_t*>(p.y) + tree * p.tree_stride);
  if constexpr (Shape::kGated) {
    float gated[Shape::kOutM][Shape::kN][4];
    PHX_UNROLL
    for (int m = 0; m < Shape::kOutM; ++m) {
      PHX_UNROLL
      for (int j = 0; j < Shape::kN; ++j) {
        PHX_UNROLL
        for (int i = 0; i < 4; ++i) {
          gated[m][j][i] = GatedSums<kHalf>(total[m][j][i], total[m + Shape::kOutM][j][i]);
        }
      }
    }
    Store<Shape, kHalf>(gated, y, p.y_stride, p.n, p.y_fp32, nullptr, y_map, first_tile, first_token,
                        num_rows);
  } else {
    Store<Shape, kHalf>(total, y, p.y_stride, p.n, p.y_fp32, p.bias, y_map, first_tile, first_token,
                        num_rows);
  }
}

template <class Shape, bool kHalf>
int RunSplit(const GemmArgs& p, void* stream) {
  const GridDim grid = {static_cast<unsigned>(CeilDiv(p.row_tiles, Shape::kRowTiles)),
                        static_cast<unsigned>(CeilDiv(p.rows, Shape::kTokens)),
                        static_cast<unsigned>(p.num_segments)};
  return LaunchKernel("GemmSplit", GemmSplit<Shape, kHalf>, grid, Shape::kThreads, Shape::kSharedBytes,
                      stream, p);
}

template <class Shape, bool kHalf>
int RunWhole(const GemmArgs& p, void* stream) {
  const GridDim grid = {
      static_cast<unsigned>(CeilDiv(Shape::kGated ? p.up_tiles : p.row_tiles, Shape::kOutTiles)),
      static_cast<unsigned>(CeilDiv(p.rows, Shape::kTokens)),
      static_cast<unsigned>(p.expert_weights != nullptr ? p.num_experts : p.num_trees)};
  return LaunchKernel("GemmWhole", GemmWhole<Shape, kHalf>, grid, Shape::kThreads, Shape::kSharedBytes,
                      stream, p);
}

}  // namespace phalanx::cuda

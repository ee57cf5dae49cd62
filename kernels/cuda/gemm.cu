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
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

namespace phalanx::cuda {
namespace {

constexpr int kMaxLevels = 6;  // of a tree over 64 shards

template <int kM_, int kN_, int kWarpsN_, int kWarpsT_, int kStages_, int kLevels_>
struct GemmShape {
  static constexpr int kM = kM_;            // row tiles of a warp
  static constexpr int kN = kN_;            // groups of 8 tokens of a warp
  static constexpr int kWarpsN = kWarpsN_;  // warps along rows of W
  static constexpr int kWarpsT = kWarpsT_;  // warps along tokens
  static constexpr int kStages = kStages_;
  static constexpr int kLevels = kLevels_;  // of pending sums; 0: no tree
  static constexpr int kThreads = kWarpsN * kWarpsT * kWarpSize;
  static constexpr int kRowTiles = kM * kWarpsN;
  static constexpr int kRows = kRowTiles * kGemmRowTile;
  static constexpr int kTokens = kN * 8 * kWarpsT;
  static constexpr int kWeightBytes = kRowTiles * kGemmTileBlock * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kGemmBlock * 2;
  static constexpr int kSharedBytes = kStageBytes * kStages;
  static constexpr int kPitch = kRows + 4;  // floats of a token's row in the epilogue; free of bank conflicts
  static_assert(kTokens * kPitch * 4 <= kSharedBytes && kLevels >= 0);
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
      PHX_UNROLL
      for (int i = 0; i < (Shape::kWeightBytes / 16 + Shape::kThreads - 1) / Shape::kThreads; ++i) {
        const int unit = tid + i * Shape::kThreads;
        if (Shape::kWeightBytes / 16 % Shape::kThreads != 0 && unit >= Shape::kWeightBytes / 16) break;
        const int tile = first_tile + unit / 128;
        const bool inside = tile < p.row_tiles;
        const int64_t at =
            (static_cast<int64_t>(inside ? tile : 0) * p.total_blocks + s.first_block + block) *
            kGemmTileBlock;
        CopyAsync(stage + unit * 16, weight + at + unit % 128 * 8, inside ? 16 : 0);
      }
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
PHX_DEVICE void MultiplyStage(const char* stage, float (&acc)[Shape::kM][Shape::kN][4]) {
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  const char* weights = stage + (warp % Shape::kWarpsN) * Shape::kM * kGemmTileBlock * 2 + lane * 16;
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
      PHX_UNROLL
      for (int m = 0; m < Shape::kM; ++m) {
        const Quad a = LoadQuad(weights + m * kGemmTileBlock * 2 + (pair * 2 + step) * 512);
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
PHX_DEVICE void StoreUnit(const GemmArgs& p, void* y, bool fp32, int64_t row, int n, const float* values) {
  // 8 outputs from n on; whole ones by 16-byte stores where the row allows.
  const int count = p.n - n < 8 ? p.n - n : 8;
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

// Turns the fragments into rows of tokens through shared memory and stores them. `partials`: raw fp32 sums.
template <class Shape, bool kHalf>
PHX_DEVICE void Store(const GemmArgs& p, const float (&acc)[Shape::kM][Shape::kN][4], void* y,
                      int64_t y_stride, bool fp32, const float* bias, const int32_t* y_map, int first_tile,
                      int first_token, int num_rows) {
  auto* tile = reinterpret_cast<float*>(SharedMemory());
  const int lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  const int row0 = warp % Shape::kWarpsN * Shape::kM * 16 + lane / 4;
  const int token0 = warp / Shape::kWarpsN * Shape::kN * 8 + lane % 4 * 2;
  WaitCopies<0>();
  if (!PHX_FAULT(kGemmNoEpilogueBarrier)) SyncThreads();
  PHX_UNROLL
  for (int m = 0; m < Shape::kM; ++m) {
    PHX_UNROLL
    for (int j = 0; j < Shape::kN; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) {
        tile[(token0 + j * 8 + i % 2) * Shape::kPitch + row0 + m * 16 + i / 2 * 8] = acc[m][j][i];
      }
    }
  }
  SyncThreads();
  for (int unit = ThreadIndex(); unit < Shape::kTokens * Shape::kRows / 8; unit += Shape::kThreads) {
    const int token = unit / (Shape::kRows / 8), column = unit % (Shape::kRows / 8) * 8;
    const int n = first_tile * kGemmRowTile + column;
    const int row = first_token + token;
    if (row >= num_rows || n >= p.n) continue;
    float values[8];
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) {
      values[i] = tile[token * Shape::kPitch + column + i];
      if (bias != nullptr && n + i < p.n) values[i] = Add(values[i], bias[n + i]);
    }
    StoreUnit<kHalf>(p, y, fp32, static_cast<int64_t>(y_map != nullptr ? y_map[row] : row) * y_stride, n,
                     values);
  }
}

template <class Shape>
PHX_DEVICE void Clear(float (&acc)[Shape::kM][Shape::kN][4]) {
  PHX_UNROLL
  for (int m = 0; m < Shape::kM; ++m) {
    PHX_UNROLL
    for (int j = 0; j < Shape::kN; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) acc[m][j][i] = 0;
    }
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
    MultiplyStage<Shape, kHalf>(SharedMemory() + slot * Shape::kStageBytes, acc);
    slot = slot == Shape::kStages - 1 ? 0 : slot + 1;
  }
};

// Blocks: (rows of W / 64, tokens, segments).
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) GemmSplit(GemmArgs p) {
  const int first_tile = BlockX() * Shape::kRowTiles, first_token = BlockY() * Shape::kTokens;
  const int segment = BlockZ();
  Pipeline<Shape, kHalf> pipeline = {
      {p, p.weight, nullptr, first_tile, first_token, p.rows, segment, segment + 1}};
  pipeline.Start();
  float acc[Shape::kM][Shape::kN][4];
  Clear<Shape>(acc);
  const int blocks = p.segments[segment].blocks;
  for (int b = 0; b < blocks; ++b) pipeline.Step(acc);
  if (p.partials != nullptr) {
    Store<Shape, kHalf>(p, acc, p.partials + static_cast<int64_t>(segment) * p.rows * p.n, p.n, true, nullptr,
                        nullptr, first_tile, first_token, p.rows);
  } else {
    Store<Shape, kHalf>(p, acc, p.y, p.y_stride, p.y_fp32, p.bias, nullptr, first_tile, first_token, p.rows);
  }
}

// Adds the segments' partials. A thread takes one output of one row of one subtree.
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(256, 1) GemmCombine(GemmArgs p) {
  const int n = BlockX() * 256 + ThreadIndex();
  const int row = BlockY(), tree = BlockZ();
  if (n >= p.n) return;
  const float* at = p.partials + static_cast<int64_t>(row) * p.n + n;
  const int64_t step = static_cast<int64_t>(p.rows) * p.n;
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
  if (p.bias != nullptr) sum = Add(sum, p.bias[n]);
  const int64_t to = tree * p.tree_stride + row * p.y_stride + n;
  if (p.y_fp32) {
    static_cast<float*>(p.y)[to] = sum;
  } else {
    static_cast<uint16_t*>(p.y)[to] = FromFloat<kHalf>(sum);
  }
}

// Blocks: (rows of W / 128, tokens, subtrees or experts).
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) GemmWhole(GemmArgs p) {
  const int first_tile = BlockX() * Shape::kRowTiles, first_token = BlockY() * Shape::kTokens;
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
    Clear<Shape>(total);
    const int begin = p.shard_begin[shard];
    for (int s = begin; s < p.shard_begin[shard + 1]; ++s) {
      Clear<Shape>(acc);
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
  Store<Shape, kHalf>(p, total, y, p.y_stride, p.y_fp32, p.bias, y_map, first_tile, first_token, num_rows);
}

// A thread takes 8 columns.
PHX_GLOBAL void PHX_BOUNDS(128, 1) PackRows(PackRowsArgs p) {
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

using Split8 = GemmShape<1, 1, 4, 1, 6, 0>;
using Split16 = GemmShape<1, 2, 4, 1, 6, 0>;
using Split32 = GemmShape<1, 4, 4, 1, 5, 0>;
using Split64 = GemmShape<1, 8, 4, 1, 5, 0>;
using Whole128 = GemmShape<4, 4, 2, 4, 4, 0>;
using Tree64 = GemmShape<2, 4, 4, 2, 4, 3>;
using Group16 = GemmShape<1, 2, 4, 1, 6, 0>;

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

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
  const GridDim grid = {static_cast<unsigned>(CeilDiv(p.row_tiles, Shape::kRowTiles)),
                        static_cast<unsigned>(CeilDiv(p.rows, Shape::kTokens)),
                        static_cast<unsigned>(p.expert_weights != nullptr ? p.num_experts : p.num_trees)};
  return LaunchKernel("GemmWhole", GemmWhole<Shape, kHalf>, grid, Shape::kThreads, Shape::kSharedBytes,
                      stream, p);
}

constexpr int kSplitRows = 64;  // at most

template <bool kHalf>
int Run(const GemmArgs& p, void* stream) {
  if (p.expert_weights != nullptr) {
    return p.rows <= 32 ? RunWhole<Group16, kHalf>(p, stream) : RunWhole<Whole128, kHalf>(p, stream);
  }
  if (p.rows > kSplitRows && p.max_shards_per_tree == 1) return RunWhole<Whole128, kHalf>(p, stream);
  if (p.rows > kSplitRows && p.max_shards_per_tree <= 1 << Tree64::kLevels)
    return RunWhole<Tree64, kHalf>(p, stream);
  if (p.num_segments > 0) {
    const int error = p.rows <= 8    ? RunSplit<Split8, kHalf>(p, stream)
                      : p.rows <= 16 ? RunSplit<Split16, kHalf>(p, stream)
                      : p.rows <= 32 ? RunSplit<Split32, kHalf>(p, stream)
                                     : RunSplit<Split64, kHalf>(p, stream);
    if (error != 0 || p.partials == nullptr) return error;
  }
  const GridDim grid = {static_cast<unsigned>(CeilDiv(p.n, 256)), static_cast<unsigned>(p.rows),
                        static_cast<unsigned>(p.num_trees)};
  return LaunchKernel("GemmCombine", GemmCombine<kHalf>, grid, 256, 0, stream, p);
}

}  // namespace

bool GemmSplits(const GemmArgs& p) {
  if (p.expert_weights != nullptr) return false;
  if (p.num_segments == 1 && p.num_trees == 1 && p.max_shards_per_tree == 1) return false;
  return p.rows <= kSplitRows || p.max_shards_per_tree > 1 << Tree64::kLevels;
}

int LaunchGemm(const GemmArgs& p, bool half, void* stream) {
  return half ? Run<true>(p, stream) : Run<false>(p, stream);
}

int LaunchPackRows(const PackRowsArgs& p, void* stream) {
  if (p.num_segments == 0) return 0;
  const GridDim grid = {static_cast<unsigned>(p.num_segments), static_cast<unsigned>(p.rows), 1};
  return LaunchKernel("PackRows", PackRows, grid, 128, 0, stream, p);
}

}  // namespace phalanx::cuda

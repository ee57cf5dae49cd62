// y = x W^T for few rows of x, from row-major weights of e4m3, and what quantises rows of x for products of
// many: mode `fast`.
//
// Fp8Gemm is gemm_fast.cu's kernel with half the bytes of weights: a block takes 32 rows of W and all of K,
// its 4 warps take blocks of 128 columns in turn, by pipelines of their own; or, for what cuBLASLt does not
// take of many rows of x, 128 rows of W, 32 a warp, which share one pipeline. Codes become 16 bits wide in
// registers, exactly; their scales are multiplied onto fp32 sums, of a block or of the row. Which column of
// a block is which k of an mma is the same for W and x, and chosen so that a lane's codes of 4 mmas lie in 16
// bytes. Roofline: N K bytes over the memory bandwidth; 12 KiB of weights a warp are in flight.
//
// Fp8Rows is bound by memory: x is read twice (again from the cache) where one scale is for a whole row. What
// comes out of a norm the norm quantises itself (norm.cuh).
#include "kernels/cuda/gemm_fp8.h"

#include "kernels/cuda/fp8_rows.cuh"
#include "kernels/cuda/gemm_fast.cuh"

namespace phalanx::cuda {
namespace {

template <int kGroups, int kStages, int kTeamWarps>
using Fp8Shape = RowMajorShape<kGroups, kStages, kTeamWarps, kFp8Block, 1>;

// Byte offsets of 16-byte units in a stage: rows of 128 bytes of which 4 neighbouring units are read from 2
// rows at once, and rows of 256 bytes of which every other is.
PHX_DEVICE int CodesAt(int row, int unit) { return row * kFp8Block + ((unit ^ ((row & 1) << 2)) << 4); }
PHX_DEVICE int TokenAt(int row, int unit) { return row * kFp8Block * 2 + ((unit ^ (row & 1)) << 4); }

template <class Shape>
PHX_DEVICE void SyncTeam() {
  if constexpr (Shape::kTeamWarps == 1) {
    SyncWarp();
  } else {
    static_assert(Shape::kTeams == 1);
    SyncThreads();
  }
}

// A team's way through its blocks of columns: first, first + kTeams, ...
template <class Shape>
struct Fp8Loader {
  const Fp8GemmArgs& p;
  const uint8_t* weight;
  const int32_t* row_map;
  int first_row, first_token, num_rows;
  int block, num_blocks;

  PHX_DEVICE void Load(char* stage) {
    if (block < num_blocks) {
      const int thread = ThreadIndex() % Shape::kTeamThreads;
      PHX_UNROLL
      for (int i = 0; i < Shape::kRows * 8 / Shape::kTeamThreads; ++i) {
        const int row = i * (Shape::kTeamThreads / 8) + thread / 8, unit = thread % 8;
        const bool inside = first_row + row < p.n;
        CopyAsync(stage + CodesAt(row, unit),
                  weight + (inside ? (first_row + row) * p.weight_stride + block * kFp8Block + unit * 16 : 0),
                  inside ? 16 : 0);
      }
      PHX_UNROLL
      for (int i = 0; i < Shape::kTokens * 16 / Shape::kTeamThreads; ++i) {
        const int token = i * (Shape::kTeamThreads / 16) + thread / 16, unit = thread % 16;
        LoadX(stage + Shape::kWeightBytes + TokenAt(token, unit), p, row_map, num_rows, first_token + token,
              block * kFp8Block + unit * 8);
      }
      block += Shape::kTeams;
    }
    CommitCopies();
  }
};

// Codes 2 * pair and 2 * pair + 1 of a word, as 16 bits each. Their bits, in a 16-bit number's places, are
// the number times 2^-120 (bf16) or 2^-8, subnormal ones too.
template <bool kHalf>
PHX_DEVICE uint32_t WidenPair(uint32_t word, int pair) {
  const uint32_t codes =
      pair == 0 ? (word & 0xffu) << 8 | (word & 0xff00u) << 16 : (word >> 8 & 0xff00u) | (word & 0xff000000u);
  const uint32_t bits = (codes & 0x80008000u) | (codes & 0x7f007f00u) >> (kHalf ? 1 : 4);
  return Fma2<kHalf>(bits, kHalf ? 0x5c005c00u : 0x7b807b80u, 0x80008000u);
}

// Of a block's 8 mmas number 4 h + i has as its k's 2q, 2q + 1, 2q + 8 and 2q + 9 the columns
// 16 (q + 4 h) + 4 i and the 3 behind it, q = lane % 4.
template <class Shape, bool kHalf>
PHX_DEVICE void MultiplyFp8(const char* stage, float (&acc)[Shape::kTiles][Shape::kGroups][4]) {
  const int lane = ThreadIndex() % kWarpSize, g = lane / 4, q = lane % 4;
  const int first = ThreadIndex() / kWarpSize % Shape::kTeamWarps * Shape::kWarpRows + g;
  PHX_UNROLL
  for (int h = 0; h < 2; ++h) {
    Quad codes[Shape::kTiles][2];
    PHX_UNROLL
    for (int m = 0; m < Shape::kTiles; ++m) {
      PHX_UNROLL
      for (int r = 0; r < 2; ++r) codes[m][r] = LoadQuad(stage + CodesAt(first + m * 16 + r * 8, q + 4 * h));
    }
    PHX_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      Quad b[Shape::kGroups];
      PHX_UNROLL
      for (int j = 0; j < Shape::kGroups; ++j) {
        b[j] = LoadQuad(stage + Shape::kWeightBytes + TokenAt(j * 8 + g, 2 * (q + 4 * h) + pair));
      }
      PHX_UNROLL
      for (int step = 0; step < 2; ++step) {
        PHX_UNROLL
        for (int m = 0; m < Shape::kTiles; ++m) {
          uint32_t a[4];
          PHX_UNROLL
          for (int i = 0; i < 4; ++i) a[i] = WidenPair<kHalf>(codes[m][i % 2].v[pair * 2 + step], i / 2);
          PHX_UNROLL
          for (int j = 0; j < Shape::kGroups; ++j) {
            Mma<kHalf>(acc[m][j], a, b[j].v[step * 2], b[j].v[step * 2 + 1]);
          }
        }
      }
    }
  }
}

template <class Shape, bool kHalf, bool kBlocks>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) Fp8Gemm(Fp8GemmArgs p) {
  WaitForPrevious();
  static_assert(kFp8Block % Shape::kRows == 0);  // a block of scales has all of a block's rows
  const int team = ThreadIndex() / Shape::kTeamThreads, expert = BlockZ();
  const int first_row = BlockX() * Shape::kRows, first_token = BlockY() * Shape::kTokens;
  const int num_rows = NumRows(p, expert);
  if (first_token >= num_rows) return;
  const int32_t* row_map = MapOf(p, p.row_map, expert);
  const bool grouped = p.expert_weights != nullptr;
  const auto* weight = grouped ? reinterpret_cast<const uint8_t*>(p.expert_weights[expert]) : p.weight;
  const auto* scales = grouped ? reinterpret_cast<const float*>(weight + p.expert_scales) : p.scales;
  if constexpr (kBlocks) scales += first_row / kFp8Block * p.scale_stride;
  const int num_blocks = (p.k + kFp8Block - 1) / kFp8Block;
  Fp8Loader<Shape> loader = {p, weight, row_map, first_row, first_token, num_rows, team, num_blocks};
  char* stages = SharedMemory() + team * Shape::kStages * Shape::kStageBytes;
  PHX_UNROLL
  for (int i = 0; i < Shape::kStages - 1; ++i) loader.Load(stages + i * Shape::kStageBytes);
  float acc[Shape::kTiles][Shape::kGroups][4];
  Clear(acc);
  int slot = 0;
  for (int block = team; block < num_blocks; block += Shape::kTeams) {
    const float scale = kBlocks ? scales[block] : 1.0f;
    if (!PHX_FAULT(kGemmNoWait)) WaitCopies<Shape::kStages - 2>();
    // Fills are visible to the team; and the slot that is filled next has been read by it.
    SyncTeam<Shape>();
    loader.Load(stages + (slot == 0 ? Shape::kStages - 1 : slot - 1) * Shape::kStageBytes);
    if constexpr (kBlocks) {
      float part[Shape::kTiles][Shape::kGroups][4];
      Clear(part);
      MultiplyFp8<Shape, kHalf>(stages + slot * Shape::kStageBytes, part);
      PHX_UNROLL
      for (int m = 0; m < Shape::kTiles; ++m) {
        PHX_UNROLL
        for (int j = 0; j < Shape::kGroups; ++j) {
          PHX_UNROLL
          for (int i = 0; i < 4; ++i) acc[m][j][i] = Fma(part[m][j][i], scale, acc[m][j][i]);
        }
      }
    } else {
      MultiplyFp8<Shape, kHalf>(stages + slot * Shape::kStageBytes, acc);
    }
    slot = slot == Shape::kStages - 1 ? 0 : slot + 1;
  }
  StoreSums<Shape, kHalf>(p, acc, kBlocks ? nullptr : scales, first_row, first_token, num_rows);
}

template <class Shape, bool kHalf>
int RunFp8(const Fp8GemmArgs& p, void* stream) {
  return LaunchKernel(
      "Fp8Gemm",
      p.scaling == Fp8Scaling::kBlocks ? Fp8Gemm<Shape, kHalf, true> : Fp8Gemm<Shape, kHalf, false>,
      RowMajorGrid<Shape>(p), Shape::kThreads, Shape::kSharedBytes, stream, p);
}

template <bool kHalf>
int RunFp8(const Fp8GemmArgs& p, void* stream) {
  return p.rows <= 8    ? RunFp8<Fp8Shape<1, 4, 1>, kHalf>(p, stream)
         : p.rows <= 16 ? RunFp8<Fp8Shape<2, 3, 1>, kHalf>(p, stream)
         : p.rows <= 64 ? RunFp8<Fp8Shape<4, 3, 1>, kHalf>(p, stream)
                        : RunFp8<Fp8Shape<8, 3, 4>, kHalf>(p, stream);
}

constexpr int kRowThreads = 256;

// 8 values from column c on, zero from `end` on.
template <bool kHalf, bool kGated>
PHX_DEVICE void LoadValues(const Fp8RowsArgs& p, const uint16_t* row, int c, int end, float (&v)[8]) {
  Load8<kHalf>(row + c, end - c, v);
  if constexpr (kGated) {
    float up[8];
    Load8<kHalf>(row + p.up + c, end - c, up);
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = c + i < end ? ToFloat<kHalf>(FromFloat<kHalf>(Gated(v[i], up[i]))) : 0;
  }
}

// A block a row of x and a part of it.
template <bool kHalf, bool kGated, bool kBlocks>
PHX_GLOBAL void PHX_BOUNDS(kRowThreads, 1) Fp8Rows(Fp8RowsArgs p) {
  WaitForPrevious();
  const int64_t row = BlockX();
  const int part_number = BlockY(), thread = ThreadIndex();
  const GemmSegment part = p.parts[part_number];
  const uint16_t* x = p.x + row * p.x_stride + part.x_begin;
  uint8_t* codes = p.out.codes + row * p.out.codes_stride + int64_t{part.first_block} * kGemmBlock;
  const int end = part.x_cols, filled = part.blocks * kGemmBlock;
  float v[8];
  if constexpr (kBlocks) {
    const int first_block = part.first_block * kGemmBlock / kFp8Block;
    // All lanes of a warp take as many rounds: filled is a multiple of 128 columns, which 16 lanes take.
    for (int first = 0; first < filled; first += kRowThreads * 8) {
      const int c = first + thread * 8;
      LoadValues<kHalf, kGated>(p, x, c, end, v);
      StoreBlockCodes(p.out, row, first_block, codes, c, filled, v);
    }
  } else {
    uint32_t largest = 0;
    for (int c = thread * 8; c < end; c += kRowThreads * 8) {
      LoadValues<kHalf, kGated>(p, x, c, end, v);
      const uint32_t other = Largest8(v);
      largest = other > largest ? other : largest;
    }
    largest = LargestOfBlock<kRowThreads>(largest, reinterpret_cast<uint32_t*>(SharedMemory()));
    const float scale = ScaleOf(largest), factor = Div(1.0f, scale);
    for (int c = thread * 8; c < filled; c += kRowThreads * 8) {
      LoadValues<kHalf, kGated>(p, x, c, end, v);
      StoreCodes(codes + c, v, factor);
    }
    if (thread == 0) p.out.scales[part_number * p.out.rows_pitch + row] = scale;
  }
}

template <bool kHalf, bool kGated>
int RunRows(const Fp8RowsArgs& p, void* stream) {
  const GridDim grid = {static_cast<unsigned>(p.out.rows), static_cast<unsigned>(p.num_parts), 1};
  return LaunchKernel(
      "Fp8Rows",
      p.out.scaling == Fp8Scaling::kBlocks ? Fp8Rows<kHalf, kGated, true> : Fp8Rows<kHalf, kGated, false>,
      grid, kRowThreads, kRowThreads / kWarpSize * 4, stream, p);
}

}  // namespace

int LaunchFp8Gemm(const Fp8GemmArgs& p, bool half, void* stream) {
  if (p.rows == 0 || p.n == 0) return 0;
  return half ? RunFp8<true>(p, stream) : RunFp8<false>(p, stream);
}

int LaunchFp8Rows(const Fp8RowsArgs& p, bool half, void* stream) {
  if (p.out.rows == 0 || p.num_parts == 0) return 0;
  if (p.gated) return half ? RunRows<true, true>(p, stream) : RunRows<false, true>(p, stream);
  return half ? RunRows<true, false>(p, stream) : RunRows<false, false>(p, stream);
}

}  // namespace phalanx::cuda

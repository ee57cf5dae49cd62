// Products with weights that stay quantised (Q8_0, Q4_0, Q4_1): the loops that are compiled for an
// instruction set. The rules of simd_kernels.h hold here too.
//
// The arithmetic, of a row of x and an output, over one run of k (a shard, or all of K) cut into the weight's
// blocks of 32 columns in the file (columns of a block beyond the run count as 0), the same bits on every
// rung:
//   largest = max |x| of the block, sx = largest / 254, X = x * (254 / largest) rounded to nearest even;
//   sx = 0 and X = 0 where largest < 2^-100; sx = NaN and X = 0 where the block holds a NaN or an infinity.
//   S = sum of q * X, exact in integers (q signed: Q8_0 as it is, Q4_0 less 8, Q4_1 0..15).
//   sum = fma(float(S), d * sx, sum) from +0 in rising order of blocks, each operation rounded to fp32;
//   Q4_1 then sum = fma(m, sx * float(sum of X), sum) for the same block.
// X has 9 bits because 8 make log-probabilities of small models about twice as wrong.
//
// A panel of 16 outputs: of each block of 32 k, 8 k-quads (Q4: 4 lines, low nibbles quads 0..3, high nibbles
// quads 4..7), of each quad 16 outputs of 4 bytes in order, as in the file; behind all blocks their scales,
// fp16: 16 d, then (Q4_1) 16 m.
//
// A tile of packed rows: integers [block][row], 64 bytes: int8 X1, then int8 X2, X = X1 + X2 (AVX2 with Q8_0:
// int16 X); then fp32 sx [block][row], fp32 sx * float(sum of X) [block][row], int32 -offset * (sum of X)
// [block][row].
#pragma once

#include <stdint.h>

#include "kernels/cpu/simd_kernels.h"

namespace phalanx {

enum class QuantType { kQ8_0, kQ4_0, kQ4_1 };

inline constexpr int kQuantBlock = 32;
inline constexpr float kQuantLargest = 254.0f;
inline constexpr float kQuantTiny = 0x1p-100f;

// Bytes of a block of a panel.
static constexpr int QuantDataBytes(QuantType type) { return type == QuantType::kQ8_0 ? 512 : 256; }
static constexpr int QuantScaleBytes(QuantType type) { return type == QuantType::kQ4_1 ? 64 : 32; }
// What is to be subtracted from the weight's bits read as unsigned.
static constexpr int QuantOffset(QuantType type) {
  return type == QuantType::kQ8_0 ? 128 : type == QuantType::kQ4_0 ? 8 : 0;
}

// Where things lie in a tile of packed rows.
struct QuantTile {
  char* data;
  int rows;        // that it has room for
  int64_t blocks;  // of a row
};

struct QuantPackParams {
  const float* x;  // first column of the run
  int64_t stride;
  int rows;  // rows beyond, up to tile.rows, become zeros
  int64_t depth;
  int phase;       // of the first column in its block
  QuantType type;  // of the weight
  QuantTile tile;
  int64_t begin;  // first block of the run in the tile
};

struct QuantProductParams {
  QuantType type;
  const char* a;       // first tile
  int tile_rows;       // of every tile
  int64_t tile_bytes;  // from a tile to the next
  int64_t row_blocks;  // blocks of a packed row and of a panel, the whole of them
  const char* w;       // first panel
  int64_t panel_bytes;
  int num_panels;
  int rows;
  float* c;  // [rows, num_panels * 16]
  int64_t c_stride;
};

// Blocks that are summed by themselves, in packed rows and panels alike.
struct QuantRun {
  int64_t begin;
  int64_t blocks;
};

// What makes whole outputs of runs: they are added in the trees' order, then bias.
struct QuantTree {
  const QuantRun* runs;
  const int* tree_runs;  // [num_trees] runs of each tree, which follow one another
  int num_trees;
  int64_t tree_stride;  // elements of c from a tree's outputs to the next's
  const float* bias;    // [cols] or null
  int64_t cols;         // outputs to be written
};

struct QuantKernels {
  int block_rows;  // rows of a task at most, a multiple of any tile_rows
  // Rows of a tile where there are so many in all.
  int (*tile_rows)(int rows);
  void (*pack)(const QuantPackParams& params);
  // Of one run; null where `tree` takes any number of rows.
  void (*product)(const QuantProductParams& params, const QuantRun& run);
  // Whole outputs, where there are up to tree_rows rows in all; null where that is 0.
  void (*tree)(const QuantProductParams& params, const QuantTree& tree);
  int tree_rows;
  // Around the products of one task on a thread; null where there is nothing to do.
  void (*begin_task)(int tile_rows);
  void (*end_task)(int tile_rows);
};

static constexpr int64_t QuantTileBytes(int tile_rows, int64_t blocks) {
  return (blocks * tile_rows * (64 + 12) + 63) / 64 * 64;
}

extern const QuantKernels kAvx2Quant;
extern const QuantKernels kAvx512Quant;
extern const QuantKernels kAmxQuant;

void Avx512QuantPack(const QuantPackParams& params);
void Avx512QuantTree(const QuantProductParams& params, const QuantTree& tree);

}  // namespace phalanx

// The loops of the CPU backend that are compiled for an instruction set. Those files include nothing but C
// headers, intrinsics and constants beside this: no inline function of theirs may end up in the portable part
// of the program.
//
// Panels: weights (and KV blocks) are packed in panels of 16 outputs; a panel holds for each k the 16 outputs
// beside each other. In a bf16 panel of AVX2 outputs j and j + 8 are neighbours (the low and the high half of
// a 32-bit word). A panel of AMX or AVX512_BF16 holds for each pair of k the 16 outputs' pairs (AMX: 16 pairs
// of k are a tile). Every output element is one chain of fused multiply-adds (those two: of their products)
// in rising k: its bits depend neither on the number of rows nor on the blocking.
#pragma once

#include <stdint.h>

#include "kernels/kv_codec.h"

namespace phalanx {

inline constexpr int kPanel = 16;

// Place of output j (0..15) of one k in a bf16 panel of AVX2.
static constexpr int Bf16PanelPlace(int j) { return (j & 7) * 2 + (j >> 3); }

// What a product kernel reads: rows packed by `pack`, a weight's panels, and where k lies in both.
struct PanelProductParams {
  const void* a;         // packed rows
  int64_t a_depth;       // packed k of a row, the whole of it
  int64_t a_begin;       // packed k where this product starts
  const void* w;         // first panel, at this product's first k
  int64_t panel_stride;  // elements between panels
  int num_panels;
  int64_t depth;  // k of this product (bf16 pairs: a multiple of 32)
  int rows;
  float* c;  // [rows, num_panels * 16]; AMX: rows rounded up to 16
  int64_t c_stride;
};

// A run of k that is summed by itself.
struct ProductSegment {
  int64_t a_begin;  // in packed rows
  int64_t w_begin;  // in panels
  int64_t depth;    // bf16 pairs: a multiple of 32
};

// Pending sums of a tree while its segments are summed: log2 of the most segments.
inline constexpr int kMaxTreeLevels = 6;

// Whole outputs: each segment's sum by itself, segments added in the trees' order, then bias.
struct TreeProductParams {
  const void* a;    // packed rows
  int64_t a_depth;  // packed k of a row
  int rows;
  const void* w;         // panel 0
  int64_t panel_stride;  // elements between panels
  int first_panel;       // of this task
  int num_panels;
  int all_panels;  // what follows this task's is fetched
  int64_t n;       // outputs of the whole weight
  const ProductSegment* segments;
  const int* tree_segments;  // [num_trees] segments of each tree, which follow one another
  int num_trees;
  const float* bias;  // [n] or null
  float* out;         // [rows, n], output 0
  int64_t out_stride;
  int64_t tree_stride;  // elements from a tree's outputs to the next's
  // Above 0: panels [0, gate_panels) are gates, as many behind them what is gated. One segment, no bias;
  // first_panel and num_panels are of gates. Outputs are silu(gate) * up.
  int gate_panels;
  // Not null: what is gated goes here instead, as packed rows of packed_depth k for another product. Rows
  // that fill the last tile are written too.
  void* packed_out;
  int64_t packed_depth;
};

enum class PanelFormat { kF32, kBf16, kBf16Pairs };

struct PairAttentionChunkParams;

struct GemmKernels {
  PanelFormat format;
  int k_unit;         // a shard's k is padded to a multiple of it in packed rows
  bool pad_weights;   // and in weights (zeros)
  int weight_bytes;   // of an element
  int row_bytes;      // of an element of packed rows
  int max_tile_rows;  // rows packed together
  // Tiles of a block have nearly equal rows, each packed as it is. Else all but the last are full; the last
  // is packed as a full one too, unless it is the only one.
  bool balanced;
  int block_rows;         // rows of a task, a multiple of max_tile_rows
  int block_panels;       // panels of a task when there are many rows,
  int deep_block_panels;  // and where k is beyond shallow_k
  // Up to this k `product` writes an output once: results may go where they belong at once. 0 where
  // block_tree takes all of so small a k.
  int64_t shallow_k;
  // Packs rows <= tile_rows rows of x, k in [0, depth), as columns [begin, begin + depth rounded up to
  // k_unit) of a tile of tile_rows rows. The padding is zero or never read.
  void (*pack)(const float* x, int64_t stride, int rows, int tile_rows, int64_t depth, void* tile,
               int64_t begin);
  // Packs 16 outputs, fp32 rows of `depth` k, as the first `depth` k of a panel (rounding as its format
  // wants).
  void (*pack_weights)(const float* rows, int64_t stride, int64_t depth, void* panel);
  void (*product)(const PanelProductParams& params);
  // Whole outputs; null where there is none. block_tree: of one block of rows (all_panels and what is said of
  // gates is not read). many_rows_tree: of more than one tile. Several tiles of either: at most tree_depth
  // packed k.
  void (*block_tree)(const TreeProductParams& params);
  void (*many_rows_tree)(const TreeProductParams& params);
  int64_t tree_depth;
  // Around the products of one task on a thread; null where there is nothing to do.
  void (*begin_task)(int rows);
  void (*end_task)();
  // Of a cache of bf16 pairs, between begin_task(vectors) and end_task; null where the format is another.
  void (*attention_chunk)(const PairAttentionChunkParams& params);
};

extern const GemmKernels kAvx2GemmF32;
extern const GemmKernels kAvx2GemmBf16;
extern const GemmKernels kAvx512GemmF32;  // the bits of AVX2's
extern const GemmKernels kAvx512GemmBf16;
extern const GemmKernels kAvx512Bf16Gemm;
extern const GemmKernels kAmxGemmBf16;

// Shared by the rungs that pack like AVX2's.
void Avx2PackRows(const float* x, int64_t stride, int rows, int tile_rows, int64_t depth, void* tile,
                  int64_t begin);
void Avx2PackWeightsF32(const float* rows, int64_t stride, int64_t depth, void* panel);
void Avx2PackWeightsBf16(const float* rows, int64_t stride, int64_t depth, void* panel);
void Avx512PackRowsBf16(const float* x, int64_t stride, int rows, int tile_rows, int64_t depth, void* tile,
                        int64_t begin);
void Avx512PackWeightsBf16Pairs(const float* rows, int64_t stride, int64_t depth, void* panel);

// Blocks of rows are cut into tiles: the first row of tile t, and of the one behind the last. A tile whose
// first row is b starts b * a_depth elements into the packed block.
static constexpr int NumTiles(int rows, int max_tile_rows) {
  return (rows + max_tile_rows - 1) / max_tile_rows;
}
static constexpr int TileBegin(int rows, int num_tiles, int max_tile_rows, bool balanced, int t) {
  if (balanced) return rows * t / num_tiles;
  return t * max_tile_rows < rows ? t * max_tile_rows : rows;
}

// ---- Elementwise, AVX2 --------------------------------------------------------------------------

// residual += add (may be null).
void Avx2Add(float* residual, const float* add, int64_t n);
// residual += add + add2.
void Avx2AddBoth(float* residual, const float* add, const float* add2, int64_t n);
// y += factor * x.
void Avx2AddScaled(const float* x, float factor, int64_t n, float* y);
// y = x / rms(x) * weight.
void Avx2RmsNorm(const float* x, const float* weight, float eps, int64_t n, float* y);
void Avx2SwiGlu(const float* gate, const float* up, int64_t n, float* y);
// y = sums (+ bias).
void Avx2AddBias(const float* sums, const float* bias, int64_t n, float* y);
void Avx2FindMax(const float* logits, int64_t n, float* max, int64_t* index, bool* valid);
void Avx2ExpWeights(const float* logits, int64_t n, float max, float temperature, float* weights);
double Avx2SumBlock(const float* weights, int64_t n);

// ---- Attention ----------------------------------------------------------------------------------

inline constexpr int kScoreStride = 256 + kPanel;

// A chunk of at most 256 keys for a set of query vectors that share a KV head, and the running results of
// these vectors that it joins. A vector's arithmetic is a function of itself and the keys it sees: the
// vectors beside it only share loads. "Padded" vectors: rounded up to whole tiles of packed rows.
struct AttentionVectors {
  int num_vectors;
  const void* q;        // packed rows: by kAvx2GemmF32.pack in balanced tiles, or as bf16 pairs
  int64_t key_depth;    // k of packed q
  int value_panels;     // ceil(value channels / 16)
  const int* num_keys;  // [num_vectors] keys each vector sees in this chunk, 1..256
  float scale;
  bool first;  // the first chunk of these vectors: sets the results below instead of joining them
  // Scratch.
  float* scores;   // [padded vectors, kScoreStride]
  void* weights;   // [padded vectors * 256] fp32
  float* partial;  // [padded vectors, value_panels * 16]
  // Running results.
  float* max;  // [num_vectors]
  float* sum;  // [num_vectors]
  float* out;  // [num_vectors, value_panels * 16], not yet divided by sum
};

// Codes (kernels/quantised_kv.h) in the places of the panels' elements: their scales, bf16. That of a block's
// position j in group g lies at [g * stride + j].
struct KvScales {
  const uint16_t* const* keys;  // where pointers to keys point, likewise values
  const uint16_t* const* values;
  int64_t stride;
  void* widened;  // scratch
};

// Keys come in blocks: of a block's keys [panels of 16 keys][key_dim][16], of its values [panels of 16
// channels] [value_rows][16].
struct Avx2AttentionChunkParams {
  AttentionVectors v;
  bool bf16;        // the cache's type; else fp32, or
  KvCodec codec;    // codes; then keys[16..] point to the next chunk's blocks:
  int next_blocks;  // so many, which are fetched
  KvScales scales;  // of codes; widened: fp32 [block_keys * max(key_dim, value_panels * 16)]
  int key_dim;
  int block_keys;             // keys of a block, a multiple of 16
  int value_rows;             // keys that a panel of values holds, at least block_keys
  const void* const* keys;    // [blocks]
  const void* const* values;  // [blocks]
};
void Avx2AttentionChunk(const Avx2AttentionChunkParams& params);

// Keys come in panels of bf16 pairs, of 16 keys, values in tiles of 32 keys (pairs of keys, of each the 16
// channels). Tiles of values are zero for keys that no vector sees; those of codes need not be.
struct PairAttentionChunkParams {
  AttentionVectors v;
  const void* const* keys;       // [ceil(keys / 16)]
  const void* const* values;     // [ceil(keys / 32)] tile of the first 16 channels
  const int64_t* value_strides;  // [ceil(keys / 32)] elements from one 16 channels to the next
  KvCodec codec;                 // keys and values point to codes, and keys[16..] to the next chunk's:
  int next_panels;               // so many, which are fetched
  KvScales scales;               // of codes; widened: bf16 [max(2 * 16 * key_depth, 2 * 16 * 256)]
};

// Vectors are packed by Avx512PackRowsBf16 in tiles of so many rows, padded to a multiple of kPairDepth.
inline constexpr int kPairTileRows = 16, kPairDepth = 32;

void Avx512Bf16AttentionChunk(const PairAttentionChunkParams& params);
void AmxAttentionChunk(const PairAttentionChunkParams& params);

// Writes a position's key, n channels, into a panel of 16 keys at `place`, its pair of the first two
// channels.
void PairStoreKey(const float* key, int64_t n, uint16_t* place);
// And its value: `place` is its pair of positions' words of the first 16 channels, `odd` which of the two it
// is, panel_stride elements from 16 channels to the next.
void PairStoreValue(const float* value, int64_t n, bool odd, int64_t panel_stride, uint16_t* place);

// y = x / sum.
void Avx2Divide(const float* x, float sum, int64_t n, float* y);

}  // namespace phalanx

// The kernels' launchers: plain structs, so that nvcc sees no more of the host's code than it must. Every
// launcher enqueues on `stream` and returns a cudaError_t as int (0: enqueued). Pointers are device pointers.
// Nothing here checks parameters: CudaOps has done that.
#pragma once

#include <cstdint>

#include "kernels/kv_codec.h"

namespace phalanx::cuda {

// ---- Products -----------------------------------------------------------------------------------

inline constexpr int kGemmBlock = 64;      // columns of K in a block of a packed weight
inline constexpr int kGemmRowTile = 16;    // rows of W in a tile
inline constexpr int kGemmSegment = 1024;  // columns that are summed before the sum is put aside, at most
// 16-bit elements of one tile's block: fragments of 4 steps, of 32 lanes, of 8 elements.
inline constexpr int kGemmTileBlock = kGemmRowTile * kGemmBlock;

// A run of K that is summed from zero. Which segments there are depends on K and the cuts between shards
// only.
struct GemmSegment {
  int32_t first_block = 0;  // in the packed weight
  int32_t blocks = 0;
  int32_t x_begin = 0;  // first column of x
  int32_t x_cols = 0;   // columns of x; up to blocks * kGemmBlock the rest counts as zero
};

// How a weight that stays quantised lies: [row_tiles][total_blocks] blocks of codes and what they are read
// by. An element is round16(fma(code - zero, scale, minimum)), fp32 inside, so that it has the bits of the
// weight that kernels/dequantize.h makes, rounded to 16 bits; scale, zero and minimum are a row's in a run of
// 64 / slots columns. Codes of 4 bits: [32 lanes][4 steps] words, in whose half e the nibble i is element e
// of register i of the lane's A fragment. Of 8 bits: [2 pairs of steps][32 lanes][2 steps][8 bytes], two of
// each register.
enum class QuantMeta : int32_t {
  kNone,      // 16-bit weights
  kF16,       // scale; codes less 8 (4 bits) or 128
  kF16F16,    // scale, minimum
  kF16Zero,   // scale, zero as a 16-bit integer
  kBf16Zero,  //
  kF32,       // scale; codes are e4m3
};
struct QuantFormat {
  QuantMeta meta = QuantMeta::kNone;
  int32_t bits = 16;
  int32_t slot_shift = 0;   // 2^slot_shift runs of columns in a block: 1, 2 or 4
  int32_t meta_rows = 0;    // 16, or 1 where a tile's rows have all the same
  int32_t meta_bytes = 0;   // of one row and run: 2 or 4
  int32_t meta_shift = 0;   // 2^meta_shift units of 16 bytes take a block's metas
  int32_t block_bytes = 0;  // of codes, then metas [runs][rows]
};

struct GemmArgs {
  // [row_tiles][total_blocks][4 steps][32 lanes][8]: A fragments of mma, rows and columns beyond N and K
  // zero. Where quant says so, its blocks.
  const uint16_t* weight = nullptr;
  QuantFormat quant = {};
  int n = 0;
  // Gated: y [T, n] = silu(gate) * up, gate and up rounded to 16 bits; rows of W from up_tiles tiles on are
  // up's. 0: not gated.
  int up_tiles = 0;
  int row_tiles = 0;
  int total_blocks = 0;
  const GemmSegment* segments = nullptr;
  const int32_t* shard_begin = nullptr;  // [shards + 1] into segments
  const int32_t* tree_begin = nullptr;   // [trees + 1] into shards
  int num_segments = 0;
  int num_trees = 0;
  int max_shards_per_tree = 0;
  const uint16_t* x = nullptr;  // 16-byte aligned, as is each segment's part of each row
  int64_t x_stride = 0;
  int rows = 0;  // T
  const float* bias = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;
  int64_t tree_stride = 0;
  bool y_fp32 = false;
  float* partials = nullptr;  // [num_segments, T, rows of W] where GemmSplits
  // Grouped products: expert e = blockIdx.z takes rows row_map[e * T + i], i < counts[e], of x and writes
  // rows y_map[e * T + i] of y.
  const uint16_t* const* expert_weights = nullptr;
  int num_experts = 0;
  const int32_t* counts = nullptr;
  const int32_t* row_map = nullptr;
  const int32_t* y_map = nullptr;
};
// Whether LaunchGemm of so many rows needs `partials`.
bool GemmSplits(const GemmArgs& args);
int LaunchGemm(const GemmArgs& args, bool half, void* stream);
// The same for a weight that stays quantised, of up to kQuantRows rows; more are better widened first. Gated
// ones of few rows only (GemmSplits).
inline constexpr int kQuantRows = 512;
int LaunchQuantGemm(const GemmArgs& args, bool half, void* stream);
// Adds up the partials of the segments.
int LaunchGemmCombine(const GemmArgs& args, bool half, void* stream);

// out = tiles [first_tile, first_tile + tiles) of a quantised weight as a 16-bit one's.
struct WidenArgs {
  const uint16_t* weight = nullptr;
  QuantFormat quant = {};
  int total_blocks = 0;
  int first_tile = 0, tiles = 0;
  uint16_t* out = nullptr;
};
int LaunchWiden(const WidenArgs& args, bool half, void* stream);

// out [rows, total_blocks * 64] = the segments' columns of x, each at its first_block, zeros between; or,
// where `columns` [total_blocks * 64] is given, the columns of x that it says, zeros at -1.
struct PackRowsArgs {
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  int rows = 0;
  const GemmSegment* segments = nullptr;  // x_begin and x_cols of x
  int num_segments = 0;
  int total_blocks = 0;
  const int32_t* columns = nullptr;
  uint16_t* out = nullptr;
};
int LaunchPackRows(const PackRowsArgs& args, void* stream);

// ---- Rows ---------------------------------------------------------------------------------------

struct EmbedArgs {
  const uint16_t* table = nullptr;  // [vocab, hidden]
  int64_t vocab = 0;
  const int32_t* token_ids = nullptr;
  const int32_t* from_sampled = nullptr;
  const int32_t* sampled = nullptr;
  uint16_t* x = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;
};
// A row of an id outside of the table is NaN (in bf16 and fp16 alike); of -1 from `sampled` zero.
int LaunchEmbed(const EmbedArgs& args, void* stream);

// How e4m3 is scaled. kRows: a factor for each row of W and one for each row of x. kBlocks: one for 128 x 128
// of W and for 128 columns of a row of x.
enum class Fp8Scaling : int32_t { kRows, kBlocks };

// Rows that become e4m3 (see kFp8Tiny in gemm_fp8.h).
struct Fp8RowsOut {
  Fp8Scaling scaling = Fp8Scaling::kRows;
  uint8_t* codes = nullptr;  // [rows, codes_stride]
  int64_t codes_stride = 0;
  // kRows: [parts, rows_pitch]. kBlocks: [codes_stride / 128, rows_pitch].
  float* scales = nullptr;
  int64_t rows = 0, rows_pitch = 0;
};

struct RmsNormArgs {
  uint16_t* residual = nullptr;
  int64_t rows = 0, cols = 0, residual_stride = 0;
  const float* add = nullptr;
  const float* add2 = nullptr;
  const float* weight = nullptr;
  float eps = 0;
  const int32_t* chosen = nullptr;
  uint16_t* y = nullptr;
  int64_t y_rows = 0, y_stride = 0;
  // Where it has codes: those of its first rows of y, too, which are one part. LaunchFp8Rows' bits.
  Fp8RowsOut quantised;
};
int LaunchRmsNorm(const RmsNormArgs& args, bool half, void* stream);

struct SwiGluArgs {
  const uint16_t* gate_up = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;  // cols: F
  uint16_t* y = nullptr;
  int64_t y_stride = 0;
};
int LaunchSwiGlu(const SwiGluArgs& args, bool half, void* stream);

// y[r, c] = x[r, c] of 16-bit elements.
struct CopyRowsArgs {
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  uint16_t* y = nullptr;
  int64_t y_stride = 0;
  int64_t rows = 0, heads = 0, cols = 0;  // cols elements of each of `heads` pieces
  int64_t x_pitch = 0, y_pitch = 0;       // elements between pieces
};
int LaunchCopyRows(const CopyRowsArgs& args, void* stream);

// ---- Attention ----------------------------------------------------------------------------------

inline constexpr int kMaxRopeTables = 8;
struct RopeTableArgs {
  const float* cos = nullptr;  // [positions, half]
  const float* sin = nullptr;
  int64_t num_positions = 0;
  int half = 0;
  bool interleaved = false;
};

// Keys: [layer][block][head][position in block][key_pitch]; values likewise. Pitches are multiples of 8
// elements; what lies between a width and its pitch is zero for ever.
// A quantised cache holds bytes, and likewise [position in block][groups of kKvGroup channels] scales.
struct CacheArgs {
  uint16_t* keys = nullptr;  // of one layer
  uint16_t* values = nullptr;
  uint16_t* key_scales = nullptr;  // bf16; null: a cache of 16 bits
  uint16_t* value_scales = nullptr;
  KvCodec codec = KvCodec::kNone;  // of a cache with scales
  int num_heads = 0, key_dim = 0, value_dim = 0, key_pitch = 0, value_pitch = 0, block_size = 0;
  int block_shift = 0;  // block_size is 2^block_shift
  int64_t num_blocks = 0;
};

struct RopeStoreArgs {
  uint16_t* q = nullptr;
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int64_t rows = 0, q_stride = 0, k_stride = 0, v_stride = 0;
  int num_heads = 0;
  const int32_t* positions = nullptr;
  const int32_t* rope_mode = nullptr;
  const int64_t* slots = nullptr;
  RopeTableArgs tables[kMaxRopeTables];
  int num_tables = 0;
  int rope_offset = 0;
  CacheArgs cache;
};
// A row of a mode or position outside of the tables becomes NaN; a slot beyond the cache is not stored.
int LaunchRopeStore(const RopeStoreArgs& args, bool half, void* stream);

// One block's work: packed query rows [first_row, first_row + rows) of one KV head of one sequence against
// chunks [first_chunk, end_chunk). Packed row i of KV head g is token i / heads, head i % heads of those of
// g.
struct AttentionItem {
  const int32_t* block_table = nullptr;
  int32_t first_position = 0;  // of the sequence's first row in the call
  int32_t first_token = 0;     // that row, in q
  int32_t kv_head = 0;
  int32_t first_row = 0, rows = 0;
  int32_t first_head = 0, heads = 0;  // in head_list
  int32_t first_chunk = 0, end_chunk = 0;
  int64_t partial = -1;  // < 0: writes out; else the first partial: that of row i and chunk c is
                         // partial + i * partial_chunks + c
  int32_t partial_chunks = 0;
};

// Where a call's items come from: how many there are, and a few words per sequence, from which a kernel makes
// the items.
struct AttentionCounts {
  int32_t items = 0, combined = 0, sequences = 0;
  int32_t rows_per_item = 0;
};
struct AttentionHeads {
  int32_t first_head = 0, heads = 0;  // of a KV head: see AttentionItem
};
// Items of a sequence lie one behind the other: KV head by KV head, rows_per_item packed rows by as many,
// chunk by chunk where they are cut so.
struct AttentionSequenceArgs {
  const int32_t* block_table = nullptr;
  int32_t first_position = 0, first_token = 0, num_rows = 0;
  int32_t chunks = 0;  // of its last row, where each is an item of its own; else 0
  int32_t first_item = 0, first_combined = 0;
  int64_t first_partial = 0;
};
struct AttentionItemsArgs {
  const AttentionCounts* counts = nullptr;
  const AttentionHeads* kv_heads = nullptr;
  int num_kv_heads = 0;
  const AttentionSequenceArgs* sequences = nullptr;
  AttentionItem* items = nullptr;
  AttentionItem* combined = nullptr;  // whole rows of sequences that are cut
};
int LaunchAttentionItems(const AttentionItemsArgs& args, int blocks, void* stream);

struct AttentionArgs {
  const AttentionCounts* counts = nullptr;
  const AttentionItem* items = nullptr;     // [counts->items, or as many as there are blocks]
  const AttentionItem* combined = nullptr;  // likewise
  const int32_t* head_list = nullptr;       // query heads by KV head
  const uint16_t* q = nullptr;
  int64_t q_stride = 0;
  uint16_t* out = nullptr;
  int64_t out_stride = 0;
  CacheArgs cache;
  int value_dim = 0;  // channels of a head of out
  bool latent = false;
  float scale = 0;
  float* partial_out = nullptr;  // [partials, value_pitch]
  float* partial_max = nullptr;  // [partials], of scores in units of log2
  float* partial_sum = nullptr;
  int partial_pitch = 0;
};
// Packed rows a block takes when `many`; else 16.
int AttentionRowsPerItem(int key_dim, int value_dim, bool many);
bool AttentionSupports(int key_dim, int value_dim);
// `blocks` share out the items that there are then, be they more or fewer.
int LaunchAttention(const AttentionArgs& args, int blocks, bool many, bool half, void* stream);

// Adds up the partials of rows with several chunks; the item says where they lie.
int LaunchAttentionCombine(const AttentionArgs& args, int rows_per_item, int blocks, bool half, void* stream);

// ---- Sampling -----------------------------------------------------------------------------------

// A SampleRow (kernels/ops.h); lists are runs of SampleArgs' arrays.
struct SampleRowArgs {
  float temperature = 0, top_p = 1, min_p = 0;
  float repetition_penalty = 1, frequency_penalty = 0, presence_penalty = 0;
  int32_t top_k = 0, target = -1, num_top = -1;
  bool adjusts = false, has_penalties = false;
  double uniform = 0;  // of the draw
  int32_t bias_begin = 0, bias_end = 0, counts_begin = 0, counts_end = 0, banned_begin = 0, banned_end = 0;
};
struct SampleBias {
  int32_t id;
  float bias;
};
struct SampleCount {
  int32_t id;
  int32_t num_output;
};

struct SampleArgs {
  const float* logits = nullptr;
  int64_t num_rows = 0;  // of the call: rows of a share
  int64_t first_row = 0;
  int vocab = 0, num_shares = 0;
  int64_t share_cols = 0;
  const int32_t* share_begin = nullptr;
  const SampleRowArgs* rows = nullptr;
  const SampleBias* bias = nullptr;
  const SampleCount* counts = nullptr;
  const int32_t* banned = nullptr;
  int32_t* ids = nullptr;
  float* logprobs = nullptr;
  int32_t* top_ids = nullptr;
  float* top_logprobs = nullptr;
  int max_top = 0;  // kMaxTopLogprobs
  // Of one row: see SampleScratchBytes.
  char* scratch = nullptr;
  int64_t scratch_stride = 0;
};
int64_t SampleScratchBytes(int vocab);
// Rows [first_row, first_row + count).
int LaunchSample(const SampleArgs& args, int count, void* stream);

// ---- Experts ------------------------------------------------------------------------------------

struct RouteArgs {
  const float* scores = nullptr;
  const float* bias = nullptr;
  int64_t num_tokens = 0;
  int num_experts = 0, num_groups = 1, top_groups = 1, top_k = 1;
  bool sigmoid = true, normalize = true;
  float scale = 1;
  int32_t* ids = nullptr;
  float* weights = nullptr;
};
int LaunchRoute(const RouteArgs& args, void* stream);

struct ExpertListArgs {
  const int32_t* ids = nullptr;                     // [num_tokens, top_k]
  const uint16_t* const* expert_weights = nullptr;  // [num_experts]
  int num_tokens = 0, top_k = 0, num_experts = 0;
  bool x_per_choice = false;
  int32_t* counts = nullptr;   // out [num_experts]; 0 of an expert that is not held
  int32_t* row_map = nullptr;  // out [num_experts, num_tokens], rising
  int32_t* y_map = nullptr;    // out, choices
};
int LaunchExpertLists(const ExpertListArgs& args, void* stream);

// Rows of choices whose expert is not held become zero.
struct ClearMissingArgs {
  const int32_t* ids = nullptr;
  const uint16_t* const* expert_weights = nullptr;
  int num_experts = 0, choices = 0, n = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  bool y_fp32 = false;
};
int LaunchClearMissing(const ClearMissingArgs& args, void* stream);

// Sums over a token's choices, apart for each shard, then over the shards of each subtree.
struct CombineChoicesArgs {
  const float* products = nullptr;  // [T * top_k, N]
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  const uint16_t* const* expert_weights = nullptr;
  int num_tokens = 0, top_k = 0, n = 0, num_trees = 0;
  const int64_t* expert_cuts = nullptr;  // [shards + 1]
  const int32_t* tree_begin = nullptr;   // [trees + 1]
  float* y = nullptr;
  int64_t y_stride = 0, tree_stride = 0;
};
int LaunchCombineChoices(const CombineChoicesArgs& args, void* stream);

}  // namespace phalanx::cuda

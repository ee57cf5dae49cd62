// Ops: the one interface between a model and the machine it runs on. Three implementations pass one
// conformance suite (tests/kernels/ops_test.cc): reference/ (plain loops, the specification), cpu/ and cuda/.
//
// Queue: every call that takes a ...Params enqueues work on one ordered queue and may return before it is
// done; pointers in the params (device pointers unless said otherwise) must stay valid until then. A backend
// on the CPU runs the work at once. Nothing here allocates except Allocate, PackWeight, MakeRopeTable and
// CreateKvCache.
//
// Determinism (invariant 3 of the design): each output element has one arithmetic, a function of its own
// inputs only: the same bits whatever T is, whatever rows stand beside it, however rows are cut into calls.
//
// Letters: T rows (tokens) of a call, K/N a weight's inputs/outputs, H/G query/KV heads of this rank, R rows
// that need logits, V vocabulary, E experts. Matrices are row-major with unit column stride. Errors:
// InvalidArgument naming the field, its value and what would be right; Internal for a device fault. Thread
// safety: one thread at a time per Ops.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "base/kv_type.h"
#include "base/shard_plan.h"
#include "kernels/exchange.h"
#include "kernels/token_counts.h"
#include "kernels/weight_memory.h"

namespace phalanx {

// A view of a matrix of activations in device memory, in Ops::activation_dtype() unless a field says fp32.
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements between rows, >= cols
};

// Device memory, freed with the object. Zeroed at birth, 64-byte aligned.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() = 0;
  virtual int64_t bytes() const = 0;
};

// ---- Weights ------------------------------------------------------------------------------------

// Factors of a stored FP8 matrix: element (r, c) is multiplied by data[r / block_rows * stride + c /
// block_cols], in fp32 and rounded once.
struct WeightScales {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // F32, BF16 or F16
  int64_t block_rows = 0;
  int64_t block_cols = 0;
  int64_t stride = 0;  // elements between rows of blocks
};

// Groups of a stored 4-bit matrix: element (r, c) is (q - zero) * scale of r and of the group of c, made as
// kernels/dequantize.h says.
struct WeightGroups {
  const void* scales = nullptr;  // [groups, stored rows]
  DType scales_dtype = DType::kF16;
  const int32_t* zeros = nullptr;     // [groups, stored rows / 8], packed like the matrix (GPTQ: in order)
  int zero_offset = 0;                // added to a zero: 1 for GPTQ's first format
  const int32_t* group_of = nullptr;  // [cols]; null: c / group_size
  int64_t group_size = 0;
};

// A matrix [rows, cols] as it lies in a file: row-major in `dtype`, blocks along cols. Host memory (a
// mapping). kAwq and kGptq lie transposed: words [cols, stored_rows / 8] of 8 rows in the order 0, 2, 4, 6,
// 1, 3, 5, 7 from the low bits, or words [cols / 8, stored_rows] of 8 columns in order.
struct WeightSource {
  const void* data = nullptr;  // of the whole stored matrix
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t first_row = 0;     // in the stored matrix: this is a run of its rows
  int64_t stored_rows = 0;   // of kAwq and kGptq
  WeightScales scales = {};  // of kF8E4M3
  WeightGroups groups = {};  // of kAwq and kGptq

  // Rows [range.begin, range.end) of this matrix.
  WeightSource Rows(Range range) const {
    WeightSource part = *this;
    part.first_row += range.begin;
    part.rows = range.size();
    return part;
  }
};

struct WeightPiece {
  WeightSource source;
  Range rows;  // rows of the source that this piece takes
};

// Packs y = x W^T. Rows of the pieces are concatenated: N = sum of piece rows.
struct PackWeightParams {
  std::vector<WeightPiece> pieces;
  // Columns of the sources that are taken: K = cols.size(). A cut inside a quantisation block is legal.
  Range cols;
  // For a product whose K is sharded: the cuts, in source columns, between the rank's shards first_shard,
  // first_shard+1, ...; shard i takes [shard_cuts[i], shard_cuts[i+1]); front() == cols.begin, back() ==
  // cols.end; a shard may be empty. Empty vector: K is not sharded and the weight belongs to Matmul.
  std::vector<int64_t> shard_cuts;
  int first_shard = 0;
};

// A backend's own layout of a weight.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual int64_t bytes() const = 0;                         // device memory held
  virtual const std::vector<Subtree>& subtrees() const = 0;  // of a K-sharded weight; empty otherwise
};

// y = x W^T (+ bias), fp32 accumulation, rounded once to y's type.
struct MatmulParams {
  Matrix x;                              // [T, K]
  const PackedWeight* weight = nullptr;  // not K-sharded
  const float* bias = nullptr;           // [N] fp32, may be null
  Matrix y;                              // [T, N]
  bool y_fp32 = false;                   // y holds fp32 whatever the activation type (logits)
};

// sums[i] = x[:, columns of subtree i] W^T: one fp32 matrix for each of weight->subtrees(), left to right.
// Inside a subtree the sums of shards are added in the tree's order (base/shard_plan.h), an empty shard being
// +0.
struct ShardedMatmulParams {
  Matrix x;                              // [T, K]
  const PackedWeight* weight = nullptr;  // K-sharded
  float* sums = nullptr;                 // [num_subtrees, T, N]; a subtree's matrix is contiguous
  int64_t tree_stride = 0;               // elements between subtrees; 0: T * N
};

// y_h = x_h W_h^T for each head h: x_h are the K columns of x from h * x.cols / H, y_h the first N of the
// y.cols / H columns of y that are the head's. The rest of both, equally many, is copied: y_h = [x_h W_h^T |
// rest of x_h]. MLA's queries into the latent (the rest is what rotates) and values out of it.
struct HeadMatmulParams {
  Matrix x;                                       // [T, H * (K + rest)]
  absl::Span<const PackedWeight* const> weights;  // [H], equal N and K, not K-sharded; host memory
  Matrix y;                                       // [T, H * (N + rest)], no part of x
};

// Mixture of experts, with e = ids[t, j]. Without `weights`: y[t * top_k + j] = x W_e^T, zeros where another
// rank holds e. With them: sums over j of weights[t, j] * (x W_e^T), made apart for each of the rank's
// shards, from +0, in rising order of its experts; then shards are added inside subtrees as ShardedMatmul
// does.
struct GroupedMatmulParams {
  Matrix x;                   // [T * top_k or T, K]: see x_per_choice
  bool x_per_choice = false;  // x has a row per (t, j), at t * top_k + j, instead of one per t
  // [E], equal N and K, not K-sharded; null where another rank holds it. Host memory.
  absl::Span<const PackedWeight* const> experts;
  const int32_t* ids = nullptr;    // [T, top_k], rising in a row
  const float* weights = nullptr;  // [T, top_k] fp32; null: y has a row per (t, j)
  int top_k = 0;
  int64_t num_tokens = 0;  // T
  // Activations [T * top_k, N]; with weights fp32 [T, N] of the first subtree, the others behind it.
  Matrix y;
  // With weights. Shard first_shard + i holds experts [expert_cuts[i], expert_cuts[i + 1]); experts beyond
  // these are null. Host memory.
  absl::Span<const int64_t> expert_cuts;
  int first_shard = 0;
  int64_t tree_stride = 0;  // elements between subtrees
};

// Expert routing (DeepSeek-V3's noaux_tc; a plain softmax top-k with one group and no bias).
struct RouteParams {
  const float* scores = nullptr;  // [T, E] fp32 router outputs before the scoring function
  int64_t num_tokens = 0;         // T
  int num_experts = 0;            // E
  const float* bias = nullptr;    // [E] added for the selection only; may be null
  bool sigmoid = true;            // else softmax over E
  int num_groups = 1;             // E is cut into equal groups; a group's score: sum of its two best
  int top_groups = 1;             // groups kept
  int top_k = 1;                  // experts kept among those, best first (ties: lower id); a NaN is the worst
  bool normalize = true;          // divide the kept scores by their sum
  float scale = 1.0f;             // then multiply
  int32_t* ids = nullptr;         // out [T, top_k], rising
  float* weights = nullptr;       // out [T, top_k], of ids
};

// ---- Elementwise --------------------------------------------------------------------------------

// x[t] = table row of token t. A token is a literal id, or an id sampled by the step before, still on the
// device.
struct EmbedParams {
  WeightSource table;                  // [V, hidden], host mapping: backends keep what they need of it (see
                                       // RegisterTable in cuda/); CPU backends read only the rows touched
  const int32_t* token_ids = nullptr;  // [T]; used where from_sampled is null or -1
  const int32_t* from_sampled = nullptr;  // [T] index into `sampled`, -1 for a literal; may be null
  const int32_t* sampled =
      nullptr;  // ids sampled by the step before; of an id -1 (see Sample) comes a zero row
  Matrix x;     // out [T, hidden]
};

// residual[t] += add[t] (or add[t] + add2[t]) where given; then y[i] = rmsnorm(residual[rows[i]]) * weight,
// fp32 inside. The sum of squares has one fixed order. source: https://arxiv.org/abs/1910.07467
struct RmsNormParams {
  Matrix residual;                // [T, hidden], updated in place when add is given
  const float* add = nullptr;     // [T, hidden] fp32 contiguous, may be null
  const float* add2 = nullptr;    // likewise, with add only
  const float* weight = nullptr;  // [hidden] fp32
  float eps = 1e-5f;
  const int32_t* rows = nullptr;  // [y.rows] rows of residual to normalise; null: all
  Matrix y;                       // [T or number of rows, hidden]; may be residual itself where rows is null
  // Of a product that reads y before anything else writes it: a backend that quantises what such a product
  // reads does so as it makes y. May be null.
  const PackedWeight* read_by = nullptr;
};

// y = silu(gate) * up. source: https://arxiv.org/abs/2002.05202
struct SwiGluParams {
  Matrix gate_up;  // [T, 2F]: gate | up
  Matrix y;        // [T, F]
};

// y = silu(gate) * up of gate | up = x W^T: Matmul and SwiGlu in one.
struct GatedMatmulParams {
  Matrix x;                              // [T, K]
  const PackedWeight* weight = nullptr;  // not K-sharded, N = 2F
  Matrix gate_up;                        // [T, 2F] scratch: what it holds afterwards is not said
  Matrix y;                              // [T, F]
};

// GatedMatmul of gate_up, then ShardedMatmul of `down` with its result.
struct GatedShardedMatmulParams {
  Matrix x;                               // [T, K]
  const PackedWeight* gate_up = nullptr;  // not K-sharded, N = 2F
  const PackedWeight* down = nullptr;     // K-sharded, of F columns
  Matrix gated_from;                      // [T, 2F] scratch,
  Matrix gated;                           // [T, F] and another: what they hold afterwards is not said
  float* sums = nullptr;                  // as in ShardedMatmulParams
  int64_t tree_stride = 0;
};

// ---- Attention ----------------------------------------------------------------------------------

// cos and sin of one RoPE mode for positions [0, num_positions), made once from a RopeConfig.
class RopeTable {
 public:
  virtual ~RopeTable() = default;
  virtual int rotary_dim() const = 0;
  virtual int64_t num_positions() const = 0;
};

// Shape of a paged KV cache of one rank. Blocks hold block_size consecutive positions of all layers. Its type
// is OpsInfo::kv_type; there is none of int8 and fp8 for latents (value_dim 0).
struct KvCacheShape {
  int num_layers = 0;
  int num_kv_heads = 0;  // of this rank; may be 0
  int key_dim = 0;       // MLA: 576, the latent and the rotated key
  int value_dim = 0;     // MLA: 0, values are the first value channels of the key row
  int block_size = 0;    // positions a block; divides kAttentionChunk
};
inline constexpr int kAttentionChunk = 256;

class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual const KvCacheShape& shape() const = 0;
  virtual int64_t num_blocks() const = 0;
};

// Rotates q (in place) and k, rounds k and v to the cache's type and writes them to their slots.
struct RopeStoreKvParams {
  Matrix q;                            // [T, H * key_dim], rotated in place
  Matrix k;                            // [T, G * key_dim]
  Matrix v;                            // [T, G * value_dim]; cols 0 for MLA
  int num_heads = 0;                   // H
  const int32_t* positions = nullptr;  // [T]
  const int32_t* rope_mode = nullptr;  // [T] index into tables
  std::vector<const RopeTable*> tables;
  int rope_offset = 0;  // first rotated channel of a head (MLA: 512)
  KvCache* cache = nullptr;
  int layer = 0;
  const int64_t* slots = nullptr;  // [T] block * block_size + offset; negative: do not store
};

// A sequence's rows in a call: `num_rows` consecutive rows of q at consecutive positions from first_position.
struct AttentionSequence {
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t first_position = 0;
  const int32_t* block_table = nullptr;  // [>= blocks up to the last position]; entries beyond are never read
};

// Causal attention over the paged cache; row at position p sees keys 0..p. Keys are taken in chunks of
// kAttentionChunk aligned at position 0; a chunk's fp32 partial (max, sum, output) is made in one fixed order
// and partials are combined left to right, in prefill and decode alike. Unused slots are never read into a
// result.
struct AttentionParams {
  Matrix q;                             // [T, H * key_dim], rotated
  int num_heads = 0;                    // H
  const int32_t* kv_head_of = nullptr;  // [H] host memory: rank-local KV head of each query head
  const KvCache* cache = nullptr;
  int layer = 0;
  float scale = 0;           // usually 1 / sqrt(key_dim)
  int latent_value_dim = 0;  // MLA: values are the first this-many channels of the key; else 0
  std::vector<AttentionSequence> sequences;  // host memory
  Matrix out;                                // [T, H * value_dim (or latent_value_dim)]
};

// ---- Sampling -----------------------------------------------------------------------------------

struct TokenBias {
  int32_t id = 0;
  float bias = 0;
};

// How one row of logits becomes a token. Order: bias, penalties, bans, temperature, top-k, top-p, min-p,
// draw; the exact definition is in kernels/sampling.h. What is shared lives as long as somebody holds the
// row, so that a sequence may end between a plan and its Sample.
struct SampleRow {
  float temperature = 0;  // 0: the largest logit (ties: lowest id)
  int32_t top_k = 0;      // 0: all
  float top_p = 1.0f;     // smallest set of best tokens whose probability reaches it
  float min_p = 0;        // keeps tokens at least this times as probable as the best; 0: all
  // Of the tokens in `counts`: repetition of those in prompt or output, the others of those in the output.
  float repetition_penalty = 1.0f;  // > 0
  float frequency_penalty = 0;      // times the number in the output
  float presence_penalty = 0;
  // The draw is Philox4x32-10 with key = seed, counter = (position, choice): independent of everything else.
  uint64_t seed = 0;
  uint32_t choice = 0;
  uint64_t position = 0;  // of the sampled token in its sequence
  int32_t target = -1;    // >= 0: draw nothing; `ids` gets it and log-probabilities are of it (prompt tokens,
                          // forced ones)
  int32_t num_top = -1;  // -1: no log-probabilities; else also this many best tokens, at most kMaxTopLogprobs
  // May be null where no penalty is set. Host memory, read while Sample is called (not when its work runs):
  // then it holds all tokens before `position`.
  std::shared_ptr<const TokenCounts> counts;
  std::shared_ptr<const std::vector<TokenBias>> bias;  // ids rising; may be null
  // Ids that must not be sampled; either may be null.
  std::array<std::shared_ptr<const std::vector<int32_t>>, 2> banned;

  bool has_penalties() const {
    return repetition_penalty != 1.0f || frequency_penalty != 0 || presence_penalty != 0;
  }
  // Something stands between the raw logits and the choice.
  bool adjusts_logits() const {
    return has_penalties() || bias != nullptr || banned[0] != nullptr || banned[1] != nullptr;
  }
};
inline constexpr int kMaxTopLogprobs = 20;

// Log-probabilities are of the raw distribution: log softmax of the logits before all that a SampleRow does,
// fp32. Outputs of a row whose num_top is -1 are left as they are. A row whose logits hold a NaN, a +inf or
// nothing above -inf, or whose tokens are all banned, gets id -1 (log-probabilities NaN): its sequence must
// be failed, its neighbours go on.
struct SampleParams {
  const float* logits = nullptr;  // [R, V]: shares of num_shares ranks, see below
  int64_t num_rows = 0;           // R
  int64_t vocab_size = 0;         // V
  // Logits as AllGather leaves them: share s is a matrix [R, share_cols]; its row r holds the logits of
  // tokens [share_begin[s], share_begin[s+1]), the rest is padding and never read.
  int num_shares = 1;
  int64_t share_cols = 0;
  std::vector<int64_t> share_begin;  // [num_shares + 1], host memory
  std::vector<SampleRow> rows;       // [R], host memory
  int32_t* ids = nullptr;            // out [R]
  float* logprobs = nullptr;         // out [R] of ids; may be null
  int32_t* top_ids = nullptr;        // out [R, kMaxTopLogprobs], best first; may be null
  float* top_logprobs = nullptr;     // out, likewise
};

// ---- The interface ------------------------------------------------------------------------------

enum class CopyKind { kToDevice, kToHost, kOnDevice };

struct OpsInfo {
  std::string backend;               // "reference", "cpu", "cuda"
  std::string instruction_set;       // "scalar", "avx2", "avx512-bf16", "amx-bf16", "sm_90-fast": part of the
                                     // group's fingerprint
  std::string device;                // for people: the CPU's or GPU's name
  DType weight_dtype = DType::kF32;  // what PackWeight widens or narrows weights to (but for those that
                                     // a backend keeps quantised)
  std::vector<DType> kept_dtypes = {};  // which a backend keeps, of a weight whose pieces are of one type
  // Of what CreateKvCache makes; never kAuto. A device whose weight_dtype is F16 keeps F16 where this says
  // bf16.
  KvType kv_type = KvType::kF32;
  int kernel_version = 0;  // raised whenever a kernel's bits change
  int64_t free_bytes = 0;  // of the device's own memory when it was opened; 0: it is the host's
  bool exchanges = false;  // CreateExchange is there: what ranks exchange lies in the device's memory
  bool queued = false;   // calls return before their work is done: the next step's are best made before this
                         // one's results are waited for
  bool replays = false;  // Replay records: a step of few rows is worth filling up to one that was recorded
};

// Work that is enqueued again and again: see Ops::Replay.
struct ReplayParams {
  std::array<int64_t, 3> key = {};  // names the work; equal keys mean equal work
  // Of every call to Attention that enqueues make: the one thing of the host that may differ between equal
  // keys.
  absl::Span<const AttentionSequence> sequences;
};
inline constexpr int64_t kMaxReplayRows = 512;  // of a recorded call

struct ReplayStats {
  int64_t recorded = 0;  // kinds of work that are held
  int64_t bytes = 0;     // device memory that they take
  int64_t replayed = 0;
  int64_t not_recorded = 0;  // kinds that could not be, and are enqueued each time (DeviceGraphs::kAuto)
};

// What every backend refuses before it does anything: InvalidArgument naming the call, the field, its value
// and what would be right (kernels/validate.cc). Touches no device memory.
absl::Status Validate(const PackWeightParams& params);
absl::Status Validate(const RopeConfig& config, int64_t num_positions);
absl::Status Validate(const KvCacheShape& shape, int64_t num_blocks, KvType type);
absl::Status Validate(const EmbedParams& params);
absl::Status Validate(const RmsNormParams& params);
absl::Status Validate(const MatmulParams& params);
absl::Status Validate(const ShardedMatmulParams& params);
absl::Status Validate(const HeadMatmulParams& params);
absl::Status Validate(const SwiGluParams& params);
absl::Status Validate(const RopeStoreKvParams& params);
absl::Status Validate(const AttentionParams& params);
absl::Status Validate(const RouteParams& params);
absl::Status Validate(const GroupedMatmulParams& params);
absl::Status Validate(const SampleParams& params);

class Ops {
 public:
  virtual ~Ops() = default;

  virtual const OpsInfo& info() const = 0;
  virtual DType activation_dtype() const = 0;

  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& params) = 0;
  // Weights packed from now on lie in `memory`, which outlives them; null: in memory of their own, as before
  // the first call. False, and nothing changes, where the backend's weights have another place.
  virtual bool UseWeightMemory(WeightMemory* /*memory*/) { return false; }
  virtual absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeConfig& config,
                                                                   int64_t num_positions) = 0;
  virtual int64_t KvBlockBytes(const KvCacheShape& shape) const = 0;
  virtual absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(const KvCacheShape& shape,
                                                                 int64_t num_blocks) = 0;
  virtual absl::Status Copy(void* to, const void* from, int64_t bytes, CopyKind kind) = 0;
  // Waits until the queue is empty, no longer than `timeout_ms` (DeadlineExceeded).
  virtual absl::Status Synchronize(int64_t timeout_ms) = 0;
  // Seconds that the queue takes for what `work` enqueues, by the device's clock where it has one. Waits for
  // it.
  virtual absl::StatusOr<double> Time(const std::function<absl::Status()>& work);
  // A place in the queue, behind all that was enqueued before it. Wait(mark) returns when that is done, and
  // what was copied to the host before it is there; DeadlineExceeded after timeout_ms.
  virtual absl::StatusOr<int64_t> Mark() { return 0; }
  virtual absl::Status Wait(int64_t /*mark*/, int64_t /*timeout_ms*/) { return absl::OkStatus(); }

  // The work that `enqueue` enqueues. A device may record it the first time and replay it afterwards without
  // calling `enqueue`, or call that twice and run only one of its works. So all that it gives to calls from
  // the host (pointers, shapes, lists, but for AttentionParams::sequences) must be a function of the key, and
  // it must copy nothing from or to the host. A call of more than kMaxReplayRows rows is InvalidArgument.
  virtual absl::Status Replay(const ReplayParams& /*params*/, const std::function<absl::Status()>& enqueue) {
    return enqueue();
  }
  // Destroys all that was recorded; nothing is recorded any more. What a recorded collective needs before it
  // can be aborted.
  virtual void StopReplays() {}
  virtual ReplayStats replay_stats() const { return {}; }

  // What ranks of a group exchange in this device's memory; all ranks call it at the same time. Unimplemented
  // where the memory is the host's: there a collective between hosts does it all.
  virtual absl::StatusOr<std::unique_ptr<Exchange>> CreateExchange(const ExchangeOptions& options);

  virtual absl::Status Embed(const EmbedParams& params) = 0;
  virtual absl::Status RmsNorm(const RmsNormParams& params) = 0;
  virtual absl::Status Matmul(const MatmulParams& params) = 0;
  virtual absl::Status ShardedMatmul(const ShardedMatmulParams& params) = 0;
  virtual absl::Status HeadMatmul(const HeadMatmulParams& params) = 0;
  virtual absl::Status SwiGlu(const SwiGluParams& params) = 0;
  // The same bits as the two calls, which it makes unless a backend has better.
  virtual absl::Status GatedMatmul(const GatedMatmulParams& params);
  virtual absl::Status GatedShardedMatmul(const GatedShardedMatmulParams& params);
  virtual absl::Status RopeStoreKv(const RopeStoreKvParams& params) = 0;
  virtual absl::Status Attention(const AttentionParams& params) = 0;
  virtual absl::Status Route(const RouteParams& params) = 0;
  virtual absl::Status GroupedMatmul(const GroupedMatmulParams& params) = 0;
  virtual absl::Status Sample(const SampleParams& params) = 0;
};

enum class Compute { kFp32, kFast };

// Of a device: kInvariant keeps what is said of determinism above; kFast takes whatever arithmetic is fastest
// for a call's number of rows.
enum class DeviceMode { kInvariant, kFast };

// Whether a device's Replay records (CUDA graphs): never; where it can, else it is logged by the caller of
// replay_stats and enqueued each time; or always, and what cannot be is an error.
enum class DeviceGraphs { kOff, kAuto, kOn };

struct OpsOptions {
  // "auto": the host's best rung; or the name of one: "reference", "avx2", "avx512", "avx512_bf16", "amx", or
  // a device's: "cuda". One the host lacks is FailedPrecondition naming the rung and what is missing.
  std::string rung = "auto";
  Compute compute = Compute::kFast;
  int num_threads = 1;
  KvType kv_type = KvType::kAuto;
  bool fp16 = false;           // of a device: fp16 in place of bf16
  std::vector<int> cpus = {};  // of each thread, to stay there; empty: wherever the system puts them
  DeviceMode device_mode = DeviceMode::kInvariant;
  // Which of the GPUs that this process sees; -1: number gpu_of_rank, counted round.
  int gpu = -1;
  int gpu_of_rank = 0;
  // Folder for what a device's kFast has found out about products; empty: phalanx in $XDG_CACHE_HOME, or
  // in ~/.cache.
  std::string cache_folder = {};
  DeviceGraphs graphs = DeviceGraphs::kOff;
  // Of a device, for all of this process: kernels are launched while those before them still run, and wait
  // for their results themselves (programmatic dependent launch).
  bool dependent_launch = false;
};

// The backend factory (kernels/ops.cc, the only place that knows backends).
absl::StatusOr<std::unique_ptr<Ops>> CreateOps(const OpsOptions& options);
// Rungs this host can run, slowest first; "reference" always.
std::vector<std::string> AvailableRungs();

}  // namespace phalanx

// The numbers that define a model's shape, read from the model's own file. Both sides need them: the
// coordinator for limits and memory, the worker for weights and kernels.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/gguf.h"

namespace phalanx {

struct RopeConfig {
  double theta = 10000;
  int rotary_dim = 0;  // channels of a head that rotate; the rest pass through
  // Pairs (2i, 2i+1) instead of (i, i + rotary_dim/2): how the rows of queries and keys lie in the files.
  bool interleaved = false;
  // Per-frequency divisors [rotary_dim / 2] of the table; empty means 1.
  std::vector<float> freq_factors;
  float attention_factor = 1.0f;  // multiplies cos and sin
};

// How the tables of ModelConfig::rope were stretched. For people: the tables hold the result.
enum class RopeScaling : uint8_t { kNone, kLlama3, kLongRope, kYarn };

// Multi-head latent attention. key_dim is nope_dim + rope_dim, num_kv_heads is num_heads; the cache holds
// kv_lora_rank + rope_dim channels a token and layer, shared by all heads.
struct MlaConfig {
  int q_lora_rank = 0;   // 0: queries come from one matrix
  int kv_lora_rank = 0;  // channels of the latent
  int nope_dim = 0;      // channels of a head without position
  int rope_dim = 0;      // channels that rotate
  bool operator==(const MlaConfig&) const = default;
};

// Layers from first_dense_layers on have experts instead of the MLP of ffn_size. Scores are sigmoids; the
// topk_groups of num_groups groups with the largest sums of two are kept, of those the best
// experts_per_token.
struct MoeConfig {
  int num_experts = 0;
  int experts_per_token = 0;
  int expert_ffn_size = 0;
  int num_shared_experts = 0;  // run for every token, as one MLP of as many times expert_ffn_size
  int first_dense_layers = 0;
  int num_groups = 1;
  int topk_groups = 1;
  bool normalize = true;      // the chosen experts' weights sum to 1 before scaling
  double scaling_factor = 1;  // multiplies the weights
  bool operator==(const MoeConfig&) const = default;
};

// How a checkpoint's matrices are stored; single ones may be plain all the same.
enum class Quantisation : uint8_t {
  kNone,  // as each tensor's type says
  kFp8,   // e4m3 with factors: one a matrix, one a row, or one a block
  kAwq,   // 4-bit, in groups of columns with a scale and a zero for each row
  kGptq,
};

// Matrices in FP8 (e4m3) with one factor for each block of rows x cols.
struct Fp8Blocks {
  int rows = 0;
  int cols = 0;
  bool operator==(const Fp8Blocks&) const = default;
};

struct Int4Groups {
  int group_size = 0;   // columns of a group; 0: all columns are one
  int zero_offset = 0;  // added to a stored zero
  bool operator==(const Int4Groups&) const = default;
};

// FFN columns are cut among shards in multiples of this, or of the block of quantised weights.
inline constexpr int kFfnUnit = 32;

struct ModelConfig {
  std::string architecture;  // "llama": a name of base/architectures.h
  std::string name;          // general.name, for people
  int num_layers = 0;
  int hidden_size = 0;
  int num_heads = 0;  // query heads
  int num_kv_heads = 0;
  int key_dim = 0;    // channels of a key (and query) head
  int value_dim = 0;  // channels of a value head
  int ffn_size = 0;
  int vocab_size = 0;
  int context_length = 0;  // positions the model was made for
  float rms_eps = 1e-5f;
  bool tied_embeddings = false;
  // RoPE tables by mode; a sequence's mode is an index here, fixed before its first token. LongRoPE has two:
  // 0 for sequences of at most original_context_length positions, 1 for longer ones.
  std::vector<RopeConfig> rope;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 1;           // how much longer the context became by it
  int original_context_length = 0;  // positions before it; 0 without scaling
  double softmax_factor = 1;        // the scale of q.k is key_dim^-0.5 times this
  bool qkv_bias = false;
  std::optional<MlaConfig> mla;
  std::optional<MoeConfig> moe;
  Quantisation quantisation = Quantisation::kNone;
  std::optional<Fp8Blocks> fp8;    // of kFp8 with a factor a block
  std::optional<Int4Groups> int4;  // of kAwq and kGptq
  int ffn_unit = kFfnUnit;         // see base/shard_plan.h
  int num_mtp_layers = 0;          // layers after the last that predict further tokens; not run
};

// Unimplemented for an architecture not in the table of base/architectures.h and for a key that changes the
// arithmetic in a way not supported; NotFound / InvalidArgument for missing or impossible keys. Each names
// what it is about.
absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file);

// Unimplemented naming the architecture and those supported.
absl::Status UnsupportedArchitecture(const std::string& architecture);
// The same, or OK for one that is in the table.
absl::Status CheckArchitecture(std::string_view architecture);

}  // namespace phalanx

// What a model takes of the memory of its ranks: parameters, weights, KV cache. Pure arithmetic over the
// shard plan.
//
// For each rank: usable = 0.90 x device - 2 GiB - its weights. The 2 GiB are activations, collectives and the
// runtime. Sequences of t tokens that fit at once: floor(usable / (KV bytes per token x t, rounded up to
// whole blocks of 32 tokens)); the rank with the fewest decides, which is the fullest one.
//
// A rank holds its query heads, the KV heads they touch (a KV head whose group is cut lies on several ranks),
// its FFN columns, a run of the experts, its rows of the output head; and whole: the embedding table (rows
// are looked up in it; a tied head is a view of it), norms, routers, the matrices into latents. The latent
// cache of MLA is whole on every rank that has a query head.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/model_config.h"
#include "base/shard_plan.h"

namespace phalanx {

// Parts of a model that are cut, or not, in the same way.
enum class WeightPart : uint8_t {
  kEmbedding,      // whole
  kHead,           // by vocabulary rows; empty where tied
  kQuery,          // by query heads: queries, attention output, MLA's matrices out of the latents
  kKeyValue,       // by KV heads
  kFfn,            // by FFN columns
  kExperts,        // by experts
  kSharedExperts,  // by their columns
  kLatent,         // MLA's matrices into the latents: whole
  kSmall,          // norms, routers, biases of routers: whole
};
inline constexpr int kNumWeightParts = 9;

struct WeightSize {
  int64_t parameters = 0;
  int64_t bytes = 0;
};
struct WeightSizes {
  std::array<WeightSize, kNumWeightParts> parts;
  WeightSize& operator[](WeightPart part) { return parts[static_cast<size_t>(part)]; }
  const WeightSize& operator[](WeightPart part) const { return parts[static_cast<size_t>(part)]; }
  WeightSize total() const;
};

// Of the matrices; the embedding, the head and kSmall have two bytes a parameter in kFp8 and kInt4. FP8 has
// the scales of config.fp8 where there is one; int4 has 4.25 bits a parameter (groups of 128 with a scale
// and a zero).
enum class WeightFormat : uint8_t { kF32, kBf16, kFp8, kInt4 };

// From the shapes that the config implies; without the layers for further tokens (num_mtp_layers).
// InvalidArgument where there are more than 2^62 bytes.
absl::StatusOr<WeightSizes> WeightSizesOf(const ModelConfig& config, WeightFormat format);

// Counts the bytes of `sizes` anew from its parameters.
absl::Status SetFormat(const ModelConfig& config, WeightFormat format, WeightSizes* sizes);

// The part a tensor belongs to, by its name in a GGUF file or a Hugging Face one. A fused query-key-value
// matrix is kQuery; kSmall is what has no other part.
WeightPart WeightPartOf(std::string_view tensor_name);

inline constexpr int64_t kKvBlockTokens = 32;
inline constexpr int64_t kReservedBytes = int64_t{2} << 30;

struct MemoryOptions {
  int num_shards = kDefaultShards;
  int kv_element_bytes = 2;
  int kv_scale_bytes = 0;    // for each 32 channels of a head's key or value (int8, fp8: 2)
  int64_t device_bytes = 0;  // 0: unknown; then no tokens fit
  int64_t tokens = 32768;    // of a sequence
};

struct RankMemory {
  int64_t weight_bytes = 0;
  int64_t kv_bytes_per_token = 0;
};

struct MemoryEstimate {
  int64_t weight_bytes = 0;        // of the fullest rank
  int64_t kv_bytes_per_token = 0;  // of the fullest rank
  int64_t sequences = 0;           // that fit at once
  int64_t tokens = 0;              // that fit, of all sequences together
  std::vector<RankMemory> ranks;   // each
};

// InvalidArgument for options or numbers of ranks out of range.
absl::StatusOr<MemoryEstimate> EstimateMemory(const ModelConfig& config, const WeightSizes& weights,
                                              const MemoryOptions& options, int num_ranks);

// KV channels a token has in all layers of one rank, and groups of 32 channels of a head.
int64_t KvChannels(const ModelConfig& config, const Rank& rank);
int64_t KvGroups(const ModelConfig& config, const Rank& rank);

}  // namespace phalanx

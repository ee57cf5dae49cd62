// Shards are arithmetic, ranks are processes. A model's arithmetic is defined by its S shards; a rank owns a
// contiguous run of them. A pure function of (config, S, D): every rank and the coordinator compute the same.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "base/model_config.h"

namespace phalanx {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// A shard may hold nothing of a kind.
struct Shard {
  Range heads;            // query heads
  Range kv_heads;         // KV heads those touch (shared with neighbours where a group is cut)
  Range ffn;              // FFN columns
  Range vocab;            // rows of the output head
  Range experts = {};     // routed experts
  Range shared_ffn = {};  // columns of the shared experts, which are one MLP side by side
  bool operator==(const Shard&) const = default;
};

// A node of the reduction tree: `count` (a power of two) shards from `first`, first % count == 0.
struct Subtree {
  int first = 0;
  int count = 0;
  bool operator==(const Subtree&) const = default;
};

struct Rank {
  Range shards;  // [begin, end): contiguous, never empty
  // Unions over its shards, and so `experts` and `shared_ffn`; a KV head once.
  Range heads, kv_heads, ffn, vocab;
  std::vector<int> kv_head_of;    // [heads.size()] rank-local KV head of each rank-local query head
  std::vector<Subtree> subtrees;  // maximal aligned subtrees inside `shards`, left to right
  Range experts = {}, shared_ffn = {};
  bool operator==(const Rank&) const = default;
};

struct ShardPlan {
  int num_shards = 0;
  std::vector<Shard> shards;    // [num_shards]
  std::vector<Rank> ranks;      // [num_ranks]
  int64_t max_vocab_share = 0;  // longest ranks[i].vocab: shares are padded to it when gathered
};

// Cuts: shard s of S takes units [n*s/S, n*(s+1)/S) of n units, where the unit is one query head;
// config.ffn_unit FFN columns; one expert; one vocabulary row. Rank r of D takes shards [S*r/D, S*(r+1)/D).
// InvalidArgument (with the value and what would be right) unless 1 <= num_ranks <= num_shards <= kMaxShards.
inline constexpr int kMaxShards = 64;
inline constexpr int kDefaultShards = 8;
absl::StatusOr<ShardPlan> MakeShardPlan(const ModelConfig& config, int num_shards, int num_ranks);

// The shards of rank `rank` of `num_ranks`: what MakeShardPlan gives it.
Range ShardsOfRank(int num_shards, int num_ranks, int rank);

// Shards in the first of the maximal aligned subtrees that tile shards [begin, end), which are not empty.
int FirstSubtreeCount(int begin, int end);

// The maximal aligned subtrees that tile shards [begin, end).
std::vector<Subtree> SubtreesOf(int begin, int end);

// The one order in which the sums of all subtrees of all ranks (left to right, covering [0, S)) are added:
// equal aligned neighbours merge upwards like a binary counter, what is left folds from the right.
// Each step is: sums[left] += sums[right]; the total ends in sums[0].
struct MergeStep {
  int left = 0;
  int right = 0;
};
std::vector<MergeStep> MergeOrder(const std::vector<Subtree>& subtrees);

}  // namespace phalanx

#include "base/shard_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

// Part `index` of `parts` of `n` units.
Range Cut(int64_t n, int index, int parts) { return {n * index / parts, n * (index + 1) / parts}; }

absl::Status Validate(const ModelConfig& config, int num_shards, int num_ranks) {
  if (num_shards < 1 || num_shards > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat("number of shards is ", num_shards, "; it must be 1 to ", kMaxShards));
  }
  if (num_ranks < 1 || num_ranks > num_shards) {
    return absl::InvalidArgumentError(absl::StrCat("number of ranks is ", num_ranks, "; with ", num_shards,
                                                   " shards it must be 1 to ", num_shards));
  }
  if (config.num_heads < 1 || config.num_kv_heads < 1 || config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model has ", config.num_heads, " query heads and ", config.num_kv_heads,
                     " key-value heads; both must be at least 1 and the first a multiple of the second"));
  }
  if (config.ffn_size < 0 || config.vocab_size < 0) {
    return absl::InvalidArgumentError(absl::StrCat("model has ffn_size ", config.ffn_size, " and vocab_size ",
                                                   config.vocab_size, "; neither may be negative"));
  }
  if (config.moe && (config.moe->num_experts < 0 || config.moe->num_shared_experts < 0 ||
                     config.moe->expert_ffn_size < 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model has ", config.moe->num_experts, " experts and ", config.moe->num_shared_experts,
                     " shared ones of ", config.moe->expert_ffn_size, " columns; none may be negative"));
  }
  if (config.ffn_unit < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("model has ffn_unit ", config.ffn_unit, "; it must be at least 1"));
  }
  return absl::OkStatus();
}

// FFN columns are cut in whole units; the last may be a partial one.
Range CutColumns(int64_t columns, int64_t unit, int index, int parts) {
  const Range units = Cut((columns + unit - 1) / unit, index, parts);
  return {std::min(units.begin * unit, columns), std::min(units.end * unit, columns)};
}

// The KV heads that query heads `heads` touch; no heads touch none.
Range KvHeadsOf(Range heads, int64_t group) {
  const int64_t begin = heads.begin / group;
  return {begin, heads.size() == 0 ? begin : (heads.end + group - 1) / group};
}

}  // namespace

absl::StatusOr<ShardPlan> MakeShardPlan(const ModelConfig& config, int num_shards, int num_ranks) {
  if (absl::Status status = Validate(config, num_shards, num_ranks); !status.ok()) return status;

  const int64_t group = config.num_heads / config.num_kv_heads;
  const MoeConfig moe = config.moe.value_or(MoeConfig());

  ShardPlan plan;
  plan.num_shards = num_shards;
  for (int s = 0; s < num_shards; ++s) {
    Shard shard;
    shard.heads = Cut(config.num_heads, s, num_shards);
    shard.kv_heads = KvHeadsOf(shard.heads, group);
    shard.ffn = CutColumns(config.ffn_size, config.ffn_unit, s, num_shards);
    shard.experts = Cut(moe.num_experts, s, num_shards);
    shard.shared_ffn =
        CutColumns(int64_t{moe.num_shared_experts} * moe.expert_ffn_size, config.ffn_unit, s, num_shards);
    shard.vocab = Cut(config.vocab_size, s, num_shards);
    plan.shards.push_back(shard);
  }

  for (int r = 0; r < num_ranks; ++r) {
    Rank rank;
    rank.shards = ShardsOfRank(num_shards, num_ranks, r);
    const Shard& first = plan.shards[rank.shards.begin];
    const Shard& last = plan.shards[rank.shards.end - 1];
    rank.heads = {first.heads.begin, last.heads.end};
    rank.kv_heads = KvHeadsOf(rank.heads, group);
    rank.ffn = {first.ffn.begin, last.ffn.end};
    rank.experts = {first.experts.begin, last.experts.end};
    rank.shared_ffn = {first.shared_ffn.begin, last.shared_ffn.end};
    rank.vocab = {first.vocab.begin, last.vocab.end};
    for (int64_t h = rank.heads.begin; h < rank.heads.end; ++h) {
      rank.kv_head_of.push_back(static_cast<int>(h / group - rank.kv_heads.begin));
    }
    rank.subtrees = SubtreesOf(static_cast<int>(rank.shards.begin), static_cast<int>(rank.shards.end));
    plan.max_vocab_share = std::max(plan.max_vocab_share, rank.vocab.size());
    plan.ranks.push_back(std::move(rank));
  }
  return plan;
}

Range ShardsOfRank(int num_shards, int num_ranks, int rank) { return Cut(num_shards, rank, num_ranks); }

int FirstSubtreeCount(int begin, int end) {
  int count = 1;
  while (begin % (2 * count) == 0 && begin + 2 * count <= end) count *= 2;
  return count;
}

std::vector<Subtree> SubtreesOf(int begin, int end) {
  std::vector<Subtree> subtrees;
  while (begin < end) {
    const int count = FirstSubtreeCount(begin, end);
    subtrees.push_back({begin, count});
    begin += count;
  }
  return subtrees;
}

std::vector<MergeStep> MergeOrder(const std::vector<Subtree>& subtrees) {
  struct Pending {
    Subtree node;
    int index;  // where its sum is
  };
  std::vector<Pending> stack;
  std::vector<MergeStep> steps;
  for (int i = 0; i < static_cast<int>(subtrees.size()); ++i) {
    Pending top{subtrees[i], i};
    while (!stack.empty() && stack.back().node.count == top.node.count &&
           stack.back().node.first % (2 * top.node.count) == 0) {
      steps.push_back({stack.back().index, top.index});
      top = {{stack.back().node.first, 2 * top.node.count}, stack.back().index};
      stack.pop_back();
    }
    stack.push_back(top);
  }
  while (stack.size() > 1) {
    const int right = stack.back().index;
    stack.pop_back();
    steps.push_back({stack.back().index, right});
  }
  return steps;
}

}  // namespace phalanx

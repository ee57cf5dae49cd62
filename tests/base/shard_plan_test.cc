#include "base/shard_plan.h"

#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Shape {
  const char* name;
  int heads, kv_heads, ffn, vocab;
};

constexpr Shape kShapes[] = {
    {"SmolLM2-135M", 9, 3, 1536, 49152},  {"Phi-4", 40, 10, 17920, 100352},
    {"Qwen2.5-7B", 28, 4, 18944, 152064}, {"one head", 1, 1, 64, 7},
    {"no group", 6, 6, 100, 1000},     // FFN that ends inside a unit
    {"one KV head", 71, 1, 1, 65024},  // one FFN unit, a partial one
    {"no dense FFN", 16, 2, 0, 3},
};

ModelConfig ConfigOf(const Shape& shape) {
  ModelConfig config;
  config.num_heads = shape.heads;
  config.num_kv_heads = shape.kv_heads;
  config.ffn_size = shape.ffn;
  config.vocab_size = shape.vocab;
  return config;
}

// The ranges follow each other from 0 to n without a gap.
template <typename Parts>
void ExpectTiles(const Parts& parts, Range Parts::value_type::*field, int64_t n) {
  int64_t at = 0;
  for (const auto& part : parts) {
    EXPECT_EQ((part.*field).begin, at);
    EXPECT_GE((part.*field).size(), 0);
    at = (part.*field).end;
  }
  EXPECT_EQ(at, n);
}

// The expression that a run of shards computes, written out with its brackets: "((0+1)+(2+3))".
std::string SubtreeExpression(Subtree tree) {
  if (tree.count == 1) return std::to_string(tree.first);
  const int half = tree.count / 2;
  return absl::StrCat("(", SubtreeExpression({tree.first, half}), "+",
                      SubtreeExpression({tree.first + half, half}), ")");
}

std::string MergedExpression(const std::vector<Subtree>& subtrees) {
  std::vector<std::string> sums;
  for (const Subtree& tree : subtrees) sums.push_back(SubtreeExpression(tree));
  for (const MergeStep& step : MergeOrder(subtrees)) {
    EXPECT_LT(step.left, step.right);
    EXPECT_FALSE(sums[step.right].empty()) << "added twice";
    sums[step.left] = absl::StrCat("(", sums[step.left], "+", sums[step.right], ")");
    sums[step.right].clear();
  }
  for (size_t i = 1; i < sums.size(); ++i) EXPECT_EQ(sums[i], "") << "forgotten";
  return sums.empty() ? "" : sums[0];
}

// Experts by their ids, shared ones as one MLP; fewer of them than shards leave some without.
TEST(ShardPlanTest, ExpertsAreTiledToo) {
  for (const int experts : {1, 3, 8, 16, 256}) {
    ModelConfig config = ConfigOf({"experts", 16, 16, 100, 50});
    config.moe = MoeConfig{.num_experts = experts,
                           .experts_per_token = 1,
                           .expert_ffn_size = 76,
                           .num_shared_experts = experts % 3};
    const int shared = experts % 3 * 76;
    std::vector<Shard> shards_of_one_rank;
    for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
      const auto plan = MakeShardPlan(config, 8, num_ranks);
      ASSERT_TRUE(plan.ok()) << plan.status();
      if (num_ranks == 1) shards_of_one_rank = plan->shards;
      EXPECT_EQ(plan->shards, shards_of_one_rank);
      ExpectTiles(plan->shards, &Shard::experts, experts);
      ExpectTiles(plan->ranks, &Rank::experts, experts);
      ExpectTiles(plan->shards, &Shard::shared_ffn, shared);
      ExpectTiles(plan->ranks, &Rank::shared_ffn, shared);
      for (const Shard& shard : plan->shards) {
        EXPECT_LE(shard.experts.size(), (experts + 7) / 8);
        EXPECT_TRUE(shard.shared_ffn.begin == shared || shard.shared_ffn.begin % kFfnUnit == 0);
      }
    }
  }
  ModelConfig config = ConfigOf({"negative", 16, 16, 100, 50});
  config.moe = MoeConfig{.num_experts = -1};
  EXPECT_THAT(std::string(MakeShardPlan(config, 8, 1).status().message()), HasSubstr("-1 experts"));
}

TEST(ShardPlanTest, EveryPlanTilesTheModel) {
  for (const Shape& shape : kShapes) {
    const int group = shape.heads / shape.kv_heads;
    for (int num_shards = 1; num_shards <= 16; ++num_shards) {
      std::vector<Shard> shards_of_one_rank;
      for (int num_ranks = 1; num_ranks <= num_shards; ++num_ranks) {
        SCOPED_TRACE(testing::Message() << shape.name << " S=" << num_shards << " D=" << num_ranks);
        const auto plan = MakeShardPlan(ConfigOf(shape), num_shards, num_ranks);
        ASSERT_TRUE(plan.ok()) << plan.status();
        EXPECT_EQ(plan->num_shards, num_shards);
        ASSERT_EQ(plan->shards.size(), static_cast<size_t>(num_shards));
        ASSERT_EQ(plan->ranks.size(), static_cast<size_t>(num_ranks));

        // Shards do not know how many ranks there are.
        if (num_ranks == 1) shards_of_one_rank = plan->shards;
        EXPECT_EQ(plan->shards, shards_of_one_rank);

        ExpectTiles(plan->shards, &Shard::heads, shape.heads);
        ExpectTiles(plan->shards, &Shard::ffn, shape.ffn);
        ExpectTiles(plan->shards, &Shard::vocab, shape.vocab);
        ExpectTiles(plan->ranks, &Rank::shards, num_shards);
        ExpectTiles(plan->ranks, &Rank::heads, shape.heads);
        ExpectTiles(plan->ranks, &Rank::ffn, shape.ffn);
        ExpectTiles(plan->ranks, &Rank::vocab, shape.vocab);

        for (const Shard& shard : plan->shards) {
          std::set<int64_t> touched;
          for (int64_t h = shard.heads.begin; h < shard.heads.end; ++h) touched.insert(h / group);
          ASSERT_EQ(shard.kv_heads.size(), static_cast<int64_t>(touched.size()));
          if (!touched.empty()) {
            EXPECT_EQ(shard.kv_heads.begin, *touched.begin());
          }
          EXPECT_TRUE(shard.ffn.begin == shape.ffn || shard.ffn.begin % kFfnUnit == 0) << shard.ffn.begin;
          // Balanced to one unit.
          EXPECT_LE(shard.heads.size(), (shape.heads + num_shards - 1) / num_shards);
          EXPECT_GE(shard.heads.size(), shape.heads / num_shards);
          EXPECT_LE(shard.vocab.size(), (shape.vocab + num_shards - 1) / num_shards);
        }

        int64_t longest_vocab = 0;
        for (const Rank& rank : plan->ranks) {
          ASSERT_GE(rank.shards.size(), 1);
          const Shard& first = plan->shards[rank.shards.begin];
          const Shard& last = plan->shards[rank.shards.end - 1];
          EXPECT_EQ(rank.heads, (Range{first.heads.begin, last.heads.end}));
          EXPECT_EQ(rank.ffn, (Range{first.ffn.begin, last.ffn.end}));
          EXPECT_EQ(rank.vocab, (Range{first.vocab.begin, last.vocab.end}));

          std::set<int64_t> touched;
          for (int64_t h = rank.heads.begin; h < rank.heads.end; ++h) touched.insert(h / group);
          ASSERT_EQ(rank.kv_heads.size(), static_cast<int64_t>(touched.size()));
          ASSERT_EQ(rank.kv_head_of.size(), static_cast<size_t>(rank.heads.size()));
          for (size_t i = 0; i < rank.kv_head_of.size(); ++i) {
            EXPECT_GE(rank.kv_head_of[i], 0);
            EXPECT_LT(rank.kv_head_of[i], rank.kv_heads.size());
            EXPECT_EQ(rank.kv_heads.begin + rank.kv_head_of[i],
                      (rank.heads.begin + static_cast<int64_t>(i)) / group);
          }
          EXPECT_EQ(rank.subtrees, SubtreesOf(rank.shards.begin, rank.shards.end));
          longest_vocab = std::max(longest_vocab, rank.vocab.size());
        }
        EXPECT_EQ(plan->max_vocab_share, longest_vocab);
        if (num_ranks == 1) {
          EXPECT_EQ(plan->max_vocab_share, shape.vocab);
        }
      }
    }
  }
}

TEST(ShardPlanTest, NineHeadsOnTwoRanks) {
  const auto plan = MakeShardPlan(ConfigOf(kShapes[0]), 8, 2);
  ASSERT_TRUE(plan.ok()) << plan.status();

  // Head s*9/8 .. (s+1)*9/8: one each and two for the last; a group of three is cut between shards.
  EXPECT_EQ(plan->shards[0], (Shard{{0, 1}, {0, 1}, {0, 192}, {0, 6144}}));
  EXPECT_EQ(plan->shards[3], (Shard{{3, 4}, {1, 2}, {576, 768}, {18432, 24576}}));
  EXPECT_EQ(plan->shards[7], (Shard{{7, 9}, {2, 3}, {1344, 1536}, {43008, 49152}}));

  // Both ranks hold KV head 1: the group of heads 3..5 is cut by the rank border at 4.
  EXPECT_EQ(plan->ranks[0],
            (Rank{{0, 4}, {0, 4}, {0, 2}, {0, 768}, {0, 24576}, {0, 0, 0, 1}, {Subtree{0, 4}}}));
  EXPECT_EQ(plan->ranks[1],
            (Rank{{4, 8}, {4, 9}, {1, 3}, {768, 1536}, {24576, 49152}, {0, 0, 1, 1, 1}, {Subtree{4, 4}}}));
  EXPECT_EQ(plan->max_vocab_share, 24576);
}

TEST(ShardPlanTest, SharesOfTheVocabularyDifferByMoreThanARowWhenShardsDo) {
  // 8 shards on 3 ranks: 2, 3 and 3 shards.
  const auto plan = MakeShardPlan(ConfigOf(kShapes[1]), 8, 3);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->ranks[0].shards, (Range{0, 2}));
  EXPECT_EQ(plan->ranks[0].vocab.size(), 25088);
  EXPECT_EQ(plan->ranks[1].vocab.size(), 37632);
  EXPECT_EQ(plan->max_vocab_share, 37632);
}

TEST(ShardPlanTest, SubtreesAreMaximalAlignedAndTile) {
  for (int begin = 0; begin <= kMaxShards; ++begin) {
    for (int end = begin; end <= kMaxShards; ++end) {
      int at = begin;
      const std::vector<Subtree> trees = SubtreesOf(begin, end);
      for (const Subtree& tree : trees) {
        EXPECT_EQ(tree.first, at);
        ASSERT_GT(tree.count, 0);
        EXPECT_EQ(tree.count & (tree.count - 1), 0) << tree.count;
        EXPECT_EQ(tree.first % tree.count, 0);
        // Maximal: its parent does not fit.
        const int parent = tree.first / (2 * tree.count) * (2 * tree.count);
        EXPECT_TRUE(parent < begin || parent + 2 * tree.count > end);
        at += tree.count;
      }
      EXPECT_EQ(at, end);
    }
  }
  EXPECT_THAT(SubtreesOf(3, 12), ElementsAre(Subtree{3, 1}, Subtree{4, 4}, Subtree{8, 4}));
  EXPECT_THAT(SubtreesOf(5, 5), ElementsAre());
}

TEST(ShardPlanTest, MergeOrderIsOneAssociationForEveryNumberOfRanks) {
  for (int num_shards = 1; num_shards <= kMaxShards; ++num_shards) {
    const std::string one_rank = MergedExpression(SubtreesOf(0, num_shards));
    for (int num_ranks = 1; num_ranks <= num_shards; ++num_ranks) {
      SCOPED_TRACE(testing::Message() << "S=" << num_shards << " D=" << num_ranks);
      const auto plan = MakeShardPlan(ConfigOf(kShapes[0]), num_shards, num_ranks);
      ASSERT_TRUE(plan.ok()) << plan.status();
      std::vector<Subtree> all;
      for (const Rank& rank : plan->ranks) {
        all.insert(all.end(), rank.subtrees.begin(), rank.subtrees.end());
      }
      EXPECT_EQ(MergeOrder(all).size(), all.size() - 1);
      ASSERT_EQ(MergedExpression(all), one_rank);
    }
  }
}

TEST(ShardPlanTest, MergeOrderGolden) {
  EXPECT_EQ(MergedExpression(SubtreesOf(0, 1)), "0");
  EXPECT_EQ(MergedExpression(SubtreesOf(0, 5)), "(((0+1)+(2+3))+4)");
  // What is left (trees of 4, 2 and 1 shards) folds from the right.
  EXPECT_EQ(MergedExpression(SubtreesOf(0, 7)), "(((0+1)+(2+3))+((4+5)+6))");
  EXPECT_EQ(MergedExpression(SubtreesOf(0, 12)), "((((0+1)+(2+3))+((4+5)+(6+7)))+((8+9)+(10+11)))");
  EXPECT_TRUE(MergeOrder({}).empty());
}

TEST(ShardPlanTest, ErrorsNameTheValue) {
  const ModelConfig config = ConfigOf(kShapes[0]);
  const auto error = [](const ModelConfig& c, int s, int d) {
    const auto plan = MakeShardPlan(c, s, d);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << "S=" << s << " D=" << d;
    return std::string(plan.status().message());
  };
  EXPECT_THAT(error(config, 0, 1), HasSubstr("shards is 0"));
  EXPECT_THAT(error(config, -3, 1), HasSubstr("shards is -3"));
  EXPECT_THAT(error(config, kMaxShards + 1, 1), HasSubstr("1 to 64"));
  EXPECT_THAT(error(config, 8, 0), HasSubstr("ranks is 0"));
  EXPECT_THAT(error(config, 8, -1), HasSubstr("ranks is -1"));
  EXPECT_THAT(error(config, 8, 9), HasSubstr("ranks is 9"));
  EXPECT_TRUE(MakeShardPlan(config, kMaxShards, kMaxShards).ok());

  ModelConfig uneven = config;
  uneven.num_kv_heads = 2;
  EXPECT_THAT(error(uneven, 8, 2), HasSubstr("9 query heads and 2 key-value heads"));
  uneven.num_kv_heads = 0;
  EXPECT_THAT(error(uneven, 8, 2), HasSubstr("0 key-value heads"));
  ModelConfig negative = config;
  negative.vocab_size = -1;
  EXPECT_THAT(error(negative, 8, 2), HasSubstr("vocab_size -1"));
}

}  // namespace
}  // namespace phalanx

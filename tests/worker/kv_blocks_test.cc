#include "worker/kv_blocks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(KvBlocks, GivesLowestIdsFirst) {
  KvBlocks blocks(6);
  EXPECT_EQ(blocks.num_free(), 6);
  EXPECT_THAT(*blocks.Allocate(4), ElementsAre(0, 1, 2, 3));
  blocks.Release({2, 0});
  EXPECT_EQ(blocks.num_used(), 2);
  EXPECT_THAT(*blocks.Allocate(3), ElementsAre(0, 2, 4));
  EXPECT_THAT(*blocks.Allocate(0), IsEmpty());
  EXPECT_EQ(blocks.num_free(), 1);
}

TEST(KvBlocks, RefusesMoreThanAreFreeAndTakesNothing) {
  KvBlocks blocks(3);
  ASSERT_TRUE(blocks.Allocate(1).ok());
  const auto refused = blocks.Allocate(3);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("3 KV blocks are asked for and 2 of 3 are free"));
  EXPECT_EQ(blocks.num_free(), 2);
  EXPECT_EQ(blocks.Allocate(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvBlocks(0).Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvBlocksDeathTest, ReleaseOfABlockThatIsNotOutIsABug) {
  KvBlocks blocks(3);
  ASSERT_TRUE(blocks.Allocate(1).ok());
  EXPECT_DEATH(blocks.Release({1}), "KV block 1 of 3 is released and was not taken");
  EXPECT_DEATH(blocks.Release({0, 0}), "KV block 0");
  EXPECT_DEATH(blocks.Release({3}), "KV block 3");
  EXPECT_DEATH(blocks.Release({-1}), "KV block -1");
}

}  // namespace
}  // namespace phalanx

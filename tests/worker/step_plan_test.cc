#include "worker/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pointee;

uint64_t Sum(std::initializer_list<PlanBlocks> tables) {
  uint64_t sum = 0;
  for (const PlanBlocks& t : tables) {
    for (size_t i = 0; i < t.blocks.size(); ++i)
      sum += BlockChecksum(t.sequence, t.first_index + i, t.blocks[i]);
  }
  return sum;
}

// Two sequences: 1 holds blocks 4, 2; 7 holds 0.
StepPlan FirstPlan() {
  StepPlan plan;
  plan.step = 1;
  plan.blocks = {{7, 0, {0}}, {1, 0, {4, 2}}};
  plan.rows = {{7, 0, {5}, {0}, 0}};
  plan.checksum = Sum({{1, 0, {4, 2}}, {7, 0, {0}}});
  return plan;
}

TEST(StepPlan, CountsTokensAndLogits) {
  StepPlan plan;
  EXPECT_EQ(plan.num_tokens(), 0);
  EXPECT_EQ(plan.num_logits(), 0);
  plan.rows = {{1, 0, {5, 6, 7}, {1, 2}, 0}, {2, 4, {-1}, {}, 0}, {3, 0, {1}, {0}, 0}};
  EXPECT_EQ(plan.num_tokens(), 5);
  EXPECT_EQ(plan.num_logits(), 3);
}

TEST(BlockTables, AppliesReleasesBeforeBlocks) {
  BlockTables tables(5);
  ASSERT_TRUE(tables.Apply(FirstPlan()).ok());
  EXPECT_THAT(tables.Find(1), Pointee(ElementsAre(4, 2)));
  EXPECT_THAT(tables.Find(7), Pointee(ElementsAre(0)));
  EXPECT_EQ(tables.Find(2), nullptr);

  StepPlan plan;
  plan.step = 2;
  plan.released = {1};
  plan.blocks = {{7, 1, {2, 3}}, {2, 0, {4}}};
  plan.rows = {{2, 0, {5}, {0}, 0}};
  plan.checksum = Sum({{7, 0, {0, 2, 3}}, {2, 0, {4}}});
  ASSERT_TRUE(tables.Apply(plan).ok());
  EXPECT_EQ(tables.Find(1), nullptr);
  EXPECT_THAT(tables.Find(7), Pointee(ElementsAre(0, 2, 3)));
  EXPECT_THAT(tables.Find(2), Pointee(ElementsAre(4)));
  EXPECT_EQ(tables.Checksum(), plan.checksum);

  StepPlan last;
  last.step = 3;
  last.released = {7, 2};
  ASSERT_TRUE(tables.Apply(last).ok());
  EXPECT_EQ(tables.Checksum(), 0u);
}

TEST(BlockTables, ChecksumTellsOrderSequenceAndBlockApart) {
  const uint64_t sum = Sum({{1, 0, {4, 2}}});
  EXPECT_NE(sum, Sum({{1, 0, {2, 4}}}));
  EXPECT_NE(sum, Sum({{2, 0, {4, 2}}}));
  EXPECT_NE(sum, Sum({{1, 0, {4, 3}}}));
  EXPECT_NE(sum, Sum({{1, 0, {4}}}));
  // A fixed function, whatever the build: the value is part of the protocol between ranks.
  EXPECT_EQ(BlockChecksum(1, 2, 4), 0x19fe5cf50e5272d8u);
}

TEST(BlockTables, SeveralTablesMayHaveABlockAtOneIndex) {
  BlockTables tables(5);
  StepPlan plan;
  plan.blocks = {{1, 0, {4, 2}}, {2, 0, {4, 3}}, {7, 0, {4, 2, 0}}};
  plan.checksum = Sum({{1, 0, {4, 2}}, {2, 0, {4, 3}}, {7, 0, {4, 2, 0}}});
  ASSERT_TRUE(tables.Apply(plan).ok());
  EXPECT_EQ(tables.holders(4), 3);
  EXPECT_EQ(tables.holders(2), 2);
  EXPECT_EQ(tables.holders(3), 1);
  EXPECT_EQ(tables.holders(1), 0);
  // Once nobody has it, it may be anywhere.
  StepPlan next;
  next.released = {1, 7};
  next.blocks = {{8, 0, {2}}};
  next.checksum = Sum({{2, 0, {4, 3}}, {8, 0, {2}}});
  ASSERT_TRUE(tables.Apply(next).ok());
  EXPECT_EQ(tables.holders(4), 1);
  StepPlan wrong;
  wrong.blocks = {{9, 0, {1, 4}}};
  EXPECT_EQ(tables.Apply(wrong).code(), absl::StatusCode::kInternal);
}

struct Misfit {
  const char* expected;
  std::function<void(StepPlan*)> spoil;
};

TEST(BlockTables, APlanThatDoesNotFitNamesWhatIsWrong) {
  const Misfit misfits[] = {
      {"released names sequence 3", [](StepPlan* p) { p->released = {3}; }},
      {"released names sequence 1",
       [](StepPlan* p) {
         p->released = {1, 1};
       }},
      {"blocks of sequence 1 have first_index 3 and its table holds 2",
       [](StepPlan* p) {
         p->blocks = {{1, 3, {1}}};
       }},
      {"blocks of sequence 1 have first_index 0 and its table holds 2",
       [](StepPlan* p) {
         p->blocks = {{1, 0, {1}}};
       }},
      {"blocks of sequence 9 have first_index 1 and its table holds 0",
       [](StepPlan* p) {
         p->blocks = {{9, 1, {1}}};
       }},
      {"blocks of sequence 9 are empty",
       [](StepPlan* p) {
         p->blocks = {{9, 0, {}}};
       }},
      {"sequence 9 gets block 5 of 5",
       [](StepPlan* p) {
         p->blocks = {{9, 0, {5}}};
       }},
      {"sequence 9 gets block -1 of 5",
       [](StepPlan* p) {
         p->blocks = {{9, 0, {-1}}};
       }},
      {"sequence 9 gets block 2 at index 0, which is held already at index 1",
       [](StepPlan* p) {
         p->blocks = {{9, 0, {2}}};
       }},
      {"sequence 9 gets block 3 at index 1, which is held already at index 0",
       [](StepPlan* p) {
         p->blocks = {{9, 0, {3, 3}}};
       }},
      {"a row names sequence 9",
       [](StepPlan* p) {
         p->rows = {{9, 0, {5}, {0}, 0}};
       }},
      {"checksum is 0 and the tables give", [](StepPlan* p) { p->checksum = 0; }},
  };
  for (const Misfit& misfit : misfits) {
    BlockTables tables(5);
    ASSERT_TRUE(tables.Apply(FirstPlan()).ok());
    StepPlan plan;
    plan.step = 2;
    plan.checksum = tables.Checksum();
    misfit.spoil(&plan);
    const absl::Status status = tables.Apply(plan);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << misfit.expected;
    EXPECT_THAT(std::string(status.message()), HasSubstr(misfit.expected));
    EXPECT_THAT(std::string(status.message()), HasSubstr("step 2"));
  }
}

}  // namespace
}  // namespace phalanx

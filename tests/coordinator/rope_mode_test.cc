#include "coordinator/rope_mode.h"

#include <gtest/gtest.h>

namespace phalanx::coordinator {
namespace {

ModelConfig LongRope(int original) {
  ModelConfig config;
  config.rope.resize(2);
  config.original_context_length = original;
  return config;
}

ModelSpec Spec(Rope rope, int32_t context_length) {
  ModelSpec spec;
  spec.rope = rope;
  spec.context_length = context_length;
  return spec;
}

TEST(RopeModeTest, OneTableHasOneMode) {
  ModelConfig config;
  config.rope.resize(1);
  config.original_context_length = 8192;  // Llama 3 and YaRN have one too
  for (const Rope rope : {Rope::kLong, Rope::kAuto}) {
    EXPECT_EQ(RopeModeOf(config, Spec(rope, 131072), 100000, 10000), 0u);
    EXPECT_EQ(RopeModeOf(config, Spec(rope, 131072), 1, 1), 0u);
  }
}

TEST(RopeModeTest, LongGoesByTheDeployedContextAlone) {
  const ModelConfig config = LongRope(4096);
  EXPECT_EQ(RopeModeOf(config, Spec(Rope::kLong, 131072), 1, 1), 1u);
  EXPECT_EQ(RopeModeOf(config, Spec(Rope::kLong, 4097), 1, 1), 1u);
  EXPECT_EQ(RopeModeOf(config, Spec(Rope::kLong, 4096), 4000, 96), 0u);
  EXPECT_EQ(RopeModeOf(config, Spec(Rope::kLong, 100), 1, 1), 0u);
}

TEST(RopeModeTest, AutoGoesByPromptAndMaxTokens) {
  const ModelConfig config = LongRope(4096);
  const ModelSpec spec = Spec(Rope::kAuto, 131072);
  EXPECT_EQ(RopeModeOf(config, spec, 4000, 96), 0u);  // exactly the original context
  EXPECT_EQ(RopeModeOf(config, spec, 4001, 96), 1u);
  EXPECT_EQ(RopeModeOf(config, spec, 4000, 97), 1u);
  EXPECT_EQ(RopeModeOf(config, spec, 4096, 0), 0u);
  EXPECT_EQ(RopeModeOf(config, spec, 4097, 0), 1u);
  EXPECT_EQ(RopeModeOf(config, spec, 1, 4095), 0u);
  EXPECT_EQ(RopeModeOf(config, spec, 1, 4096), 1u);
  EXPECT_EQ(RopeModeOf(config, spec, 100000, 31072), 1u);
}

}  // namespace
}  // namespace phalanx::coordinator

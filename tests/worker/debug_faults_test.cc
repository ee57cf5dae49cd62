#include "worker/debug_faults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;
using Kind = DebugFault::Kind;

TEST(DebugFault, ReadsWhatTheFlagSays) {
  const auto delay = DebugFault::Parse("delay@12=0.5");
  ASSERT_TRUE(delay.ok()) << delay.status();
  EXPECT_EQ(delay->kind, Kind::kDelay);
  EXPECT_EQ(delay->step, 12);
  EXPECT_EQ(delay->seconds, 0.5);
  const auto error = DebugFault::Parse("error@1");
  ASSERT_TRUE(error.ok()) << error.status();
  EXPECT_EQ(error->kind, Kind::kError);
  EXPECT_EQ(DebugFault::Parse("nan@3")->kind, Kind::kNan);
  EXPECT_EQ(DebugFault::Parse("corrupt")->kind, Kind::kCorrupt);
}

TEST(DebugFault, NamesWhatItCannotRead) {
  for (const char* text :
       {"", "delay", "delay@3", "delay@=1", "delay@3=", "delay@3=-1", "delay@3=nan", "delay@3=1e9", "error",
        "error@0", "error@-1", "error@3=1", "error@x", "nan@", "hang@3", "corrupt@1"}) {
    const absl::Status status = DebugFault::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("'", text, "'")));
  }
}

TEST(DebugFaults, ComeOnceInAWorkersLife) {
  DebugFaults faults({"error@2", "nan@2", "delay@4=0"});
  EXPECT_TRUE(faults.NextStep().empty());
  EXPECT_EQ(faults.NextStep().size(), 2u);
  EXPECT_TRUE(faults.NextStep().empty());
  EXPECT_EQ(faults.NextStep().size(), 1u);
  EXPECT_TRUE(faults.NextStep().empty());
}

}  // namespace
}  // namespace phalanx

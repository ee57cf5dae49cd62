#include "coordinator/router.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/transcript.h"

namespace phalanx::coordinator {
namespace {

// Commands: add MODEL GROUP; remove GROUP; report GROUP load=; pick MODEL [prompt=SEED] [length=]; done
// GROUP; counts GROUP... Prompts of one seed begin alike.
class RouterDriver {
 public:
  std::string Execute(const Command& c) {
    const std::string& verb = c.words.at(0);
    if (verb == "add") {
      router_.AddGroup(c.words.at(1), c.words.at(2));
    } else if (verb == "remove") {
      return router_.RemoveGroup(c.words.at(1)) ? "" : "not there\n";
    } else if (verb == "report") {
      router_.SetReportedLoad(c.words.at(1), c.Number("load"));
    } else if (verb == "pick") {
      const auto group = router_.Pick(c.words.at(1), Prompt(c.Number("prompt"), c.Number("length", 8)));
      return group.value_or("none") + "\n";
    } else if (verb == "done") {
      router_.Done(c.words.at(1));
    } else if (verb == "counts") {
      std::string out;
      for (size_t i = 1; i < c.words.size(); ++i) {
        absl::StrAppend(&out, i > 1 ? " " : "", c.words[i], "=", router_.in_flight(c.words[i]));
      }
      return out + "\n";
    } else {
      ADD_FAILURE() << "unknown command " << verb;
    }
    return "";
  }
  static std::vector<int32_t> Prompt(int64_t seed, int64_t length) {
    std::mt19937 random(static_cast<uint32_t>(seed));
    std::vector<int32_t> ids(static_cast<size_t>(length));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % 1000);
    return ids;
  }

 private:
  Router router_;
};

TEST(Router, Transcripts) { RunTranscripts<RouterDriver>("router"); }

TEST(Router, AGroupThatLeavesMovesOnlyItsOwnShare) {
  const auto place = [](int groups) {
    std::vector<std::string> placed;
    for (int seed = 0; seed < 1000; ++seed) {
      Router router;
      for (int g = 0; g < groups; ++g) router.AddGroup("m", absl::StrCat("m/", g));
      placed.push_back(router.Pick("m", RouterDriver::Prompt(seed, 64)).value());
    }
    return placed;
  };
  const std::vector<std::string> five = place(5);
  const std::vector<std::string> four = place(4);
  std::map<std::string, int> share;
  for (size_t i = 0; i < five.size(); ++i) {
    ++share[five[i]];
    if (five[i] != "m/4") {
      EXPECT_EQ(five[i], four[i]) << i;
    }
  }
  for (const auto& [group, count] : share) EXPECT_NEAR(count, 200, 60) << group;
}

TEST(Router, NoGroupIsMuchBusierThanTheMean) {
  Router router;
  for (int g = 0; g < 4; ++g) router.AddGroup("m", absl::StrCat("m/", g));
  // All share one prefix: the worst case for affinity.
  for (int i = 0; i < 400; ++i) ASSERT_TRUE(router.Pick("m", RouterDriver::Prompt(1, 64)).has_value());
  for (int g = 0; g < 4; ++g) EXPECT_LE(router.in_flight(absl::StrCat("m/", g)), 126);
}

}  // namespace
}  // namespace phalanx::coordinator

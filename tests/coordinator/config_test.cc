#include "coordinator/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/version.h"

namespace phalanx::coordinator {
namespace {

using ::testing::HasSubstr;

ParsedFlags Parse(std::vector<const char*> args, Config* config) {
  args.insert(args.begin(), "phalanx-coordinator");
  return ParseFlags(static_cast<int>(args.size()), args.data(), config);
}

TEST(Config, TakesFlags) {
  Config config;
  const ParsedFlags parsed = Parse({"--listen", "0.0.0.0:7", "--model", "x.gguf", "--tp", "2", "--compute",
                                    "fp32", "--rope", "auto", "--kv-cache-dtype", "int8"},
                                   &config);
  EXPECT_FALSE(parsed.exit) << parsed.output;
  EXPECT_EQ(config.listen, "0.0.0.0:7");
  EXPECT_EQ(config.model.path, "x.gguf");
  EXPECT_EQ(config.model.tensor_parallel, 2);
  EXPECT_EQ(config.model.compute, Compute::kFp32);
  EXPECT_EQ(config.model.rope, Rope::kAuto);
  EXPECT_EQ(config.model.kv_type, KvType::kInt8);
  EXPECT_FALSE(config.ListensOnLoopback());
}

TEST(Config, KnowsTheCollectives) {
  struct Case {
    std::vector<const char*> args;
    CollectiveChoice choice;
  };
  for (const Case& c : {Case{{}, CollectiveChoice::kAuto},
                        {{"--collective", "auto"}, CollectiveChoice::kAuto},
                        {{"--collective", "shm"}, CollectiveChoice::kShm},
                        {{"--collective=tcp"}, CollectiveChoice::kTcp}}) {
    Config config;
    const ParsedFlags parsed = Parse(c.args, &config);
    EXPECT_FALSE(parsed.exit) << parsed.output;
    EXPECT_EQ(config.collective_choice, c.choice);
  }
}

TEST(Config, KnowsLoopback) {
  Config config;
  EXPECT_TRUE(config.ListensOnLoopback());
  for (const char* address : {"127.0.0.2:1", "localhost:1", "[::1]:1"}) {
    config.listen = address;
    EXPECT_TRUE(config.ListensOnLoopback()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "1270.example:1"}) {
    config.listen = address;
    EXPECT_FALSE(config.ListensOnLoopback()) << address;
  }
}

TEST(Config, SaysInOneLineWhatIsWrong) {
  struct Case {
    std::vector<const char*> args;
    std::vector<const char*> parts;
  };
  const std::vector<Case> cases = {
      {{"--listen", "nowhere"}, {"--listen", "nowhere", "HOST:PORT"}},
      {{"--listen", ":50051"}, {"--listen", "HOST:PORT"}},
      {{"--listen", "a:65536"}, {"--listen", "65535"}},
      {{"--listen", "a:x"}, {"--listen"}},
      {{"--log-level", "loud"}, {"--log-level", "loud", "debug, info"}},
      {{"--compute", "int3"}, {"--compute", "int3", "fast or fp32"}},
      {{"--rope", "short"}, {"--rope", "short", "long or auto"}},
      {{"--rope", "auto"}, {"--rope", "--model"}},
      {{"--kv-cache-dtype", "q8_0"}, {"--kv-cache-dtype", "q8_0", "auto, bf16, fp32, int8 or fp8"}},
      {{"--kv-cache-dtype", "int8"}, {"--kv-cache-dtype", "--model"}},
      {{"--collective", "nccl"}, {"--collective", "nccl", "auto, shm or tcp"}},
      {{"--collective", "TCP"}, {"--collective", "TCP"}},
      {{"--collective="}, {"--collective"}},
      {{"--collective", "shm", "--collective", "tcp"}, {"--collective"}},
      {{"--tp", "0"}, {"--tp", "0", "at least 1"}},
      {{"--tp", "two"}, {"--tp", "two"}},
      {{"--groups", "-1"}, {"--groups", "-1"}},
      {{"--context", "-1"}, {"--context", "-1"}},
      {{"--max-tokens-default", "0"}, {"--max-tokens-default", "at least 1"}},
      {{"--max-in-flight", "0"}, {"--max-in-flight"}},
      {{"--heartbeat-interval", "0"}, {"--heartbeat-interval"}},
      {{"--heartbeat-timeout", "nan"}, {"--heartbeat-timeout", "nan"}},
      {{"--heartbeat-interval", "6"}, {"--heartbeat-timeout", "3.5", "twice"}},
      {{"--stall-timeout", "0.5"}, {"--stall-timeout", "0.5", "1 to"}},
      {{"--name", "x"}, {"--name", "--model"}},
      {{"--colour"}, {"--colour", "--help"}},
  };
  for (const Case& c : cases) {
    Config config;
    const ParsedFlags parsed = Parse(c.args, &config);
    EXPECT_TRUE(parsed.exit);
    EXPECT_EQ(parsed.exit_code, 1);
    for (const char* part : c.parts) EXPECT_THAT(parsed.output, HasSubstr(part));
    EXPECT_EQ(std::count(parsed.output.begin(), parsed.output.end(), '\n'), 1) << parsed.output;
  }
}

TEST(Config, SaysItsVersion) {
  Config config;
  const ParsedFlags parsed = Parse({"--version"}, &config);
  EXPECT_TRUE(parsed.exit);
  EXPECT_EQ(parsed.exit_code, 0);
  EXPECT_THAT(parsed.output, HasSubstr(kVersion));
}

}  // namespace
}  // namespace phalanx::coordinator

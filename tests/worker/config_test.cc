#include "worker/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The error of a command line that does not parse or validate; "" for a good one.
std::string Error(const std::vector<std::string>& args) {
  const absl::StatusOr<CommandLine> command = ParseCommandLine(args);
  if (!command.ok()) return std::string(command.status().message());
  return std::string(command->config.Validate().message());
}

TEST(WorkerConfig, ReadsBothForms) {
  const absl::StatusOr<CommandLine> command = ParseCommandLine(
      {"--coordinator", "a:1", "--coordinator=[::1]:2", "--id", "w0", "--host-id=h", "--threads", "3",
       "--rung=reference", "--kv-fraction", "0.25", "--kv-bytes=1048576", "--listen", "127.0.0.1:0",
       "--max-tokens-per-step=64", "--max-sequences", "8", "--log-level=debug"});
  ASSERT_TRUE(command.ok()) << command.status();
  const WorkerConfig& config = command->config;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  EXPECT_THAT(config.coordinators, ElementsAre("a:1", "[::1]:2"));
  EXPECT_EQ(config.id, "w0");
  EXPECT_EQ(config.host_id, "h");
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.rung, "reference");
  EXPECT_EQ(config.kv_fraction, 0.25);
  EXPECT_EQ(config.kv_bytes, 1 << 20);
  EXPECT_EQ(config.max_tokens_per_step, 64);
  EXPECT_EQ(config.max_sequences, 8);
  EXPECT_FALSE(command->help);
  EXPECT_FALSE(command->version);
}

TEST(WorkerConfig, DefaultsAreValidAndIdsAreFilledIn) {
  const absl::StatusOr<CommandLine> command = ParseCommandLine({"--coordinator=localhost:50051"});
  ASSERT_TRUE(command.ok());
  EXPECT_TRUE(command->config.Validate().ok()) << command->config.Validate();
  EXPECT_FALSE(command->config.host_id.empty());
  EXPECT_THAT(command->config.id, HasSubstr(command->config.host_id + "-"));
}

TEST(WorkerConfig, ErrorsNameTheFlagAndTheValue) {
  const std::string good = "--coordinator=localhost:50051";
  EXPECT_EQ(Error({good}), "");
  EXPECT_THAT(Error({}), HasSubstr("--coordinator"));
  EXPECT_THAT(Error({good, good}), HasSubstr("twice"));
  EXPECT_THAT(Error({good, "--trheads=1"}), HasSubstr("'--trheads=1'"));
  EXPECT_THAT(Error({good, "stray"}), HasSubstr("'stray'"));
  EXPECT_THAT(Error({good, "--threads"}), HasSubstr("--threads needs a value"));
  EXPECT_THAT(Error({good, "--threads="}), HasSubstr("not a whole number"));
  EXPECT_THAT(Error({good, "--threads=two"}), HasSubstr("'two'"));
  EXPECT_THAT(Error({good, "--threads=-1"}), HasSubstr("--threads -1"));
  EXPECT_THAT(Error({good, "--threads=99999999999999999999"}), HasSubstr("not a whole number"));
  EXPECT_THAT(Error({good, "--rung=sse"}), HasSubstr("auto, reference, avx2, amx"));
  EXPECT_THAT(Error({good, "--kv-fraction=0"}), HasSubstr("--kv-fraction 0"));
  EXPECT_THAT(Error({good, "--kv-fraction=1.5"}), HasSubstr("1.5"));
  EXPECT_THAT(Error({good, "--kv-fraction=nan"}), HasSubstr("--kv-fraction"));
  EXPECT_THAT(Error({good, "--kv-bytes=-1"}), HasSubstr("--kv-bytes -1"));
  EXPECT_THAT(Error({good, "--max-sequences=0"}), HasSubstr("--max-sequences 0"));
  EXPECT_THAT(Error({good, "--max-sequences=9", "--max-tokens-per-step=8"}), HasSubstr("--max-sequences 9"));
  EXPECT_THAT(Error({good, "--log-level=loud"}), HasSubstr("'loud'"));
  EXPECT_THAT(Error({good, "--id="}).substr(0, 4), ::testing::AnyOf("", "--id"));
  EXPECT_THAT(Error({good, "--id=a b"}), HasSubstr("--id 'a b'"));
  EXPECT_THAT(Error({good, "--listen=0.0.0.0:0"}), HasSubstr("--advertise"));
  EXPECT_EQ(Error({good, "--listen=0.0.0.0:0", "--advertise=node3:7000"}), "");
  for (const char* bad : {"localhost", ":1", "localhost:", "localhost:0", "localhost:65536", "localhost:x",
                          "a:b:1", "::1:80", "http://h:1", "h:1,i:2", ""}) {
    EXPECT_THAT(Error({std::string("--coordinator=") + bad}), HasSubstr("is not HOST:PORT")) << bad;
  }
}

TEST(WorkerConfig, HelpListsEveryFlag) {
  const std::string help = HelpText();
  for (const char* flag :
       {"--coordinator", "--listen", "--advertise", "--id", "--host-id", "--threads", "--rung",
        "--kv-fraction", "--kv-bytes", "--max-tokens-per-step", "--max-sequences", "--log-level"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
}

}  // namespace
}  // namespace phalanx

#include "worker/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ParsedFlags Parse(const std::vector<std::string>& args, WorkerConfig* config) {
  std::vector<const char*> argv = {"phalanx-worker"};
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  return ParseFlags(static_cast<int>(argv.size()), argv.data(), config);
}

// The line printed for a command line that is wrong; "" for a good one.
std::string Error(const std::vector<std::string>& args) {
  WorkerConfig config;
  const ParsedFlags flags = Parse(args, &config);
  EXPECT_EQ(flags.exit, flags.exit_code == 1);
  EXPECT_EQ(std::count(flags.output.begin(), flags.output.end(), '\n'), flags.exit ? 1 : 0) << flags.output;
  return flags.output;
}

TEST(WorkerConfig, ReadsBothForms) {
  WorkerConfig config;
  const ParsedFlags flags = Parse({"--coordinator",
                                   "a:1",
                                   "--coordinator=[::1]:2",
                                   "--id",
                                   "w0",
                                   "--host-id=h",
                                   "--threads",
                                   "3",
                                   "--rung=reference",
                                   "--kv-fraction",
                                   "0.25",
                                   "--kv-bytes=1048576",
                                   "--listen",
                                   "127.0.0.1:0",
                                   "--max-tokens-per-step=64",
                                   "--max-sequences",
                                   "8",
                                   "--speculate=off",
                                   "--kv-cache-dtype=int8",
                                   "--max-guesses=3",
                                   "--shared-weights=/run/weights",
                                   "--pin-threads=on",
                                   "--log-level=debug"},
                                  &config);
  ASSERT_FALSE(flags.exit) << flags.output;
  EXPECT_THAT(config.coordinators, ElementsAre("a:1", "[::1]:2"));
  EXPECT_EQ(config.id, "w0");
  EXPECT_EQ(config.host_id, "h");
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.rung, "reference");
  EXPECT_EQ(config.kv_fraction, 0.25);
  EXPECT_EQ(config.kv_bytes, 1 << 20);
  EXPECT_EQ(config.max_tokens_per_step, 64);
  EXPECT_EQ(config.max_sequences, 8);
  EXPECT_EQ(config.speculate, "off");
  EXPECT_EQ(config.kv_cache_dtype, "int8");
  EXPECT_EQ(config.max_guesses, 3);
  EXPECT_EQ(config.shared_weights, "/run/weights");
  EXPECT_EQ(config.pin_threads, "on");
  EXPECT_TRUE(config.ListensOnLoopback());
}

TEST(WorkerConfig, DefaultsAreValidAndIdsAreFilledIn) {
  WorkerConfig config;
  const ParsedFlags flags = Parse({"--coordinator=localhost:50051"}, &config);
  ASSERT_FALSE(flags.exit) << flags.output;
  EXPECT_FALSE(config.host_id.empty());
  EXPECT_THAT(config.id, HasSubstr(config.host_id + "-"));
}

TEST(WorkerConfig, ErrorsNameTheFlagAndTheValue) {
  const std::string good = "--coordinator=localhost:50051";
  EXPECT_EQ(Error({good}), "");
  EXPECT_THAT(Error({}), HasSubstr("--coordinator"));
  EXPECT_THAT(Error({good, good}), HasSubstr("twice"));
  EXPECT_THAT(Error({good, "--trheads=1"}), HasSubstr("--trheads=1"));
  EXPECT_THAT(Error({good, "stray"}), HasSubstr("stray"));
  EXPECT_THAT(Error({good, "--threads"}), HasSubstr("--threads"));
  EXPECT_THAT(Error({good, "--threads=1.5"}), HasSubstr("--threads"));
  EXPECT_THAT(Error({good, "--threads=two"}), HasSubstr("two"));
  EXPECT_THAT(Error({good, "--threads=-1"}), HasSubstr("--threads is -1"));
  EXPECT_THAT(Error({good, "--threads=99999999999999999999"}), HasSubstr("--threads"));
  EXPECT_THAT(Error({good, "--device=tpu"}), HasSubstr("cpu, cuda, auto, cuda-emulated"));
  EXPECT_THAT(Error({good, "--rung=sse"}), HasSubstr("auto, reference, avx2, avx512, amx"));
  EXPECT_THAT(Error({good, "--kv-cache-dtype=q8_0"}),
              HasSubstr("--kv-cache-dtype is 'q8_0'; it must be one of auto, bf16, fp32, int8"));
  EXPECT_THAT(Error({good, "--kv-fraction=0"}), HasSubstr("--kv-fraction is 0"));
  EXPECT_THAT(Error({good, "--kv-fraction=1.5"}), HasSubstr("1.5"));
  EXPECT_THAT(Error({good, "--kv-fraction=nan"}), HasSubstr("--kv-fraction"));
  EXPECT_THAT(Error({good, "--kv-bytes=-1"}), HasSubstr("--kv-bytes is -1"));
  EXPECT_THAT(Error({good, "--max-sequences=0"}), HasSubstr("--max-sequences is 0"));
  EXPECT_THAT(Error({good, "--speculate=on"}), HasSubstr("--speculate is 'on'; it must be one of auto, off"));
  EXPECT_EQ(Error({good, "--shared-weights=off"}), "");
  for (const char* bad : {"", "on", "dev/shm"}) {
    EXPECT_THAT(Error({good, std::string("--shared-weights=") + bad}), HasSubstr("--shared-weights"));
  }
  EXPECT_THAT(Error({good, "--pin-threads=yes"}),
              HasSubstr("--pin-threads is 'yes'; it must be one of auto, on, off"));
  EXPECT_THAT(Error({good, "--max-guesses=65"}), HasSubstr("--max-guesses is 65; it must be 1 to 64"));
  EXPECT_THAT(Error({good, "--max-sequences=9", "--max-tokens-per-step=8"}),
              HasSubstr("--max-sequences is 9"));
  EXPECT_THAT(Error({good, "--log-level=loud"}), HasSubstr("'loud'"));
  EXPECT_THAT(Error({good, "--id=a b"}), HasSubstr("--id is 'a b'"));
  EXPECT_THAT(Error({good, "--listen=0.0.0.0:0"}), HasSubstr("--advertise"));
  EXPECT_EQ(Error({good, "--listen=0.0.0.0:0", "--advertise=node3:7000"}), "");
  for (const char* bad : {"localhost", ":1", "localhost:", "localhost:0", "localhost:65536", "localhost:x",
                          "a:b:1", "::1:80", "http://h:1", "h:1,i:2"}) {
    EXPECT_THAT(Error({std::string("--coordinator=") + bad}), HasSubstr("it must be HOST:PORT")) << bad;
  }
}

TEST(WorkerConfig, HelpAndVersionExitWithoutError) {
  WorkerConfig config;
  EXPECT_THAT(Parse({"--version"}, &config).output, HasSubstr("phalanx-worker "));
  const ParsedFlags flags = Parse({"--help"}, &config);
  EXPECT_TRUE(flags.exit);
  EXPECT_EQ(flags.exit_code, 0);
  const std::string& help = flags.output;
  for (const char* flag : {"--coordinator", "--listen", "--advertise", "--id", "--host-id", "--threads",
                           "--rung", "--kv-fraction", "--kv-bytes", "--max-tokens-per-step",
                           "--max-sequences", "--speculate", "--max-guesses", "--log-level"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
}

}  // namespace
}  // namespace phalanx

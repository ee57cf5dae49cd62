#include "worker/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/kv_type.h"

namespace phalanx {
namespace {

using ::testing::AllOf;
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
                                   "--verify-weights",
                                   "--stuck-step=5",
                                   "--exchange-timeout=7",
                                   "--debug-fault=error@3",
                                   "--debug-fault",
                                   "delay@4=1",
                                   "--log-level=debug"},
                                  &config);
  ASSERT_FALSE(flags.exit) << flags.output;
  EXPECT_THAT(config.coordinators, ElementsAre("a:1", "[::1]:2"));
  EXPECT_EQ(config.id, "w0");
  EXPECT_TRUE(config.verify_weights);
  EXPECT_EQ(config.stuck_step_seconds, 5);
  EXPECT_EQ(config.exchange_timeout_seconds, 7);
  EXPECT_THAT(config.debug_faults, ElementsAre("error@3", "delay@4=1"));
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
  EXPECT_THAT(Error({good, "--device=cuda", "--cuda-mode=quick"}),
              HasSubstr("--cuda-mode is 'quick'; it must be one of invariant, fast"));
  EXPECT_THAT(Error({good, "--device=cuda", "--cuda-graphs=yes"}),
              HasSubstr("--cuda-graphs is 'yes'; it must be one of auto, on, off"));
  EXPECT_THAT(Error({good, "--cuda-graphs=on"}), HasSubstr("--cuda-graphs is on, which is of --device cuda"));
  EXPECT_THAT(Error({good, "--cuda-dependent-launch=on"}), HasSubstr("which is of --device cuda"));
  EXPECT_EQ(Error({good, "--device=cuda", "--cuda-graphs=on", "--cuda-dependent-launch=on"}), "");
  EXPECT_THAT(Error({good, "--cuda-mode=fast"}), HasSubstr("with --device cpu it must be invariant"));
  EXPECT_THAT(Error({good, "--gpu=1"}), HasSubstr("--gpu is 1, which is of --device cuda; this is cpu"));
  EXPECT_THAT(Error({good, "--gpu-exchange=nccl"}),
              HasSubstr("--gpu-exchange is nccl, which is of --device"));
  EXPECT_THAT(Error({good, "--device=cuda", "--gpu-exchange=mpi"}),
              HasSubstr("--gpu-exchange is 'mpi'; it must be one of auto, peer, nccl"));
  EXPECT_THAT(Error({good, "--device=cuda", "--gpu=-2"}), HasSubstr("--gpu is -2; it must be -1 to 255"));
  EXPECT_EQ(Error({good, "--device=cuda", "--gpu=1", "--gpu-exchange=peer"}), "");
  EXPECT_EQ(Error({good, "--cuda-mode=fast", "--device=cuda", "--cache-folder=/var/cache/phalanx"}), "");
  EXPECT_THAT(Error({good, "--device=cuda", "--cuda-dtype=fp32"}),
              HasSubstr("--cuda-dtype is 'fp32'; it must be one of bf16, fp16"));
  EXPECT_THAT(Error({good, "--cuda-dtype=fp16"}), HasSubstr("with --device cpu it must be bf16"));
  EXPECT_EQ(Error({good, "--cuda-dtype=fp16", "--device=auto"}), "");
  EXPECT_THAT(Error({good, "--cache-folder=cache"}), HasSubstr("--cache-folder is 'cache'"));
  EXPECT_THAT(Error({good, "--rung=sse"}), HasSubstr("auto, reference, avx2, avx512, avx512_bf16, amx"));
  EXPECT_THAT(Error({good, "--kv-cache-dtype=q8_0"}),
              HasSubstr("--kv-cache-dtype is 'q8_0'; it must be auto, bf16, fp32, int8 or fp8"));
  for (const char* name : {"fp8", "fp8_e4m3"}) {
    EXPECT_EQ(Error({good, absl::StrCat("--kv-cache-dtype=", name)}), "");
    EXPECT_EQ(KvTypeFromName(name), KvType::kFp8);
  }
  EXPECT_THAT(Error({good, "--kv-fraction=0"}), HasSubstr("--kv-fraction is 0"));
  EXPECT_THAT(Error({good, "--kv-fraction=1.5"}), HasSubstr("1.5"));
  EXPECT_THAT(Error({good, "--kv-fraction=nan"}), HasSubstr("--kv-fraction"));
  EXPECT_THAT(Error({good, "--kv-bytes=-1"}), HasSubstr("--kv-bytes is -1"));
  EXPECT_THAT(Error({good, "--max-sequences=0"}), HasSubstr("--max-sequences is 0"));
  EXPECT_THAT(Error({good, "--max-sequences=4097"}), HasSubstr("1 to 4096"));
  EXPECT_THAT(Error({good, "--max-sequences=4k"}), HasSubstr("is '4k'; it must be a whole number"));
  EXPECT_THAT(Error({good, "--max-sequences=99999999999"}), HasSubstr("it must be a smaller number"));
  EXPECT_THAT(Error({good, "--kv-fraction=half"}), HasSubstr("is 'half'; it must be a number"));
  EXPECT_THAT(Error({good, "--max-tokens-per-step=65537"}), HasSubstr("1 to 65536"));
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
  EXPECT_THAT(Error({good, "--max-queued=-1"}), HasSubstr("--max-queued is -1"));
  EXPECT_THAT(Error({good, "--stuck-step=0"}), HasSubstr("--stuck-step is 0"));
  EXPECT_THAT(Error({good, "--exchange-timeout=86401"}), HasSubstr("--exchange-timeout is 86401"));
  EXPECT_THAT(Error({good, "--debug-fault=oom@3"}), HasSubstr("'oom@3'"));
  EXPECT_THAT(Error({good, "--id=a b"}), HasSubstr("--id is 'a b'"));
  EXPECT_THAT(Error({good, "--listen=0.0.0.0:0"}), HasSubstr("--advertise"));
  EXPECT_EQ(Error({good, "--listen=0.0.0.0:0", "--advertise=node3:7000"}), "");
  for (const char* bad : {"localhost", ":1", "localhost:", "localhost:0", "localhost:65536", "localhost:x",
                          "a:b:1", "::1:80", "http://h:1", "h:1,i:2"}) {
    EXPECT_THAT(Error({std::string("--coordinator=") + bad}), HasSubstr("it must be HOST:PORT")) << bad;
  }
}

TEST(WorkerConfig, CollectiveListenSaysWhereTheOtherRanksCome) {
  struct Case {
    std::vector<std::string> args;
    std::string host, dialled;
    int first, last;
  };
  const std::vector<Case> cases = {
      {{}, "127.0.0.1", "127.0.0.1", 0, 0},
      {{"--listen=10.0.0.5:0"}, "10.0.0.5", "10.0.0.5", 0, 0},
      {{"--collective-listen=node3"}, "node3", "node3", 0, 0},
      {{"--collective-listen=10.1.0.5:0"}, "10.1.0.5", "10.1.0.5", 0, 0},
      {{"--collective-listen=10.1.0.5:7000"}, "10.1.0.5", "10.1.0.5", 7000, 7000},
      {{"--collective-listen=node3:7000-7063"}, "node3", "node3", 7000, 7063},
      {{"--collective-listen=[fd00::5]"}, "[fd00::5]", "[fd00::5]", 0, 0},
      {{"--collective-listen=[fd00::5]:1-65535"}, "[fd00::5]", "[fd00::5]", 1, 65535},
      // Everywhere: the others dial what is advertised, or the host of --listen.
      {{"--listen=10.0.0.5:1", "--collective-listen=0.0.0.0:9"}, "0.0.0.0", "10.0.0.5", 9, 9},
      {{"--listen=0.0.0.0:1", "--advertise=node3:1"}, "0.0.0.0", "node3", 0, 0},
      {{"--listen=[::]:1", "--advertise=[fd00::5]:1", "--collective-listen=[::]"}, "[::]", "[fd00::5]", 0, 0},
      {{"--listen=0.0.0.0:1", "--advertise=node3:1", "--collective-listen=10.1.0.5:7-8"},
       "10.1.0.5",
       "10.1.0.5",
       7,
       8},
  };
  for (const Case& c : cases) {
    std::vector<std::string> args = {"--coordinator=a:1"};
    args.insert(args.end(), c.args.begin(), c.args.end());
    WorkerConfig config;
    const ParsedFlags flags = Parse(args, &config);
    ASSERT_FALSE(flags.exit) << flags.output;
    const TcpOptions tcp = config.CollectiveListen();
    EXPECT_EQ(tcp.listen_host, c.host);
    EXPECT_EQ(tcp.advertise_host, c.dialled);
    EXPECT_EQ(tcp.first_port, c.first);
    EXPECT_EQ(tcp.last_port, c.last);
  }
  for (const char* bad : {":7",      "h:",       "h:x",   "h:-7", "h:7-",     "h:8-7",  "h:0-7", "h:7-65536",
                          "h:65536", "h:7-8-9",  "a:b:1", "::1",  "[::1",     "::1]:5", "[]",    "[]:5",
                          "[::1]5",  "[::1]x:5", "h i",   "h,i",  "http://h", "h: 5",   "h:+5",  "h:5 "}) {
    EXPECT_THAT(Error({"--coordinator=a:1", std::string("--collective-listen=") + bad}),
                AllOf(HasSubstr(std::string("--collective-listen is '") + bad),
                      HasSubstr("it must be HOST, HOST:PORT or HOST:PORT-PORT")))
        << bad;
  }
}

TEST(WorkerConfig, HelpAndVersionExitWithoutError) {
  WorkerConfig config;
  EXPECT_THAT(Parse({"--version"}, &config).output, HasSubstr("phalanx-worker "));
  const ParsedFlags flags = Parse({"--help"}, &config);
  EXPECT_TRUE(flags.exit);
  EXPECT_EQ(flags.exit_code, 0);
  const std::string& help = flags.output;
  for (const char* flag :
       {"--coordinator", "--listen", "--advertise", "--collective-listen", "--id", "--host-id", "--threads",
        "--rung", "--kv-fraction", "--kv-bytes", "--max-tokens-per-step", "--max-sequences", "--max-queued",
        "--speculate", "--max-guesses", "--verify-weights", "--stuck-step", "--debug-fault", "--log-level"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
  EXPECT_THAT(help, HasSubstr("--exchange-timeout"));
}

}  // namespace
}  // namespace phalanx

#include "worker/host_resources.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

namespace phalanx {
namespace {

// A root directory with the given files.
class HostResourcesTest : public ::testing::Test {
 protected:
  HostResourcesTest()
      : root_(::testing::TempDir() + "host_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name() + "/") {
    std::filesystem::remove_all(root_);
    Write("proc/meminfo", "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   6000 kB\n");
  }
  ~HostResourcesTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  HostResources Read() const { return ReadHostResources(root_); }

  const std::string root_;
};

TEST_F(HostResourcesTest, WithoutCgroups) {
  EXPECT_EQ(Read().memory_total, 8000 * 1024);
  EXPECT_EQ(Read().memory_available, 6000 * 1024);
  EXPECT_GE(Read().cpus, 1);
}

TEST_F(HostResourcesTest, Version2TightensAtEveryLevel) {
  Write("proc/self/cgroup", "0::/pod/worker\n");
  Write("sys/fs/cgroup/pod/memory.max", "4096000\n");
  Write("sys/fs/cgroup/pod/memory.current", "3000000\n");
  Write("sys/fs/cgroup/pod/memory.stat", "anon 2000000\ninactive_file 1000000\n");
  Write("sys/fs/cgroup/pod/worker/memory.max", "max\n");
  Write("sys/fs/cgroup/pod/cpu.max", "max 100000\n");
  Write("sys/fs/cgroup/pod/worker/cpu.max", "50000 100000\n");
  EXPECT_EQ(Read().memory_total, 4096000);
  EXPECT_EQ(Read().memory_available, 4096000 - 2000000);
  EXPECT_EQ(Read().cpus, 1);
}

TEST_F(HostResourcesTest, Version2InsideAContainer) {
  // The path is of the host; only the mount's root is visible.
  Write("proc/self/cgroup", "0::/../../kubepods/x\n");
  Write("sys/fs/cgroup/memory.max", "1000000\n");
  Write("sys/fs/cgroup/memory.current", "1500000\n");
  EXPECT_EQ(Read().memory_total, 1000000);
  EXPECT_EQ(Read().memory_available, 0);
}

TEST_F(HostResourcesTest, Version1) {
  Write("proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // no limit
  Write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2000000\n");
  Write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900000\n");
  Write("sys/fs/cgroup/memory/job/memory.stat", "cache 1\ntotal_inactive_file 400000\n");
  Write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "80000\n");
  Write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Read().memory_total, 2000000);
  EXPECT_EQ(Read().memory_available, 1500000);
  EXPECT_EQ(Read().cpus, 1);
}

TEST_F(HostResourcesTest, UnlimitedVersion1AndNonsense) {
  Write("proc/self/cgroup", "5:memory:/\n4:cpu:/\nnonsense\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "900000\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Read().memory_total, 8000 * 1024);
  EXPECT_EQ(Read().memory_available, 6000 * 1024);
}

TEST(HostResources, CountsTheProcessesOfThisProgram) {
  const int before = CountWorkersOnHost();
  EXPECT_GE(before, 1);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  ASSERT_GT(child, 0);
  EXPECT_EQ(CountWorkersOnHost(), before + 1);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(CountWorkersOnHost(), before);
}

TEST(HostResources, ThisHost) {
  const HostResources host = ReadHostResources();
  EXPECT_GE(host.cpus, 1);
  EXPECT_GT(host.memory_total, 0);
  EXPECT_GT(host.memory_available, 0);
  EXPECT_LE(host.memory_available, host.memory_total);
}

TEST(KvCacheBytes, FairShareLessWeights) {
  EXPECT_EQ(KvCacheBytes(1000, 1, 1.0, 0, 0), 1000);
  EXPECT_EQ(KvCacheBytes(1000, 2, 0.5, 100, 0), 200);
  EXPECT_EQ(KvCacheBytes(1000, 2, 0.5, 100, 150), 150);
  EXPECT_EQ(KvCacheBytes(1000, 2, 0.5, 100, 250), 200);
  EXPECT_EQ(KvCacheBytes(1000, 4, 1.0, 300, 0), 0);  // nothing is left; never negative
}

TEST(CpusToPin, PinsWhereTheCpusAreItsOwn) {
  const std::vector<int> own = {2, 3, 6, 7};
  std::string why;
  const auto cpus = [&](const char* mode, int threads, int machine,
                        const std::vector<std::vector<int>>& others) {
    why.clear();
    absl::StatusOr<std::vector<int>> result = CpusToPin(mode, threads, own, machine, others, &why);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->empty(), !why.empty());
    return *std::move(result);
  };
  EXPECT_EQ(cpus("auto", 4, 8, {}), own);
  EXPECT_EQ(cpus("auto", 4, 8, {{0, 1}, {4, 5}}), own);
  EXPECT_EQ(cpus("on", 2, 8, {}), (std::vector<int>{2, 3}));
  EXPECT_TRUE(cpus("auto", 2, 8, {}).empty());
  EXPECT_EQ(why, "this process has 4 CPUs for 2 threads: others may have been given them too");
  EXPECT_TRUE(cpus("auto", 4, 8, {{0, 1}, {5, 6}}).empty());
  EXPECT_EQ(why, "CPU 6 is another worker's too");
  EXPECT_TRUE(cpus("auto", 2, 4, {}).empty());
  EXPECT_EQ(why, "this process has all CPUs of the machine");
  EXPECT_TRUE(cpus("auto", 5, 8, {}).empty());
  EXPECT_EQ(why, "this process has 4 CPUs for 5 threads");
  EXPECT_TRUE(cpus("off", 2, 8, {}).empty());
  EXPECT_EQ(cpus("on", 2, 8, {{2, 3}}), (std::vector<int>{6, 7}));
  EXPECT_EQ(cpus("on", 4, 4, {{0, 1}}), own);
  EXPECT_EQ(CpusToPin("on", 5, own, 8, {}, &why).status().code(), absl::StatusCode::kFailedPrecondition);
  const absl::Status taken = CpusToPin("on", 2, own, 8, {{2, 3, 4}, {7, 8}}, &why).status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(taken.message().find("of this process's 4 CPUs 3 are other workers' too"), std::string::npos)
      << taken;
}

TEST(CpusToPin, KnowsTheProcesssCpus) {
  const std::vector<int> own = AffinityOf(0);
  EXPECT_FALSE(own.empty());
  EXPECT_TRUE(std::is_sorted(own.begin(), own.end()));
  std::string why;
  const auto one = CpusToPin("on", 1, &why);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(*one, std::vector<int>{own[0]});
}

}  // namespace
}  // namespace phalanx

#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

namespace phalanx {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnceAndIsDoneAfterwards) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int loop = 0; loop < 300; ++loop) {
      const int64_t tasks = loop % 37;
      std::vector<int> runs(static_cast<size_t>(tasks));  // not atomic: a task belongs to one thread
      std::atomic<bool> good{true};
      pool.Run(tasks, [&](int64_t task, int thread) {
        if (thread < 0 || thread >= threads) good = false;
        ++runs[static_cast<size_t>(task)];
      });
      ASSERT_EQ(runs, std::vector<int>(static_cast<size_t>(tasks), 1))
          << threads << " threads, loop " << loop;
      ASSERT_TRUE(good);
    }
  }
}

// What one loop wrote is seen by the next, whichever threads ran them.
TEST(ThreadPoolTest, LoopsAreOrdered) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 0);
  for (int64_t loop = 0; loop < 500; ++loop) {
    pool.Run(64,
             [&](int64_t task, int) { values[63 - task] = values[63 - task] == loop ? loop + 1 : -1000000; });
  }
  EXPECT_EQ(values, std::vector<int64_t>(64, 500));
}

TEST(ThreadPoolTest, WorkersWakeFromSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // far longer than they spin
    // Three tasks that wait for each other: they need all three threads.
    std::atomic<int> here{0};
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    pool.Run(3, [&](int64_t, int) {
      here.fetch_add(1);
      while (here.load() < 3 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    });
    ASSERT_EQ(here.load(), 3);
    ASSERT_LT(std::chrono::steady_clock::now(), end) << "a worker did not wake";
  }
}

TEST(ThreadPoolTest, EndsWhileWorkersSleepOrSpin) {
  for (int round = 0; round < 20; ++round) {
    ThreadPool pool(4);
    if (round % 2 == 0) pool.Run(8, [](int64_t, int) {});
    if (round % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

TEST(ThreadPoolTest, PrintsTheCostOfALoop) {
  for (const int threads : {1, 2}) {
    ThreadPool pool(threads);
    std::atomic<int64_t> sum{0};
    constexpr int kLoops = 2000;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kLoops; ++i) pool.Run(2, [&](int64_t task, int) { sum.fetch_add(task + 1); });
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    EXPECT_EQ(sum.load(), 3 * kLoops);
    std::printf("a loop of two empty tasks on %d threads: %.2f us\n", threads, took.count() / kLoops);
  }
}

TEST(ThreadPoolTest, PinnedThreadsRunWhereTheyAreTold) {
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(0, sizeof(mask), &mask), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  }
  // More threads than CPUs: some have one in common.
  constexpr int kThreads = 5;
  for (size_t i = 0; cpus.size() < kThreads; ++i) cpus.push_back(cpus[i]);
  ThreadPool pool(kThreads, cpus);
  std::vector<int> ran(kThreads, 0);
  std::atomic<bool> good{true};
  for (int loop = 0; loop < 200; ++loop) {
    pool.Run(50, [&](int64_t, int thread) {
      ran[static_cast<size_t>(thread)] = 1;
      if (thread > 0 && sched_getcpu() != cpus[static_cast<size_t>(thread)]) good = false;
      std::this_thread::sleep_for(std::chrono::microseconds(5));
    });
  }
  // A thread's first tasks may come before it is moved.
  good = true;
  for (int loop = 0; loop < 200; ++loop) {
    pool.Run(50, [&](int64_t, int thread) {
      if (thread > 0 && sched_getcpu() != cpus[static_cast<size_t>(thread)]) good = false;
      std::this_thread::sleep_for(std::chrono::microseconds(5));
    });
  }
  EXPECT_TRUE(good);
  EXPECT_GT(std::count(ran.begin(), ran.end(), 1), 1);
}

}  // namespace
}  // namespace phalanx

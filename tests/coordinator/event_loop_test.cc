#include "coordinator/event_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace phalanx::coordinator {
namespace {

using std::chrono::milliseconds;

TEST(EventLoop, RunsTasksOfAThreadInOrder) {
  std::vector<std::vector<int>> seen(4);
  EventLoop loop(milliseconds(10), [] {});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) loop.Post([&seen, t, i] { seen[static_cast<size_t>(t)].push_back(i); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  loop.Stop();
  for (const std::vector<int>& list : seen) {
    ASSERT_EQ(list.size(), 1000u);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(list[static_cast<size_t>(i)], i);
  }
}

TEST(EventLoop, RunsWhatTasksPostBeforeItStops) {
  std::atomic<int> runs{0};
  EventLoop loop(milliseconds(10), [] {});
  loop.Post([&] {
    loop.Post([&] {
      loop.Post([&] { ++runs; });
      ++runs;
    });
    ++runs;
  });
  loop.Stop();
  EXPECT_EQ(runs, 3);
  loop.Post([&] { ++runs; });
  loop.Stop();
  EXPECT_EQ(runs, 3);
}

TEST(EventLoop, TicksWhileIdleAndWhileBusy) {
  std::atomic<int> ticks{0};
  EventLoop loop(milliseconds(5), [&] { ++ticks; });
  const auto until = EventLoop::Clock::now() + std::chrono::seconds(10);
  while (ticks < 3 && EventLoop::Clock::now() < until) std::this_thread::sleep_for(milliseconds(5));
  EXPECT_GE(ticks, 3);
  const int before = ticks;
  while (ticks < before + 3 && EventLoop::Clock::now() < until) {
    loop.Post([] { std::this_thread::sleep_for(milliseconds(1)); });
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_GE(ticks, before + 3);
}

TEST(EventLoop, ShowsAHangingTask) {
  EventLoop loop(milliseconds(5), [] {});
  std::atomic<bool> go{false};
  loop.Post([&] {
    while (!go) std::this_thread::sleep_for(milliseconds(1));
  });
  const auto until = EventLoop::Clock::now() + std::chrono::seconds(10);
  while (loop.age() < milliseconds(50) && EventLoop::Clock::now() < until)
    std::this_thread::sleep_for(milliseconds(1));
  EXPECT_GE(loop.age(), milliseconds(50));
  go = true;
}

TEST(WorkPool, RunsEverythingBeforeItStops) {
  std::atomic<int> runs{0};
  WorkPool pool(2);
  for (int i = 0; i < 100; ++i) pool.Post([&] { ++runs; });
  pool.Stop();
  EXPECT_EQ(runs, 100);
}

}  // namespace
}  // namespace phalanx::coordinator

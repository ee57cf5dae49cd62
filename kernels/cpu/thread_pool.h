// A pool for many tiny parallel loops: a call costs about a microsecond while the workers are awake.
// The caller is one of the threads. Workers spin briefly for the next loop, then sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace phalanx {

// Thread safety: one caller of Run at a time.
class ThreadPool {
 public:
  // num_threads includes the caller; 1 starts no thread. With `cpus`, one for each thread, thread i runs on
  // cpus[i] alone; the caller, which is no thread of the pool's, runs where it likes, cpus[0] being left to
  // it.
  explicit ThreadPool(int num_threads, const std::vector<int>& cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(task, thread) for every task in [0, num_tasks), in any order on any thread; thread is in
  // [0, num_threads), 0 the caller. Returns when all are done. Thread i begins with the tasks from
  // num_tasks * i / num_threads on, so that loops over the same rows find them in the same caches; who is
  // done helps the next.
  template <typename Body>
  void Run(int64_t num_tasks, Body&& body) {
    if (num_tasks <= 1 || threads_.empty()) {
      for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
      return;
    }
    RunParallel(
        num_tasks,
        [](void* context, int64_t task, int thread) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(task, thread);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using TaskFunction = void (*)(void* context, int64_t task, int thread);

  void RunParallel(int64_t num_tasks, TaskFunction function, void* context);
  void TakeTasks(int thread);
  void Work(int thread);
  // Waits until a loop other than `seen` is open; false when the pool ends.
  bool WaitForLoop(uint64_t seen);

  // state_ = loop number << 32 | open << 31 | workers that joined. A worker may join while the loop is open;
  // the caller closes it when no task is left, and waits for those that joined only.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  std::atomic<uint64_t> state_{0};
  std::atomic<uint64_t> left_{0};  // workers that joined the current loop and are done
  std::atomic<int> sleepers_{0};
  std::atomic<bool> ending_{false};
  // The current loop; written while nobody has joined.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares_;  // of each thread
  TaskFunction function_ = nullptr;
  void* context_ = nullptr;

  Mutex mutex_;
  CondVar loop_started_;
  std::vector<std::thread> threads_;
};

}  // namespace phalanx

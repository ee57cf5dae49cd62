// One thread that runs what is posted to it, in order. All of the coordinator's state belongs to it: gRPC's
// callbacks only post, so no lock is ever held while gRPC is called, and no callback of gRPC can meet one.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "base/mutex.h"

namespace phalanx::coordinator {

class EventLoop {
 public:
  using Task = absl::AnyInvocable<void()>;
  using Clock = std::chrono::steady_clock;

  // Runs `tick` about every `tick_interval`, between tasks.
  EventLoop(std::chrono::milliseconds tick_interval, Task tick);
  // Stops.
  ~EventLoop();

  // Thread safety: safe. Tasks of one thread run in the order of their posting. Ignored after Stop returned.
  void Post(Task task);
  // Runs what is posted, then ends the thread. Not from the loop itself; idempotent.
  void Stop();

  // Since the loop last came round; a large value means that a task hangs.
  std::chrono::milliseconds age() const;

 private:
  void Run();

  const std::chrono::milliseconds tick_interval_;
  Task tick_;
  Mutex mu_;
  CondVar wake_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::atomic<int64_t> last_round_ms_;
  std::thread thread_;
};

// A few threads for work that takes long: tokenising, opening files.
class WorkPool {
 public:
  explicit WorkPool(int threads);
  ~WorkPool();

  void Post(EventLoop::Task task);
  // Runs what is posted, then ends the threads. Idempotent.
  void Stop();

 private:
  void Run();

  Mutex mu_;
  CondVar wake_;
  std::deque<EventLoop::Task> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace phalanx::coordinator

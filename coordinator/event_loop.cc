#include "coordinator/event_loop.h"

#include <utility>

namespace phalanx::coordinator {
namespace {

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(EventLoop::Clock::now().time_since_epoch())
      .count();
}

constexpr std::chrono::milliseconds kIdleWait{1000};

}  // namespace

EventLoop::EventLoop(std::chrono::milliseconds tick_interval, Task tick)
    : tick_interval_(tick_interval),
      tick_(std::move(tick)),
      last_round_ms_(NowMs()),
      thread_([this] { Run(); }) {}

EventLoop::~EventLoop() { Stop(); }

void EventLoop::Post(Task task) {
  MutexLock lock(mu_);
  if (stopped_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) wake_.NotifyOne();
}

void EventLoop::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

std::chrono::milliseconds EventLoop::age() const {
  return std::chrono::milliseconds(NowMs() - last_round_ms_.load(std::memory_order_relaxed));
}

void EventLoop::Run() {
  Clock::time_point next_tick = Clock::now();
  while (true) {
    std::deque<Task> ready;
    {
      MutexLock lock(mu_);
      if (tasks_.empty() && stopping_) {
        stopped_ = true;
        return;
      }
      if (tasks_.empty() && Clock::now() < next_tick) wake_.WaitUntil(mu_, next_tick);
      ready.swap(tasks_);
    }
    last_round_ms_.store(NowMs(), std::memory_order_relaxed);
    for (Task& task : ready) task();
    if (const Clock::time_point now = Clock::now(); now >= next_tick) {
      tick_();
      next_tick = now + tick_interval_;
    }
  }
}

WorkPool::WorkPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

WorkPool::~WorkPool() { Stop(); }

void WorkPool::Post(EventLoop::Task task) {
  MutexLock lock(mu_);
  tasks_.push_back(std::move(task));
  wake_.NotifyOne();
}

void WorkPool::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void WorkPool::Run() {
  while (true) {
    EventLoop::Task task;
    {
      MutexLock lock(mu_);
      while (tasks_.empty()) {
        if (stopping_) return;
        wake_.WaitFor(mu_, kIdleWait);
      }
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace phalanx::coordinator

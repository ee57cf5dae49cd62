#include "kernels/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

namespace phalanx {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr auto kSleepTime = std::chrono::seconds(1);  // then looks again, whatever was missed
constexpr int kPausesPerLook = 16;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Calls ready() until it is true or kSpinTime passed; whether it is.
template <typename Ready>
bool SpinUntil(Ready ready) {
  if (ready()) return true;
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      Pause();
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// Where the system refuses, for a CPU that was taken away, the thread stays where it may run.
void PinThread(std::thread& thread, int cpu) {
  cpu_set_t* const set = CPU_ALLOC(cpu + 1);
  const size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(cpu, bytes, set);
  pthread_setaffinity_np(thread.native_handle(), bytes, set);
  CPU_FREE(set);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, const std::vector<int>& cpus)
    : shares_(static_cast<size_t>(std::max(num_threads, 1))) {
  for (int i = 1; i < num_threads; ++i) {
    threads_.emplace_back([this, i] { Work(i); });
    if (static_cast<size_t>(i) < cpus.size()) PinThread(threads_.back(), cpus[static_cast<size_t>(i)]);
  }
}

ThreadPool::~ThreadPool() {
  ending_.store(true);
  {
    MutexLock lock(mutex_);
    loop_started_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::TakeTasks(int thread) {
  const size_t num_shares = shares_.size();
  for (size_t i = 0; i < num_shares; ++i) {
    Share& share = shares_[(static_cast<size_t>(thread) + i) % num_shares];
    // The first look spares the others' lines where nothing is left.
    if (share.next.load(std::memory_order_relaxed) >= share.end) continue;
    for (int64_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
      function_(context_, task, thread);
    }
  }
}

void ThreadPool::RunParallel(int64_t num_tasks, TaskFunction function, void* context) {
  const auto num_shares = static_cast<int64_t>(shares_.size());
  for (int64_t i = 0; i < num_shares; ++i) {
    Share& share = shares_[static_cast<size_t>(i)];
    share.next.store(num_tasks * i / num_shares, std::memory_order_relaxed);
    share.end = num_tasks * (i + 1) / num_shares;
  }
  function_ = function;
  context_ = context;
  left_.store(0, std::memory_order_relaxed);
  const uint64_t loop = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(loop << 32 | kOpen);
  // Sequentially consistent with the sleeper's "sleepers_, then state_": one of the two sees the other.
  if (sleepers_.load() > 0) {
    MutexLock lock(mutex_);
    loop_started_.NotifyAll();
  }
  TakeTasks(0);
  const uint64_t joined = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & (kOpen - 1);
  const auto all_left = [&] { return left_.load(std::memory_order_acquire) == joined; };
  // Workers that joined are inside their last task: they end without any event from outside.
  while (!SpinUntil(all_left)) std::this_thread::yield();
}

bool ThreadPool::WaitForLoop(uint64_t seen) {
  const auto ready = [&] {
    if (ending_.load(std::memory_order_relaxed)) return true;
    const uint64_t state = state_.load();
    return (state & kOpen) != 0 && state >> 32 != seen;
  };
  if (!SpinUntil(ready)) {
    MutexLock lock(mutex_);
    sleepers_.fetch_add(1);
    while (!ready()) loop_started_.WaitFor(mutex_, kSleepTime);
    sleepers_.fetch_sub(1);
  }
  return !ending_.load(std::memory_order_relaxed);
}

void ThreadPool::Work(int thread) {
  uint64_t seen = 0;
  while (WaitForLoop(seen)) {
    uint64_t state = state_.load();
    bool joined = false;
    while ((state & kOpen) != 0 && state >> 32 != seen && !joined) {
      joined = state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel);
    }
    if (!joined) continue;
    seen = state >> 32;
    TakeTasks(thread);
    left_.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace phalanx

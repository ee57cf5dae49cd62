// Mutex, MutexLock and CondVar over the standard library, with clang thread-safety attributes
// (-Wthread-safety). Used everywhere outside gRPC glue: ThreadSanitizer understands std::mutex, while a
// distribution's abseil is not built for it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"

namespace phalanx {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) { return mu_.try_lock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_.Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// A condition variable. There is deliberately no Wait without a deadline: every wait in this program has one.
class CondVar {
 public:
  using Clock = std::chrono::steady_clock;

  // Waits until notified or until `deadline`; false when the deadline passed. Wake-ups may be spurious:
  // callers loop on their own predicate.
  bool WaitUntil(Mutex& mu, Clock::time_point deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    // A wait on the system clock: glibc maps it to pthread_cond_timedwait, which ThreadSanitizer of GCC 12
    // knows, while pthread_cond_clockwait (steady clock) is invisible to it.
    const auto left = deadline - Clock::now();
    const bool notified =
        cv_.wait_until(lock, std::chrono::system_clock::now() + left) == std::cv_status::no_timeout;
    lock.release();
    return notified || Clock::now() < deadline;
  }
  bool WaitFor(Mutex& mu, Clock::duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return WaitUntil(mu, Clock::now() + timeout);
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace phalanx

// What the worker says of its own health: the age of its last step, and what it holds. Written by the group's
// thread, read by heartbeats and the health service.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/metrics.h"

namespace phalanx {

// Thread safety: any thread.
class WorkerVitals {
 public:
  // Steps end in the order in which they began. One thread tells of both.
  void StepBegins() {
    if (in_flight_.fetch_add(1, std::memory_order_relaxed) == 0) {
      step_began_.store(Now(), std::memory_order_relaxed);
    }
  }
  void StepEnds() {
    if (in_flight_.load(std::memory_order_relaxed) == 0) return;
    const int64_t now = Now();
    step_seconds_.Observe(static_cast<double>(now - step_began_.load(std::memory_order_relaxed)) * 1e-9);
    step_ended_.store(now, std::memory_order_relaxed);
    // One that was launched ahead runs from here on.
    step_began_.store(in_flight_.fetch_sub(1, std::memory_order_relaxed) > 1 ? now : 0,
                      std::memory_order_relaxed);
  }
  // No group any more: no step runs and nothing is held.
  void Reset() {
    in_flight_.store(0, std::memory_order_relaxed);
    step_began_.store(0, std::memory_order_relaxed);
    step_ended_.store(0, std::memory_order_relaxed);
    memory_bytes_.store(0, std::memory_order_relaxed);
  }
  void set_memory_bytes(int64_t bytes) { memory_bytes_.store(bytes, std::memory_order_relaxed); }

  // Seconds since the last completed step of the present group; -1 before the first.
  double last_step_age_seconds() const { return Age(step_ended_.load(std::memory_order_relaxed)); }
  // Seconds that the present step has been running; -1 between steps.
  double running_step_seconds() const { return Age(step_began_.load(std::memory_order_relaxed)); }
  // Of all groups so far.
  const metrics::Histogram& step_seconds() const { return step_seconds_; }
  int64_t memory_bytes() const { return memory_bytes_.load(std::memory_order_relaxed); }

 private:
  static int64_t Now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  static double Age(int64_t since) { return since == 0 ? -1 : static_cast<double>(Now() - since) * 1e-9; }

  static constexpr double kStepBounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                           0.25,   0.5,   1,      2.5,   5,    10,    60};

  metrics::Histogram step_seconds_{kStepBounds};
  std::atomic<int> in_flight_{0};
  std::atomic<int64_t> step_began_{0};  // of the oldest in flight; 0: none
  std::atomic<int64_t> step_ended_{0};
  std::atomic<int64_t> memory_bytes_{0};
};

}  // namespace phalanx

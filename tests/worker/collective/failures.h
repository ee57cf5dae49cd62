// What tests of failures share. A body's result is "" where all was well (group.h).
#pragma once

#include <chrono>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "worker/collective/collective.h"

namespace phalanx {

using Clock = std::chrono::steady_clock;

inline void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

inline int64_t MsSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

// "" when `status` has this code and names this, within the times.
inline std::string Expect(const absl::Status& status, absl::StatusCode code, const std::string& named,
                          Clock::time_point start, int64_t min_ms, int64_t max_ms) {
  const int64_t ms = MsSince(start);
  if (status.code() != code || !absl::StrContains(status.message(), named)) {
    return absl::StrCat("got ", status.ToString(), "; wanted ", absl::StatusCodeToString(code), " with ",
                        named);
  }
  if (ms < min_ms || ms > max_ms) {
    return absl::StrCat("after ", ms, " ms; wanted ", min_ms, " to ", max_ms);
  }
  return "";
}

// Barriers until one fails. The first may succeed: all had come to it, though some left or died in it.
inline absl::Status FailingBarrier(Collective& group) {
  absl::Status status = group.Barrier();
  return status.ok() ? group.Barrier() : status;
}

// All calls of a dead collective return what it died of.
inline std::string ExpectDead(Collective& group, const absl::Status& of) {
  float x = 0;
  const absl::Status again[] = {group.Barrier(), group.SumsBuffer(1).status(), group.TreeAllReduce(1, &x),
                                group.AllGather(&x, 0, &x), group.Broadcast(&x, 4, 0)};
  for (const absl::Status& status : again) {
    if (status != of) return absl::StrCat("died of ", of.ToString(), " but now says ", status.ToString());
  }
  return "";
}

}  // namespace phalanx

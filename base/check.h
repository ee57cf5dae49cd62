// PHX_CHECK(condition, message): ends the process with file, line and message where an invariant of our own
// is broken. Never for input: what comes from outside gets a Status.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace phalanx::internal {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition,
                                     const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", file, line, condition, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace phalanx::internal

// `message` is evaluated only on failure.
#define PHX_CHECK(condition, message)                                              \
  do {                                                                             \
    if (!(condition)) [[unlikely]]                                                 \
      ::phalanx::internal::CheckFailed(__FILE__, __LINE__, #condition, (message)); \
  } while (false)

// The rungs that tests of every rung run.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops.h"

namespace phalanx {

// Tests of the emulator take fewer and smaller cases.
#ifdef PHALANX_TESTED_DEVICE
inline constexpr bool kTestsDevice = true;
#else
inline constexpr bool kTestsDevice = false;
#endif

// All that this host has (or, in a test of a device, that); under the thread sanitizer the best one alone,
// since races lie in what shares out the work and not in the arithmetic, and the others would take it many
// minutes.
inline std::vector<std::string> TestedRungs() {
#if defined(PHALANX_TESTED_DEVICE)
  return {PHALANX_TESTED_DEVICE};
#elif defined(__SANITIZE_THREAD__)
  return {AvailableRungs().back()};
#else
  return AvailableRungs();
#endif
}

// Whether a test is to run on `rung` what other rungs run too: not under a sanitizer, where the best one is
// enough for that and the others would take minutes.
inline bool RepeatsOn([[maybe_unused]] const std::string& rung) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return rung == AvailableRungs().back();
#else
  return true;
#endif
}

}  // namespace phalanx

// The rungs that tests of every rung run.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace phalanx {

// Tests of a device take fewer and smaller cases: the emulator is slow.
#ifdef PHALANX_TESTED_DEVICE
inline constexpr bool kTestsDevice = true;
// The rung of the tests that were built for a device: the emulated one, or what PHALANX_TESTED_DEVICE names
// in the environment ("cuda": the module beside the test's binary).
inline std::string TestedDevice() {
  const char* device = std::getenv("PHALANX_TESTED_DEVICE");
  return device != nullptr ? device : PHALANX_TESTED_DEVICE;
}
// Of that device: "fast" in the environment's PHALANX_TESTED_MODE.
inline DeviceMode TestedMode() {
  const char* mode = std::getenv("PHALANX_TESTED_MODE");
  return mode != nullptr && std::string(mode) == "fast" ? DeviceMode::kFast : DeviceMode::kInvariant;
}
#else
inline constexpr bool kTestsDevice = false;
inline DeviceMode TestedMode() { return DeviceMode::kInvariant; }
#endif

// All that this host has (or, in a test of a device, that); under the thread sanitizer the best one alone,
// since races lie in what shares out the work and not in the arithmetic, and the others would take it many
// minutes.
inline std::vector<std::string> TestedRungs() {
#if defined(PHALANX_TESTED_DEVICE)
  return {TestedDevice()};
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

// The rungs that tests of every rung run.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops.h"

namespace phalanx {

// All that this host has; under the thread sanitizer the best one alone, since races lie in what shares out
// the work and not in the arithmetic, and the others would take it many minutes.
inline std::vector<std::string> TestedRungs() {
#ifdef __SANITIZE_THREAD__
  return {AvailableRungs().back()};
#else
  return AvailableRungs();
#endif
}

}  // namespace phalanx

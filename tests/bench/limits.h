// What this machine can do at most, measured in the same run as what is compared with it.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/ops.h"

namespace phalanx {

// Bytes a second that `num_threads` threads read from one buffer of `bytes`, each its own part, all at once;
// the best of several passes. A buffer that fits a cache gives the cache's bandwidth: compare only equal
// sizes.
double ReadBandwidth(int64_t bytes, int num_threads);

// Floating point operations a second of the instruction that the rung's products use, from registers. 0 for
// "reference", which has no limit worth the name.
double PeakFlops(const std::string& rung, Compute compute, int num_threads);

}  // namespace phalanx

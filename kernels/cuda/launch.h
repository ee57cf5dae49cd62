// How kernels are launched. Host code only.
#pragma once

#include <atomic>

namespace phalanx::cuda {

// From now on, in all of this process: a kernel may be launched while the one before it in its stream still
// runs. It waits for that one's results itself (WaitForPrevious in device.h), so that only its launch and
// what it does before that overlap. For devices whose machine code has that wait: sm_90.
inline std::atomic<bool> dependent_launch{false};

}  // namespace phalanx::cuda

// Times of ranks that leave a group whose memory is a device's.
#pragma once

#include <chrono>

namespace phalanx {

// So often a rank looks whether a peer left,
inline constexpr std::chrono::milliseconds kLeaveLook(50);
// and so long its call then goes on: the peer may have brought to it all that it needs.
inline constexpr std::chrono::milliseconds kLeaveGrace(500);
// A rank that leaves keeps so long what its peers have mapped: their kernels end before that, by half a
// second for threads that wake up late.
inline constexpr std::chrono::milliseconds kLeaveKeep =
    2 * kLeaveLook + kLeaveGrace + std::chrono::milliseconds(500);

}  // namespace phalanx

// Times of ranks that leave a group whose memory is a device's.
#pragma once

#include <chrono>

namespace phalanx {

// At most so long passes until a rank sees that a peer left,
inline constexpr std::chrono::milliseconds kLeaveLook(50);
// and so long its call then goes on: the peer may have brought to it all that it needs.
inline constexpr std::chrono::milliseconds kLeaveGrace(500);
// A rank that leaves keeps so long what its peers have mapped: their kernels end before that.
inline constexpr std::chrono::milliseconds kLeaveKeep =
    kLeaveLook + kLeaveGrace + std::chrono::milliseconds(100);

}  // namespace phalanx

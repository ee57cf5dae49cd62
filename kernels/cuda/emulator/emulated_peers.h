// PeerServices of the emulator: memory is the host's, and peers are other threads of this process. Streams
// run at once, so events are always done.
#pragma once

#include <memory>

#include "kernels/cuda/peers.h"

namespace phalanx::cuda {

std::unique_ptr<PeerServices> CreateEmulatedPeers();

}  // namespace phalanx::cuda

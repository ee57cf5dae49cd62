// PeerServices of a GPU.
#pragma once

#include <memory>

#include "kernels/cuda/peers.h"

namespace phalanx::cuda {

std::unique_ptr<PeerServices> CreateGpuPeers(int device);

}  // namespace phalanx::cuda

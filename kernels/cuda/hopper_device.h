// device.h's counterpart for sm_90a: the copy engine, its barriers and wgmma. Under nvcc each name is the
// instruction it says (and nothing for other architectures); under a host compiler it is the emulator's.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/hopper_layout.h"

#ifdef __CUDACC__
#include "kernels/cuda/hopper_ptx.h"
#else
#include "kernels/cuda/emulator/hopper_emulated.h"
#endif

namespace phalanx::cuda {

inline constexpr int kWarpGroup = 128;  // threads that wgmma takes

}  // namespace phalanx::cuda

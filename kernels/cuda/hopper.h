// Launchers of the kernels for sm_90a (mode `fast`). Results as in kernels.h; kNotTaken where a kernel is not
// for what it is given.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels.h"

namespace phalanx::cuda {

inline constexpr int kNotTaken = -1;
// Raised whenever their speed or bits change.
inline constexpr int kHopperVersion = 1;

// y = x W^T (+ bias), sums in fp32 in rising order of K. All rows begin at multiples of 16 bytes.
struct HopperGemmArgs {
  const uint16_t* weight = nullptr;  // [n, weight_stride]
  int64_t weight_stride = 0;
  const uint16_t* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  const float* bias = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;
  int rows = 0, n = 0, k = 0;
  bool y_fp32 = false;
  int multiprocessors = 0;
};
int LaunchHopperGemm(const HopperGemmArgs& args, bool half, void* stream);

// LaunchAttention for items of up to kHopperRows rows and key and value widths of up to 128, no latents.
inline constexpr int kHopperRows = 128;
bool HopperAttentionSupports(int key_dim, int value_dim, int block_size, bool latent);
// As many blocks as there are items.
int LaunchHopperAttention(const AttentionArgs& args, int blocks, bool half, void* stream);

}  // namespace phalanx::cuda

// What device code may use: the seam between kernels/cuda and the machine. Under nvcc each name is the
// instruction it says; under a host compiler it is the emulator's (emulator/simt.h). Kernels use nothing else
// of CUDA, so that one text runs on both.
//
// 16-bit activations and weights are uint16_t; a template parameter kHalf says whether they are fp16 (true)
// or bf16. Arithmetic whose bits matter is written with Fma, Mul, Add, Div and Sqrt, which round once each
// and are never contracted.
//
// Every thread of every kernel calls WaitForPrevious() before it ends, and before it touches memory that a
// kernel writes: what was launched before is done then, and what comes next may be launched (see launch.h).
// Weights, and what else only copies from the host write, may be read earlier.
//
// Sums inside one mma: a device adds the 16 products and the accumulator in an order, and with an alignment
// of its own, that is not specified; it is the same for equal operands, and each element of the result
// depends on its own row and column only. That is all the kernels rely on. The emulator adds the products
// (each exact in fp32) to the accumulator in rising order of k, rounding to nearest each time, so its bits
// are reproducible but are not a device's.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include "kernels/cuda/device_ptx.h"
#else
#include "kernels/cuda/emulator/device_emulated.h"
#endif

namespace phalanx::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

PHX_DEVICE float WarpMax(float v) {
  for (int offset = 16; offset > 0; offset >>= 1) v = Max(v, ShuffleXor(v, offset));
  return v;
}

// The one order of sums over a warp: neighbours first, as a tree.
PHX_DEVICE float WarpSum(float v) {
  for (int offset = 1; offset < kWarpSize; offset <<= 1) v = Add(v, ShuffleXor(v, offset));
  return v;
}

// Byte offset of 16-byte unit `unit` of row `row` in a tile whose rows take `row_bytes`, a multiple of 128:
// units of a row are exchanged by the row's low bits, so that the 8 rows of an ldmatrix, and 8 lanes that
// fill a row, touch all banks once.
PHX_DEVICE int Swizzled(int row, int unit, int row_bytes) {
  return row * row_bytes + ((unit ^ (row & 7)) << 4);
}

}  // namespace phalanx::cuda

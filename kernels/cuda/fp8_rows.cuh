// How rows become e4m3 (gemm_fp8.h), for kernels in which a thread takes units of 8 neighbouring columns.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_fp8.h"
#include "kernels/fp8.h"

namespace phalanx::cuda {

// The largest magnitude, a NaN above all: as the bits of a float without a sign, which order as integers do.
PHX_DEVICE uint32_t Largest8(const float (&v)[8]) {
  uint32_t largest = 0;
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) {
    const uint32_t bits = FloatBits(v[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
PHX_DEVICE uint32_t LargestOf(uint32_t v, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset >>= 1) {
    const auto other = static_cast<uint32_t>(ShuffleXor(static_cast<int>(v), offset));
    v = other > v ? other : v;
  }
  return v;
}

PHX_DEVICE float ScaleOf(uint32_t largest) {
  const float v = FloatFromBits(largest);
  return Div(v < kFp8Tiny ? kFp8Tiny : v, kE4m3Max);
}

PHX_DEVICE void StoreCodes(uint8_t* to, const float (&v)[8], float factor) {
  uint32_t words[2];
  PHX_UNROLL
  for (int i = 0; i < 2; ++i) {
    words[i] = PackE4m3(Mul(v[4 * i], factor), Mul(v[4 * i + 1], factor), Mul(v[4 * i + 2], factor),
                        Mul(v[4 * i + 3], factor));
  }
  *reinterpret_cast<uint64_t*>(to) = words[0] | static_cast<uint64_t>(words[1]) << 32;
}

// The largest of all threads' `v`; all of them call it. `shared`: of each warp.
template <int kThreads>
PHX_DEVICE uint32_t LargestOfBlock(uint32_t v, uint32_t* shared) {
  v = LargestOf(v, kWarpSize);
  if (ThreadIndex() % kWarpSize == 0) shared[ThreadIndex() / kWarpSize] = v;
  if (!PHX_FAULT(kFp8RowsNoBarrier)) SyncThreads();
  v = shared[0];
  PHX_UNROLL
  for (int w = 1; w < kThreads / kWarpSize; ++w) v = shared[w] > v ? shared[w] : v;
  return v;
}

// Of blocks' scaling: columns [c, c + 8) of a part whose codes begin at `codes`, in block `first_block` of
// the row, and end at `filled`, a multiple of 128. All lanes of a warp call it, each with the 8 columns
// behind those of the lane before.
PHX_DEVICE void StoreBlockCodes(const Fp8RowsOut& out, int64_t row, int first_block, uint8_t* codes, int c,
                                int filled, const float (&v)[8]) {
  constexpr int kLanes = kFp8Block / 8;
  const float scale = ScaleOf(LargestOf(Largest8(v), kLanes));
  if (c >= filled) return;
  StoreCodes(codes + c, v, Div(1.0f, scale));
  if (ThreadIndex() % kLanes == 0) out.scales[(first_block + c / kFp8Block) * out.rows_pitch + row] = scale;
}

}  // namespace phalanx::cuda

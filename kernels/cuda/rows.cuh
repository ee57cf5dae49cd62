// Reads and writes of up to 8 neighbouring 16-bit elements: one 16-byte access where they are whole and
// aligned. Which of the two ways is taken changes no bit of what is computed.
#pragma once

#include "kernels/cuda/device.h"

namespace phalanx::cuda {

template <bool kHalf>
PHX_DEVICE void Load8(const uint16_t* from, int64_t count, float (&v)[8]) {
  if (count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
    const Quad q = LoadQuad(from);
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = ToFloat<kHalf>(static_cast<uint16_t>(q.v[i]));
      v[2 * i + 1] = ToFloat<kHalf>(static_cast<uint16_t>(q.v[i] >> 16));
    }
    return;
  }
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = i < count ? ToFloat<kHalf>(from[i]) : 0.0f;
}

template <bool kHalf>
PHX_DEVICE void Store8(uint16_t* to, int64_t count, const float (&v)[8]) {
  if (count >= 8 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
    Quad q;
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) q.v[i] = Pack2<kHalf>(v[2 * i], v[2 * i + 1]);
    StoreQuad(to, q);
    return;
  }
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = FromFloat<kHalf>(v[i]);
  }
}

PHX_DEVICE void LoadFloats8(const float* from, int64_t count, float (&v)[8]) {
  if (count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
    PHX_UNROLL
    for (int h = 0; h < 2; ++h) {
      const Quad q = LoadQuad(from + h * 4);
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) v[h * 4 + i] = FloatFromBits(q.v[i]);
    }
    return;
  }
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = i < count ? from[i] : 0.0f;
}

// 8 elements as they are.
PHX_DEVICE Quad LoadBits8(const uint16_t* from, int64_t count) {
  if (count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0) return LoadQuad(from);
  Quad q;
  PHX_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < count ? from[2 * i] : 0;
    const uint32_t high = 2 * i + 1 < count ? from[2 * i + 1] : 0;
    q.v[i] = low | high << 16;
  }
  return q;
}

PHX_DEVICE void StoreBits8(uint16_t* to, int64_t count, const Quad& q) {
  if (count >= 8 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
    StoreQuad(to, q);
    return;
  }
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = static_cast<uint16_t>(q.v[i / 2] >> (i % 2 * 16));
  }
}

// silu(gate) * up.
PHX_DEVICE float Gated(float gate, float up) {
  constexpr float kLog2e = 1.44269504f;
  return Mul(Div(gate, Add(1.0f, Exp2(Mul(gate, -kLog2e)))), up);
}
// The same of a product's sums, which are rounded as if they were stored between the two.
template <bool kHalf>
PHX_DEVICE float GatedSums(float gate, float up) {
  return Gated(ToFloat<kHalf>(FromFloat<kHalf>(gate)), ToFloat<kHalf>(FromFloat<kHalf>(up)));
}

// One output of a product, in the form of y.
template <bool kHalf>
PHX_DEVICE void StoreSum(void* y, bool fp32, int64_t at, float sum) {
  if (fp32) {
    static_cast<float*>(y)[at] = sum;
  } else {
    static_cast<uint16_t*>(y)[at] = FromFloat<kHalf>(sum);
  }
}

// A warp's sums of m16n8k16.
template <int kTiles, int kGroups>
PHX_DEVICE void Clear(float (&acc)[kTiles][kGroups][4]) {
  PHX_UNROLL
  for (int m = 0; m < kTiles; ++m) {
    PHX_UNROLL
    for (int j = 0; j < kGroups; ++j) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i) acc[m][j][i] = 0;
    }
  }
}

inline int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace phalanx::cuda

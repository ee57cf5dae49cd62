// The exponential of kernels/numeric.h, to the same bits: choices between tokens and between experts must not
// depend on the backend.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/exp_constants.h"

namespace phalanx::cuda {

PHX_DEVICE float ExactExp(float x) {
  constexpr float kLowest = kExpLowest, kHighest = kExpHighest, kRound = kExpRound, kLog2 = kExpLog2e;
  constexpr float kHigh = kExpLn2High, kLow = kExpLn2Low;
  constexpr float c0 = kExpC[0], c1 = kExpC[1], c2 = kExpC[2], c3 = kExpC[3], c4 = kExpC[4], c5 = kExpC[5];
  if (x < kLowest) return 0.0f;
  if (x > kHighest) x = kHighest;
  const float shifted = Fma(x, kLog2, kRound);
  const float n = Sub(shifted, kRound);
  float r = Fma(n, -kHigh, x);
  r = Fma(n, -kLow, r);
  float p = Fma(Fma(Fma(Fma(Fma(c0, r, c1), r, c2), r, c3), r, c4), r, c5);
  p = Add(Fma(p, Mul(r, r), r), 1.0f);
  const uint32_t exponent = FloatBits(shifted) - FloatBits(kRound) + 127u;
  return Mul(p, FloatFromBits(exponent << 23));
}

}  // namespace phalanx::cuda

// Scalar number formats and the one exponential that every host backend computes to the same bits. Portable:
// compiled without instruction-set flags.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/exp_constants.h"

namespace phalanx {

inline float FloatFromBf16(uint16_t v) { return std::bit_cast<float>(static_cast<uint32_t>(v) << 16); }

// Round to nearest even; a NaN stays a (quiet) NaN.
inline uint16_t Bf16FromFloat(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline float RoundToBf16(float f) { return FloatFromBf16(Bf16FromFloat(f)); }

inline float FloatFromF16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  // Moves the bits to float's place and corrects the exponent's bias by a multiplication, exact for
  // subnormals too.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// e^x within 2 ulp in the normal range. source: Cephes expf, https://www.netlib.org/cephes/
inline float Exp(float x) {
  if (x < kExpLowest) return 0.0f;
  if (x > kExpHighest) x = kExpHighest;
  const float shifted = std::fmaf(x, kExpLog2e, kExpRound);
  const float n = shifted - kExpRound;
  float r = std::fmaf(n, -kExpLn2High, x);
  r = std::fmaf(n, -kExpLn2Low, r);
  float p = kExpC[0];
  for (int i = 1; i < 6; ++i) p = std::fmaf(p, r, kExpC[i]);
  p = std::fmaf(p, r * r, r) + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kExpRound) + 127u;
  return p * std::bit_cast<float>(exponent << 23);
}

}  // namespace phalanx

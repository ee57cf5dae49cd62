// e4m3 (OCP FP8; "fn": no infinities, NaN where all bits of exponent and mantissa are set, largest 448), on
// bits, so that host and device code (C++17) do the same.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PHX_FP8 __host__ __device__ constexpr
#else
#define PHX_FP8 constexpr
#endif

namespace phalanx {

inline constexpr float kE4m3Max = 448.0f;

// The float of these bits is `code`'s number times 2^-120, exactly, subnormal ones and zeros too; for codes
// that are no NaN (of one: 480). Bits of `code` above the lowest 8 are not looked at.
PHX_FP8 uint32_t E4m3TinyBits(uint32_t code) {
  return static_cast<uint32_t>(static_cast<int32_t>(code << 24) >> 4) & 0x87f00000u;
}
inline constexpr uint32_t kE4m3FromTiny = 0x7b800000u;  // 2^120, as a float's bits

// The same number as a float's bits, a NaN as a quiet one.
PHX_FP8 uint32_t FloatBitsFromE4m3(uint8_t code) {
  const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
  if (magnitude == 0x7f) return sign | 0x7fc00000u;
  if (magnitude >= 8) return sign | ((magnitude << 20) + (120u << 23));
  if (magnitude == 0) return sign;
  // Subnormal: 1 to 7 times 2^-9.
  const uint32_t top = magnitude >= 4 ? 2 : magnitude >= 2 ? 1 : 0;
  return sign | (127u - 9 + top) << 23 | (magnitude << (23 - top) & 0x7fffffu);
}

// Of a float's bits: round to nearest even; what is beyond 448, infinity too, becomes +-448; a NaN a NaN.
PHX_FP8 uint8_t E4m3FromFloatBits(uint32_t bits) {
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
  const uint32_t a = bits & 0x7fffffffu;
  uint32_t code = 0;
  if (a > 0x7f800000u) {
    code = 0x7f;
  } else if (a >= 0x43e00000u) {  // 448
    code = 0x7e;
  } else if (a >= 0x3c800000u) {  // 2^-6
    code = ((a + 0x7ffffu + (a >> 20 & 1)) >> 20) - (120u << 3);
  } else if (a >= 0x3a800000u) {  // 2^-10: half of the smallest
    const uint32_t shift = 141 - (a >> 23), mantissa = (a & 0x7fffffu) | 0x800000u;
    code = (mantissa + (1u << (shift - 1)) - 1 + (mantissa >> shift & 1)) >> shift;
  }
  return static_cast<uint8_t>(sign | code);
}

}  // namespace phalanx

#undef PHX_FP8

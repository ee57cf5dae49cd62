// The int8 KV cache: what a key or a value becomes when it is stored. Every backend holds the same bits.
//
// A head's channels are cut into groups of 32, counted from its first (the last may have fewer). Of a group:
//   scale = largest |x| / 127, rounded to bf16; q = x * (1 / scale), rounded to nearest even: -127..127.
//   scale = 0 and q = 0 where largest < 2^-100; scale = NaN and q = 0 where a NaN or an infinity is in it.
// What attention reads is q * scale: exact in fp32, and a NaN in the whole group of one. Backends whose tiles
// take bf16 round that to bf16, as they do with queries; all others compute with it as it is.
//
// Groups, and not a scale for a whole head, because single channels of keys are often many times larger than
// the others; they are of a head, so the number of ranks does not change them. Two bytes are enough for a
// scale: q is made with the rounded one, so its error is no error of the value.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/numeric.h"

namespace phalanx {

inline constexpr int kInt8KvGroup = 32;

inline constexpr int64_t Int8KvGroups(int64_t channels) {
  return (channels + kInt8KvGroup - 1) / kInt8KvGroup;
}

// Quantises one group, n <= kInt8KvGroup channels; returns its scale, a bf16.
inline uint16_t QuantiseInt8Kv(const float* x, int64_t n, int8_t* q) {
  int32_t bits = 0;  // of the largest |x|: these order as the numbers do, NaN above all
  for (int64_t i = 0; i < n; ++i) bits = std::max(bits, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  constexpr int32_t kInfinity = 0x7f800000, kTiny = (127 - 100) << 23;
  if (bits >= kInfinity || bits < kTiny) {
    std::fill_n(q, n, int8_t{0});
    return bits >= kInfinity ? 0x7fc0 : 0;
  }
  const uint16_t scale = Bf16FromFloat(std::bit_cast<float>(bits) / 127.0f);
  const float inverse = 1.0f / FloatFromBf16(scale);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
  for (int64_t i = 0; i < n; ++i) {
    q[i] = static_cast<int8_t>(static_cast<int32_t>((x[i] * inverse + kRound) - kRound));
  }
  return scale;
}

}  // namespace phalanx

// The KV caches of int8 and of fp8 (e4m3): what a key or a value becomes when it is stored. Every backend
// holds the same bits.
//
// A head's channels are cut into groups of 32, counted from its first (the last may have fewer). Of a group:
//   scale = largest |x| / 127 (fp8: / 448), rounded to bf16; code = x * (1 / scale), rounded to nearest even:
//   -127..127, or an e4m3 of at most 448.
//   scale = 0 and codes 0 where largest < 2^-100; scale = NaN and codes 0 where a NaN or an infinity is in
//   it.
// What attention reads is the code's number * scale: exact in fp32, and a NaN in the whole group of one.
// Backends whose tiles take bf16 round that to bf16, as they do with queries; those whose tiles take fp16
// round it to fp16, and what is beyond its range to its largest number, 65504: as a scale is rounded, 127 of
// them may be more than the largest |x| was, and a key that was rotated may be larger than fp16 holds. All
// others compute with it as it is.
//
// Groups, and not a scale for a whole head, because single channels of keys are often many times larger than
// the others; they are of a head, so the number of ranks does not change them. Two bytes are enough for a
// scale: codes are made with the rounded one, so its error is no error of the value. A power of two would do
// for fp8's range, but then the largest of a group, which counts most, would be rounded to 4 bits like the
// others.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/kv_type.h"
#include "kernels/fp8.h"
#include "kernels/kv_codec.h"
#include "kernels/numeric.h"

namespace phalanx {

constexpr KvCodec CodecOf(KvType type) {
  return type == KvType::kInt8 ? KvCodec::kInt8 : type == KvType::kFp8 ? KvCodec::kE4m3 : KvCodec::kNone;
}

constexpr int64_t NumKvGroups(int64_t channels) { return (channels + kKvGroup - 1) / kKvGroup; }

// A code's number.
template <KvCodec kCodec>
float KvNumber(uint8_t code) {
  static_assert(kCodec != KvCodec::kNone);
  if constexpr (kCodec == KvCodec::kInt8) return static_cast<float>(static_cast<int8_t>(code));
  return std::bit_cast<float>(FloatBitsFromE4m3(code));
}

// The code of the number nearest to x.
template <KvCodec kCodec>
uint8_t KvCode(float x) {
  static_assert(kCodec != KvCodec::kNone);
  if constexpr (kCodec == KvCodec::kE4m3) return E4m3FromFloatBits(std::bit_cast<uint32_t>(x));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
  return static_cast<uint8_t>(static_cast<int32_t>((x + kRound) - kRound));
}

// Quantises one group, n <= kKvGroup channels; returns its scale, a bf16.
template <KvCodec kCodec>
uint16_t QuantiseKv(const float* x, int64_t n, uint8_t* codes) {
  static_assert(kCodec != KvCodec::kNone);
  uint32_t bits = 0;  // of the largest |x|: these order as the numbers do, NaN above all
  for (int64_t i = 0; i < n; ++i) bits = std::max(bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  constexpr uint32_t kInfinity = 0x7f800000, kTiny = (127 - 100) << 23;
  if (bits >= kInfinity || bits < kTiny) {
    std::fill_n(codes, n, uint8_t{0});
    return bits >= kInfinity ? 0x7fc0 : 0;
  }
  constexpr float kMost = kCodec == KvCodec::kInt8 ? 127.0f : kE4m3Max;
  const uint16_t scale = Bf16FromFloat(std::bit_cast<float>(bits) / kMost);
  const float inverse = 1.0f / FloatFromBf16(scale);
  for (int64_t i = 0; i < n; ++i) codes[i] = KvCode<kCodec>(x[i] * inverse);
  return scale;
}

}  // namespace phalanx

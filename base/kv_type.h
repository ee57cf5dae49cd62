// What the elements of a KV cache are held in, and what flags and messages call it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace phalanx {

// The numbers are those of phalanx.v1.KvCacheDtype.
enum class KvType : uint8_t {
  kAuto,  // what belongs to the arithmetic: bf16 in fast, fp32 in fp32
  kBf16,
  kF32,
  kInt8,  // with a scale for each 32 channels: kernels/quantised_kv.h
  kFp8,   // e4m3, likewise
};

inline constexpr const char* kKvTypeNames[] = {"auto", "bf16", "fp32", "int8", "fp8"};
inline constexpr const char kKvTypeChoices[] = "auto, bf16, fp32, int8 or fp8";  // for messages

constexpr const char* KvTypeName(KvType type) { return kKvTypeNames[static_cast<int>(type)]; }

// Also of "fp8_e4m3", as vLLM's flag has it.
constexpr std::optional<KvType> KvTypeFromName(std::string_view name) {
  for (const KvType type : {KvType::kAuto, KvType::kBf16, KvType::kF32, KvType::kInt8, KvType::kFp8}) {
    if (name == KvTypeName(type)) return type;
  }
  if (name == "fp8_e4m3") return KvType::kFp8;
  return std::nullopt;
}

// Held in bytes with scales, which are of heads: there is none for latents (MLA).
constexpr bool IsQuantised(KvType type) { return type == KvType::kInt8 || type == KvType::kFp8; }

}  // namespace phalanx

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
  kInt8,  // with a scale for each 32 channels: kernels/int8_kv.h
};

inline constexpr const char* kKvTypeNames[] = {"auto", "bf16", "fp32", "int8"};

constexpr const char* KvTypeName(KvType type) { return kKvTypeNames[static_cast<int>(type)]; }

constexpr std::optional<KvType> KvTypeFromName(std::string_view name) {
  for (const KvType type : {KvType::kAuto, KvType::kBf16, KvType::kF32, KvType::kInt8}) {
    if (name == KvTypeName(type)) return type;
  }
  return std::nullopt;
}

}  // namespace phalanx

// What the bytes of a quantised KV cache are (quantised_kv.h). No functions here: device code and files that
// are compiled for an instruction set include this.
#pragma once

#include <stdint.h>

namespace phalanx {

enum class KvCodec : uint8_t {
  kNone,  // not quantised
  kInt8,
  kE4m3,
};

inline constexpr int kKvGroup = 32;  // channels of a scale

}  // namespace phalanx

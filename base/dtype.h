// Element types of tensors in files and in memory, and the sizes of their blocks.
#pragma once

#include <cstdint>
#include <string_view>

namespace phalanx {

enum class DType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };

// Elements a block covers (1 for plain types) and bytes a block takes. Blocks run along the innermost
// dimension. Layouts: GGUF's (Q8_0 {f16 d; i8[32]}, Q4_0 {f16 d; u8[16]}, Q4_1 {f16 d; f16 m; u8[16]}).
constexpr int64_t BlockElements(DType t) {
  return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16 ? 1 : 32;
}
constexpr int64_t BlockBytes(DType t) {
  switch (t) {
    case DType::kF32:
      return 4;
    case DType::kF16:
      return 2;
    case DType::kBF16:
      return 2;
    case DType::kQ8_0:
      return 34;
    case DType::kQ4_0:
      return 18;
    case DType::kQ4_1:
      return 20;
  }
  return 0;
}
// Bytes of `elements` consecutive elements; `elements` is a multiple of BlockElements(t).
constexpr int64_t RowBytes(DType t, int64_t elements) { return elements / BlockElements(t) * BlockBytes(t); }

constexpr std::string_view DTypeName(DType t) {
  switch (t) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kQ8_0:
      return "Q8_0";
    case DType::kQ4_0:
      return "Q4_0";
    case DType::kQ4_1:
      return "Q4_1";
  }
  return "?";
}

}  // namespace phalanx

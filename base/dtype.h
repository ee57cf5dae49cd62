// Element types of tensors in files and in memory, and the sizes of their blocks.
#pragma once

#include <cstdint>
#include <string_view>

namespace phalanx {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kF8E4M3,  // of a matrix: with WeightSource::scales
  kAwq,     // 4-bit of a matrix, 8 in a 32-bit word: see WeightSource::groups
  kGptq,
};

// Elements a block covers (1 for plain types) and bytes a block takes. Blocks run along the innermost
// dimension. Layouts: GGUF's (Q8_0 {f16 d; i8[32]}, Q4_0 {f16 d; u8[16]}, Q4_1 {f16 d; f16 m; u8[16]};
// Q4_K {f16 d, dmin; u8 scales[12]; u8 qs[128]}, Q5_K {f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 qs[128]},
// Q6_K {u8 ql[128], qh[64]; i8 scales[16]; f16 d}).
constexpr int64_t BlockElements(DType t) {
  switch (t) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kF8E4M3:
      return 1;
    case DType::kAwq:
    case DType::kGptq:
      return 8;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      return 32;
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
      return 256;
  }
  return 1;
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
    case DType::kQ4_K:
      return 144;
    case DType::kQ5_K:
      return 176;
    case DType::kQ6_K:
      return 210;
    case DType::kF8E4M3:
      return 1;
    case DType::kAwq:
    case DType::kGptq:
      return 4;
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
    case DType::kQ4_K:
      return "Q4_K";
    case DType::kQ5_K:
      return "Q5_K";
    case DType::kQ6_K:
      return "Q6_K";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kAwq:
      return "AWQ";
    case DType::kGptq:
      return "GPTQ";
  }
  return "?";
}

}  // namespace phalanx

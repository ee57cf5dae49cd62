#include "kernels/dequantize.h"

#include <algorithm>
#include <cstring>

#include "kernels/numeric.h"

namespace phalanx {
namespace {

uint16_t LoadU16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// Calls block(bytes of the block, first, last, out) for the part [first, last) of each 32-element block.
template <typename Block>
void ForBlocks(const uint8_t* row, int64_t block_bytes, int64_t begin, int64_t end, float* out, Block block) {
  for (int64_t c = begin; c < end;) {
    const int64_t b = c / 32;
    const int64_t last = std::min<int64_t>(end, (b + 1) * 32);
    block(row + b * block_bytes, static_cast<int>(c - b * 32), static_cast<int>(last - b * 32), out);
    out += last - c;
    c = last;
  }
}

int Nibble(const uint8_t* q, int j) { return j < 16 ? q[j] & 0xf : q[j - 16] >> 4; }

}  // namespace

void DequantizeRow(DType dtype, const void* row, int64_t begin, int64_t end, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(row);
  if (end <= begin) return;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, bytes + begin * 4, static_cast<size_t>(end - begin) * 4);
      return;
    case DType::kF16:
      for (int64_t c = begin; c < end; ++c) out[c - begin] = FloatFromF16(LoadU16(bytes + c * 2));
      return;
    case DType::kBF16:
      for (int64_t c = begin; c < end; ++c) out[c - begin] = FloatFromBf16(LoadU16(bytes + c * 2));
      return;
    case DType::kQ8_0:
      ForBlocks(bytes, BlockBytes(dtype), begin, end, out,
                [](const uint8_t* b, int first, int last, float* o) {
                  const float d = FloatFromF16(LoadU16(b));
                  for (int j = first; j < last; ++j)
                    *o++ = d * static_cast<float>(static_cast<int8_t>(b[2 + j]));
                });
      return;
    case DType::kQ4_0:
      ForBlocks(bytes, BlockBytes(dtype), begin, end, out,
                [](const uint8_t* b, int first, int last, float* o) {
                  const float d = FloatFromF16(LoadU16(b));
                  for (int j = first; j < last; ++j) *o++ = d * static_cast<float>(Nibble(b + 2, j) - 8);
                });
      return;
    case DType::kQ4_1:
      ForBlocks(bytes, BlockBytes(dtype), begin, end, out,
                [](const uint8_t* b, int first, int last, float* o) {
                  const float d = FloatFromF16(LoadU16(b));
                  const float m = FloatFromF16(LoadU16(b + 2));
                  for (int j = first; j < last; ++j) *o++ = d * static_cast<float>(Nibble(b + 4, j)) + m;
                });
      return;
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
    case DType::kF8E4M3:
    case DType::kAwq:
    case DType::kGptq:
      return;  // no file reader gives these yet
  }
}

void DequantizeRow(const WeightSource& source, int64_t row, int64_t begin, int64_t end, float* out) {
  const int64_t row_bytes = RowBytes(source.dtype, source.cols);
  const auto* bytes = static_cast<const uint8_t*>(source.data) + (source.first_row + row) * row_bytes;
  DequantizeRow(source.dtype, bytes, begin, end, out);
}

}  // namespace phalanx

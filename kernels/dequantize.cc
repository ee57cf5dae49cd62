#include "kernels/dequantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "kernels/fp8.h"
#include "kernels/numeric.h"

namespace phalanx {
namespace {

uint16_t LoadU16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// Calls block(bytes of the block, first, last, out) for the part [first, last) of each block of kElements.
template <int64_t kElements, typename Block>
void ForBlocks(const uint8_t* row, int64_t block_bytes, int64_t begin, int64_t end, float* out, Block block) {
  for (int64_t c = begin; c < end;) {
    const int64_t b = c / kElements;
    const int64_t last = std::min<int64_t>(end, (b + 1) * kElements);
    block(row + b * block_bytes, static_cast<int>(c - b * kElements), static_cast<int>(last - b * kElements),
          out);
    out += last - c;
    c = last;
  }
}

int Nibble(const uint8_t* q, int j) { return j < 16 ? q[j] & 0xf : q[j - 16] >> 4; }

// The K types: blocks of 256 in sub-blocks with their own scales. All is rounded as gguf's numpy code does:
// scale times the block's first, then times the number, then less the minimum.

// The 6-bit scale and minimum of sub-block j of Q4_K and Q5_K.
void ScaleMin(const uint8_t* packed, int j, int* scale, int* min) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *min = packed[j + 4] & 63;
  } else {
    *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    *min = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
  }
}

// Q4_K and Q5_K; `high` holds bit 4 of the numbers, null for Q4_K.
void BlockOfQ45(const uint8_t* b, const uint8_t* high, const uint8_t* low, int first, int last, float* out) {
  const float d = FloatFromF16(LoadU16(b)), dmin = FloatFromF16(LoadU16(b + 2));
  while (first < last) {
    const int j = first / 32, end = std::min(last, (j + 1) * 32);
    int scale = 0, min = 0;
    ScaleMin(b + 4, j, &scale, &min);
    const float ds = d * static_cast<float>(scale), dm = dmin * static_cast<float>(min);
    const uint8_t* q = low + j / 2 * 32;
    const int shift = j % 2 * 4;
    for (int e = first; e < end; ++e) {
      int number = q[e % 32] >> shift & 15;
      if (high != nullptr) number |= (high[e % 32] >> j & 1) << 4;
      *out++ = ds * static_cast<float>(number) - dm;
    }
    first = end;
  }
}

void BlockOfQ6(const uint8_t* b, int first, int last, float* out) {
  const float d = FloatFromF16(LoadU16(b + 208));
  while (first < last) {
    const int j = first / 16, end = std::min(last, (j + 1) * 16);
    const float ds = d * static_cast<float>(static_cast<int8_t>(b[192 + j]));
    const int half = first / 128, low_shift = first % 128 / 64 * 4, high_shift = first % 128 / 32 * 2;
    const uint8_t *low = b + half * 64, *high = b + 128 + half * 32;
    for (int e = first; e < end; ++e) {
      const int number = (low[e % 64] >> low_shift & 15) | (high[e % 32] >> high_shift & 3) << 4;
      *out++ = ds * static_cast<float>(number - 32);
    }
    first = end;
  }
}

constexpr std::array<float, 256> MakeE4M3() {
  std::array<float, 256> values{};
  for (size_t code = 0; code < 256; ++code) {
    values[code] = std::bit_cast<float>(FloatBitsFromE4m3(static_cast<uint8_t>(code)));
  }
  return values;
}
constexpr std::array<float, 256> kE4M3 = MakeE4M3();

float LoadFloat(DType dtype, const void* data, int64_t index) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  float value = 0;
  if (dtype == DType::kF32) {
    std::memcpy(&value, bytes + index * 4, sizeof(value));
  } else {
    const uint16_t half = LoadU16(bytes + index * 2);
    value = dtype == DType::kF16 ? FloatFromF16(half) : FloatFromBf16(half);
  }
  return value;
}

int32_t LoadI32(const void* data, int64_t index) {
  int32_t v;
  std::memcpy(&v, static_cast<const uint8_t*>(data) + index * 4, sizeof(v));
  return v;
}

void RowOfF8(const WeightSource& source, const uint8_t* bytes, int64_t row, int64_t begin, int64_t end,
             float* out) {
  const WeightScales& scales = source.scales;
  const int64_t first_scale = row / scales.block_rows * scales.stride;
  for (int64_t c = begin; c < end;) {
    const int64_t block = c / scales.block_cols;
    const int64_t last = std::min(end, (block + 1) * scales.block_cols);
    const float scale = LoadFloat(scales.dtype, scales.data, first_scale + block);
    for (; c < last; ++c) *out++ = kE4M3[bytes[c]] * scale;
  }
}

// ---- 4-bit matrices that lie transposed ---------------------------------------------------------

constexpr int kStripRows = 16, kStripCols = 32;

// Scales and zeros of one group, for a strip of rows.
struct StripGroup {
  int64_t group = -1;
  float scale[kStripRows];
  int zero[kStripRows];
};

// Where AWQ keeps row r of 8 in a word.
constexpr int kAwqShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};

int NumberIn(bool awq, uint32_t word, int64_t row) {
  return static_cast<int>(word >> (awq ? kAwqShift[row % 8] : static_cast<int>(row % 8) * 4) & 15);
}

void LoadGroup(const WeightSource& s, int64_t group, int64_t first_row, int rows, StripGroup* out) {
  if (out->group == group) return;
  out->group = group;
  const int64_t words = s.stored_rows / 8;
  for (int i = 0; i < rows; ++i) {
    const int64_t row = first_row + i;
    const auto word = static_cast<uint32_t>(LoadI32(s.groups.zeros, group * words + row / 8));
    out->scale[i] = LoadFloat(s.groups.scales_dtype, s.groups.scales, group * s.stored_rows + row);
    out->zero[i] = NumberIn(s.dtype == DType::kAwq, word, row) + s.groups.zero_offset;
  }
}

// Rows [first_row, first_row + rows) of the stored matrix. Whole words are read along the file's rows, and
// what they make is put in place by strips.
void Strip(const WeightSource& s, int64_t first_row, int rows, Range cols, float* out, int64_t out_stride) {
  const bool awq = s.dtype == DType::kAwq;
  const int64_t words = s.stored_rows / 8;
  StripGroup group;
  float tile[kStripRows][kStripCols];
  for (int64_t begin = cols.begin; begin < cols.end; begin += kStripCols) {
    const int count = static_cast<int>(std::min<int64_t>(kStripCols, cols.end - begin));
    for (int k = 0; k < count; ++k) {
      const int64_t c = begin + k;
      LoadGroup(s, s.groups.group_of == nullptr ? c / s.groups.group_size : LoadI32(s.groups.group_of, c),
                first_row, rows, &group);
      if (awq) {
        for (int i = 0; i < rows; ++i) {
          const int64_t row = first_row + i;
          const auto word = static_cast<uint32_t>(LoadI32(s.data, c * words + row / 8));
          tile[i][k] = static_cast<float>(NumberIn(true, word, row) - group.zero[i]) * group.scale[i];
        }
      } else {
        const int shift = static_cast<int>(c % 8) * 4;
        for (int i = 0; i < rows; ++i) {
          const auto word = static_cast<uint32_t>(LoadI32(s.data, c / 8 * s.stored_rows + first_row + i));
          tile[i][k] =
              static_cast<float>(static_cast<int>(word >> shift & 15) - group.zero[i]) * group.scale[i];
        }
      }
    }
    for (int i = 0; i < rows; ++i) {
      std::copy_n(tile[i], count, out + i * out_stride + begin - cols.begin);
    }
  }
}

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
      ForBlocks<32>(bytes, BlockBytes(dtype), begin, end, out,
                    [](const uint8_t* b, int first, int last, float* o) {
                      const float d = FloatFromF16(LoadU16(b));
                      for (int j = first; j < last; ++j)
                        *o++ = d * static_cast<float>(static_cast<int8_t>(b[2 + j]));
                    });
      return;
    case DType::kQ4_0:
      ForBlocks<32>(bytes, BlockBytes(dtype), begin, end, out,
                    [](const uint8_t* b, int first, int last, float* o) {
                      const float d = FloatFromF16(LoadU16(b));
                      for (int j = first; j < last; ++j) *o++ = d * static_cast<float>(Nibble(b + 2, j) - 8);
                    });
      return;
    case DType::kQ4_1:
      ForBlocks<32>(bytes, BlockBytes(dtype), begin, end, out,
                    [](const uint8_t* b, int first, int last, float* o) {
                      const float d = FloatFromF16(LoadU16(b));
                      const float m = FloatFromF16(LoadU16(b + 2));
                      for (int j = first; j < last; ++j) *o++ = d * static_cast<float>(Nibble(b + 4, j)) + m;
                    });
      return;
    case DType::kQ4_K:
      ForBlocks<256>(bytes, BlockBytes(dtype), begin, end, out,
                     [](const uint8_t* b, int first, int last, float* o) {
                       BlockOfQ45(b, nullptr, b + 16, first, last, o);
                     });
      return;
    case DType::kQ5_K:
      ForBlocks<256>(bytes, BlockBytes(dtype), begin, end, out,
                     [](const uint8_t* b, int first, int last, float* o) {
                       BlockOfQ45(b, b + 16, b + 48, first, last, o);
                     });
      return;
    case DType::kQ6_K:
      ForBlocks<256>(bytes, BlockBytes(dtype), begin, end, out, BlockOfQ6);
      return;
    case DType::kF8E4M3:
      for (int64_t c = begin; c < end; ++c) out[c - begin] = kE4M3[bytes[c]];
      return;
    case DType::kAwq:
    case DType::kGptq:
      PHX_CHECK(false, "a matrix of 4-bit words has no rows that stand alone");
  }
}

void DequantizeRow(const WeightSource& source, int64_t row, int64_t begin, int64_t end, float* out) {
  DequantizeTile(source, {row, row + 1}, {begin, end}, out, end - begin);
}

void DequantizeTile(const WeightSource& source, Range rows, Range cols, float* out, int64_t out_stride) {
  if (source.dtype == DType::kAwq || source.dtype == DType::kGptq) {
    for (int64_t r = rows.begin; r < rows.end; r += kStripRows) {
      const int count = static_cast<int>(std::min<int64_t>(kStripRows, rows.end - r));
      Strip(source, source.first_row + r, count, cols, out + (r - rows.begin) * out_stride, out_stride);
    }
    return;
  }
  const int64_t row_bytes = RowBytes(source.dtype, source.cols);
  for (int64_t r = rows.begin; r < rows.end; ++r, out += out_stride) {
    const int64_t stored_row = source.first_row + r;
    const auto* bytes = static_cast<const uint8_t*>(source.data) + stored_row * row_bytes;
    if (source.scales.data != nullptr) {
      RowOfF8(source, bytes, stored_row, cols.begin, cols.end, out);
    } else {
      DequantizeRow(source.dtype, bytes, cols.begin, cols.end, out);
    }
  }
}

}  // namespace phalanx

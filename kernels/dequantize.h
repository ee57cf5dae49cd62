// Reads weights of any file type as fp32.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/ops.h"

namespace phalanx {

// out[0, end - begin) = columns [begin, end) of the row at `row`, which lies in `dtype` as dtype.h says. Any
// cut is legal, also inside a quantisation block. Not of kAwq and kGptq, whose rows do not stand alone; of
// kF8E4M3 without a scale.
void DequantizeRow(DType dtype, const void* row, int64_t begin, int64_t end, float* out);

// Row `row` of a matrix of any type, with its scales. Bits: of block types those of gguf's numpy code (each
// product and difference rounded to fp32); of kF8E4M3 the number times its scale, rounded once; of kAwq and
// kGptq (number - zero) * scale, which is exact for fp16 and bf16 scales.
void DequantizeRow(const WeightSource& source, int64_t row, int64_t begin, int64_t end, float* out);

// The same of several rows and columns: row i of them at out + i * out_stride. Many rows at once are much
// faster for kAwq and kGptq.
void DequantizeTile(const WeightSource& source, Range rows, Range cols, float* out, int64_t out_stride);

}  // namespace phalanx

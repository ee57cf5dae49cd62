// Reads weights of any file type as fp32.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/ops.h"

namespace phalanx {

// out[0, end - begin) = columns [begin, end) of the row at `row`, which lies in `dtype` as dtype.h says. Any
// cut is legal, also inside a quantisation block.
void DequantizeRow(DType dtype, const void* row, int64_t begin, int64_t end, float* out);

// The same of row `row` of a matrix of any type.
void DequantizeRow(const WeightSource& source, int64_t row, int64_t begin, int64_t end, float* out);

}  // namespace phalanx

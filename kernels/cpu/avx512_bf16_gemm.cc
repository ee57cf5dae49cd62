// Products with AVX512_BF16: bf16 times bf16, pairs of k an instruction, fp32 sums. A sum is a chain over
// pairs of k, whatever the number of rows; activations are rounded to bf16 as AMX's are.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/avx512_product.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

struct PairWords {
  using Row = uint32_t;  // k in the low half, k + 1 in the high one
  using Panel = uint32_t;
  static constexpr int kDepth = 2, kRun = 16;
  static __m512 LoadRow(const uint32_t* x) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*x)));
  }
  static __m512 LoadPanel(const uint32_t* w) { return _mm512_loadu_ps(w); }
  static __m512 MultiplyAdd(__m512 row, __m512 panel, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(row), reinterpret_cast<__m512bh>(panel));
  }
};

constexpr int kUnit = kPairDepth;  // k of a run

}  // namespace

// A tile holds, for each 32 k, its rows' 32 values. Rows up to tile_rows, and k behind depth, are zero.
void Avx512PackRowsBf16(const float* x, int64_t stride, int rows, int tile_rows, int64_t depth, void* tile,
                        int64_t begin) {
  uint16_t* out = static_cast<uint16_t*>(tile) + begin * tile_rows;
  for (int64_t k = 0; k < depth; k += kUnit, out += tile_rows * kUnit) {
    const int64_t left = depth - k;
    const __mmask16 low = FirstLanes(left), high = FirstLanes(left - 16);
    for (int i = 0; i < tile_rows; ++i) {
      __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
      if (i < rows) {
        a = _mm512_maskz_loadu_ps(low, x + i * stride + k);
        b = _mm512_maskz_loadu_ps(high, x + i * stride + k + 16);
      }
      const __m512bh both = _mm512_cvtne2ps_pbh(b, a);
      memcpy(out + i * kUnit, &both, sizeof(both));
    }
  }
}

// Pairs of k become words, words of 16 outputs are transposed.
// source: Intel SDM, TDPBF16PS: of the second operand, row r holds the pairs k = 2r, 2r + 1.
void Avx512PackWeightsBf16Pairs(const float* rows, int64_t stride, int64_t depth, void* panel) {
  auto* out = static_cast<uint16_t*>(panel);
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t left = depth - k;
    const __mmask16 mask = FirstLanes(left);
    for (int half = 0; half < 2; ++half) {
      __m256 words[8];
      for (int j = 0; j < 8; ++j) {
        const __m512 x = _mm512_maskz_loadu_ps(mask, rows + (half * 8 + j) * stride + k);
        const __m256bh rounded = _mm512_cvtneps_pbh(x);
        memcpy(&words[j], &rounded, sizeof(rounded));
      }
      Transpose8(words);
      for (int pair = 0; pair < 8 && 2 * pair < left; ++pair) {
        memcpy(out + (k / 2 + pair) * 2 * kPanel + half * kPanel, &words[pair], sizeof(__m256));
      }
    }
  }
}

const GemmKernels kAvx512Bf16Gemm = {.format = PanelFormat::kBf16Pairs,
                                     .k_unit = kUnit,
                                     .pad_weights = true,
                                     .weight_bytes = 2,
                                     .row_bytes = 2,
                                     .max_tile_rows = kMaxTileRows,
                                     .balanced = true,
                                     .block_rows = 96,
                                     .block_panels = 8,
                                     .deep_block_panels = 8,
                                     .shallow_k = 0,
                                     .pack = Avx512PackRowsBf16,
                                     .pack_weights = Avx512PackWeightsBf16Pairs,
                                     .product = Product<PairWords>,
                                     .block_tree = BlockTree<PairWords>,
                                     .many_rows_tree = nullptr,
                                     .tree_depth = 4096,
                                     .begin_task = nullptr,
                                     .end_task = nullptr,
                                     .attention_chunk = Avx512Bf16AttentionChunk};

}  // namespace phalanx

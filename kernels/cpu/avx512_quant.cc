// Quantised weights with AVX-512 and its VNNI: rows as the sum of two int8, up to four rows share a load of
// weights.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/quant_kernels.h"

namespace phalanx {
namespace {

constexpr int kMaxRows = 4;

// Integers, sx, sx * sum and -offset * sum of 32 columns.
inline void PackBlock(const float* x, int offset, char* ints, float* scale, float* scaled_sum,
                      int32_t* start) {
  const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  // As integers, magnitudes are ordered like the numbers, infinities and then NaNs above.
  const auto bits = static_cast<uint32_t>(
      _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                               _mm512_and_si512(_mm512_castps_si512(high), magnitude))));
  float largest;
  memcpy(&largest, &bits, sizeof(largest));
  if (!(largest >= kQuantTiny) || bits >= 0x7f800000u) {
    const float none = bits >= 0x7f800000u ? __builtin_nanf("") : 0.0f;
    _mm512_storeu_si512(ints, _mm512_setzero_si512());
    *scale = *scaled_sum = none;
    *start = 0;
    return;
  }
  const __m512 inverse = _mm512_set1_ps(kQuantLargest / largest);
  const __m512i x0 = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
  const __m512i x1 = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
  const __m512i half0 = _mm512_srai_epi32(x0, 1), half1 = _mm512_srai_epi32(x1, 1);
  auto* out = reinterpret_cast<__m128i*>(ints);
  _mm_storeu_si128(out, _mm512_cvtepi32_epi8(half0));
  _mm_storeu_si128(out + 1, _mm512_cvtepi32_epi8(half1));
  _mm_storeu_si128(out + 2, _mm512_cvtepi32_epi8(_mm512_sub_epi32(x0, half0)));
  _mm_storeu_si128(out + 3, _mm512_cvtepi32_epi8(_mm512_sub_epi32(x1, half1)));
  const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(x0, x1));
  *scale = largest / kQuantLargest;
  *scaled_sum = *scale * static_cast<float>(sum);
  *start = -offset * sum;
}

inline __m512i Broadcast(const char* p) {
  int32_t word;
  memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(word);
}

struct Rows {
  const char* ints;
  const float* scale;
  const float* scaled_sum;
  const int32_t* start;
  int stride;  // rows of a block
};

inline Rows RowsAt(const QuantProductParams& p, int tile) {
  const char* a = p.a + tile * p.tile_bytes;
  const int64_t all = p.row_blocks * p.tile_rows;
  const auto* scale = reinterpret_cast<const float*>(a + all * 64);
  return {a, scale, scale + all, reinterpret_cast<const int32_t*>(scale + 2 * all), p.tile_rows};
}

// sum += one panel times kRows rows, blocks [begin, begin + blocks).
template <QuantType kType, int kRows, bool kPrefetch>
[[gnu::always_inline]] inline void AddBlocks(Rows a, const char* w, const char* scales, int64_t begin,
                                             int64_t blocks, __m512 (&sum)[kRows]) {
  constexpr int kAhead = 4096;
  w += begin * QuantDataBytes(kType);
  scales += begin * QuantScaleBytes(kType);
  a.ints += begin * a.stride * 64;
  a.scale += begin * a.stride;
  a.scaled_sum += begin * a.stride;
  a.start += begin * a.stride;
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i s1[kRows], s2[kRows];
    for (int r = 0; r < kRows; ++r) {
      s1[r] = _mm512_set1_epi32(a.start[r]);
      s2[r] = _mm512_setzero_si512();
    }
    const auto multiply = [&](__m512i weights, int quad) {
      for (int r = 0; r < kRows; ++r) {
        const char* x = a.ints + r * 64 + quad * 4;
        s1[r] = _mm512_dpbusd_epi32(s1[r], weights, Broadcast(x));
        s2[r] = _mm512_dpbusd_epi32(s2[r], weights, Broadcast(x + 32));
      }
    };
    if constexpr (kType == QuantType::kQ8_0) {
      for (int quad = 0; quad < 8; ++quad) {
        const __m512i raw = _mm512_loadu_si512(w + quad * 64);
        if (kPrefetch) _mm_prefetch(w + quad * 64 + kAhead, _MM_HINT_T0);
        multiply(_mm512_xor_si512(raw, _mm512_set1_epi8(static_cast<char>(0x80))), quad);
      }
    } else {
      const __m512i nibble = _mm512_set1_epi8(15);
      for (int quad = 0; quad < 4; ++quad) {
        const __m512i raw = _mm512_loadu_si512(w + quad * 64);
        if (kPrefetch) _mm_prefetch(w + quad * 64 + kAhead, _MM_HINT_T0);
        multiply(_mm512_and_si512(raw, nibble), quad);
        multiply(_mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble), quad + 4);
      }
    }
    const __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
    __m512 m = _mm512_setzero_ps();
    if (kType == QuantType::kQ4_1) {
      m = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 32)));
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512 s = _mm512_cvtepi32_ps(_mm512_add_epi32(s1[r], s2[r]));
      sum[r] = _mm512_fmadd_ps(s, _mm512_mul_ps(d, _mm512_set1_ps(a.scale[r])), sum[r]);
      if (kType == QuantType::kQ4_1) {
        sum[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(a.scaled_sum[r]), sum[r]);
      }
    }
    w += QuantDataBytes(kType);
    scales += QuantScaleBytes(kType);
    a.ints += a.stride * 64;
    a.scale += a.stride;
    a.scaled_sum += a.stride;
    a.start += a.stride;
  }
}

// Whole outputs of one panel and a tile's kRows rows: runs follow one another in memory, their sums are added
// in registers.
template <QuantType kType, int kRows, bool kPrefetch>
void PanelTree(const QuantProductParams& p, const QuantTree& t, int panel, int tile) {
  const Rows a = RowsAt(p, tile);
  const char* const w = p.w + panel * p.panel_bytes;
  const char* const scales = w + p.row_blocks * QuantDataBytes(kType);
  const __mmask16 lanes = FirstLanes(t.cols - int64_t{panel} * kPanel);
  const QuantRun* run = t.runs;
  __m512 pending[kMaxTreeLevels][kRows];
  for (int tree = 0; tree < t.num_trees; ++tree) {
    const int count = t.tree_runs[tree];
    __m512 sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = _mm512_setzero_ps();
    int top = 0;
    for (int s = 0; s < count; ++s, ++run) {
      if (s > 0) {
        for (int r = 0; r < kRows; ++r) {
          pending[top][r] = sum[r];
          sum[r] = _mm512_setzero_ps();
        }
        ++top;
      }
      AddBlocks<kType, kRows, kPrefetch>(a, w, scales, run->begin, run->blocks, sum);
      for (int merged = s; (merged & 1) != 0; merged >>= 1) {
        --top;
        for (int r = 0; r < kRows; ++r) sum[r] = _mm512_add_ps(pending[top][r], sum[r]);
      }
    }
    const int64_t first = int64_t{panel} * kPanel;
    float* const out = p.c + tree * t.tree_stride + int64_t{tile} * p.tile_rows * p.c_stride + first;
    for (int r = 0; r < kRows; ++r) {
      __m512 y = sum[r];
      if (t.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, t.bias + first));
      _mm512_mask_storeu_ps(out + r * p.c_stride, lanes, y);
    }
  }
}

template <QuantType kType, bool kPrefetch, int kRows = kMaxRows>
void TileTree(const QuantProductParams& p, const QuantTree& t, int panel, int tile, int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return TileTree<kType, kPrefetch, kRows - 1>(p, t, panel, tile, rows);
  }
  PanelTree<kType, kRows, kPrefetch>(p, t, panel, tile);
}

template <QuantType kType>
void Tree(const QuantProductParams& p, const QuantTree& t) {
  const int tiles = NumTiles(p.rows, p.tile_rows);
  for (int panel = 0; panel < p.num_panels; ++panel) {
    TileTree<kType, true>(p, t, panel, 0, p.rows);
    for (int tile = 1; tile < tiles; ++tile)
      TileTree<kType, false>(p, t, panel, tile, p.rows - tile * p.tile_rows);
  }
}

int TileRows(int rows) { return rows < kMaxRows ? rows : kMaxRows; }

}  // namespace

void Avx512QuantPack(const QuantPackParams& p) {
  const QuantTile& tile = p.tile;
  const int64_t all = tile.blocks * tile.rows;
  char* const ints = tile.data;
  auto* const scale = reinterpret_cast<float*>(tile.data + all * 64);
  float* const scaled_sum = scale + all;
  auto* const start = reinterpret_cast<int32_t*>(scale + 2 * all);
  const int64_t end = p.phase + p.depth;
  const int offset = QuantOffset(p.type);
  for (int r = 0; r < tile.rows; ++r) {
    const float* x = p.x + r * p.stride;
    for (int64_t b = 0; b * kQuantBlock < end && p.depth > 0; ++b) {
      const int64_t at = (p.begin + b) * tile.rows + r;
      const int64_t first = b * kQuantBlock - p.phase;  // in x, of the block
      if (r < p.rows && first >= 0 && first + kQuantBlock <= p.depth) {
        PackBlock(x + first, offset, ints + at * 64, scale + at, scaled_sum + at, start + at);
        continue;
      }
      float part[kQuantBlock] = {};
      for (int i = 0; r < p.rows && i < kQuantBlock; ++i) {
        if (first + i >= 0 && first + i < p.depth) part[i] = x[first + i];
      }
      PackBlock(part, offset, ints + at * 64, scale + at, scaled_sum + at, start + at);
    }
  }
}

void Avx512QuantTree(const QuantProductParams& p, const QuantTree& t) {
  switch (p.type) {
    case QuantType::kQ8_0:
      return Tree<QuantType::kQ8_0>(p, t);
    case QuantType::kQ4_0:
      return Tree<QuantType::kQ4_0>(p, t);
    case QuantType::kQ4_1:
      return Tree<QuantType::kQ4_1>(p, t);
  }
}

const QuantKernels kAvx512Quant = {.block_rows = 128,
                                   .tile_rows = TileRows,
                                   .pack = Avx512QuantPack,
                                   .product = nullptr,
                                   .tree = Avx512QuantTree,
                                   .tree_rows = INT32_MAX,
                                   .begin_task = nullptr,
                                   .end_task = nullptr};

}  // namespace phalanx
